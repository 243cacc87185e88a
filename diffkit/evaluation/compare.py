"""Metrics of samples, each with the settings that it depends on."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from attrs import field, frozen
from torch import nn

from diffkit._version import __version__
from diffkit.data.base import Data
from diffkit.data.loading import as_data
from diffkit.data.ranges import range_of
from diffkit.errors import DataError, DiffkitError, Message, OptionError, Setting, did_you_mean
from diffkit.evaluation import metrics as measure
from diffkit.evaluation.extractors import extractor_for
from diffkit.evaluation.features import Extractor, Features, extract
from diffkit.evaluation.reference import Reference, is_reference, load_reference
from diffkit.evaluation.samples import read_samples
from diffkit.options import check_integer
from diffkit.runtime.files import write_atomically

METRICS = ("fid", "sfid", "kid", "inception_score", "precision_recall")
"""Names of the metrics. With an extractor other than inception, "fid" is the same distance of its features."""

MOST_SUBSETS = 100_000
"""Largest number of KID's subsets; a mean over 100 is usual."""


@frozen
class MetricValue:
    """The value of one metric of samples.

    Attributes:
        name: Name of the metric, such as "fid".
        label: Name in printed results: "FID", or "FD (digits)" with another extractor.
        value: The number.
        error: Its uncertainty, if known; `note` says of which kind.
        note: Meaning of the error, and whether smaller or larger is better.
    """

    name: str
    label: str
    value: float
    error: float | None
    note: str


@frozen(eq=False)
class Evaluation:
    """Result of `evaluate`: metrics of samples.

    Attributes:
        values: The metrics.
        settings: Everything they depend on: extractor, both data sets, options, versions.
        remarks: Remarks on comparing them with other numbers.
    """

    values: tuple[MetricValue, ...]
    settings: Mapping[str, Any] = field(repr=False)
    remarks: tuple[str, ...] = field(repr=False)

    def __getitem__(self, name: str) -> float:
        """Return the value of a metric by name."""
        for value in self.values:
            if value.name == name:
                return value.value
        raise KeyError(name)

    def __str__(self) -> str:
        width = max(len(value.label) for value in self.values)
        lines = [f"{v.label:<{width}}  {_number(v.value):>10}{_error_text(v)}  {v.note}" for v in self.values]
        samples, reference = self.settings["samples"], self.settings["reference"]
        lines += [
            "",
            f"samples    {samples['count']} from {samples['source']} (SHA-256 {samples['sha256'][:12]})",
            f"reference  {reference.get('count', 'unknown count')} from {reference.get('source', 'a published file')}"
            f" (SHA-256 {str(reference.get('sha256', 'unknown'))[:12]})",
            "extractor  " + ", ".join(f"{k} {v}" for k, v in self.settings["extractor"].items() if v is not None),
        ]
        if self.settings["options"]:
            lines.append("options    " + ", ".join(f"{k} {v}" for k, v in self.settings["options"].items()))
        return "\n".join([*lines, *(f"note: {remark}" for remark in self.remarks)])

    def as_dict(self) -> dict[str, Any]:
        """Return metrics and settings as plain JSON data."""
        rows = [
            dict(name=v.name, label=v.label, value=_finite(v.value), error=_finite(v.error), note=v.note)
            for v in self.values
        ]
        return {"values": rows, "settings": dict(self.settings), "remarks": list(self.remarks)}

    def save(self, path: str | Path) -> Path:
        """Write metrics and settings as JSON."""
        path = Path(path)
        write_atomically(path, (json.dumps(self.as_dict(), indent=2) + "\n").encode())
        return path


def _finite(value: float | None) -> float | None:
    """Return a number for JSON, in which values that are not finite become null."""
    return None if value is None or not math.isfinite(value) else value


