"""All options of training in one frozen record, for Python, the command line and TOML files alike."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, TypedDict

import attrs
from attrs import frozen

from diffkit.errors import UNSET, OptionError, did_you_mean
from diffkit.options import choice, duration, flag, integer, number, numbers, option_names, words
from diffkit.protocols import Adapter, LRSchedule, Optimizer
from diffkit.registry import registry
from diffkit.registry.aliases import TRAINING_ALIASES
from diffkit.registry.resolve import plain_slot
from diffkit.training.parameter_groups import ParameterGroup, as_groups

OPTIMIZER_FIELDS = ("optimizer", "betas")
"""Fields that decide the optimizer and its options."""
LR_SCHEDULE_FIELDS = ("lr_schedule", "anneal", "anneal_steps", "rsqrt_steps")
"""Fields that decide the schedule of the learning rate and its options."""


def _plain_optimizer(slot: Any) -> Any:
    return None if slot is None else plain_slot("optimizer", slot)


def _plain_adapter(slot: Any) -> Any:
    return None if slot is None else plain_slot("adapter", slot)


def _plain_lr_schedule(slot: Any) -> Any:
    return None if slot is None else plain_slot("lr_schedule", slot)


def as_dropouts(value: Any) -> tuple[str, ...]:
    """Return probabilities of dropping conditions, by name, as texts such as "y=0.1"."""
    if isinstance(value, Mapping):
        value = [f"{name}={probability}" for name, probability in value.items()]
    several = value.split(",") if isinstance(value, str) else value
    found = tuple(str(each).strip() for each in several)
    dropouts_of(found)
    return found


def dropouts_of(texts: Sequence[str]) -> dict[str, float]:
    """Return probabilities of dropping conditions, by name, from texts such as "y=0.1"."""
    found = {}
    for text in texts:
        name, _, number_text = text.partition("=")
        try:
            found[name] = float(number_text)
        except ValueError:
            found[name] = math.nan
        if not name or not 0 <= found[name] <= 1:
            raise OptionError(
                'must be probabilities such as "y=0.1,context=0.2"', option="condition_dropout", value=text
            )
    return found


@frozen(kw_only=True)
class TrainConfig:
    """All options of training; the system and the data are separate arguments.

    Defaults are improved-diffusion's where it has one.

    Attributes:
        steps: Updates of the weights in all, counted from the start of the run, >= 1; None with ``epochs``.
        epochs: How often each example is seen in all, > 0, instead of ``steps``: that many times the examples, over
            ``batch_size``, rounded up.
        max_time: Time after which this call stops with a checkpoint, in seconds or such as "2h" or "1h30m"; the same
            call then goes on. None trains to the end.
        overfit: Train on so many first examples only, without flips, label dropout and noise on small images, and with
            a batch of at most all of them, to see whether the system can learn at all. For debugging; None trains on
            all examples.
        batch_size: Examples per update, over all processes, >= 1.
        microbatch: Examples that go through the network at a time in each process, to save memory; gradients are
            averaged, so the result is the same except for rounding. None takes all examples of the process.
        lr: Learning rate, >= 0.
        weight_decay: Weight decay, >= 0; of AdamW it is apart from the gradient.
        betas: Decay rates of the two running moments of AdamW and its like, each in [0, 1); 0.9 and 0.999 by default.
        optimizer: How weights change by their gradients: the name of an optimizer such as "muon", with options
            ``("muon", {"momentum": 0.9})``; "adamw" by default.
        param_groups: Parameters with a learning rate or weight decay of their own, by patterns of their names: such as
            "*.bias:weight_decay=0,out.*:lr=1e-5", or as tables
            ``[{"pattern": "*.bias", "weight_decay": 0}, {"pattern": "out.*", "lr": 1e-5}]``. The first that matches
            counts.
        freeze: Patterns of names of parameters that are not trained, such as "time_embed.*".
        adapter: What is trained beside the network's weights, which are then frozen: the name of an adapter such as
            "lora", with options ``("lora", {"r": 8})``. None trains the weights.
        grad_clip: Largest norm of the gradient, > 0; a larger one is scaled down to it. None never clips.
        warmup: Updates over which the learning rate rises linearly from near 0, >= 0, whatever its schedule.
        lr_schedule: How the learning rate falls: "constant" not at all, "linear" and "cosine" to 0 after ``steps``
            updates, "rsqrt" as ``1 / sqrt(max(t / rsqrt_steps, 1))`` after t updates, "wsd" in the last fifth; with
            options ``("wsd", {"decay": 0.1})``. By default "linear" with ``anneal`` or ``anneal_steps``, else
            "constant".
        anneal: The same as lr_schedule="linear".
        anneal_steps: Updates after which it reaches 0, >= ``steps``; by default ``steps``. With a fixed number a run
            can be continued to more ``steps`` later without a change of its learning rates.
        rsqrt_steps: Updates after which the learning rate begins to fall with "rsqrt", >= 1; 70,000 by default.
        ema: Decay rates of the running means of the weights, each in [0, 1); a single one may be a number. Samples are
            drawn with the first; without any, with the weights themselves.
        ema_warmup: Start with shorter means: update n uses ``min(rate, (1 + n) / (10 + n))``, so that a short run
            does not remember its random start. False is improved-diffusion's rule.
        ema_power: Relative widths, in (0, 0.28], of further means whose length grows with training; with 0.05 and 0.1
            `diffkit.training.averaged` can make a mean of any width from the stored checkpoints.
        precision: "fp32", or "bf16" or "fp16" to run the network (and nothing else) in bfloat16 or float16; with
            float16 the loss is scaled, by at most 2^24.
        compile: Compile the network; the first update takes minutes, the others are faster.
        strategy: "ddp" gives every process of a launcher such as torchrun all of the network; "fsdp" gives each a
            share of weights, means and moments, for networks that fill a GPU. One process needs neither.
        timeout: Seconds that processes wait for each other before they give up, > 0.
        seed: Decides the order of the data, levels, noise, flips, label and network dropout, >= 0.
        label_dropout: Probability of replacing all conditions of an example that have a null condition, such as its
            class, by the null conditions, in [0, 1], for classifier-free guidance; 0.1 is usual.
        condition_dropout: Probability of replacing a condition by its null condition, of each by itself and beside
            label_dropout, for guidance by several: such as "y=0.1,context=0.2", or {"y": 0.1, "context": 0.2}.
        flip: Probability of mirroring an example left to right, in [0, 1]; 0.5 is usual for images of which the mirror
            image is as likely. Conditions that are images are mirrored with it.
        low_res_noise: Largest level of noise on the small images of super-resolution, in [0, 1]; that of each example
            is random below it. For a cascade, whose small images are samples.
        cache_latents: With an autoencoder as codec, compute the latents of all examples once, into the run's folder,
            and read those; only without flips, and of data that is the same in every epoch.
        log_every: Updates between lines of metrics, >= 1.
        val_every: Updates between validations, if held-out data is given (``val``), >= 1; the last update is always
            followed by one.
        save_every: Updates between checkpoints, >= 1; the last update is always followed by one.
        async_save: Copy what a checkpoint holds into memory of the host, and write it while training goes on. Without
            it training waits for the disk, and needs no memory for the copy.
        keep: Number of the newest checkpoints to keep, >= 1.
        keep_every: Checkpoints at multiples of this many updates are never removed, >= 1; with None, old ones all are.
        preview_every: Updates between pictures of samples, drawn with the averaged weights, >= 1; None draws none.
        preview: Samples in a picture, >= 1.
        preview_steps: Sampling steps for a picture, >= 1.
        workers: Processes that read data ahead; 0 reads in this one.
        max_skips: Number of consecutive updates that may be skipped because the loss or gradient is not finite, >= 0;
            training stops at one more.
    Source: Nichol & Dhariwal 2021, arXiv:2102.09672, appendix A, and improved-diffusion: batch size, lr, ema, betas.
        The rise of the EMA rate is TensorFlow's ExponentialMovingAverage. "rsqrt" is Karras et al. 2024,
        arXiv:2312.02696, eq. 67, with the t_ref that its table 6 has for ImageNet-512.
    """

    steps: int = integer(None, optional=True, ge=1)
    epochs: float | None = number(None, optional=True, gt=0)
    max_time: float | str | None = duration(None)
    overfit: int | None = integer(None, optional=True, ge=1)
    batch_size: int = integer(128, ge=1)
    microbatch: int | None = integer(None, optional=True, ge=1)
    lr: float = number(1e-4, ge=0)
    weight_decay: float = number(0.0, ge=0)
    betas: tuple[float, ...] | None = numbers(None, optional=True, count=2, ge=0, lt=1)
    optimizer: Any = attrs.field(default=None, converter=_plain_optimizer)
    param_groups: tuple[str | Mapping[str, Any], ...] = attrs.field(default=(), converter=as_groups)
    freeze: tuple[str, ...] = words()
    adapter: Any = attrs.field(default=None, converter=_plain_adapter)
    grad_clip: float | None = number(None, optional=True, gt=0)
    warmup: int = integer(0, ge=0)
    lr_schedule: Any = attrs.field(default=None, converter=_plain_lr_schedule)
    anneal: bool = flag(False)
    anneal_steps: int | None = integer(None, optional=True, ge=1)
    rsqrt_steps: int | None = integer(None, optional=True, ge=1)
    ema: tuple[float, ...] = numbers((0.9999,), single=True, ge=0, lt=1)
    ema_warmup: bool = flag(True)
    ema_power: tuple[float, ...] = numbers((), single=True, gt=0, le=0.28)
    precision: str = choice("fp32", ("fp32", "bf16", "fp16"))
    compile: bool = flag(False)
    strategy: str = choice("ddp", ("ddp", "fsdp"))
    timeout: float = number(1800.0, gt=0)
    seed: int = integer(0, ge=0, lt=2**63)
    label_dropout: float = number(0.0, ge=0, le=1)
    condition_dropout: tuple[str, ...] = attrs.field(default=(), converter=as_dropouts)
    flip: float = number(0.0, ge=0, le=1)
    low_res_noise: float = number(0.0, ge=0, le=1)
    cache_latents: bool = flag(True)
    log_every: int = integer(10, ge=1)
    val_every: int = integer(1000, ge=1)
    save_every: int = integer(10_000, ge=1)
    async_save: bool = flag(True)
    keep: int = integer(3, ge=1)
    keep_every: int | None = integer(None, optional=True, ge=1)
    preview_every: int | None = integer(None, optional=True, ge=1)
    preview: int = integer(16, ge=1)
    preview_steps: int = integer(50, ge=1)
    workers: int = integer(0, ge=0)
    max_skips: int = integer(10, ge=0)

    def __attrs_post_init__(self) -> None:
        """Check combinations of fields."""
        lengths = [self.steps is not None, self.epochs is not None]  # steps are None until the data is known
        if all(lengths):
            raise OptionError(
                f"and steps {self.steps} both say how long to train",
                option="epochs",
                value=self.epochs,
                fix=[{"epochs": UNSET}, {"steps": UNSET}],
            )
        if not any(lengths):
            raise OptionError("train needs its length", fix=[{"steps": ...}, {"epochs": ...}])
        if len(set(self.ema)) != len(self.ema):
            raise OptionError("must not name a rate twice", option="ema", value=self.ema)
        if len(set(self.ema_power)) != len(self.ema_power):
            raise OptionError("must not name a width twice", option="ema_power", value=self.ema_power)
        if self.optimizer is not None and self.betas is not None:
            _ = self.optimizer_part  # raises if betas are not an option of it
        name, _ = _name_and_options(self.lr_schedule)
        if self.anneal and name not in ("", "linear"):
            raise OptionError(
                f"is not {name!r}",
                option="anneal",
                value=True,
                fix=[{"anneal": False}, {"lr_schedule": "linear"}],
            )
        if self.lr_schedule or self.anneal_steps or self.rsqrt_steps:
            self._check_end()

    def _check_end(self) -> None:
        """Raise if the learning rate would be 0 before the run ends."""
        end = getattr(self.lr_schedule_part, "end", None)
        if isinstance(end, int) and self.epochs is None and end < self.steps:
            name, options = _name_and_options(self.lr_schedule)
            short = self.anneal_steps is not None
            raise OptionError(
                f"would leave no learning rate for the last of {self.steps} steps",
                option="anneal_steps" if short else "lr_schedule",
                value=end if short else (name, options),
                fix=[
                    {"anneal_steps": self.steps} if short else {"lr_schedule": (name, {**options, "end": self.steps})},
                    {"steps": end},
                ],
            )

    def for_examples(self, count: int) -> TrainConfig:
        """Return the options for data of so many examples: with a number of steps, and what ``overfit`` means."""
        size = self.batch_size if self.overfit is None else min(self.batch_size, count)
        found: dict[str, Any] = (
            {"batch_size": size, "flip": 0.0, "label_dropout": 0.0, "condition_dropout": (), "low_res_noise": 0.0}
            if self.overfit
            else {}
        )
        if self.epochs is not None:
            found |= {"steps": max(1, math.ceil(round(self.epochs * count / size, 6))), "epochs": None}
        return attrs.evolve(self, **found) if found else self

    @property
    def optimizer_name(self) -> str:
        """Name of the optimizer."""
        return _name_and_options(self.optimizer)[0] or "adamw"

    @cached_property
    def optimizer_part(self) -> Optimizer:
        """The optimizer."""
        made: Optimizer = _part("optimizer", self.optimizer or "adamw", betas=("betas", self.betas))
        return made

    @cached_property
    def dropouts(self) -> dict[str, float]:
        """Probability of dropping each condition by itself, by its name."""
        return dropouts_of(self.condition_dropout)

    @cached_property
    def adapter_part(self) -> Adapter | None:
        """The adapter, if there is one."""
        return None if self.adapter is None else _part("adapter", self.adapter)

    @cached_property
    def lr_schedule_part(self) -> LRSchedule:
        """The schedule of the learning rate."""
        slot = self.lr_schedule or ("linear" if self.anneal or self.anneal_steps else "constant")
        made: LRSchedule = _part(
            "lr_schedule", slot, anneal_steps=("end", self.anneal_steps), rsqrt_steps=("start", self.rsqrt_steps)
        )
        return made

    def lr_at(self, step: int, lr: float | None = None) -> float:
        """Return the learning rate of the update after ``step`` completed ones.

        Args:
            step: 0..steps - 1.
            lr: Learning rate that warm-up and schedule multiply; that of the run by default.
        """
        rising = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        return (self.lr if lr is None else lr) * rising * self.lr_schedule_part.factor(step, self.steps)


def _name_and_options(slot: Any) -> tuple[str, Mapping[str, Any]]:
    """Name and options of a plain slot."""
    return (slot or "", {}) if slot is None or isinstance(slot, str) else slot


def _part(kind: str, slot: Any, **short: tuple[str, Any]) -> Any:
    """Return a part of a plain slot.

    Args:
        kind: Its kind.
        slot: Its name, or its name and options.
        short: For each field of the configuration that is a short way to give an option: the option, and its value.
    """
    name, options = _name_and_options(slot)
    known = registry(kind)
    for field, (option, value) in short.items():
        if value is None:
            continue
        if option not in (option_names(known.get(name)) or ()):
            having = [each for each in known.built_in_names() if option in (option_names(known.get(each)) or ())]
            raise OptionError(
                f"is option {option!r}, which {kind} {name!r} does not have",
                option=field,
                value=value,
                fix=[{kind: having[0]}, {field: UNSET}],
            )
        if option in options:
            text = f"and the {option}={options[option]!r} of {kind} {name!r} are the same option"
            raise OptionError(text, option=field, value=value, fix={field: UNSET})
        options = {**options, option: value}
    return known.create(name, **options)


class TrainOptions(TypedDict, total=False):
    """The same fields as keywords of `diffkit.train`; their meaning and defaults are those of `TrainConfig`."""

    steps: int
    epochs: float | None
    max_time: float | str | None
    overfit: int | None
    batch_size: int
    microbatch: int | None
    lr: float
    weight_decay: float
    betas: tuple[float, ...] | None
    optimizer: Any
    param_groups: Sequence[str | Mapping[str, Any] | ParameterGroup] | str
    freeze: Sequence[str] | str
    adapter: Any
    grad_clip: float | None
    warmup: int
    lr_schedule: Any
    anneal: bool
    anneal_steps: int | None
    rsqrt_steps: int | None
    ema: tuple[float, ...] | float
    ema_warmup: bool
    ema_power: tuple[float, ...] | float
    precision: str
    compile: bool
    strategy: str
    timeout: float
    seed: int
    label_dropout: float
    condition_dropout: Mapping[str, float] | Sequence[str] | str
    flip: float
    low_res_noise: float
    cache_latents: bool
    log_every: int
    val_every: int
    save_every: int
    async_save: bool
    keep: int
    keep_every: int | None
    preview_every: int | None
    preview: int
    preview_steps: int
    workers: int
    max_skips: int


CHANGEABLE_ON_RESUME = frozenset(
    {"steps", "epochs", "max_time", *LR_SCHEDULE_FIELDS, *OPTIMIZER_FIELDS, "microbatch", "compile", "strategy"}
    | {"timeout", "workers", "log_every", "val_every", "save_every", "async_save", "keep", "keep_every", "max_skips"}
    | {"preview_every", "preview", "preview_steps", "cache_latents"}
)
"""Fields that a resumed run may change: they change updates by rounding only.

