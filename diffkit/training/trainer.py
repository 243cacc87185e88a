"""What training changes, and one update of it; files, signals and bars are the loop's affair."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diffkit._errors import DivergedError
from diffkit.data.base import Batch, scaled
from diffkit.files import load_weights
from diffkit.objective import count_first
from diffkit.system import System
from diffkit.training.checkpoint import Files
from diffkit.training.checks import bins_of
from diffkit.training.config import TrainConfig
from diffkit.training.draws import Draws, draw, drop_labels, dropout_seed, mirrored, tensors_of, with_tensors
from diffkit.training.ema import Ema
from diffkit.training.engine import Engine
from diffkit.training.metrics import Window, quartile_sums

Terms = Mapping[str, Tensor]


class Trainer:
    """A system in training.

    Attributes:
        step: Completed updates, skipped ones included.
        window: Metrics since the last line of them.
    """

    def __init__(self, system: System, network: nn.Module, config: TrainConfig, engine: Engine, null_class: int | None):
        self.system, self.network, self.config, self.engine = system, network, config, engine
        self.null_class, self.bins = null_class, bins_of(system)
        self.model = engine.wrap(network)
        self.optimizer = engine.optimizer(network, config)
        self.ema = Ema(network, config.ema, warmup=config.ema_warmup)
        self.timesteps = self._on_device(system.parts.timesteps.init(system.table))
        self.step = 0
        self.window = Window()
        self.names: tuple[str, ...] = ()
        self._last: tuple[Tensor, Tensor, Terms] | None = None
        self.skipped = torch.zeros((), dtype=torch.int64, device=engine.device)
        self.in_a_row = self.skipped.clone()

    # ---- one update ------------------------------------------------------------------------------------------------

    def update(self, batch: Batch, draws: Draws | None = None) -> None:
        """Update the weights, their means, the timestep sampler and the metrics with one batch.

        Args:
            batch: As the data gives it.
            draws: Levels, weights and noise; by default what the seed says about this step.
        Raises:
            DivergedError: The loss or gradient was not finite for too many updates in a row.
        """
        config, size = self.config, len(batch.images)
        x = scaled(self._moved(batch.images), self.bins)
        conditions = self._conditions(batch)
        if config.flip > 0:
            x, conditions = mirrored(x, conditions, config.flip, config.seed, self.step)
        draws = draw(self.system, self.timesteps, config.seed, self.step, size) if draws is None else draws
        here = Draws(*map(self._moved, draws))
        pieces = []
        for number, rows in enumerate(_slices(size, config.microbatch)):
            self.engine.seed(dropout_seed(config.seed, self.step, number))
            picked = {name: value[rows] for name, value in conditions.items()}
            with self.engine.accumulating(last=rows.stop == size):
                terms = self._loss(x[rows], Draws(*(d[rows] for d in here)), draws.level[rows], picked, size)
            pieces.append(terms)
        terms = {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}
        self._finish(batch, here, terms)

    def _loss(
        self, x: Tensor, draws: Draws, known_level: Tensor, conditions: Mapping[str, Tensor], size: int
    ) -> dict[str, Tensor]:
        """Add the gradients of some rows' share of the batch's mean loss; return their terms without gradients."""
        terms = self.system.loss_terms(
            self.model, x, draws.level, draws.noise, decoder_rows=count_first(known_level, len(x)), **conditions
        )
        self.engine.backward((terms["loss"] * draws.weight).sum() / size)
        return {name: value.detach() for name, value in terms.items()}

    def _finish(self, batch: Batch, draws: Draws, terms: Terms) -> None:
        """Step the optimizer if all is finite, then everything that follows the weights."""
        norm = self.engine.clip(self.network, self.config.grad_clip)
        finite = norm.isfinite() & terms["loss"].isfinite().all()
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr_at(self.step)
        self.engine.apply(self.optimizer, finite)
        self.ema.update(self.step)
        level, loss = self.engine.gather(draws.level), self.engine.gather(terms["loss"])
        self.timesteps = self.system.parts.timesteps.update(self.timesteps, level, loss)
        self.names = tuple(terms)
        sums = quartile_sums(terms, draws.level, draws.weight, self.system.num_steps)
        self.window.add(sums, norm, finite)
        self.skipped += ~finite
        self.in_a_row = (self.in_a_row + 1) * ~finite
        self.step += 1
        self._last = batch.indices, draws.level, terms
        if self.engine.reads_free:
            self.refuse_divergence()

    def refuse_divergence(self) -> None:
        """Raise `DivergedError` if too many updates in a row were skipped, with the last one's particulars.

        On a CPU every update asks; on a GPU, where asking makes the host wait, the loop does with each line of metrics.
        """
        in_a_row = int(self.in_a_row)
        if in_a_row <= self.config.max_skips or self._last is None:
            return
        indices, level, terms = self._last
        bad = ~terms["loss"].isfinite()
        names = [name for name, value in terms.items() if not value.isfinite().all()]
        what = f"not finite: {', '.join(names)}" if names else "the loss is finite, the gradient is not"
        rows = bad if bad.any() else ~bad
        raise DivergedError(
            f"{in_a_row} updates in a row had no finite loss and gradient, so training stopped after step "
            f"{self.step - in_a_row}; in the last batch {what}, at levels {_some(level[rows])} of examples "
            f"{_some(indices[rows.cpu()])}; try a smaller lr, grad_clip=1, or precision='fp32'"
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
            "param_norm": float(torch.nn.utils.get_total_norm(weights)),
            "lr": config.lr_at(self.step - 1),
            "skipped": int(self.skipped),
        }

    # ---- state -----------------------------------------------------------------------------------------------------

    def files(self) -> Files:
        """Return every tensor that decides how training goes on, by file and name."""
        timesteps = {f"timesteps.{i}": t for i, t in enumerate(tensors_of(self.timesteps))}
        window = {"window": torch.stack(self.window.rows)} if self.window.rows else {}
        return {
            "model": self.network.state_dict(),
            **{f"ema_{rate}": self.ema.state(rate, self.network) for rate in self.config.ema},
            "optimizer": dict(self._moments()),
            "trainer": {"skipped": self.skipped, "in_a_row": self.in_a_row, **timesteps, **window},
        }

    def restore(self, step: int, files: Files) -> None:
        """Take up the state that `files` returned after ``step`` updates."""
        self.step = step
        load_weights(self.network, files["model"])
        for rate in self.config.ema:
            self.ema.restore(rate, files[f"ema_{rate}"])
        self._restore_moments(files["optimizer"])
        own = files["trainer"]
        self.skipped, self.in_a_row = self._moved(own["skipped"]), self._moved(own["in_a_row"])
        count = len(tensors_of(self.timesteps))
        self.timesteps = self._on_device(with_tensors(self.timesteps, [own[f"timesteps.{i}"] for i in range(count)]))
        self.window = Window([self._moved(row) for row in own["window"]] if "window" in own else [])

    def sampling_weights(self) -> Mapping[str, Tensor]:
        """Return the weights that samples are drawn with, as a state dict."""
        rates = self.config.ema
        return self.ema.state(rates[0], self.network) if rates else self.network.state_dict()

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        """Names and parameters, in the optimizer's order."""
        return [(name, p) for name, p in self.network.named_parameters() if p.requires_grad]

    def _moments(self) -> Iterable[tuple[str, Tensor]]:
        for name, parameter in self._trained():
            for key, value in self.optimizer.state[parameter].items():
                yield f"{key}/{name}", value

    def _restore_moments(self, tensors: Mapping[str, Tensor]) -> None:
        position = {name: i for i, (name, _) in enumerate(self._trained())}
        state: dict[int, dict[str, Tensor]] = {}
        for full, value in tensors.items():
            key, name = full.split("/", 1)
            state.setdefault(position[name], {})[key] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})

    # ---- small things ----------------------------------------------------------------------------------------------

    def _conditions(self, batch: Batch) -> dict[str, Tensor]:
        conditions = {name: self._moved(value) for name, value in batch.conditions.items()}
        if self.config.label_dropout > 0 and self.null_class is not None:
            config = self.config
            return drop_labels(conditions, self.null_class, config.label_dropout, config.seed, self.step)
        return conditions

    def _moved(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.engine.device, non_blocking=True)

    def _on_device(self, state: Any) -> Any:
        return with_tensors(state, [self._moved(t) for t in tensors_of(state)])


def _slices(size: int, microbatch: int | None) -> list[slice]:
    step = size if microbatch is None else microbatch
    return [slice(i, min(i + step, size)) for i in range(0, size, step)]


def _some(values: Tensor) -> str:
    """At most 16 numbers."""
    listed = values.tolist()
    return f"[{', '.join(f'{v:g}' for v in listed[:16])}{', ...' if len(listed) > 16 else ''}]"
