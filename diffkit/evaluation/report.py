"""A report of a run: composition, training, samples, likelihood of data, and code to train it again.

It is one HTML file without scripts and without references to other files.
"""

from __future__ import annotations

import base64
import contextlib
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from attrs import field, frozen

from diffkit._version import __version__
from diffkit.errors import CheckpointError, DiffkitError, DivergedError
from diffkit.evaluation._svg import ChartLine, chart, scatter
from diffkit.evaluation._templates import template
from diffkit.explain import explain
from diffkit.options import check_integer
from diffkit.runtime.files import load_weights, write_atomically
from diffkit.runtime.images import grid, pixels, png
from diffkit.runtime.run_layout import CHECKPOINTS, CONFIG, MANIFEST, SPEC, STEPS
from diffkit.runtime.strict_json import check_fields, read_json
from diffkit.spacing import Spacing
from diffkit.system.loading import load_system, read_spec
from diffkit.system.module import System
from diffkit.training.config import RETIRED

if TYPE_CHECKING:
    from markupsafe import Markup
    from torch import Tensor

    from diffkit.explain.explanation import Explanation

_MOMENTS = 9
_ROWS = 4
_POINTS = 1000
_STEPS = 50


@frozen(eq=False)
class ReportFigure:
    """An image or chart of a report.

    Attributes:
        caption: Text about its content and settings.
        svg: The chart, or None.
        src: The image as a data URI, or None.
    """

    caption: str
    svg: Markup | None = field(default=None, repr=False)
    src: str | None = field(default=None, repr=False)


def write_report(
    run: str | Path,
    out: str | Path | None = None,
    *,
    n: int = 36,
    steps: Spacing = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: bool = False,
) -> Path:
    """Write the report of a run or saved system, by default report.html in its folder, and return its path.

    Args:
        run: The folder.
        out: The file.
        n: Number of samples to draw; 0 draws none.
        steps: Levels that sampling visits; by default 50, or all if there are fewer.
        seed: Seed of the samples.
        device: Device for sampling.
        progress: Show a progress bar.
    Raises:
        CheckpointError, SpecError: As `diffkit.load`.
        MissingExtraError: Jinja2 or Pillow is not installed.
    """
    check_integer("n", n, ge=0)
    folder = Path(run)
    page = template("report.html.j2")
    found = _ReportedRun.read(folder, device)
    spacing = min(_STEPS, found.system.num_steps) if steps is None else steps
    text = page.render(
        title=folder.resolve().name,
        shape="x".join(map(str, found.system.data_shape)),
        run=folder,
        explanation=found.explanation,
        parts=found.explanation.parts,
        settings=found.explanation.settings,
        schedule_charts=list(_schedule_charts(found.explanation)),
        training_charts=list(_training_charts(folder)),
        samples=list(_sample_figures(found, n, spacing, seed, progress)) if n else [],
        bound=_bound_results(folder),
        exact=_ode_results(folder),
        evaluation=_evaluation_results(folder / "evaluation.json"),
        facts=_environment_facts(found),
        repeat=_training_code(found),
        spec=json.dumps(found.spec, indent=2),
        train_options=found.config.get("train", {}),
        data=found.config.get("data", {}),
    )
    path = folder / "report.html" if out is None else Path(out)
    write_atomically(path, text.encode(errors="backslashreplace"))  # names of folders may hold any bytes
    return path


@frozen(eq=False)
class _ReportedRun:
    """The content of a run's folder, for its report."""

    folder: Path
    system: System
    spec: Mapping[str, Any]
    config: Mapping[str, Any]
    explanation: Explanation

    @classmethod
    def read(cls, folder: Path, device: str | torch.device) -> _ReportedRun:
        spec = read_spec(folder / SPEC)
        system = load_system(folder, device=device)
        config = {"train": {}, "data": {}, **(_read_json_if_exists(folder / CONFIG) or {})}
        check_fields(config, str(folder / CONFIG), CheckpointError, train=dict, data=dict)
        check_fields(config["train"], f"train of {folder / CONFIG}", CheckpointError, ema=(list, type(None)))
        check_fields(config["data"], f"data of {folder / CONFIG}", CheckpointError, classes=(list, type(None)))
        return cls(folder, system, spec, config, explain(system, network=True))

    @property
    def class_names(self) -> Sequence[str]:
        """Names of the classes; empty without classes."""
        count = self.system.parts.classes or 0
        return self.config.get("data", {}).get("classes") or [str(i) for i in range(count)]

    @property
    def enlarges(self) -> bool:
        """Whether its network reads low-resolution images besides the noisy ones."""
        return self.system.parts.condition_channels > 0

    def conditions(self, n: int) -> dict[str, Any]:
        """Return a class for each of n samples, in turn; empty without classes."""
        count = self.system.parts.classes or len(self.class_names)
        return {} if not count else {"y": [i % count for i in range(n)]}

    def checkpoints(self) -> Iterator[tuple[int, Mapping[str, Tensor]]]:
        """Yield step and sampling weights of each intact checkpoint for the report, oldest first."""
        from diffkit.training import checkpoint
        from diffkit.training.ema import ema_label

        rates = self.config.get("train", {}).get("ema") or []
        name = ema_label(rates[0]) if rates else "model"
        for path in reversed(list(checkpoint.newest_first(self.folder / CHECKPOINTS))):
            try:
                found = checkpoint.read(path, only={"model", name})
            except DiffkitError:
                continue
            if name in found.files:
                yield found.step, {**found.files["model"], **found.files[name]}


