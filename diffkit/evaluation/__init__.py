"""How good samples are: metrics by any feature network, reference statistics, bits/dim of data, and run reports.

result = diffkit.evaluation.evaluate("samples/", "digits", extractor="digits")
print(result)                      # every number with the settings that decide it
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffkit.evaluation.compare import METRICS as METRICS
    from diffkit.evaluation.compare import Evaluation as Evaluation
    from diffkit.evaluation.compare import evaluate as evaluate
    from diffkit.evaluation.extractors import EXTRACTORS as EXTRACTORS
    from diffkit.evaluation.extractors import ModuleExtractor as ModuleExtractor
    from diffkit.evaluation.extractors import extractor_for as extractor_for
    from diffkit.evaluation.features import Extractor as Extractor
    from diffkit.evaluation.features import Features as Features
    from diffkit.evaluation.features import extract as extract
    from diffkit.evaluation.reference import Reference as Reference
    from diffkit.evaluation.reference import load_reference as load_reference

_HOME = {
    "METRICS": "compare",
    "Evaluation": "compare",
    "evaluate": "compare",
    "EXTRACTORS": "extractors",
    "ModuleExtractor": "extractors",
    "extractor_for": "extractors",
    "Extractor": "features",
    "Features": "features",
    "extract": "features",
    "Reference": "reference",
    "load_reference": "reference",
}
__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'diffkit.evaluation' has no attribute {name!r}")
    return getattr(importlib.import_module(f"diffkit.evaluation.{_HOME[name]}"), name)
