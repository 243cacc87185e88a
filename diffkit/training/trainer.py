"""The state of training, and one update of it; files, signals and progress bars belong to the loop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.utils import _pytree as pytree

from diffkit.data.base import Batch, scaled
from diffkit.errors import DivergedError, OptionError
from diffkit.runtime.eval_mode import eval_mode
from diffkit.runtime.files import load_weights
from diffkit.system.conditions import mapped, rows_of
from diffkit.system.draws import Draws, seeded_draws, training_loss
from diffkit.training.augmentation import drop_conditions, dropout_seed, mirrored
from diffkit.training.buffers import Buffers
from diffkit.training.checkpoint import Files
from diffkit.training.config import TrainConfig
from diffkit.training.ema import Ema
from diffkit.training.engines import Engine
from diffkit.training.engines.engine import gradients
from diffkit.training.loss_scale import LossScale
from diffkit.training.metrics import Window, quartile_sums
from diffkit.training.precision import in_precision
from diffkit.training.preflight import bins_of
from diffkit.training.restoring import check_state
from diffkit.training.trainable import Trainable

Terms = Mapping[str, Tensor]


class Trainer:
    """The state of training: a system, or a classifier of noisy data, with its optimizer and means.

    Attributes:
        system: The system, with the network that the engine trains.
        network, model: That network, and the module to call instead of it in an update.
        trained: Names and parameters that the optimizer changes, in its order.
        sampled: The module to call where no gradient is needed.
        step: Completed updates, skipped ones included.
        window: Metrics since the last line of them.
        busy: An update is changing the state now.
        whole: The state is that after ``step`` updates; False while it changes, and after an error in between.
    """

    def __init__(self, system: Trainable, network: nn.Module, config: TrainConfig, engine: Engine):
        self.config, self.engine, self.bins = config, engine, bins_of(system)
        self.null = {name: mapped(self._moved, value) for name, value in (system.parts.null_conditions or {}).items()}
        self.network = engine.prepare(network)
        self.system = system.with_network(self.network)
        if config.compile:
            self.network.compile()
        self.model = in_precision(engine.wrap(self.network), config.precision, engine.device)
        self.sampled = in_precision(self.network, config.precision, engine.device)
        self.trained = [(name, p) for name, p in self.network.named_parameters() if p.requires_grad]
        self.optimizer = engine.optimizer(self.network, config)
        self.scale = LossScale(config.precision == "fp16", engine.device)
        self.ema = Ema(self.network, config.ema, warmup=config.ema_warmup, widths=config.ema_power)
        self.timesteps = pytree.tree_map(self._moved, system.parts.timesteps.init(system.table))
        self.step = 0
        self.window = Window()
        self.names: tuple[str, ...] = ()
        self._last: tuple[Tensor, Tensor, Terms] | None = None
        self.busy, self.whole, self.buffers = False, True, Buffers(self.network)
        self.skipped = torch.zeros((), dtype=torch.int64, device=engine.device)
        self.in_a_row = self.skipped.clone()

    # ---- one update ------------------------------------------------------------------------------------------------

    def update(self, batch: Batch, draws: Draws | None = None) -> None:
        """Update the weights, their means, the timestep sampler and the metrics with one batch.

        Args:
            batch: This process's rows of the batch, as the data gives them.
            draws: Levels and weights of the whole batch, noise of these rows; by default those of the seed and step.
        Raises:
            DivergedError: The loss or gradient was not finite for too many updates in a row.
        """
        config, size = self.config, self.config.batch_size
        self.buffers.keep()
        rows = self.engine.rows(size)
        x, conditions = self._inputs(batch, rows.start)
        if draws is None:
            draws = seeded_draws(
                self.system.parts, self.timesteps, config.seed, self.step, size, rows, self.system.device
            )
        draws = draws.to(self.engine.device)
        mine = draws.some(rows)._replace(noise=draws.noise)
        pieces = []
        for part in _slices(len(x), config.microbatch):
            self.engine.seed(dropout_seed(config.seed, self.step, rows.start + part.start))
            picked = rows_of(conditions, range(part.start, part.stop))
            with self.engine.accumulating(last=part.stop == len(x)):
                pieces.append(self._loss(x[part], mine.some(part), picked))
        terms = {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}
        self._finish(batch, draws, terms)

    def _inputs(self, batch: Batch, start: int) -> tuple[Tensor, dict[str, Any]]:
        """Images and conditions as passed to the network; the first is example ``start`` of the batch."""
        config, seed, step = self.config, self.config.seed, self.step
        x = scaled(self._moved(batch.images), self.bins)
        conditions = {name: mapped(self._moved, value) for name, value in batch.conditions.items()}
        if config.label_dropout > 0:
            conditions = drop_conditions(conditions, self.null, config.label_dropout, seed, step, len(x), start)
        return mirrored(x, conditions, config.flip, seed, step, start) if config.flip > 0 else (x, conditions)

    def _loss(self, x: Tensor, draws: Draws, conditions: Mapping[str, Any]) -> dict[str, Tensor]:
        """Add the gradients of some rows' share of the batch's mean loss; return their terms without gradients."""
        loss, terms = training_loss(self.system.loss_terms, self.model, x, draws, conditions)
        self.engine.backward(self.scale.applied(loss.sum() / self.config.batch_size))
        return {name: value.detach() for name, value in terms.items()}

    def _finish(self, batch: Batch, draws: Draws, mine: Terms) -> None:
        """Step the optimizer if all values are finite, then update means, timestep sampler and metrics."""
        terms = self.engine.gather(mine, self.config.batch_size)
        self.scale.take_off(gradients(self.network))
        norm = self.engine.gradient_norm(self.network)
        finite = norm.isfinite() & terms["loss"].isfinite().all()
        timesteps = self.system.parts.timesteps.update(self.timesteps, draws.level, terms["loss"])
        sums = quartile_sums(terms, draws.level, draws.weight, self.system.num_steps)
        with self._changing():
            self._step(norm, finite)
            self.ema.update(self.step)
            self.timesteps, self.names = timesteps, tuple(terms)
            self.window.add(sums, norm, finite)
            self.skipped += ~finite
            self.in_a_row = (self.in_a_row + 1) * ~finite
            self.step += 1
        self._last = batch.indices, draws.level, terms
        if self.engine.reads_free:
            self.refuse_divergence()

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Mark a part that must complete as a whole; operations that are likely to fail come before it."""
        self.busy, self.whole = True, False
        try:
            yield
            self.buffers.forget()
            self.whole = True
        finally:
            self.busy = False

    def _step(self, norm: Tensor, finite: Tensor) -> None:
        """Clip, and take the optimizer's step if it is finite."""
        if self.config.grad_clip is not None:
            clipped = [p for p in self.network.parameters() if p.grad is not None]
            clip_grads_with_norm_(clipped, self.config.grad_clip, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr_at(self.step)
        self.engine.apply(self.optimizer, finite)
        self.scale.update(finite)

    def refuse_divergence(self) -> None:
        """Raise `DivergedError` if too many updates in a row were skipped, with details of the last one.

        Called after every update on a CPU; on a GPU, where it makes the host wait, with each line of metrics.
        """
        in_a_row = int(self.in_a_row)
        if in_a_row <= self.config.max_skips or self._last is None:
            return
        mine, level, terms = self._last
        indices = torch.cat(self.engine.ranks.gather(mine))
        bad = ~terms["loss"].isfinite()
        names = [name for name, value in terms.items() if not value.isfinite().all()]
        what = f"not finite: {', '.join(names)}" if names else "the loss is finite, the gradient is not"
        rows = bad if bad.any() else ~bad
        raise DivergedError(
            f"{in_a_row} updates in a row had no finite loss and gradient, so training stopped after step "
            f"{self.step - in_a_row}; in the last batch {what}, at levels {_some(level[rows])} of examples "
            f"{_some(indices[rows.cpu()])}; try a smaller lr",
            fix=[{"grad_clip": 1}, {"precision": "fp32"}],
        )

    # ---- metrics ---------------------------------------------------------------------------------------------------

    def metrics(self) -> dict[str, Any]:
        """Return the means of the window and where training is; reads from the device."""
        config = self.config
        weights = [p.detach() for p in self.network.parameters()]
        return {
            "step": self.step,
            "samples": self.step * config.batch_size,
            **self.window.read(self.names, config.batch_size),
            "param_norm": float(self.engine.whole(get_total_norm(weights))),
            "lr": config.lr_at(self.step - 1),
            "skipped": int(self.skipped),
            **({"loss_scale": float(self.scale.value)} if self.scale.active else {}),
        }

    # ---- state -----------------------------------------------------------------------------------------------------

    def to_last_update(self) -> str | None:
        """After an error, restore the state of the last complete update, or return why it cannot be saved."""
        self.optimizer.zero_grad(set_to_none=True)  # gradients of half an update; their memory may be needed
        if not self.whole:
            return "the error came while they changed"
        self.buffers.undo()
        held = [p.detach() for _, p in self.trained] + [mean for means in self.ema.means for mean in means]
        return None if all(bool(tensor.isfinite().all()) for tensor in held) else "the weights are not finite"

    def files(self) -> Files:
        """Return every tensor of the state, by file and name."""
        timesteps = {f"timesteps.{i}": t for i, t in enumerate(pytree.tree_leaves(self.timesteps))}
        window = {"window": torch.stack(self.window.rows)} if self.window.rows else {}
        return {
            "model": self.network.state_dict(),
            **{label: self.ema.state(label, self.network) for label in self.ema.labels},
            "optimizer": dict(self._moments()),
            "trainer": {
                "skipped": self.skipped,
                "in_a_row": self.in_a_row,
                **self.scale.tensors(),
                **timesteps,
                **window,
            },
        }

    def restore(self, step: int, files: Files) -> None:
        """Restore the state that `files` returned after ``step`` updates, shares joined."""
        check_state(step, files, self.files(), self.network)
        self.step = step
        held = self.network.state_dict()
        load_weights(self.network, self._placed(files["model"], held))
        for label in self.ema.labels:
            self.ema.restore(label, self._placed(files[label], held))
        self._restore_moments(files["optimizer"])
        own = {name: self._moved(value) for name, value in files["trainer"].items()}
        self.skipped, self.in_a_row = own["skipped"], own["in_a_row"]
        self.scale.restore(own)
        leaves, structure = pytree.tree_flatten(self.timesteps)
        self.timesteps = pytree.tree_unflatten([own[f"timesteps.{i}"] for i in range(len(leaves))], structure)
        self.window = Window(list(own["window"]) if "window" in own else [])

    def sampling_weights(self, keep: bool = True) -> dict[str, Tensor]:
        """Return the weights that samples are drawn with, whole, on the CPU, as a state dict.

        Every process must call this, as each may have a share; with ``keep=False`` the result is empty.
        """
        rated = self.config.ema
        state = self.ema.state(self.ema.labels[0], self.network) if rated else self.network.state_dict()
        whole: dict[str, Tensor] = {}
        for name, value in state.items():
            found = self.engine.whole(value)
            whole |= {name: found.cpu()} if keep else {}
        return whole

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within the context the network has the weights that samples are drawn with, and is in evaluation mode."""
        weights, means = self.ema.weights, self.ema.means[0] if self.config.ema else []
        with torch.no_grad(), eval_mode(self.network):
            saved = [weight.detach().clone() for weight in weights] if means else []
            self.whole = False
            try:
                _copy(weights, means)
                yield
            finally:
                _copy(weights, saved)
                self.whole = True

    def _placed(self, whole: Mapping[str, Tensor], held: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: self.engine.placed(t, held[name]) if name in held else t for name, t in whole.items()}

    def _moments(self) -> Iterable[tuple[str, Tensor]]:
        for name, parameter in self.trained:
            for key, value in self.optimizer.state[parameter].items():
                yield f"{key}/{name}", value

    def _restore_moments(self, tensors: Mapping[str, Tensor]) -> None:
        place = {name: (i, p) for i, (name, p) in enumerate(self.trained)}
        stopped = sorted({full.split("/", 1)[1] for full in tensors} - place.keys())
        if stopped:  # runs of earlier versions do not record which parameters are trained
            raise OptionError(
                f"{len(stopped)} parameters that the run trained are frozen now (the first is {stopped[0]}); train "
                "the same, or choose another folder"
            )
        state: dict[int, dict[str, Tensor]] = {}
        for full, value in tensors.items():
            key, name = full.split("/", 1)
            position, parameter = place[name]
            # moments are sharded as their parameter is; the number of steps is one number
            state.setdefault(position, {})[key] = self.engine.placed(value, parameter) if value.ndim else value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})

    # ---- helpers ----------------------------------------------------------------------------------------------

    def _moved(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.engine.device, non_blocking=True)


def _copy(into: Iterable[Tensor], values: list[Tensor]) -> None:
    """Copy values, if there are any."""
    for tensor, value in zip(into, values, strict=False):
        tensor.copy_(value)


def _slices(size: int, microbatch: int | None) -> list[slice]:
    step = size if microbatch is None else microbatch
    return [slice(i, min(i + step, size)) for i in range(0, size, step)]


def _some(values: Tensor) -> str:
    """At most 16 numbers."""
    listed = values.tolist()
    return f"[{', '.join(f'{v:g}' for v in listed[:16])}{', ...' if len(listed) > 16 else ''}]"
