"""The state of training, and how one update changes it; files, signals and progress bars belong to the loop."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.utils import _pytree as pytree

from diffkit.data.base import Batch, scale_images
from diffkit.errors import DivergedError
from diffkit.runtime.eval_mode import eval_mode
from diffkit.runtime.files import load_weights
from diffkit.system.codec import seeded_latents
from diffkit.system.conditions import mapped, rows_of
from diffkit.system.coupling import for_network, pair_noise
from diffkit.system.draws import Draws, seeded_draws, training_loss
from diffkit.system.learned import Trained
from diffkit.system.loss_network import NetworkCall
from diffkit.system.module import System
from diffkit.system.randomness import Purpose, key
from diffkit.system.settings import bins_of
from diffkit.training.augmentation import drop_conditions, dropout_seed, mirrored, with_noisy_low_res
from diffkit.training.buffers import Buffers
from diffkit.training.checkpoint import Files
from diffkit.training.config import TrainConfig
from diffkit.training.ema import Ema
from diffkit.training.engines import Engine
from diffkit.training.engines.engine import drop_gradients, gradients
from diffkit.training.loss_scale import LossScale
from diffkit.training.metrics import MetricsWindow, quartile_sums
from diffkit.training.optimizer_state import OptimizerState
from diffkit.training.precision import in_precision
from diffkit.training.state_check import check_checkpoint_state
from diffkit.training.teacher import RunningMean, is_running_mean, network_loss, teacher_call
from diffkit.training.trainable import Trainable
from diffkit.training.without_dynamo import without_dynamo

Terms = Mapping[str, Tensor]


class Trainer:
    """The state of training: a system, or a classifier of noisy data, with its optimizer and running means.

    Attributes:
        system: The system, with the network that the engine trains.
        network: That network; or a `Trained`, which has the modules of parts too.
        train_model: The callable to use instead of the network in an update.
        eval_model: The callable to use instead of the network without gradients.
        base_lrs: Learning rate of each of the optimizer's groups, without warm-up and schedule.
        step: Number of completed updates, including skipped ones.
        encoded: Whether batches hold moments of latents in place of data; see `diffkit.system.codec.seeded_latents`.
        window: The metrics since the last line of metrics.
        busy: Whether an update is changing the state now.
        after_backward: Called in each update when the gradients are complete, or None.
        consistent: Whether all of the state is that after ``step`` updates; False while an update changes it, after an
            error in the middle of a change, and within `averaged`.
    """

    def __init__(
        self,
        system: Trainable,
        network: nn.Module,
        config: TrainConfig,
        engine: Engine,
        teacher: System | None = None,
    ):
        self.config, self.engine, self.bins = config, engine, bins_of(system.settings)
        self.null = {name: mapped(self._moved, value) for name, value in (system.parts.null_conditions or {}).items()}
        loss = network_loss(system)
        wants_mean = loss is not None and is_running_mean(loss.teacher)
        copied = engine.prepare(copy.deepcopy(network)) if wants_mean else None
        self.network = engine.prepare(network)  # after the copy: it is the module that the engine remembers
        self.system = system.with_network(self.network)
        own = self.system.network
        assert own is not None, "checked before training"
        if config.compile:
            own.compile()
        # a loss that calls several modules, or one several times, is one call of the module that exchanges gradients
        several = isinstance(self.network, Trained)
        self.whole = engine.wrap(self.network if several else Trained(own)) if several or loss is not None else None
        trained = engine.wrap(own) if self.whole is None else own
        self.train_model = in_precision(trained, config.precision, engine.device)
        self.eval_model = in_precision(own, config.precision, engine.device)
        with without_dynamo():
            self.optimizer = engine.optimizer(self.network, config)
            self.optimizer_state = OptimizerState(self.optimizer, self.network)
        self.trained = list(self.optimizer_state.trained.items())
        self.base_lrs = [group["lr"] for group in self.optimizer.param_groups]
        self.scale = LossScale(config.precision == "fp16", engine.device)
        self.ema = Ema(self.network, config.ema, warmup=config.ema_warmup, widths=config.ema_power)
        self.mean: RunningMean | None = None
        self.teacher: NetworkCall | None = None
        if teacher is not None and teacher.network is not None:
            self.teacher = teacher_call(teacher.network, teacher, config, engine.device)
        elif copied is not None and loss is not None and isinstance(system, System):
            label = self.ema.labels[0] if loss.teacher == "ema" else str(loss.teacher)
            self.mean = RunningMean(copied, self.network, self.ema, label)
            averaged = system.with_network(copied).network
            assert averaged is not None, "it is a copy of one"
            self.teacher = teacher_call(averaged, system, config, engine.device)
        more: dict[str, Any] = {} if self.teacher is None else {"teacher": self.teacher}
        more |= {} if system.parts.codec is None else {"encoded": True}
        self.loss_terms = partial(self.system.loss_terms, **more) if more else self.system.loss_terms
        self.timesteps = pytree.tree_map(self._moved, system.parts.timesteps.init(system.table))
        self.step, self.encoded = 0, False
        self.window = MetricsWindow()
        self.names: tuple[str, ...] = ()
        self._last: tuple[Tensor, Tensor, Terms] | None = None
        self.busy, self.consistent, self.buffers = False, True, Buffers(self.network)
        self.after_backward: Callable[[], None] | None = None
        self.skipped = torch.zeros((), dtype=torch.int64, device=engine.device)
        self.consecutive_skips = self.skipped.clone()

    # ---- one update ------------------------------------------------------------------------------------------------

    def update(self, batch: Batch, draws: Draws | None = None) -> None:
        """Make one update, of the weights, their means, the timestep sampler and the metrics, with one batch.

        Args:
            batch: This process's slice of the batch, as the data returns it.
            draws: Levels and weights of the whole batch, noise of these rows; by default those of the seed and step.
        Raises:
            DivergedError: The loss or gradient was not finite for too many updates in a row.
        """
        config, size = self.config, self.config.batch_size
        self.buffers.snapshot()
        rows = self.engine.local_slice(size)
        x, conditions = self._inputs(batch, rows.start)
        if draws is None:
            draws = seeded_draws(
                self.system.parts, self.timesteps, config.seed, self.step, size, rows, self.system.device
            )
        draws = draws.to(self.engine.device)
        draws, given = self._coupled(x, draws, conditions, rows)
        mine = draws.some(rows)._replace(noise=draws.noise)
        if self.mean is not None:
            self.mean.renew()
        pieces = []
        for part in _microbatch_slices(len(x), config.microbatch):
            self.engine.seed(dropout_seed(config.seed, self.step, rows.start + part.start))
            picked = rows_of(given, range(part.start, part.stop)) if given else given
            with self.engine.accumulating(last=part.stop == len(x)):
                pieces.append(self._loss(x[part], mine.some(part), picked))
        whole = not pieces[1:]
        terms = pieces[0] if whole else {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}
        self._finish(batch, draws, terms)

    def _inputs(self, batch: Batch, start: int) -> tuple[Tensor, dict[str, Any]]:
        """Return latents and conditions for the network; the first example is number ``start`` of the whole batch."""
        config, seed, step = self.config, self.config.seed, self.step
        x = scale_images(self._moved(batch.images), self.bins)
        conditions = {name: mapped(self._moved, value) for name, value in batch.conditions.items()}
        if config.label_dropout > 0:
            conditions = drop_conditions(conditions, self.null, config.label_dropout, seed, step, len(x), start)
        for name, probability in config.dropouts.items() if config.condition_dropout else ():
            null = {name: self.null[name]}
            conditions = drop_conditions(conditions, null, probability, seed, step, len(x), start, name)
        if config.flip > 0:
            x, conditions = mirrored(x, conditions, config.flip, seed, step, start)
        if config.low_res_noise > 0:
            level = self.system.parts.reads_low_res_level
            conditions = with_noisy_low_res(conditions, config.low_res_noise, seed, step, len(x), start, level=level)
        return seeded_latents(self.system.parts, x, seed, step, start, self.encoded), conditions

    def _coupled(
        self, x: Tensor, draws: Draws, conditions: dict[str, Any], rows: slice
    ) -> tuple[Draws, Mapping[str, Any]]:
        """Return the draws with the coupling's noise of these rows, and the conditions that are for the network."""
        coupling, config = self.system.settings.coupling, self.config
        if coupling is None:
            return draws, conditions
        generator = torch.Generator().manual_seed(key(config.seed, Purpose.COUPLING, self.step) >> 1)
        given = {name: value for name, value in conditions.items() if isinstance(value, Tensor)}
        if coupling.scope == "batch":
            tensors = self.engine.gather({"x": x, "noise": draws.noise, **_prefixed(given)}, config.batch_size)
            given = {name: tensors[f"condition {name}"] for name in given}
            found = pair_noise(coupling, tensors["x"], tensors["noise"], given, generator)
            found = found._replace(noise=found.noise[rows])
        else:
            found = pair_noise(coupling, x, draws.noise, given, generator)
            if found.weight is not None:
                found = found._replace(weight=self.engine.gather({"weight": found.weight}, config.batch_size)["weight"])
        return draws.coupled(found), for_network(coupling, conditions)

    def _loss(self, x: Tensor, draws: Draws, conditions: Mapping[str, Any]) -> dict[str, Tensor]:
        """Add the gradients of some rows' share of the batch's mean loss; return their terms without gradients."""
        arguments = (self.loss_terms, self.train_model, x, draws, conditions)
        if self.whole is None:
            loss, terms = training_loss(*arguments)
        else:
            loss, terms = self.whole(partial(training_loss, *arguments))
        self.engine.backward(self.scale.scale_loss(loss.sum() / self.config.batch_size))
        return {name: value.detach() for name, value in terms.items()}

    def _finish(self, batch: Batch, draws: Draws, mine: Terms) -> None:
        """Step the optimizer if all values are finite, then update means, timestep sampler and metrics."""
        terms = self.engine.gather(mine, self.config.batch_size)
        if self.scale.active:
            self.scale.unscale_(gradients(self.trained))
        norm = self.engine.gradient_norm(self.trained)
        finite = norm.isfinite() & terms["loss"].isfinite().all()
        if self.after_backward is not None:
            self.after_backward()
        timesteps = self.system.parts.timesteps.update(self.timesteps, draws.level, terms["loss"])
        sums = quartile_sums(terms, draws.level, draws.weight, self.system.num_steps)
        with self._changing():
            self._step(norm, finite)
            self.ema.update(self.step)
            self.timesteps, self.names = timesteps, tuple(terms)
            self.window.add(sums, norm, finite)
            if not self._all_finite(finite):
                self.skipped += ~finite
                self.consecutive_skips = (self.consecutive_skips + 1) * ~finite
            self.step += 1
        self._last = batch.indices, draws.level, terms
        if self.engine.reads_free:
            self.raise_if_diverged()

    def _all_finite(self, finite: Tensor) -> bool:
        """Whether no update was skipped, this one and the last, so that there is nothing to count; unknown on a GPU."""
        return self.engine.reads_free and bool(finite) and not self.consecutive_skips

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Context for the part of an update that changes the state; what is likely to fail comes before it."""
        self.busy, self.consistent = True, False
        try:
            yield
            self.buffers.discard()
            self.consistent = True
        finally:
            self.busy = False

    def _step(self, norm: Tensor, finite: Tensor) -> None:
        """Clip the gradients, and take the optimizer's step if they are finite."""
        if self.config.grad_clip is not None:
            clipped = [p for _, p in self.trained if p.grad is not None]
            clip_grads_with_norm_(clipped, self.config.grad_clip, norm)
        for group, lr in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = self.config.lr_at(self.step, lr)
        self.engine.apply(self.optimizer, finite)
        drop_gradients(self.trained)
        self.scale.update(finite)

    def raise_if_diverged(self) -> None:
        """Raise `DivergedError`, with details of the last update, if too many consecutive updates were skipped.

        It is called after every update on a CPU, and with each line of metrics on a GPU, where it makes the host wait.
        """
        skips = int(self.consecutive_skips)
        if skips <= self.config.max_skips or self._last is None:
            return
        mine, level, terms = self._last
        indices = torch.cat(self.engine.ranks.gather(mine))
        bad = ~terms["loss"].isfinite()
        names = [name for name, value in terms.items() if not value.isfinite().all()]
        what = f"not finite: {', '.join(names)}" if names else "the loss is finite, the gradient is not"
        rows = bad if bad.any() else ~bad
        raise DivergedError(
            f"{skips} updates in a row had no finite loss and gradient, so training stopped after step "
            f"{self.step - skips}; in the last batch {what}, at levels {_numbers_text(level[rows])} of examples "
            f"{_numbers_text(indices[rows.cpu()])}; try a smaller lr",
            fix=[{"grad_clip": 1}, {"precision": "fp32"}],
        )

    # ---- metrics ---------------------------------------------------------------------------------------------------

    def metrics(self) -> dict[str, Any]:
        """Return the metrics of the window, and the step, learning rate and norms; reads from the device."""
        config = self.config
        weights = [p.detach() for p in self.network.parameters()]
        return {
            "step": self.step,
            "samples": self.step * config.batch_size,
            **self.window.read(self.names, config.batch_size),
            "param_norm": float(self.norm(weights)),
            "lr": config.lr_at(self.step - 1),
            "skipped": int(self.skipped),
            **({"loss_scale": float(self.scale.value)} if self.scale.active else {}),
        }

    def norm(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return the norm of parameters or gradients together, 0-d; with shards every process must call it."""
        return self.engine.gather_full(get_total_norm(tensors))

    def last_loss(self) -> float:
        """Return the mean loss of the last update; reads from the device."""
        if not self.window.rows:
            return float("nan")
        sums = self.window.rows[-1][:-2].double().reshape(1 + len(self.names), -1)
        return float(sums[1 + self.names.index("loss")].sum()) / self.config.batch_size

    # ---- state -----------------------------------------------------------------------------------------------------

    def restore_last_update(self) -> str | None:
        """After an error, restore the state after the last complete update, or return why it cannot be saved."""
        drop_gradients(self.trained)  # of an incomplete update; saving may need their memory
        if not self.consistent:
            return "the error came while they changed"
        self.buffers.restore()
        trained = [p.detach() for _, p in self.trained]
        weights = trained + [mean for means in self.ema.means for mean in means]
        return None if all(bool(tensor.isfinite().all()) for tensor in weights) else "the weights are not finite"

    def files(self) -> Files:
        """Return every tensor of the training state, by checkpoint file and name."""
        timesteps = {f"timesteps.{i}": t for i, t in enumerate(pytree.tree_leaves(self.timesteps))}
        window = {"window": torch.stack(self.window.rows)} if self.window.rows else {}
        variables = self.network.state_dict(keep_vars=True)
        return {
            "model": {name: tensor.detach() for name, tensor in variables.items()},
            **{label: self.ema.in_place_of_weights(label, variables) for label in self.ema.labels},
            "optimizer": self.optimizer_state.tensors(),
            "trainer": {
                "skipped": self.skipped,
                "in_a_row": self.consecutive_skips,
                **self.scale.tensors(),
                **timesteps,
                **window,
            },
        }

    def restore(self, step: int, files: Files) -> None:
        """Restore the training state that `files` returned after ``step`` updates, with its shards joined."""
        check_checkpoint_state(step, files, self.files(), self.network, alike=self.config.optimizer_part.elementwise)
        self.step = step
        own_state = self.network.state_dict()
        load_weights(self.network, self._shard_like(files["model"], own_state))
        for label in self.ema.labels:
            self.ema.restore(label, self._shard_like(files[label], own_state))
        with without_dynamo():
            self.optimizer_state.restore(files["optimizer"], self.engine.shard_like)
        own = {name: self._moved(value) for name, value in files["trainer"].items()}
        self.skipped, self.consecutive_skips = own["skipped"], own["in_a_row"]
        self.scale.restore(own)
        leaves, structure = pytree.tree_flatten(self.timesteps)
        self.timesteps = pytree.tree_unflatten([own[f"timesteps.{i}"] for i in range(len(leaves))], structure)
        self.window = MetricsWindow(list(own["window"]) if "window" in own else [])

    @property
    def sampling_file(self) -> str:
        """Name of the checkpoint file with the weights that samples are drawn with."""
        return self.ema.labels[0] if self.config.ema else "model"

    def sampling_weights(self, keep: bool = True) -> dict[str, Tensor]:
        """Return the weights that samples are drawn with, put together from shards, on the CPU, as a state dict.

        Every process must call this, as each may have shards; with ``keep=False`` the result is empty.
        """
        weights: dict[str, Tensor] = {}
        for name, value in self.files()[self.sampling_file].items():
            full = self.engine.gather_full(value)
            weights |= {name: full.cpu()} if keep else {}
        return weights

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Context in which the network has the averaged weights that samples are drawn with, in evaluation mode."""
        weights, means = self.ema.weights, self.ema.means[0] if self.config.ema else []
        with torch.no_grad(), eval_mode(self.network):
            saved = [weight.detach().clone() for weight in weights] if means else []
            self.consistent = False
            try:
                _copy_tensors(weights, means)
                yield
            finally:
                _copy_tensors(weights, saved)
                self.consistent = True

    def _shard_like(self, full: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: self.engine.shard_like(t, own[name]) if name in own else t for name, t in full.items()}

    # ---- helpers ----------------------------------------------------------------------------------------------

    def _moved(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.engine.device, non_blocking=True)


def _prefixed(conditions: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"condition {name}": value for name, value in conditions.items()}


def _copy_tensors(into: Iterable[Tensor], values: list[Tensor]) -> None:
    """Copy values into tensors; no values change nothing."""
    for tensor, value in zip(into, values, strict=False):
        tensor.copy_(value)


def _microbatch_slices(size: int, microbatch: int | None) -> list[slice]:
    step = size if microbatch is None else microbatch
    return [slice(i, min(i + step, size)) for i in range(0, size, step)]


def _numbers_text(values: Tensor) -> str:
    """Return at most 16 of some numbers as text."""
    listed = values.tolist()
    return f"[{', '.join(f'{v:g}' for v in listed[:16])}{', ...' if len(listed) > 16 else ''}]"
