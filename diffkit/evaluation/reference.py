"""Reference statistics of data, which samples are compared with, stored with everything that they depend on.

The file is an .npz: mu, sigma (and mu_s, sigma_s of spatial features) as in the published reference batches, so that
each program can read the other's files. It also has some of the features, for the metrics that need more than
statistics, and `meta`, JSON: extractor, resizing, data with its SHA-256, counts, versions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import numpy as np
import torch
from attrs import field, frozen
from torch import Tensor

from diffkit._version import __version__
from diffkit.data.base import Data
from diffkit.errors import DataError
from diffkit.evaluation.features import ExtractedFeatures, Extractor, extract
from diffkit.evaluation.metrics import FeatureStatistics
from diffkit.options import check_integer
from diffkit.runtime.publishing import save_npz
from diffkit.runtime.strict_json import check_fields, parse_json

FORMAT = 1
KEEP = 10_000
"""Number of features stored by default: that of published precision and recall (Dhariwal & Nichol
2021, arXiv:2105.05233)."""


@frozen(eq=False)
class Reference:
    """Reference statistics, which samples are compared with.

    Attributes:
        pool: Statistics of the extractor's features.
        spatial: Statistics of its spatial features; None if it has none.
        features: Some of the features, (M, D) float32; None if none are stored.
        meta: Origin of the statistics: "extractor" (its identity), "data", "kept"; empty for files of other programs.
    """

    pool: FeatureStatistics
    spatial: FeatureStatistics | None
    features: Tensor | None = field(repr=False)
    meta: Mapping[str, Any]

    @classmethod
    def of(cls, found: ExtractedFeatures, extractor: Extractor, *, keep: int = KEEP) -> Reference:
        """Return the reference of extracted features, with ``keep`` of them, evenly spread over the data."""
        features, count = found.features, len(found.features)
        stored = min(check_integer("keep", keep, ge=0), count)
        rows = torch.linspace(0, count - 1, stored).round().long()
        meta = {
            "format": FORMAT,
            "diffkit": __version__,
            "torch": torch.__version__,
            "extractor": dict(extractor.identity),
            "data": dict(found.data),
            "kept": stored,
        }
        spatial = None if features.spatial is None else FeatureStatistics.of(features.spatial)
        return cls(FeatureStatistics.of(features.pool), spatial, features.pool[rows] if stored else None, meta)

    @classmethod
    def build(
        cls,
        data: Data,
        extractor: Extractor,
        *,
        count: int | None = None,
        keep: int = KEEP,
        batch_size: int = 64,
        device: str | torch.device = "cpu",
        progress: bool = False,
    ) -> Reference:
        """Return the reference of data; arguments as in `extract`."""
        found = extract(
            extractor,
            data,
            count=count,
            batch_size=batch_size,
            device=device,
            progress=progress,
            what="reference",
        )
        return cls.of(found, extractor, keep=keep)

    def save(self, path: str | Path) -> Path:
        """Write the reference to an .npz file, atomically."""
        path = Path(path)
        arrays: dict[str, Any] = {"mu": self.pool.mean.numpy(), "sigma": self.pool.covariance.numpy()}
        if self.spatial is not None:
            arrays |= {"mu_s": self.spatial.mean.numpy(), "sigma_s": self.spatial.covariance.numpy()}
        if self.features is not None:
            arrays["features"] = self.features.numpy()
        save_npz(path, **arrays, meta=np.array(json.dumps(self.meta)))
        return path

    def check_extractor(self, extractor: Extractor) -> None:
        """Raise `DataError` unless the reference was made with this extractor."""
        made = self.meta.get("extractor")
        if made is None:
            if extractor.name != "inception":
                raise DataError(
                    "the reference does not name its extractor, so it is taken for the published one; use "
                    f"extractor 'inception', not {extractor.name!r}, or build a reference of your own"
                )
            return
        now = json.loads(json.dumps(dict(extractor.identity)))
        names = [name for name in {**made, **now} if made.get(name) != now.get(name)]
        if names:
            faults = [f"{name}={made.get(name)!r}, now {now.get(name)!r}" for name in names]
            raise DataError("\n  ".join(["the reference was made by another extractor:", *faults]))


def is_reference(path: Path) -> bool:
    """Return whether a file is an .npz of reference statistics, not of images."""
    if path.suffix != ".npz" or not path.is_file():
        return False
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as loaded:
            return "mu" in loaded and "sigma" in loaded
    except Exception:  # NumPy raises any error at a damaged file; reading it as images will report it
        return False


def load_reference(path: str | Path) -> Reference:
    """Read reference statistics of diffkit or of the published reference batches; never unpickles.

    Raises:
        DataError: The file is missing, damaged or of another kind.
    """
    path = Path(path)
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as loaded:
            arrays = {name: loaded[name] for name in loaded if name not in ("arr_0", "arr_1")}
        meta = parse_json(str(arrays.pop("meta"))) if "meta" in arrays else {}
        check_fields(
            meta, "meta", DataError, format=(int, type(None)), data=(dict, type(None)), extractor=(dict, type(None))
        )
        pool = _check_statistics(arrays["mu"], arrays["sigma"], meta)
        spatial = _check_statistics(arrays["mu_s"], arrays["sigma_s"], meta) if "mu_s" in arrays else None
    except FileNotFoundError as error:
        raise DataError(f"{str(path)!r} is not there") from error
    except KeyError as error:
        raise DataError(f"{str(path)!r} holds no statistics: it has no array {error.args[0]!r}") from error
    except Exception as error:  # NumPy raises whatever its parsers meet in a damaged file
        if not is_zipfile(path):  # NumPy's own message advises to unpickle it
            raise DataError(f"{str(path)!r} cannot be read as statistics: it is not an .npz file") from error
        raise DataError(f"{str(path)!r} cannot be read as statistics: {error}") from error
    if (meta.get("format") or FORMAT) > FORMAT:
        raise DataError(f"{str(path)!r} has format {meta['format']}, this diffkit reads up to {FORMAT}; upgrade it")
    features = torch.from_numpy(arrays["features"]) if "features" in arrays else None
    return Reference(pool, spatial, features, meta)


def _check_statistics(mean: Any, covariance: Any, meta: Mapping[str, Any]) -> FeatureStatistics:
    mean, covariance = np.asarray(mean, dtype=np.float64), np.asarray(covariance, dtype=np.float64)
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise ValueError(f"mu {mean.shape} and sigma {covariance.shape} do not fit")
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise ValueError("a value is not finite")
    # A published batch does not record its count; the distance does not depend on it.
    count = int(meta.get("data", {}).get("count", 2))
    return FeatureStatistics(torch.from_numpy(mean), torch.from_numpy(covariance), count)
