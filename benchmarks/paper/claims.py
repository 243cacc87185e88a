"""Each claim of the paper against the kept cells: what it says, what was found, and whether it holds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from attrs import frozen
from scipy import stats

import diffkit
from benchmarks.paper.cells import FEW, Bench
from benchmarks.paper.study import Network, Study

FAINT = 0.01
"""alpha_bar below which a level counts as noise."""
SKIPPED, HALF = 0.2, 0.5
"""Share of the chain that the paper skips with little harm, and one that shows more of the difference."""
FEW_STEPS, MANY_STEPS = 25, max(FEW)

NOTES: Mapping[str, Sequence[str]] = {
    "small": (
        "Clipping decides how good L_vlb is after so few updates. With 2000 updates and one seed, the "
        "importance-sampled L_vlb reached 7.10 bits/dim without clipping, 4.82 with Adam's beta_2 = 0.99 in its place, "
        "and 3.71 with it; L_hybrid reached 3.61 without.",
        "Clipping also takes away the rare, huge gradients that uniform levels give L_vlb, which is what importance "
        "sampling is for. So c3 is not the paper's comparison. Without clipping it had the paper's order: 7.10 "
        "(importance sampled) against 7.55 (uniform), with 2000 updates and one seed. c1 and c2 are of gradients that "
        "are not clipped.",
    )
}
"""What was seen beside the grid, by the study's name."""


@frozen
class Estimate:
    """A mean over seeds with its 95 % confidence interval (Student's t).

    Attributes:
        mean: Of the values.
        half: Half-width of the interval; NaN for one seed, 0 for what needs none.
    """

    mean: float
    half: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """Of one value for each seed."""
        count = len(values)
        if count < 2:
            return cls(float(np.mean(values)), math.nan)
        half = float(stats.t.ppf(0.975, count - 1)) * float(np.std(values, ddof=1)) / math.sqrt(count)
        return cls(float(np.mean(values)), half)

    def above(self, limit: float = 0.0) -> bool | None:
        """Whether it is above a limit; None if the interval leaves it open."""
        if math.isnan(self.half) or abs(self.mean - limit) <= self.half:
            return None
        return self.mean > limit

    def text(self, digits: int = 2) -> str:
        """Such as 3.62 ± 0.05."""
        error = "" if not self.half or math.isnan(self.half) else f" ± {self.half:.{digits}f}"
        return f"{self.mean:.{digits}f}{error}"


@frozen
class Row:
    """One claim.

    Attributes:
        key: Letter of the group and a number, such as "b2".
        claim: What the paper says.
        paper: Where, and its figures.
        ours: What was found here.
        holds: True, False, or None where the seeds do not decide it.
        seeds: How many it was found with; 0 where none is needed.
    """

    key: str
    claim: str
    paper: str
    ours: str
    holds: bool | None
    seeds: int

    @property
    def verdict(self) -> str:
        """In words."""
        return {True: "holds", False: "**does not hold at this size**", None: "*not decided by these seeds*"}[
            self.holds
        ]


Found = Mapping[str, Mapping[int, Mapping[str, Any]]]
"""Results by "kind data schedule objective width", then by seed."""


def gather(bench: Bench, seeds: Sequence[int]) -> dict[str, dict[int, dict[str, Any]]]:
    """Return every kept cell."""
    from benchmarks.paper.cells import kinds

    found: dict[str, dict[int, dict[str, Any]]] = {}
    for seed in seeds:
        for network in bench.study.networks(seed):
            for kind in kinds(bench.study, network):
                kept = bench.kept(kind, network)
                if kept is not None:
                    found.setdefault(_key(kind, network), {})[seed] = kept
    return found


def _key(kind: str, network: Network) -> str:
    return f"{kind} {network.data} {network.schedule} {network.objective} {network.width}"


class Results:
    """Kept cells by what they are of."""

    def __init__(self, study: Study, found: Found):
        self.study, self.found = study, found

    def likelihood(self, schedule: str, objective: str, width: int | None = None) -> dict[int, Any]:
        """Bits and what belongs to them, by seed."""
        study = self.study
        network = Network(study.likelihood_data, schedule, objective, width or study.width, 0)
        return dict(self.found.get(_key("bits", network), {}))

    def quality(self, kind: str, schedule: str, objective: str) -> dict[int, Any]:
        """Distances, by seed."""
        network = Network(self.study.quality_data, schedule, objective, self.study.quality_width, 0)
        return dict(self.found.get(_key(kind, network), {}))

    def noise(self) -> dict[int, Any]:
        """Gradient noise, by seed."""
        network = Network(self.study.likelihood_data, "cosine", "vlb_is", self.study.width, 0)
        return dict(self.found.get(_key("gradient_noise", network), {}))