# ---- charts ----------------------------------------------------------------------------------------------------------


def _schedule_charts(e: Explanation) -> Iterator[ReportFigure]:
    yield ReportFigure(
        "How signal and noise mix at each level.",
        chart(
            "Share of the variance",
            "level",
            "share",
            [ChartLine(e.level, e.alpha_bar, "signal (alpha_bar)"), ChartLine(e.level, 1 - e.alpha_bar, "noise")],
        ),
    )
    middle = int(np.argmin(np.abs(np.log(np.maximum(e.snr, 1e-300)))))
    yield ReportFigure(
        "Weight of a squared error of x_start, relative to the level where signal and noise are equal.",
        chart(
            "Weight of each level",
            "level",
            "relative weight",
            [
                ChartLine(e.level, e.weight / e.weight[middle] if e.weight[middle] else e.weight, "in the loss"),
                ChartLine(e.level, e.bound_weight / e.bound_weight[middle], "in the bound"),
            ],
            log_y=True,
        ),
    )
    yield ReportFigure(
        "The two bounds of the reverse step's standard deviation; a learned variance lies between them.",
        chart(
            "Standard deviation of a reverse step",
            "level",
            "units of the data",
            [ChartLine(e.level, e.upper_std, "beta"), ChartLine(e.level, e.posterior_std, "beta-tilde")],
            log_x=len(e.level) > 10,
            log_y=True,
        ),
    )


def _training_charts(folder: Path) -> Iterator[ReportFigure]:
    from diffkit.training import read_metrics

    lines = read_metrics(folder)
    if not lines:
        return

    def curve(name: str, label: str = "") -> ChartLine:
        having = [line for line in lines if name in line]
        return ChartLine([line["step"] for line in having], [line[name] for line in having], label)

    names = {name for line in lines for name in line}
    losses = [name for name in ("loss", "mse", "vb", "val_loss") if name in names]
    yield ReportFigure(
        "Means over the steps between two lines of metrics.",
        chart("Loss", "step", "loss", [curve(name, name) for name in losses], log_y=True),
    )
    quartiles = [f"loss_q{q}" for q in range(4) if f"loss_q{q}" in names]
    if quartiles:
        yield ReportFigure(
            "Loss in each quarter of the levels; q0 is nearest to clean data.",
            chart("Loss by level", "step", "loss", [curve(q, q[5:]) for q in quartiles], log_y=True),
        )
    yield ReportFigure(
        "Norm of the gradient before clipping.",
        chart("Gradient", "step", "norm", [curve("grad_norm")], log_y=True),
    )
    yield ReportFigure(
        "Learning rate of each update.",
        chart("Learning rate", "step", "learning rate", [curve("lr")]),
    )
    if "images_per_s" in names:
        yield ReportFigure(
            "Examples per second, over the whole loop.",
            chart("Speed", "step", "examples per second", [curve("images_per_s")]),
        )


