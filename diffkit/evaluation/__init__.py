"""Evaluation: metrics of samples by any feature network, reference statistics, bits/dim of data, and run reports.

result = diffkit.evaluation.evaluate("samples/", "digits", extractor="digits")
print(result)                      # every number with the settings that it depends on
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffkit.runtime.lazy import on_first_use

if TYPE_CHECKING:
    from diffkit.evaluation.compare import METRICS as METRICS
    from diffkit.evaluation.compare import Evaluation as Evaluation
    from diffkit.evaluation.compare import evaluate as evaluate
    from diffkit.evaluation.extractors import ModuleExtractor as ModuleExtractor
    from diffkit.evaluation.extractors import extractor_for as extractor_for
    from diffkit.evaluation.features import Extractor as Extractor
    from diffkit.evaluation.features import Features as Features
    from diffkit.evaluation.features import extract as extract
    from diffkit.evaluation.reference import Reference as Reference
    from diffkit.evaluation.reference import load_reference as load_reference

__all__, __getattr__, __dir__ = on_first_use(__name__)