def rows(results: Results) -> list[Row]:
    """Return the whole table; claims whose cells are missing are left out."""
    groups = (wasted_levels, skipping, schedules, objectives, sampling_of_levels, few_steps, ddim, bound, ratio, size)
    return [row for group in groups for row in group(results)]


def common(*of: Mapping[int, Any]) -> tuple[dict[int, Any], ...]:
    """The same, with the seeds that all of them have."""
    seeds = sorted(set.intersection(*(set(found) for found in of)))
    return tuple({seed: found[seed] for seed in seeds} for found in of)


def paired(a: Mapping[int, Any], b: Mapping[int, Any], value: Any) -> Estimate:
    """Difference a - b of a value, seed by seed."""
    return Estimate.of([value(a[seed]) - value(b[seed]) for seed in a])


def mean(of: Mapping[int, Any], value: Any) -> Estimate:
    """Mean of a value over seeds."""
    return Estimate.of([value(found) for found in of.values()])


def together(*answers: bool | None) -> bool | None:
    """A claim of several parts: false if one is, open if one is."""
    if any(answer is False for answer in answers):
        return False
    return None if any(answer is None for answer in answers) else True


# ---- (a) the schedule ------------------------------------------------------------------------------------------------


def wasted_levels(results: Results) -> list[Row]:
    """Fig. 5, from the schedules alone."""
    shares = {}
    for schedule in ("linear", "cosine"):
        table = diffkit.compose(schedule=schedule, num_steps=results.study.num_steps, backbone=None).table
        shares[schedule] = float((table.alpha_bar[1:] < FAINT).mean())
    return [
        Row(
            "a1",
            "The linear schedule destroys information too early: its last levels are almost pure noise",
            "fig. 5: alpha_bar against t",
            f"alpha_bar < {FAINT:g} at {shares['linear']:.0%} of the linear and {shares['cosine']:.0%} of the cosine "
            "levels (exact)",
            shares["linear"] > 2 * shares["cosine"],
            seeds=0,
        )
    ]


def skipping(results: Results) -> list[Row]:
    """Fig. 4."""
    linear, cosine = common(*(results.quality("skips", schedule, "hybrid") for schedule in ("linear", "cosine")))
    if not linear:
        return []

    def growth(share: float) -> Any:
        return lambda found: found[str(share)] / found["0.0"] - 1

    increase = growth(SKIPPED)
    ours, theirs = mean(linear, increase), mean(cosine, increase)
    difference = paired(cosine, linear, increase)
    little = Estimate(-ours.mean, ours.half).above(-0.1)
    return [
        Row(
            "a2",
            f"With the linear schedule the noisiest {SKIPPED:.0%} of the chain can be skipped with little harm (here: "
            "under 10 % more distance); skipping hurts the cosine schedule more",
            "fig. 4: FID against share skipped, linear flat up to 20 %",
            f"distance grows by {_percent(ours)} (linear), {_percent(theirs)} (cosine); with {HALF:.0%} skipped by "
            f"{_percent(mean(linear, growth(HALF)))}, {_percent(mean(cosine, growth(HALF)))}",
            together(little, difference.above()),
            len(linear),
        )
    ]


# ---- (b) objectives --------------------------------------------------------------------------------------------------


def _bits(found: Mapping[str, Any]) -> float:
    return float(found["bits"])


def schedules(results: Results) -> list[Row]:
    """Table 1 and 2, rows of L_simple."""
    linear, cosine = common(results.likelihood("linear", "simple"), results.likelihood("cosine", "simple"))
    if not linear:
        return []
    difference = paired(linear, cosine, _bits)
    return [
        Row(
            "b1",
            "L_simple has better bits/dim with the cosine schedule than with the linear one",
            "table 1: 3.68 against 3.77 (ImageNet 64); table 2: 3.26 against 3.37 (CIFAR-10)",
            f"{mean(cosine, _bits).text()} against {mean(linear, _bits).text()}; gain {difference.text(3)}",
            difference.above(),
            len(linear),
        )
    ]


def objectives(results: Results) -> list[Row]:
    """Tables 1 and 2."""
    pairs = [
        (
            "b2",
            "L_hybrid has better bits/dim than L_simple",
            "table 1: 3.62 against 3.68; table 2: 3.17 against 3.26",
            "hybrid",
            "simple",
        ),
        (
            "b3",
            "L_vlb (importance sampled) has better bits/dim than L_hybrid",
            "table 1: 3.57 against 3.62; table 2: 2.94 against 3.17",
            "vlb_is",
            "hybrid",
        ),
    ]
    return [row for key, claim, paper, a, b in pairs for row in _better(results, key, claim, paper, a, b)]