def _bound_results(folder: Path) -> Mapping[str, Any] | None:
    """Return the results of ``diffkit nll`` for the report: the bound, and its terms by level."""
    from diffkit.likelihood.scores import FAINT, NORMAL_95

    arrays = _read_npz(folder / "nll.npz", "total", "prior", "levels", "visits", "terms", "terms_error")
    if arrays is None:
        return None
    seen = arrays["visits"] > 0
    level, terms, reach = (
        arrays["levels"][seen],
        arrays["terms"][seen],
        NORMAL_95 * np.nan_to_num(arrays["terms_error"][seen]),
    )
    filled = np.interp(arrays["levels"], level, terms)
    total = float(arrays["total"].mean())
    shown = np.where(terms > FAINT * max(terms.max(), 0.0), terms, np.nan)
    log = len(level) > 10
    return {
        **_mean_with_error(arrays["total"]),
        "first": float(terms[0]),
        "prior": float(arrays["prior"].mean()),
        "charts": [
            ReportFigure(
                "Terms of the bound by level, with 95 % intervals, except those below a millionth of the largest. The "
                "first is the decoder's.",
                chart(
                    "Terms of the bound",
                    "level",
                    "bits/dim",
                    [ChartLine(level, shown, "", shown - reach, shown + reach)],
                    log_x=log,
                    log_y=True,
                ),
            ),
            ReportFigure(
                "Share of the bound up to each level.",
                chart(
                    "Share so far", "level", "share", [ChartLine(arrays["levels"], filled.cumsum() / total)], log_x=log
                ),
            ),
        ],
    }


def _ode_results(folder: Path) -> Mapping[str, Any] | None:
    """Return the results of ``diffkit nll --ode`` for the report."""
    arrays = _read_npz(folder / "ode.npz", "bits", "meaning")
    return None if arrays is None else {**_mean_with_error(arrays["bits"]), "meaning": str(arrays["meaning"])}


def _mean_with_error(bits: Any) -> dict[str, Any]:
    """Return the mean over examples with its standard error, which is None for a single one."""
    count = len(bits)
    error = float(bits.std(ddof=1)) / count**0.5 if count > 1 else None
    return {"bits": float(bits.mean()), "error": error, "count": count}


def _read_npz(path: Path, *names: str) -> dict[str, Any] | None:
    """Return arrays of a file of ``diffkit nll`` for the report; None if there is no file."""
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as loaded:
            return {name: loaded[name] for name in names}
    except Exception as error:  # NumPy may raise any error at a damaged file
        raise CheckpointError(
            f"{path} is not a file of diffkit nll: {error}; remove it, or run diffkit nll again"
        ) from error


# ---- pictures --------------------------------------------------------------------------------------------------------


def _sample_figures(run: _ReportedRun, n: int, steps: Spacing, seed: int, progress: bool) -> Iterator[ReportFigure]:
    """Yield figures of samples for the report: of the trained system, of stored checkpoints, and at several levels."""
    system = run.system
    if system.network is None:
        return
    if run.enlarges:
        yield ReportFigure("This system enlarges small images; diffkit sample --low-res draws its samples.")
        return
    how = f"{run.explanation.sampler.name}, {len(system.table_for(steps).index) - 1} steps, seed {seed}"
    count = _POINTS if len(system.data_shape) == 1 else n
    with torch.no_grad():
        try:
            x = system.sample(count, steps=steps, seed=seed, batch_size=256, progress=progress, **run.conditions(count))
        except DivergedError as error:
            yield ReportFigure(f"No samples ({how}): {error}.")
            return
        yield _draw_samples(run, x, f"Samples of the trained system ({how}).")
        yield from _checkpoint_figures(run, min(count, 100 if len(system.data_shape) == 1 else 10), steps, seed)
        yield from _trajectory_figures(run, steps, seed)


def _checkpoint_figures(run: _ReportedRun, count: int, steps: Spacing, seed: int) -> Iterator[ReportFigure]:
    system, network = run.system, run.system.network
    assert network is not None
    final = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    found = list(run.checkpoints())
    if len(found) < 2:
        return
    try:
        for step, weights in found:
            load_weights(network, {k: v for k, v in weights.items() if k in final})
            with contextlib.suppress(DivergedError):  # an early network may diverge; the others are drawn
                x = system.sample(count, steps=steps, seed=seed, progress=False, **run.conditions(count))
                yield _draw_samples(run, x, f"The same seed after step {step}.", columns=count)
    finally:
        network.load_state_dict(final)


def _trajectory_figures(run: _ReportedRun, steps: Spacing, seed: int) -> Iterator[ReportFigure]:
    system = run.system
    if len(system.data_shape) != 3:
        return
    moments = list(system.trajectory(_ROWS, steps=steps, seed=seed, **run.conditions(_ROWS)))
    places = np.unique(np.linspace(0, len(moments) - 1, min(_MOMENTS, len(moments))).round().astype(int))
    levels = ", ".join(str(moments[i].level) for i in places)
    total_std = [float(system.table.total_std[moments[i].level]) for i in places]
    noisy = [system.to_drawn(system.from_latents(moments[i].x / s)) for i, s in zip(places, total_std, strict=True)]
    yield ReportFigure(f"From noise to samples: data at levels {levels}.", None, _embed_strip(noisy))
    estimates = [system.to_drawn(system.from_latents(moments[i].x_start)) for i in places]
    yield ReportFigure("The network's estimates of the clean data at the same levels.", None, _embed_strip(estimates))


