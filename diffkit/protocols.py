"""The contracts of each kind of part, and the records that parts exchange.

Every part is a frozen attrs class that holds options only. Built-ins inherit from these protocols; a plugin may
inherit too (and get the defaults) or spell every member out. What only some parts of a kind can do is a class of its
own, which a part inherits from to say that it can: `ContinuousSchedule`, `RoutedSampler`, `NetworkLoss`. A part that
has weights says how they are built, as a `LearnedPart`; a composed system holds them. This module imports neither
`diffkit.table` nor torch at run time, so a part's options can be read without them.

Shapes: data is (B, C, *S) with any number of spatial axes; "(B,1..)" is (B, 1, ..., 1), ready to broadcast against
data. Levels are integers 0..T, 0 is clean. s is always the less noisy end of a step, t the noisier.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, runtime_checkable

from attrs import field, frozen

from diffkit.errors import ProtocolError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from diffkit.table import F64, Coefs, ProcessTable, Steps

NO_CLASS = -1
"""The label of an example without a class; it becomes the network's null label, which the network must have."""

State = Any
"""The tuple of tensors that a sampler or timestep sampler passes from call to call; owned by the caller."""


class Scalings(NamedTuple):
    """A mean parameterization at some levels: ``x_start = c_skip x_t + c_out F(c_in x_t, time)``."""

    c_skip: Any
    c_out: Any
    c_in: Any


class Coefficients(Mapping[str, "Tensor"]):
    """Named coefficients at a level, stored by owner; each owner reads its own by name.

    An owner is the variance part (the default) or one of the call's guidances.
    """

    def __init__(self, by_owner: Mapping[str, Mapping[str, Tensor]], owner: str = "var"):
        self.by_owner, self.owner = by_owner, owner
        self._own = by_owner.get(owner, {})

    def of(self, owner: str) -> Coefficients:
        """Return the coefficients of another owner."""
        return self if owner == self.owner else Coefficients(self.by_owner, owner)

    def __getitem__(self, name: str) -> Tensor:
        return self._own[name]

    def __contains__(self, name: object) -> bool:
        return name in self._own

    def __iter__(self) -> Iterator[str]:
        return iter(self._own)

    def __len__(self) -> int:
        return len(self._own)


class Level(NamedTuple):
    """The level at which a step or a loss is computed.

    Attributes:
        alpha, sigma, log_snr: Signal scale, noise scale, natural log of their squared ratio; 0-d or (B,1..).
        c_skip, c_out, c_in: The mean parameterization there; 0-d or (B,1..).
        time: What the network is conditioned on, 0-d or (B,).
        coefficients: Values of the owner's `columns` there (the variance part's or a guidance's), by name; None where
            no step of the table starts (continuous levels, nodes).
        time_of_rows: Returns `time` as the network receives it, for a number of examples, at a level that many calls
            share; None elsewhere.
    """

    alpha: Tensor
    sigma: Tensor
    log_snr: Tensor
    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    time: Tensor
    coefficients: Coefficients | None
    time_of_rows: Callable[[int], Tensor] | None = None


class Transition(NamedTuple):
    """The posterior ``q(x_{k-1} | x_k, x_start)`` at some levels, each 0-d or (B,1..); `first` is (B,).

    Attributes:
        coef_x_start, coef_x_t: Its mean is ``coef_x_start x_start + coef_x_t x_t``.
        log_variance: Its log-variance in nats, clipped at level 1 (see `ProcessTable.posterior_log_variance`).
        kl_weight: coef_x_start^2 / variance, the weight of a squared error of x_start inside the KL.
        first: True where k = 1, where the bound has a decoder term in place of a KL.
    """

    coef_x_start: Tensor
    coef_x_t: Tensor
    log_variance: Tensor
    kl_weight: Tensor
    first: Tensor


class Prediction(NamedTuple):
    """Result of one evaluation of the denoiser.

    Attributes:
        x_start: Estimate of clean data, (B, C, *S), after guidance and clipping.
        log_variance: Of p(x_{k-1} | x_k) on the table in use, nats, broadcastable to x_start; None if unknown.
    """

    x_start: Tensor
    log_variance: Tensor | None


class UnclippedPrediction(NamedTuple):
    """Result of one evaluation of the denoiser for an `UnclippedSampler`.

    Attributes:
        x_start, log_variance: As of `Prediction`.
        unclipped: The estimate of clean data before clipping, (B, C, *S).
    """

    x_start: Tensor
    log_variance: Tensor | None
    unclipped: Tensor


class StepRow(Protocol):
    """Levels and coefficients of one sampler step; each is unpacked at its first use."""

    @property
    def t(self) -> Level:
        """The level the step starts from."""

    @property
    def s(self) -> Level:
        """The level the step goes to."""

    @property
    def coef(self) -> Mapping[str, Tensor]:
        """The plan's coefficients of this step, 0-d or (B,1..)."""

    @property
    def nodes(self) -> tuple[Level, ...]:
        """Further levels within the step, in the order of `MultistageSampler.nodes`."""