def _better(results: Results, key: str, claim: str, paper: str, better: str, worse: str) -> list[Row]:
    """One objective against another, in bits/dim on the cosine schedule."""
    a, b = common(results.likelihood("cosine", better), results.likelihood("cosine", worse))
    if not a:
        return []
    gain = paired(b, a, _bits)
    ours = f"{mean(a, _bits).text()} against {mean(b, _bits).text()}; gain {gain.text(3)}"
    return [Row(key, claim, paper, ours, gain.above(), len(a))]


# ---- (c) importance sampling -----------------------------------------------------------------------------------------


def sampling_of_levels(results: Results) -> list[Row]:
    """Figs. 6 and 7."""
    noise, found = results.noise(), []
    if noise:

        def ratio(a: str, b: str) -> Estimate:
            return Estimate.of([math.log10(scale(each[a]) / scale(each[b])) for each in noise.values()])

        def scale(of: Mapping[str, float]) -> float:
            return noise_scale(results.study, of)[0]

        bounds = sum(noise_scale(results.study, each["vlb"])[1] for each in noise.values())
        least = f" (at least: {bounds} of the seeds lost the mean gradient of L_vlb in its noise)" if bounds else ""

        vlb, less = ratio("vlb", "hybrid"), ratio("vlb", "vlb_is")
        found.append(
            Row(
                "c1",
                "The gradient of L_vlb is much noisier than that of L_hybrid",
                "section 3.3, fig. 7: the noise scale of L_vlb lies far above that of L_hybrid",
                f"noise scale larger by a factor of {_factor(vlb)}, halfway through training{least}",
                vlb.above(),
                len(noise),
            )
        )
        found.append(
            Row(
                "c2",
                "Importance sampling of levels lowers the gradient noise of L_vlb",
                "section 3.3, fig. 6: smooth curves with resampling",
                f"noise scale smaller by a factor of {_factor(less)}{least}",
                less.above(),
                len(noise),
            )
        )
    c3 = "L_vlb reaches better bits/dim with importance sampling than with uniform levels"
    return found + _better(results, "c3", c3, "fig. 6: best curve of all objectives", "vlb_is", "vlb")


def noise_scale(study: Study, found: Mapping[str, float]) -> tuple[float, bool]:
    """Return the noise scale, and whether it is only the least that it can be.

    The squared length of the mean gradient is an estimate from a number of batches; where noise makes it negative, it
    is taken to be below twice the variance of that mean.
    """
    if found["scale"] > 0:
        return found["scale"], False
    return study.batch[0] * study.gradients / 2, True


# ---- (d) few steps ---------------------------------------------------------------------------------------------------


def few_steps(results: Results) -> list[Row]:
    """Fig. 8."""
    learned, fixed = common(*(results.quality("few_steps", "cosine", objective) for objective in ("hybrid", "simple")))
    if not learned:
        return []

    def at(way: str, steps: int) -> Any:
        return lambda found: float(found[way][str(steps)])

    parts = [("learned", learned), ("fixed_large", fixed), ("fixed_small", fixed)]
    loss = {
        way: Estimate.of([at(way, FEW_STEPS)(f) - at(way, MANY_STEPS)(f) for f in of.values()]) for way, of in parts
    }

    def gap(way: str) -> Estimate:
        lost = [
            (at(way, FEW_STEPS)(fixed[s]) - at(way, MANY_STEPS)(fixed[s]))
            - (at("learned", FEW_STEPS)(learned[s]) - at("learned", MANY_STEPS)(learned[s]))
            for s in learned
        ]
        return Estimate.of(lost)

    text = "; ".join(f"{way.replace('_', ' ')} +{loss[way].text()}" for way, _ in parts)
    return [
        Row(
            "d1",
            f"With learned variances samples lose less from {MANY_STEPS} to {FEW_STEPS} steps than with fixed large "
            "ones (beta)",
            "fig. 8: L_hybrid keeps FID down to 50 steps, sigma^2 = beta does not",
            f"distance at {FEW_STEPS} steps against {MANY_STEPS}: {text}",
            gap("fixed_large").above(),
            len(learned),
        ),
        Row(
            "d2",
            "... and less than with fixed small ones (beta-tilde)",
            "fig. 8: sigma^2 = beta-tilde also loses below 50 steps",
            f"extra loss of fixed small over learned: {gap('fixed_small').text()}",
            gap("fixed_small").above(),
            len(learned),
        ),
    ]


