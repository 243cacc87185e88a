"""Pairs of noise and the sample that a system makes from it, as data for the coupling 'reflow'."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch

from diffkit.errors import OptionError
from diffkit.options import check_integer
from diffkit.runtime.files import replacing
from diffkit.system.call_options import SampleOptions, shows_options
from diffkit.system.call_parts import parts_for
from diffkit.system.module import System
from diffkit.system.randomness import Purpose, key, keys, normals


@shows_options(SampleOptions, sampler="ddim", seed=0)
@torch.no_grad()
def reflow_pairs(system: System, n: int, out: str | Path, **options: Unpack[SampleOptions]) -> Path:
    """Write n pairs of noise and sample into an .npz file, which `diffkit.train` takes as data.

    A system that is composed with ``coupling="reflow"`` and trained on the file learns the paths of its teacher, which
    do not cross, and its own paths are straighter.

    Args:
        system: The teacher, with any deterministic sampler, such as "ddim" or "heun".
        n: Number of pairs.
        out: The .npz file: samples ``arr_0`` (n, C, *S) float32, their classes ``arr_1`` if ``y`` is given, and
            ``paired_noise`` (n, C, *S) float32, which is read as condition ``noise``.
        options, conditions: As in `System.sample`; pair i is a function of the seed and i, and ``y``
            are classes, one for each pair or one for all.
    Returns:
        The file.
    Raises:
        OptionError: The sampler is stochastic, or an argument is wrong.
    Source: Liu et al. 2022, arXiv:2209.03003, section 2.1.
    """
    out, count = Path(out), check_integer("n", n, ge=1)
    if out.suffix != ".npz":
        raise OptionError("must end in .npz", option="out", value=str(out))
    options.setdefault("sampler", "ddim")
    if parts_for(system.parts, options["sampler"], None).sampler.stochastic:
        raise OptionError("pairs need a deterministic sampler", fix=({"sampler": "ddim"}, {"sampler": "heun"}))
    seed = check_integer("seed", options.setdefault("seed", 0), ge=0, lt=2**63)
    noise = normals(keys(key(seed, Purpose.NOISE), count, torch.device("cpu")), system.parts.data_shape)
    table = system.table_for(options.get("steps"))
    options["start"] = noise * float(table.total_std[-1])
    samples = system.sample(count, **options).cpu()
    arrays: dict[str, Any] = {
        "arr_0": samples if system.bins is None else samples.clamp(-1, 1),
        "paired_noise": noise,
    }
    if system.bins is not None:
        arrays["bins"] = torch.tensor(system.bins)
    if "y" in options:
        arrays["arr_1"] = torch.as_tensor(options["y"]).cpu().expand(count)
    with replacing(out) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)
    return out
