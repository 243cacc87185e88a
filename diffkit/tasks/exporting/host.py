"""Run an exported file without diffkit: python host.py FILE INPUTS.npz OUTPUT.npy."""

import os
import sys
import zipfile
from typing import Any

import numpy as np


def load(path: str) -> Any:
    """Return a function of arrays."""
    if path.endswith(".onnx"):
        import onnxruntime

        session = onnxruntime.InferenceSession(path)
        names = [each.name for each in session.get_inputs()]
        return lambda *arrays: session.run(None, dict(zip(names, arrays, strict=True)))[0]
    import torch

    os.environ["AOTI_RUNTIME_CHECK_INPUTS"] = "1"  # a compiled file reads a wrong shape as if it were right otherwise
    with zipfile.ZipFile(path) as archive:
        is_library = any("/data/aotinductor/" in name for name in archive.namelist())
    run = torch._inductor.aoti_load_package(path) if is_library else torch.export.load(path).module()

    def sample(*arrays: Any) -> Any:
        with torch.no_grad():
            return run(*map(torch.from_numpy, arrays)).numpy()

    return sample


if __name__ == "__main__":
    sys.modules["diffkit"] = None  # type: ignore[assignment]  # so that nothing imports it, though it is installed
    _, path, inputs, output = sys.argv
    with np.load(inputs) as given:
        result = load(path)(*given.values())
    np.save(output, result)
