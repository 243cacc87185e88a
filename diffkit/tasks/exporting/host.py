"""Run an exported file without diffkit: python host.py FILE INPUTS.npz OUTPUT.npy."""

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

    torch.set_grad_enabled(False)
    with zipfile.ZipFile(path) as archive:
        is_library = any("/data/aotinductor/" in name for name in archive.namelist())
    run = torch._inductor.aoti_load_package(path) if is_library else torch.export.load(path).module()
    return lambda *arrays: run(*map(torch.from_numpy, arrays)).numpy()


if __name__ == "__main__":
    _, path, inputs, output = sys.argv
    with np.load(inputs) as given:
        result = load(path)(*given.values())
    np.save(output, result)