def _draw_samples(run: _ReportedRun, x: Tensor, caption: str, columns: int | None = None) -> ReportFigure:
    labels = run.conditions(len(x)).get("y")
    if x.ndim == 2 and x.shape[1] == 2:
        return ReportFigure(caption, scatter("", x.double().cpu().numpy(), labels))
    if x.ndim != 4:
        return ReportFigure(f"{caption} Data of shape {tuple(x.shape[1:])} is not a picture.")
    if labels is not None and columns is None:
        columns = len(set(labels))
        shown = run.class_names[:columns]
        caption += f" A class to each column: {', '.join(shown)}."
    return ReportFigure(caption, None, _embed_images(run.system.to_drawn(x), columns or max(1, round(len(x) ** 0.5))))


def _embed_strip(steps: Sequence[Tensor]) -> str:
    """One image with a row for each example and a column for each step, each (n, C, H, W)."""
    return _embed_images(torch.stack(list(steps), 1).flatten(0, 1), len(steps))


def _embed_images(images: Tensor, columns: int) -> str:
    """Images (N, C, H, W) in [-1, 1] as one image, row by row, a data URI; values outside are clipped."""
    content = png(grid(list(pixels(images, 256)), columns), optimize=True)
    return "data:image/png;base64," + base64.b64encode(content).decode()


# ---- facts -----------------------------------------------------------------------------------------------------------


def _environment_facts(run: _ReportedRun) -> list[tuple[str, str]]:
    """Return facts of the machine and versions of the run, and of the report."""
    trained = run.config.get("diffkit")
    manifests = sorted((run.folder / CHECKPOINTS).glob(f"{STEPS}/{MANIFEST}"))
    made = (_read_json_if_exists(manifests[-1]) if manifests else None) or {}
    rows = [("diffkit", trained)] if trained else []
    rows += [(name, made[name]) for name in ("torch", "numpy", "python", "world_size", "seed") if name in made]
    origins = sorted({part.origin for part in run.explanation.parts if part.origin})
    rows += [("parts come from", ", ".join(origins))]
    rows += [
        (
            "this page",
            f"diffkit {__version__}, torch {torch.__version__}, Python {platform.python_version()}, "
            f"{platform.system()} {platform.machine()}, on {run.system.device}",
        )
    ]
    return [(name, str(value)) for name, value in rows]


def _training_code(run: _ReportedRun) -> str:
    """Return Python code that trains the same system again, for the report."""
    chosen = {name: value for name, value in run.config["train"].items() if name not in RETIRED}
    options = ",\n    ".join(f"{name}={_python(value)}" for name, value in chosen.items())
    source = run.config.get("data", {}).get("source", "...")
    lines = ["import json", "import diffkit, diffkit.data", ""]
    lines += [f"spec = json.load(open({str(run.folder / SPEC)!r}))", "system = diffkit.from_spec(spec)"]
    if options:
        lines += [
            f"data = diffkit.data.loading.load(...)  # {source}; see the facts of the data above",
            f'diffkit.train(\n    system,\n    data,\n    out="again",\n    {options},\n)',
        ]
    return "\n".join(lines)


def _python(value: Any) -> str:
    return repr(tuple(value)) if isinstance(value, list) else repr(value)


def _evaluation_results(path: Path) -> dict[str, Any] | None:
    """Return the results of ``diffkit evaluate`` for the report; None if there are none."""
    found, none, error = _read_json_if_exists(path), type(None), CheckpointError
    if found is None:
        return None
    check_fields(found, str(path), error, values=list, settings=dict, remarks=list)
    groups = dict.fromkeys(("samples", "reference", "extractor", "options"), dict)
    check_fields(found["settings"], f"settings of {path}", error, **groups)
    for row in found["values"]:
        check_fields(row, f"a value of {path}", error, label=str, value=(float, none), error=(float, none), note=str)
    return found


def _read_json_if_exists(path: Path) -> dict[str, Any] | None:
    return read_json(path, CheckpointError) if path.is_file() else None