class LossInputs(NamedTuple):
    """Arguments of a loss.

    Attributes:
        x_start, noise, x_t: Clean data, standard normal noise, ``alpha x_start + sigma noise``; (B, C, *S).
        out: The network's mean channels, (B, C, *S).
        target: What `out` should be, (B, C, *S).
        log_variance: Of p(x_{k-1} | x_k), nats, broadcastable to data; None where levels are continuous.
        level, transition: The level of each row; transition is None where levels are continuous.
        cols: The loss's own columns at each row, (B,1..); empty where levels are continuous.
        num_steps: T of the table in use.
        decoder: Log-likelihood of data given a Gaussian, for the term at level 1.
        decoder_rows: Upper bound on the number of rows at level 1 (B if unknown).
        to: The second level of each row, if a `PairSampler` draws the levels; None otherwise.
        learned: The loss's own module, if it is a `LearnedPart`; None otherwise.
        rate: By how much log_snr falls with time at each row, (B,), where a `TimeSampler` draws times; None otherwise.
    """

    x_start: Tensor
    noise: Tensor
    x_t: Tensor
    out: Tensor
    target: Tensor
    log_variance: Tensor | None
    level: Level
    transition: Transition | None
    cols: Mapping[str, Tensor]
    num_steps: int
    decoder: Decoder
    decoder_rows: int
    to: Level | None = None
    learned: nn.Module | None = None
    rate: Tensor | None = None


class Denoise(Protocol):
    """The network's estimate, guided and clipped, at a level of a `StepRow`."""

    def __call__(self, x: Tensor, level: Level, to: Level | None = None) -> Prediction:
        """Return the estimate at x, (B, C, *S).

        Args:
            x: Noisy data.
            level: The level of x.
            to: The level that the step goes to, for a network of two times; by default ``level``.
        """


@frozen(eq=False)
class Composition:
    """The parts of a system while it is put together; the argument of `problems`.

    `backbone` is the network's recipe, None for a foreign network or without a network; `guidance` is that of the
    current call. `null_conditions` are the values that mean "none", by name, such as the number of a label, of which a
    network takes one for each example; None if there are none. `classes` is the number of classes of the labels ``y``,
    0 without classes, None if unknown. `times` is how many times the network takes, 1 or 2; None without a network.
    `coupling` is None for independent noise, `codec` where latents are the data itself; `codec_module` is the module of
    one with weights, once the system has it. `data_shape` is that of the latents, as the network sees data.
    `continuous_time` is True if training draws values of log_snr in place of levels 1..T.
    """

    table: ProcessTable
    schedule: NoiseSchedule
    mean: MeanParameterization
    var: VarianceParameterization
    loss: Loss
    timesteps: TimestepSampler
    sampler: Sampler
    names: Mapping[str, str]
    data_shape: tuple[int, ...]
    backbone: Backbone | None = None
    guidance: tuple[Guidance, ...] = ()
    null_conditions: Mapping[str, Any] | None = None
    classes: int | None = None
    times: int | None = None
    coupling: Coupling | None = None
    codec: Codec | None = None
    codec_module: nn.Module | None = None
    continuous_time: bool = field(init=False)

    @continuous_time.default
    def _draws_log_snr(self) -> bool:
        return isinstance(self.timesteps, ContinuousTimestepSampler)

    def encode(self, x: Tensor) -> Tensor:
        """Return the latents of data by the codec, with its module; data itself without a codec."""
        return x if self.codec is None else self.codec.encode(x, *self._module())

    def decode(self, z: Tensor) -> Tensor:
        """Return the data of latents by the codec, with its module."""
        return z if self.codec is None else self.codec.decode(z, *self._module())

    def _module(self) -> tuple[Any, ...]:
        return () if self.codec_module is None else (self.codec_module,)

    def label(self, kind: str) -> str:
        """Name of the part of that kind in messages: ``var 'fixed_large'``."""
        return f"{kind} {self.names[kind]!r}"

    @property
    def out_channels(self) -> int:
        """Number of channels that the network returns: those of the mean, then those of the variance."""
        return self.data_shape[0] * (1 + self.var.extra_outputs)

    @property
    def self_conditioned(self) -> bool:
        """True if the network reads its previous estimate of x_start."""
        return isinstance(self.backbone, SelfConditionedBackbone) and self.backbone.self_condition

    @property
    def condition_channels(self) -> int:
        """Number of channels that the network reads in addition to the data's; 0 for a foreign network."""
        if not isinstance(self.backbone, ConditionalBackbone):
            return 0
        return self.backbone.channels_in(self.data_shape) - self.data_shape[0]

    @property
    def reads_low_res_level(self) -> bool:
        """True if the network reads the level of the noise on its small image; False for a foreign network."""
        return isinstance(self.backbone, ConditionalBackbone) and self.backbone.reads_low_res_level()


class Part(Protocol):
    """Base of all kinds of part."""

    def problems(self, composition: Composition) -> Iterable[str]:
        """Return one sentence for each reason why this part cannot work in the composition, with what would work."""
        return ()