Those of the optimizer and of the schedule of the learning rate, and the steps, may change only as far as the optimizer
and the learning rate of every update that was made stay the same.
"""

RETIRED = frozenset({"engine"})
"""Options of runs begun before that are ignored: they changed nothing about the updates."""


_ARGUMENTS = ("out", "val", "config", "progress", "hooks", "track", "teacher", "base")
"""Keywords of `diffkit.train` besides the fields of `TrainConfig`."""


def resolve_config(config: TrainConfig | None, options: Mapping[str, Any]) -> TrainConfig:
    """Return the options of training: those of ``config``, overridden by keywords of `diffkit.train`.

    Raises:
        OptionError: An option has no such name, type or value, or steps and epochs are missing.
    """
    names = [field.name for field in attrs.fields(TrainConfig)]
    for name in options:
        if name not in names:
            raise OptionError(_unknown_option_text(name, names))
    if config is not None:
        return attrs.evolve(config, **options) if options else config
    return TrainConfig(**options)


def _unknown_option_text(name: str, fields: Sequence[str]) -> str:
    """Return "train has no option ..." for an unknown name, with a suggestion."""
    known, own = [*_ARGUMENTS, *fields], TRAINING_ALIASES.get(name)
    near = did_you_mean(name, known) if own is None else f"; that is {own!r} here"
    return f"train has no option {name!r}{near} (known: {', '.join(known)})"