def evaluate(
    samples: Any,
    reference: Any,
    *,
    extractor: str | nn.Module | Extractor = "inception",
    metrics: Sequence[str] | None = None,
    count: int | None = None,
    weights: str | Path | None = None,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    neighbours: int = 3,
    kid_subsets: int = 100,
    kid_subset_size: int = 1000,
    split_size: int = 5000,
    seed: int = 0,
    size: int | tuple[int, ...] | None = None,
    on_error: str = "stop",
    layout: str | None = None,
    progress: bool = False,
) -> Evaluation:
    """Return metrics of samples against a reference.

    Args:
        samples: A folder of images, improved-diffusion's .npz (arr_0), an array or tensor, or anything that
            `diffkit.data.loading.load` takes.
        reference: The same, or stored statistics: a `Reference` or its file, or a published .npz with mu and sigma.
        extractor: A name, a network or an extractor; see `diffkit.evaluation.extractors`.
        metrics: Some of `METRICS`; by default all that extractor and reference allow.
        count: How many samples, the first ones; all by default.
        weights: File of the inception network's weights, if they cannot be downloaded.
        batch_size, device: Batch size and device of the feature network.
        neighbours: Number of neighbours for precision and recall.
        kid_subsets, kid_subset_size: Number and size of KID's subsets; a subset is at most as large as the smaller set.
        split_size: Examples in a split for the inception score.
        seed: Seed of KID's subsets.
        size: Height and width to resize the images of folders to; one number for a square. By default images are not
            resized, and must all be of one size.
        on_error: At images of folders that cannot be read: "stop", naming them all, or "skip" them.
        layout: Layout of .npz and .npy files, "channels_last" or "channels_first"; by default the shape decides.
        progress: Show a progress bar.
    Raises:
        OptionError: An option is wrong, or a metric is not available with this extractor and reference.
        DataError: The data cannot be read, or does not fit the extractor or the statistics.
        MissingExtraError: A package that a metric or the extractor needs is not installed.
    """
    network = extractor_for(extractor, device=device, weights=weights)
    options = dict(neighbours=neighbours, kid_subsets=kid_subsets, split_size=split_size, seed=seed)
    for name, value in (options | {"kid_subset_size": kid_subset_size}).items():
        check_integer(name, value, ge={"seed": 0, "kid_subset_size": 2}.get(name, 1))
    check_integer("kid_subsets", kid_subsets, ge=1, le=MOST_SUBSETS)
    reading = dict(size=size, on_error=on_error, layout=layout)
    data, stored = _load_images(samples, reading), _stored_reference(reference, network)
    real = None if stored is not None else _load_images(reference, reading)
    check_metrics(metrics, network, data.shape, stored, device, None if real is None else real.shape)
    check_count(count, len(data), metrics, stored, neighbours)
    against = stored or _build_reference(real, network, batch_size, device, progress)
    found = extract(
        network,
        data,
        count=count,
        batch_size=batch_size,
        device=device,
        progress=progress,
        what="samples",
    )
    chosen = _available_metrics(metrics, found.features, against)
    size = min(kid_subset_size, len(found.features), len(against.features) if against.features is not None else 0)
    options |= {"kid_subset_size": size}
    values = [value for name in chosen for value in _measure(name, network.name, found.features, against, options)]
    settings = {
        "samples": dict(found.data),
        "reference": dict(against.meta.get("data", {})),
        "extractor": dict(network.identity),
        "options": {name: value for name, value in options.items() if _is_used(name, chosen)},
        "versions": _versions(),
    }
    remarks = [*_value_range_remarks(samples=data, reference=real), *_remarks(found.data, against, chosen)]
    return Evaluation(tuple(values), settings, tuple(remarks))


def _value_range_remarks(**sets: Data | None) -> Iterator[str]:
    """Yield remarks on images whose values are not in the range [-1, 1] that extractors expect."""
    for name, data in sets.items():
        values = range_of(data) if data is not None and len(data.shape) == 3 else None
        if values is not None and values.remark:
            yield f"{name}: values lie in {values}, extractors expect [-1, 1]: {values.remedy}"


def _load_images(what: Any, reading: Mapping[str, Any]) -> Data:
    """Return data of any kind; images of a folder are read with the options of `read_samples`."""
    path = Path(what) if isinstance(what, str | Path) else None
    return read_samples(path, **reading) if path is not None and path.exists() else as_data(what)


def check_metric_names(metrics: Sequence[str] | None) -> None:
    """Raise `OptionError` unless every name of a metric is one of `METRICS`; None means all."""
    for name in metrics or ():
        if name not in METRICS:
            raise OptionError(f"no metric named {name!r}{did_you_mean(name, METRICS)} (known: {', '.join(METRICS)})")
    if metrics is not None and not metrics:
        raise OptionError(f"must be some of {', '.join(METRICS)}", option="metrics", value=())