@runtime_checkable
class LearnedPart(Part, Protocol):
    """A part with weights: still a recipe of options only, which says how to build the module that holds them.

    The system holds the module, in ``system.learned[kind]``, and gives it to the part's methods. Its weights are in the
    optimizer, running means, checkpoints and saved systems, beside those of the network. Call it as a function, not
    by its members, and let each of its parameters have an axis at least: only then can they be sharded.

    `trained` is False for a module that is not trained, ``system.frozen[kind]``: it is moved with the system and saved
    with it, in a file of its own, and is always in eval mode.
    """

    trained: ClassVar[bool] = True

    @abstractmethod
    def build(self, data_shape: tuple[int, ...]) -> nn.Module | None:
        """Return the module for data of a shape, (C, *S); None if it has to be given to ``compose(modules=...)``.

        Raises:
            OptionError: The options do not fit the data's shape.
        """


class NoiseSchedule(Part, Protocol):
    """Signal and noise scale at every level."""

    @abstractmethod
    def table(self, num_steps: int) -> ProcessTable:
        """Return the float64 table with levels 0..num_steps.

        Raises:
            OptionError: The schedule does not exist at so few steps; the text names the smallest that works.
        """


class ContinuousSchedule(NoiseSchedule):
    """A schedule that is defined at every log_snr, between the levels of its table too."""

    @abstractmethod
    def level(self, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        """Return (total_std, time) at any log_snr, each of its shape and dtype."""


class LearnedSchedule(ContinuousSchedule, LearnedPart):
    """A schedule with weights, which decide when in time each log_snr comes, and nothing else.

    The ends and `level` do not depend on them, so that the bound has one value, whatever they are, and they are trained
    to lower the variance of its estimate. It needs a `TimeSampler` and an `InvariantLoss`. `table` is that of a module
    as it is built; a system computes that of its present weights from `log_snr_at`, at times 0, 1 / (T - 1), ..., 1.
    """

    @abstractmethod
    def log_snr_at(self, module: nn.Module, time: Tensor) -> tuple[Tensor, Tensor]:
        """Return log_snr, and its rate of fall with time, which is positive for any weights, with gradients.

        Args:
            module: The schedule's own.
            time: In [0, 1], (B,) float64; 0 is the clean end.
        Returns:
            log_snr and ``-d log_snr / d time``, (B,) float64 each.
        """


class MeanParameterization(Part, Protocol):
    """What the network predicts, as three coefficients.

    `continuous_time` is False if it is defined at the levels of the training table only.
    """

    continuous_time: ClassVar[bool] = True

    @abstractmethod
    def scalings(self, at: Coefs, prev: Coefs | None) -> Scalings:
        """Return (c_skip, c_out, c_in) at the levels ``at``.

        Args:
            at: alpha, sigma, log_snr at levels 1..T, float64 arrays (T,), or float64 tensors (B,).
            prev: The same at the next lower level; None at continuous levels, which occur only if `continuous_time`.
        """


class VarianceParameterization(Part, Protocol):
    """The log-variance of p(x_{k-1} | x_k).

    `extra_outputs` is how many channels the network has for it, for each channel of the data: 0, or 1 if it is learned.
    """

    extra_outputs: ClassVar[int] = 0

    def columns(self, table: ProcessTable) -> Mapping[str, F64]:
        """Return named float64 columns (T+1,) of the table in use; row 0 is never read."""
        return {}

    @abstractmethod
    def log_variance(self, raw: Tensor | None, cols: Mapping[str, Tensor]) -> Tensor:
        """Return the log-variance in nats, broadcastable to data.

        Args:
            raw: The network's variance channels, (B, C*extra_outputs, *S), or None if there are none.
            cols: This part's columns at the level of each row, 0-d or (B,1..).
        """


class Loss(Part, Protocol):
    """What training minimizes."""

    @property
    def needs_transition(self) -> bool:
        """True if it reads the steps between levels, which continuous levels do not have."""
        return False

    @property
    def needs_learned_variance(self) -> bool:
        """True if it cannot be composed with a fixed variance."""
        return False

    @property
    def trains_variance(self) -> bool:
        """True if one of its terms trains a learned variance; otherwise it cannot be composed with one."""
        return False

    def columns(self, table: ProcessTable) -> Mapping[str, F64]:
        """Return named float64 columns (T+1,) of the training table; row 0 is never read.

        Continuous levels have none: weigh by ``at.level`` what is known there, such as log_snr.
        """
        return {}

    @abstractmethod
    def __call__(self, at: LossInputs) -> Mapping[str, Tensor]:
        """Return per-example terms, each (B,) float32; training minimizes the one named "loss"."""


class InvariantLoss(Loss):
    """A loss that multiplies by ``at.rate``, so that its mean over times is the same for any schedule of these ends."""


class Tangent(NamedTuple):
    """The direction of a derivative of the network along the path of noise.

    Attributes:
        x: Derivative of the data, (B, C, *S).
        level: Derivative of its level, such as `LossNetwork.rate_at` returns; None where it stays.
        to: Derivative of the level that the step goes to; None where it stays.
    """

    x: Tensor
    level: Level | None = None
    to: Level | None = None


class LossNetwork(Protocol):
    """The network as a `NetworkLoss` calls it: at any data and level, with the conditions of each row.

    Levels are records, `LossInputs.level` or what `level_at` returns. ``to`` is the level that a step goes to, for a
    network of two times only; by default the level itself.
    """

    @property
    def t(self) -> Tensor:
        """Levels of the rows as drawn: 1..T, (B,) int64; log_snr, (B,) float64, where levels are continuous."""

    @property
    def s(self) -> Tensor | None:
        """Second levels of the rows, as a `PairSampler` drew them: 0..T, or log_snr; None otherwise."""

    def predict(self, x: Tensor, level: Level, to: Level | None = None) -> Tensor:
        """Return the network's mean channels, (B, C, *S), with gradients."""

    def x_start(self, x: Tensor, level: Level, to: Level | None = None) -> Tensor:
        """Return its estimate of clean data, ``c_skip x + c_out predict(x, level, to)``, with gradients."""

    def teacher(self, x: Tensor, level: Level, to: Level | None = None) -> Tensor:
        """Return the teacher's estimate of clean data, without gradients, in eval mode; see `NetworkLoss.teacher`."""

    def jvp(
        self, x: Tensor, level: Level, to: Level | None, tangent: Tangent, *, method: str = "forward"
    ) -> tuple[Tensor, Tensor]:
        """Return `predict`, with gradients, and its derivative along a tangent, without, each (B, C, *S).

        Args:
            x, level, to: As of `predict`.
            tangent: The direction.
            method: "forward" is forward mode, with attention by plain products; "backward" differentiates twice in
                reverse mode; "difference" is a central difference, which any network allows, in two passes.
        """

    def level_at(self, t: Tensor) -> Level:
        """Return the record of other levels for the same rows: 0..T, (B,) int64, or log_snr where continuous."""

    def rate_at(self, t: Tensor) -> Level:
        """Return the derivative of that record with respect to ``time``, so that its own ``time`` is 1.

        On a continuous schedule it is exact, else by differences of neighbouring levels.
        """

    def next_level(self, steps: int = 1) -> Level:
        """Return the record of the level ``steps`` below each row's, at least 0, where levels are discrete."""


class NetworkLoss(Loss):
    """A loss that calls the network again, at other data or levels, or that calls a teacher.

    ``at.out`` is the network's output for x_t at ``at.level``, towards ``at.to`` if the network takes two times;
    calling `LossNetwork.predict` for the same three objects costs nothing. Its variance is fixed.
    """

    @property
    def needs_two_times(self) -> bool:
        """True if the network has to take the time that a step goes to."""
        return False

    @property
    def needs_pairs(self) -> bool:
        """True if it reads ``at.to``, which a `PairSampler` draws."""
        return False

    @property
    def optimum(self) -> str | None:
        """The network at which the loss is least; None if unknown. The kit checks it on data whose flow map is known.

        "flow_map": its x_start towards s is the average of the ideal denoiser on the way from t to s, so that
        ``x_s = (sigma_s / sigma_t) x_t + (alpha_s - alpha_t sigma_s / sigma_t) x_start``. "to_clean": its x_start is
        the clean data to which the probability-flow ODE leads.
        """
        return None

    @property
    def teacher(self) -> str | None:
        """What `LossNetwork.teacher` calls; None if it is not called.

        "ema" is the running mean of the weights that training keeps at its first rate, "ema_0.99" the one at that rate;
        "system" a system given to ``diffkit.train(teacher=...)``; anything else the folder of a saved one.
        """
        return None

    @abstractmethod
    def __call__(self, at: LossInputs, network: LossNetwork) -> Mapping[str, Tensor]:  # type: ignore[override]
        """Return per-example terms, as `Loss` does."""


class TimestepSampler(Part, Protocol):
    """Draws the levels of a training batch and their weights."""

    def init(self, table: ProcessTable) -> State:
        """Return the state at the start of training."""
        return ()

    @abstractmethod
    def sample(self, state: State, u: Tensor, num_steps: int) -> tuple[Tensor, Tensor]:
        """Turn uniforms into levels.

        Args:
            state: As returned by `init` or `update`.
            u: Uniforms in [0, 1), (B,), float64.
            num_steps: T of the training table.
        Returns:
            Levels 1..T, (B,) int64, and weights, (B,) float32, such that ``p(t) w(t) T = 1``.
        """

    def update(self, state: State, t: Tensor, losses: Tensor) -> State:
        """Return the state after seeing unweighted losses (B,) at levels t (B,); arguments are left unchanged."""
        return state


class ContinuousTimestepSampler(TimestepSampler):
    """Draws values of log_snr in place of levels; needs a `ContinuousSchedule`."""

    @abstractmethod
    def sample(self, state: State, u: Tensor, num_steps: int) -> tuple[Tensor, Tensor]:
        """Turn uniforms into values of log_snr; arguments as of `TimestepSampler.sample`.

        Returns:
            log_snr, (B,) float64, and weights, (B,) float32, which are 1 on average.
        """


class TimeSampler(ContinuousTimestepSampler):
    """Draws times, which a `LearnedSchedule` turns into values of log_snr."""

    @abstractmethod
    def sample(self, state: State, u: Tensor, num_steps: int) -> tuple[Tensor, Tensor]:
        """Turn uniforms into times; arguments as of `TimestepSampler.sample`.

        Returns:
            Times in [0, 1], (B,) float64, and weights, (B,) float32, such that ``p(time) w(time) = 1``.
        """


class PairSampler(TimestepSampler):
    """Draws two levels for each row: that of the data, and one that a step goes to; needs a `NetworkLoss`.

    One that inherits from `ContinuousTimestepSampler` too draws two values of log_snr.
    """

    @abstractmethod
    def sample(self, state: State, u: Tensor, num_steps: int) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        """Turn uniforms into pairs of levels.

        Args:
            state: As returned by `init` or `update`.
            u: Uniforms in [0, 1), (B, 2), float64.
            num_steps: T of the training table.
        Returns:
            Levels t in 1..T and s in 0..t, each (B,) int64, and weights, (B,) float32, such that t has
            ``p(t) E[w | t] T = 1``. In log_snr, (B,) float64, s >= t, and weights are 1 on average.
        """


class Sampler(Part, Protocol):
    """One step from noise towards data: a plan of coefficients and a pure step."""

    @property
    def order(self) -> int:
        """Order of accuracy in the step size, 1 by default; the kit measures it."""
        return 1

    @property
    def stochastic(self) -> bool:
        """True if the steps add noise; False by default."""
        return False

    @abstractmethod
    def plan(self, steps: Steps) -> Mapping[str, F64]:
        """Return named float64 columns (n,), finite; row i is step i, from level T-i to T-i-1 unless routed."""

    def init(self, x: Tensor) -> State:
        """Return the state before the first step: none by default, a tensor, or a tuple of tensors."""
        return ()

    @abstractmethod
    def step(
        self, denoise: Denoise, x: Tensor, state: State, row: StepRow, noise: Tensor | None, last: bool
    ) -> tuple[Tensor, State]:
        """Return x one level down, and the new state; arguments are left unchanged.

        Args:
            denoise: ``denoise(x, level) -> Prediction``; ``denoise(x, t, to=s)`` for a network of two times.
            x: Data at level t, (B, C, *S), float32.
            state: As returned by `init` or the step before.
            row: Levels t and s and this step's plan coefficients, 0-d or (B,1..).
            noise: Standard normal, of x's shape; None if the sampler is deterministic.
            last: True on the step to level 0 of a `MultistageSampler`; False otherwise.
        """


class UnclippedSampler(Sampler):
    """A sampler that can read the estimate of x_start before clipping: it then gets an `UnclippedPrediction`."""

    @property
    @abstractmethod
    def reads_unclipped(self) -> bool:
        """True if it does."""


class MultistageSampler(Sampler):
    """A sampler that evaluates the network more than once in a step: at nodes within it, at its end, or both.

    It has the argument ``last``, as the network is not defined at level 0; with ``uses_last = False`` it does without,
    and the last step needs no compiled graph of its own.
    """

    uses_last: ClassVar[bool] = True

    def nodes(self, steps: Steps) -> F64 | None:
        """Return log_snr of further evaluations within each step, (n, m) float64, or None if there are none.

        On a continuous schedule the network is evaluated exactly there. On a discrete one, or with a mean that is
        defined at levels only, it is evaluated at the nearest level of the training table strictly between the step's
        ends, or, for a node on the far side of t, beyond t (at t itself if there is none). A node may be at t itself,
        also where its log_snr is infinite, or at s unless that is clean data. `plan` then receives the nodes that are
        used.
        """
        return None


class EarlyNoiseSampler(Sampler):
    """A sampler that adds noise before it evaluates the network, so that x_s is not normal given x_t and the state.

    The steps of all other stochastic samplers are normal: their noise comes after the last evaluation.
    """


class RoutedSampler(Sampler):
    """A sampler that orders its steps in its own way, such as one that goes back up."""

    @abstractmethod
    def route(self, log_snr: F64) -> Sequence[tuple[int, int]] | None:
        """Return the steps as pairs of levels (from, to), or None for one after the other from T down to 0.

        A step may start at a noisier level than the one before went to; the sampler then adds the noise between them.
        The first starts at T, the last goes to 0; others may too.

        Args:
            log_snr: Of levels 0..T of the table in use, (T+1,).
        """


class Backbone(Part, Protocol):
    """The recipe of a network: options in, `torch.nn.Module` out."""

    @abstractmethod
    def build(self, data_shape: tuple[int, ...], out_channels: int) -> nn.Module:
        """Return a network ``forward(x, time, **conditions)``: (B, C, *S), (B,) -> (B, out_channels, *S).

        Raises:
            OptionError: The options do not fit the data's shape.
        """


class ConditionalBackbone(Backbone):
    """The recipe of a network that takes conditions, known before it is built."""

    def channels_in(self, data_shape: tuple[int, ...]) -> int:
        """Return the number of channels that the network reads: those of the data plus those of its conditions."""
        return data_shape[0]

    def reads_low_res_level(self) -> bool:
        """Return whether the network reads how much noise ``low_res`` has: ``low_res_level``, (B,) from 0 to 1."""
        return False

    def null_conditions(self) -> Mapping[str, Any] | None:
        """Return the conditions that mean "unconditional", such as y = the null class; None if there are none.

        They stand for conditions that training drops, for the unconditional branch of guidance, and for examples
        without a class.
        """
        return None

    def count_classes(self) -> int | None:
        """Return the number of classes of the labels ``y``, without the null class; 0 without classes.

        Labels are then needed, and checked before any work; None if the number is not known.
        """
        return None

    def context_width(self) -> int:
        """Return the width of the vectors of the sequence ``context``, (B, L, width), that the network reads; or 0."""
        return 0


class TwoTimeBackbone(Backbone):
    """A recipe that can build a network of two times, ``forward(x, time, *, time_to, **conditions)``."""

    @property
    @abstractmethod
    def times(self) -> int:
        """How many times the network takes: 1, or 2 with that of the level that a step goes to."""


class SelfConditionedBackbone(Backbone):
    """A recipe whose network can read its own estimate, ``forward(x, time, *, previous_x_start=None, **conditions)``.

    It is the estimate before this one, (B, C, *S); None is zeros, which stand for no estimate.
    """

    @property
    @abstractmethod
    def self_condition(self) -> bool:
        """True if the network reads it: training gives half of the examples one, sampling that of the last call."""


class ResizableBackbone(Backbone):
    """A recipe that depends on the shape of the data, and can be rewritten for another one."""

    @abstractmethod
    def resized(self, data_shape: tuple[int, ...], other: tuple[int, ...]) -> Backbone:
        """Return the recipe that builds the same network for data of another shape.

        `diffkit.recompose` calls it to reuse a network for data of another size.

        Args:
            data_shape: Shape of one example for which this recipe builds the network, (C, *S).
            other: The new shape.
        """


@runtime_checkable
class LevelSpacing(Protocol):
    """Which levels of a table a shorter chain visits; the argument ``steps`` of a system's calls.

    `uses_noise` is False if the levels depend on their number T alone.
    """

    uses_noise: ClassVar[bool] = True

    @abstractmethod
    def levels(self, table: ProcessTable) -> Sequence[int]:
        """Return the levels, ascending, each in 1..T of the table."""


class GridSpacing(LevelSpacing):
    """A spacing given by noise, whose levels may lie between those of the table.

    The network is then called at a time between two that it was trained with. With ``exact = False`` the nearest levels
    of the table are visited.
    """

    @property
    def exact(self) -> bool:
        """True if its noise levels are visited themselves, False for the nearest levels of the table."""
        return True

    @abstractmethod
    def log_snr(self, table: ProcessTable) -> F64:
        """Return log_snr of each level, descending, (n,) float64; minus infinity only last, at a T without signal."""

    def time(self, table: ProcessTable) -> F64 | None:
        """Return what the network is conditioned on there, (n,), or None to interpolate the table's in log_snr."""
        return None

    def levels(self, table: ProcessTable) -> Sequence[int]:
        """Return the nearest levels of the table, ascending."""
        from diffkit.table import nearest_levels

        return nearest_levels(table, self.log_snr(table))


Model = Callable[..., "Tensor"]
"""``model(x, time, **conditions) -> (B, C * (1 + extra_outputs), *S)``."""


Conditions = Mapping[str, Any]


class Estimate(NamedTuple):
    """Estimate of clean data before clipping.

    Attributes:
        x_start: Estimate of clean data, (B, C, *S).
        raw: The network's variance channels, (B, C*extra_outputs, *S), or None. A guidance passes on those of the
            conditional evaluation, as guidance never changes a learned variance.
        after_clipping: Added to x_start after clipping, (B, C, *S), or None.
    """

    x_start: Tensor
    raw: Tensor | None = None
    after_clipping: Tensor | None = None

    def with_x_start(self, x_start: Tensor) -> Estimate:
        """Return this estimate with another x_start and everything else unchanged."""
        return Estimate(x_start, self.raw, self.after_clipping)


class Evaluate(Protocol):
    """The network with the guidance before this one; a `Guidance` may call it any number of times."""

    def __call__(self, x: Tensor, level: Level, conditions: Conditions, model: Model | None = None) -> Estimate:
        """Return the estimate at x, (B, C, *S), for any batch; ``model`` replaces the system's network."""


class Guidance(Part, Protocol):
    """Guidance of sampling; a frozen attrs class, the argument ``guidance`` of ``system.sample``.

    Inherit from it for the defaults; override `guide`, `correct` or both. `neutral` is one of its options and the value
    at which it changes nothing, such as ("scale", 1.0); None if there is none.
    """

    neutral: ClassVar[tuple[str, float] | None] = None

    def columns(self, table: ProcessTable) -> Mapping[str, F64]:
        """Return named float64 columns (T+1,) of the table in use, which its `Level.coefficients` then hold."""
        return {}

    def guide(self, evaluate: Evaluate, x: Tensor, level: Level, conditions: Conditions) -> Estimate:
        """Return the guided estimate before clipping.

        Args:
            evaluate: The network and the guidance before this one.
            x: Noisy data, (B, C, *S).
            level: The level of x.
            conditions: All of the caller's conditions, those of a `ConditionalGuidance` included.
        """
        return evaluate(x, level, conditions)

    def correct(self, prediction: Prediction, x: Tensor, level: Level, conditions: Conditions) -> Prediction:
        """Return the prediction changed after clipping; arguments as in `guide`."""
        return prediction


class ConditionalGuidance(Guidance):
    """Guidance that reads conditions."""

    @property
    def own_conditions(self) -> frozenset[str]:
        """Names of conditions for this guidance only; they are not passed to the network."""
        return frozenset()

    @property
    def required_conditions(self) -> frozenset[str]:
        """Names of conditions it requires."""
        return frozenset()

    def row_conditions(self, conditions: Conditions, n: int) -> Conditions:
        """Return further conditions with a row for each example; their names must be in `own_conditions`.

        They are sliced by batch as the caller's are.

        Args:
            conditions: The caller's, as tensors on the device.
            n: Number of examples.
        """
        return {}


class NetworkGuidance(Guidance):
    """Guidance by networks of its own."""

    @property
    @abstractmethod
    def networks(self) -> tuple[nn.Module, ...]:
        """These networks; they are in eval mode while the system samples."""


class BindableGuidance(Guidance):
    """Guidance that takes values from the composition, such as the network's null conditions."""

    @abstractmethod
    def bind(self, parts: Composition) -> Guidance:
        """Return this guidance with these values filled in.

        The composition holds the guidance that is nearer to the network.
        """


class IntervalGuidance(Guidance):
    """Guidance that acts at some of the levels only; the others cost no evaluation of it."""

    @abstractmethod
    def inactive_at(self, at: Coefs) -> NDArray[np.bool_]:
        """Return True at each level where it certainly changes nothing, of the shape of at's arrays.

        A step with only such levels is computed without it.
        """


class Decoder(Part, Protocol):
    """Log-likelihood of clean data under ``N(mean, exp(log_variance))``."""

    @property
    @abstractmethod
    def bins(self) -> int | None:
        """Number of values that data takes; None if it is continuous."""

    @property
    @abstractmethod
    def bounded(self) -> bool:
        """True if data must lie in [-1, 1]."""

    @abstractmethod
    def log_prob(self, x_start: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
        """Log-likelihood in nats, elementwise, of x_start's shape; arguments broadcast."""


class Pairing(NamedTuple):
    """Result of a coupling.

    Attributes:
        noise: Of each example, (B, C, *S).
        weight: By which the loss of each example is multiplied, (B,); None for 1.
    """

    noise: Tensor
    weight: Tensor | None = None


class Adapter(Part, Protocol):
    """The recipe of parameters that are trained beside a network's own, which are frozen."""

    @abstractmethod
    def attach(self, network: nn.Module) -> None:
        """Add parameters to a network, in place; it then computes what it did, and so do its copies.

        Random values are drawn from torch's generator of the CPU.

        Raises:
            OptionError: The options do not fit the network.
        """

    @abstractmethod
    def merge(self, network: nn.Module) -> None:
        """Change the network's own weights, in place, so that it computes without these parameters what it did."""


class Coupling(Part, Protocol):
    """Which noise each training example is mixed with.

    Over many batches, data and noise keep their distributions; only which noise meets which example changes. Noise then
    depends on the data, so that only deterministic samplers lead back to the data's distribution; others are refused.

    Attributes:
        scope: "batch" if a row's noise depends on the other rows: it is then called with the whole batch, gathered from
            all processes, so that processes and microbatches change nothing. "row" if it depends on that row alone.
        own_conditions: Names of conditions for the coupling only; they are not passed to the network.
    """

    scope: ClassVar[str] = "batch"
    own_conditions: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def pair(self, x_start: Tensor, noise: Tensor, conditions: Conditions, generator: torch.Generator) -> Pairing:
        """Return the noise of each example; a pure function of its arguments.

        Args:
            x_start: Clean data as the network sees it, (B, C, *S).
            noise: Standard normal, (B, C, *S).
            conditions: Of the data, by name, as tensors (B, ...); ``y`` are classes, (B,).
            generator: Source of any further randomness, on the CPU; the same in every process.
        """


class Codec(Part, Protocol):
    """What is between data and network: data in the user's units on one side, latents on the other.

    Latents are data as the network sees it. A system encodes data before it adds noise, and decodes its samples.

    Attributes:
        exact: True if ``decode(encode(x))`` is x, so that data has a likelihood; there are as many latents as values.
        affine: True if `decode` is affine, so that what is linear in data is linear in latents, but for a constant.
        elementwise: True if each latent depends on the value of data in its place alone: a mask of data is one of
            latents.
        spatial: True if latents have the axes of data, with sides divided by whole numbers, and stand for the blocks of
            data in their places: a mask of data that is shrunk so is one of latents.
    """

    exact: ClassVar[bool] = True
    affine: ClassVar[bool] = False
    elementwise: ClassVar[bool] = False
    spatial: ClassVar[bool] = False

    def latent_shape(self, data_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the latents of one example, (C, *S), from that of its data; the same by default.

        Raises:
            OptionError: The options do not fit the data's shape.
        """
        return data_shape

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """Return the latents of data (B, C, *S), in its dtype; a pure function of each row."""

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """Return the data of latents (B, C, *S), in their dtype; a pure function of each row, with a gradient."""

    def log_det(self, x: Tensor) -> Tensor:
        """Return ``log |det d encode(x) / dx|`` of each example in nats, (B,); only called if `exact`."""
        name = type(self).__name__
        raise ProtocolError(
            f"codec {name!r} has no log_det, which likelihoods need; write it, or declare exact = False"
        )


class MeasuredCodec(Codec):
    """A codec with options that are measured on data, once, before a system is composed with it."""

    @property
    @abstractmethod
    def measured(self) -> bool:
        """True if it has all of these options."""

    @abstractmethod
    def measure(self, batches: Iterable[Tensor]) -> MeasuredCodec:
        """Return this codec with the options that it lacks, from batches of data, (B, C, *S) float32."""


class AutoencoderCodec(Codec, LearnedPart):
    """A codec by a frozen network; the methods are given its module. Latents have a normal distribution, given data.

    Training draws them from it, anew each time; everything else takes the mean. `folder` is an option, None by default:
    the codec's own, with its module, is then read from there, when a system is composed, and the system's has None.
    """

    trained: ClassVar[bool] = False
    exact: ClassVar[bool] = False
    folder: str | None

    def open(self) -> tuple[AutoencoderCodec, nn.Module] | None:
        """Return the codec of the folder, with ``folder=None``, and its module; None for one of `save_codec`."""
        return None

    @abstractmethod
    def moments(self, x: Tensor, module: nn.Module) -> Tensor:
        """Return mean and log-variance of the latents of data (B, C, *S), one after the other: (B, 2 C', *S')."""

    def encode(self, x: Tensor, module: nn.Module) -> Tensor:  # type: ignore[override]
        """Return the mean of the latents of data (B, C, *S), in its dtype; a pure function of each row."""
        return self.moments(x, module).chunk(2, 1)[0]

    @abstractmethod
    def decode(self, z: Tensor, module: nn.Module) -> Tensor:  # type: ignore[override]
        """Return the data of latents (B, C', *S'), in their dtype; a pure function of each row, with a gradient."""


class Optimizer(Protocol):
    """How weights change by their gradients: a recipe for a torch optimizer.

    Attributes:
        elementwise: True if the update of each element depends on its own gradients alone, so that it can be made on
            shards of a parameter.
        gathers: True if the torch optimizer gathers what it needs of parameters that are sharded (DTensor). Sharded
            training (FSDP2) is refused with an optimizer that is neither.
    """

    elementwise: ClassVar[bool] = False
    gathers: ClassVar[bool] = False

    @abstractmethod
    def build(self, groups: list[dict[str, Any]], network: nn.Module) -> torch.optim.Optimizer:
        """Return a torch optimizer, whose ``step()`` needs no closure.

        Its state is stored and restored by parameter: tensors and numbers of `state` and `param_groups`. The trainer
        multiplies the "lr" that each of its groups has at first, by warm-up and schedule, before every step.

        Args:
            groups: Parameters that are trained, each in one group, as torch takes them: dictionaries of "params" (a
                list), "lr" and "weight_decay".
            network: The network, for names and modules of the parameters.
        """


class LRSchedule(Protocol):
    """How the learning rate changes with the number of updates."""

    @abstractmethod
    def factor(self, step: int, steps: int) -> float:
        """Return the factor on the learning rate, >= 0, of the update after ``step`` completed ones.

        Args:
            step: 0..steps - 1.
            steps: Updates of the run in all. Where the factor does not depend on it, a run may be lengthened later.
        """


class GroupNormKernel(Protocol):
    """A module with ``y = act(n (1 + scale) + shift)`` and its gradients, n the group norm of x, in float32 arithmetic.

    diffkit calls it in place of the layers `nn.GroupNorm` and `nn.SiLU` where nothing else acts on them.
    """

    def available(self, device: torch.device) -> bool:
        """Return whether it runs on a device, and is faster there than the layers."""
        ...

    def supports(self, x: Tensor, groups: int) -> bool:
        """Return whether it takes x, (B, C, *S): dtype, memory format, sizes and device."""
        ...

    def forward(
        self, x: Tensor, weight: Tensor, bias: Tensor, scale_shift: Tensor | None, groups: int, eps: float, silu: bool
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return y in x's dtype, and what `backward` needs; act is SiLU or the identity, scale_shift is (B, 2 C)."""
        ...

    def backward(
        self,
        grad: Tensor,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        scale_shift: Tensor | None,
        groups: int,
        silu: bool,
        saved: tuple[Tensor, ...],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Return the gradients of x, weight, bias and scale_shift from that of y."""
        ...