def ddim(results: Results) -> list[Row]:
    """Fig. 8, DDIM."""
    found = results.quality("few_steps", "cosine", "hybrid")
    if not found:
        return []
    few, many = (
        Estimate.of([each["learned"][str(n)] - each["ddim"][str(n)] for each in found.values()])
        for n in (min(FEW), MANY_STEPS)
    )
    return [
        Row(
            "d3",
            f"DDIM is better at very few steps (here {min(FEW)}), learned variances at many (here {MANY_STEPS})",
            "fig. 8: curves cross at about 50 steps",
            f"learned minus DDIM: {few.text()} at {min(FEW)} steps, {many.text()} at {MANY_STEPS}",
            together(few.above(), None if many.above() is None else not many.above()),
            len(found),
        )
    ]


# ---- (e) the bound over levels ---------------------------------------------------------------------------------------


def bound(results: Results) -> list[Row]:
    """Fig. 2."""
    found = results.likelihood("cosine", "hybrid")
    if not found:
        return []

    def share(part: float) -> Any:
        def of(each: Mapping[str, Any]) -> float:
            levels, total = np.array(each["levels"]), results.study.num_steps
            filled = np.interp(np.arange(1, total + 1), levels, each["terms"])
            return float(filled[: max(round(part * total), 1)].sum() / filled.sum())

        return of

    first, tenth = mean(found, share(0.01)), mean(found, share(0.1))
    return [
        Row(
            "e1",
            "The first levels have the largest part of the bound (here: the first 10 % more than half)",
            "fig. 2: terms of the bound against t, falling by orders of magnitude",
            f"first 1 % of the levels: {_percent(first)} of the bound; first 10 %: {_percent(tenth)}",
            tenth.above(0.5),
            len(found),
        )
    ]


def ratio(results: Results) -> list[Row]:
    """Fig. 1, from the schedules alone."""
    texts, reached = [], []
    for steps in (100, 1000, 4000):
        table = diffkit.compose(schedule="linear", num_steps=steps, backbone=None).table
        fraction = table.posterior().variance[2:] / table.upper_variance[2:]
        reached.append(float((np.argmax(fraction > 0.95) + 2) / steps))
        texts.append(f"T = {steps}: {reached[-1]:.1%}")
    return [
        Row(
            "e2",
            "beta-tilde / beta is near 1 but for the first levels, the fewer of them the larger T is",
            "fig. 1",
            f"share of levels before the ratio passes 0.95 (exact, linear): {', '.join(texts)}",
            reached[0] > reached[1] > reached[2] and reached[2] < 0.05,
            seeds=0,
        )
    ]


# ---- (f) size --------------------------------------------------------------------------------------------------------


def size(results: Results) -> list[Row]:
    """Fig. 10."""
    widths = results.study.widths
    by_width = dict(zip(widths, common(*(results.likelihood("cosine", "hybrid", w) for w in widths)), strict=True))
    seeds = list(by_width[widths[0]])
    if not seeds or len(by_width) < 2:
        return []
    found = []
    for key, quantity, name in (("f1", "eps_mse", "L_simple on held-out data"), ("f2", "bits", "bits/dim")):
        slopes, fits = zip(*(power_law(by_width, seed, quantity) for seed in seeds), strict=True)
        slope, worst = Estimate.of(slopes), min(fits)
        values = " / ".join(mean(of, lambda each, q=quantity: each[q]).text(3) for of in by_width.values())
        parameters = " / ".join(f"{next(iter(of.values()))['parameters'] / 1e3:.0f}k" for of in by_width.values())
        claim = f"{name} improves with model size as a power law" if key == "f1" else f"{name} improves with size too"
        falls = Estimate(-slope.mean, slope.half).above()
        found.append(
            Row(
                key,
                claim,
                "fig. 10: FID against compute is near a straight line in log-log; NLL fits less well",
                f"{values} at {parameters} parameters; exponent {slope.text(3)}, R^2 >= {worst:.2f}",
                together(falls, True if key == "f2" or len(by_width) < 3 else worst > 0.9),
                len(seeds),
            )
        )
    return found


def power_law(by_width: Mapping[int, Mapping[int, Any]], seed: int, quantity: str) -> tuple[float, float]:
    """Exponent and R^2 of a straight line in log-log."""
    x = np.log([found[seed]["parameters"] for found in by_width.values()])
    y = np.log([found[seed][quantity] for found in by_width.values()])
    fit = stats.linregress(x, y)
    return float(fit.slope), float(fit.rvalue**2)


def _percent(value: Estimate) -> str:
    error = "" if not value.half or math.isnan(value.half) else f" ± {100 * value.half:.0f}"
    return f"{100 * value.mean:.0f}{error} %"


def _factor(log: Estimate) -> str:
    if math.isnan(log.half):
        return f"{10**log.mean:.2g}"
    return f"{10**log.mean:.2g} ({10 ** (log.mean - log.half):.2g} to {10 ** (log.mean + log.half):.2g})"