def check_metrics(
    metrics: Sequence[str] | None,
    extractor: Extractor,
    shape: Sequence[int],
    reference: Reference | None = None,
    device: str | torch.device = "cpu",
    real: Sequence[int] | None = None,
) -> None:
    """Raise unless metrics are available; found before long work, by running the extractor on two blank images.

    Args:
        metrics: Names of metrics; None means all that are available.
        extractor: The extractor.
        shape: Shape of one sample, (C, *S).
        reference: Stored statistics; None for data whose statistics are computed later.
        device: Device of the extractor.
        real: Shape of an example of that data, if it differs from that of the samples.
    Raises:
        OptionError: A name is wrong, or a metric needs something that the extractor or the reference lacks.
        DataError: The extractor cannot read data of this shape, or has other features for the second shape.
        MissingExtraError: A package that a metric needs is not installed.
    """
    check_metric_names(metrics)
    if real is not None and tuple(real) != tuple(shape):
        _check_same_features(extractor, shape, real, device)
    seen = _blank_image_features(extractor, shape, device)
    chosen = _available_metrics(metrics, seen, reference)
    if reference is not None and len(reference.pool.mean) != seen.pool.shape[1]:
        raise DataError(
            f"the reference has {len(reference.pool.mean)} features, but extractor {extractor.name!r} has "
            f"{seen.pool.shape[1]} of samples of shape {tuple(shape)}; give samples of the reference's shape"
        )
    if {"fid", "sfid", "kid"} & set(chosen):
        measure.need_torchmetrics()


def check_count(
    count: int | None, available: int, metrics: Sequence[str] | None, reference: Reference | None, neighbours: int
) -> None:
    """Raise `OptionError` unless there are as many samples as are to be measured, and as metrics need.

    Args:
        count: How many are measured; None for all.
        available: How many there are.
        metrics: Names of metrics; None means all that are available.
        reference: Stored statistics, if any.
        neighbours: Number of neighbours for precision and recall.
    """
    total = available if count is None else check_integer("count", count, ge=1)
    if total > available:
        raise OptionError(f"is more than the {available} samples", option="count", value=total)
    has_features = reference is None or reference.features is not None
    if total <= neighbours and ("precision_recall" in metrics if metrics else has_features):
        named = Message("precision and recall by ", Setting("neighbours", neighbours))
        others = Message("; take more, or name other metrics with ", Setting("metrics"))
        raise OptionError(Message(named, f" need more samples than {neighbours}, got {total}", others))


def _blank_image_features(extractor: Extractor, shape: Sequence[int], device: str | torch.device) -> Features:
    """Return an extractor's features of two blank images."""
    try:
        with torch.no_grad():
            return extractor(torch.zeros(2, *shape, device=device))
    except DiffkitError:
        raise
    except Exception as error:  # layers may raise any error at a shape that does not fit
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise DataError(f"extractor {extractor.name!r} cannot read images of shape {tuple(shape)}: {reason}") from error


def _check_same_features(
    extractor: Extractor, shape: Sequence[int], real: Sequence[int], device: str | torch.device
) -> None:
    """Raise `DataError` unless an extractor has as many features for samples as for data of another shape."""
    differ = f"samples have shape {tuple(shape)}, the data {tuple(real)}"
    expected = "make them alike: read the data in the size and channels of the samples, or the samples in another size"
    try:
        seen = [_blank_image_features(extractor, each, device).pool.shape[1:] for each in (shape, real)]
    except DataError as error:
        raise DataError(f"{differ}, and {error}; {expected}") from error
    if seen[0] != seen[1]:
        counts = " and ".join(str(each.numel()) for each in seen)
        raise DataError(f"{differ}, of which extractor {extractor.name!r} has {counts} features; {expected}")


def _stored_reference(what: Any, network: Extractor) -> Reference | None:
    """Return stored reference statistics, checked for this extractor; None if the reference is data."""
    if isinstance(what, str | Path) and is_reference(Path(what)):
        what = load_reference(what)
    if not isinstance(what, Reference):
        return None
    what.check_extractor(network)
    return what


def _build_reference(data: Data | None, network: Extractor, batch_size: int, device: Any, progress: bool) -> Reference:
    assert data is not None
    return Reference.build(data, network, keep=len(data), batch_size=batch_size, device=device, progress=progress)


def _available_metrics(metrics: Sequence[str] | None, features: Features, reference: Reference | None) -> list[str]:
    """Return the requested metrics, by default all that are available; raise if a requested one is not."""
    spatial = features.spatial is not None and (reference is None or reference.spatial is not None)
    some = reference is None or reference.features is not None
    lacking = {
        "sfid": None if spatial else "spatial features, which 'inception' gives",
        "inception_score": None if features.logits is not None else "an extractor with classes",
        "kid": None if some else "a reference with features, not statistics only",
        "precision_recall": None if some else "a reference with features, not statistics only",
    }
    if metrics is None:
        return [name for name in METRICS if lacking.get(name) is None]
    faults = [f"{name} needs {lacking[name]}" for name in metrics if lacking.get(name) is not None]
    if faults:
        raise OptionError("; ".join(faults))
    return list(dict.fromkeys(metrics))


def _measure(
    name: str, extractor: str, fake: Features, real: Reference, options: Mapping[str, int]
) -> list[MetricValue]:
    own = extractor != "inception"

    def label(published: str, other: str) -> str:
        return f"{other} ({extractor})" if own else published

    if name == "fid":
        value = measure.frechet_distance(real.pool, measure.FeatureStatistics.of(fake.pool))
        return [MetricValue("fid", label("FID", "FD"), value, None, "smaller is better")]
    if name == "sfid":
        assert fake.spatial is not None and real.spatial is not None
        value = measure.frechet_distance(real.spatial, measure.FeatureStatistics.of(fake.spatial))
        return [MetricValue("sfid", label("sFID", "sFD"), value, None, "smaller is better")]
    if name == "inception_score":
        assert fake.logits is not None
        value, spread = measure.inception_score(fake.logits, split_size=options["split_size"])
        split = len(fake.logits) > options["split_size"]
        note = "larger is better; +- over splits" if split else "larger is better"
        return [MetricValue(name, label("IS", "IS"), value, spread if split else None, note)]
    assert real.features is not None
    if name == "kid":
        value, error = measure.kernel_distance(
            real.features,
            fake.pool,
            subsets=options["kid_subsets"],
            subset_size=options["kid_subset_size"],
            seed=options["seed"],
        )
        return [
            MetricValue("kid", label("KID", "KD"), value, error, "smaller is better; +- standard error over subsets")
        ]
    both = measure.precision_recall(real.features, fake.pool, neighbours=options["neighbours"])
    words = (("precision", "share of samples among the data"), ("recall", "share of the data among samples"))
    return [
        MetricValue(word, label(word.capitalize(), word.capitalize()), value, None, f"larger is better; {meaning}")
        for (word, meaning), value in zip(words, both, strict=True)
    ]


def _is_used(option: str, chosen: Sequence[str]) -> bool:
    owner = {"neighbours": "precision_recall", "split_size": "inception_score"}
    return owner.get(option, "kid") in chosen


def _remarks(samples: Mapping[str, Any], reference: Reference, chosen: Sequence[str]) -> list[str]:
    found = []
    count, real = samples["count"], reference.meta.get("data", {})
    if "fid" in chosen and count < 10_000:
        found.append(
            f"FID is biased upwards by few samples; {count} is less than the 10,000 to 50,000 that published figures "
            "are of, so compare it with figures of the same counts only"
        )
    dimensions = len(reference.pool.mean)
    if "fid" in chosen and min(count, real.get("count", count)) <= dimensions:
        found.append(f"there are no more examples than the {dimensions} features, so the covariance is singular")
    if real and real["shape"] != samples["shape"]:
        found.append(f"samples have shape {samples['shape']}, the reference {real['shape']}")
    if not reference.meta:
        found.append("the reference does not name its data and extractor; taken for the published inception")
    return found


def _versions() -> dict[str, str]:
    found = {"diffkit": __version__, "torch": torch.__version__}
    for name in ("torchmetrics", "torch-fidelity", "Pillow"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:.1f}"


def _error_text(value: MetricValue) -> str:
    return f" +- {value.error:.2g}" if value.error is not None else ""
