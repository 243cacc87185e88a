"""Chains that end short of clean data, as those of diffusers' schedulers may."""

from __future__ import annotations

import numpy as np

from diffkit.table import Coefs, Steps


def ended(steps: Steps, final_alpha_bar: float) -> Steps:
    """Return the steps, those to clean data going to that alpha_bar instead; 1 changes nothing.

    The signal scale there is 1 if it is 1 throughout, else that of a variance-preserving path.
    """
    if final_alpha_bar == 1:
        return steps
    t, s = steps
    rest = 1 - final_alpha_bar
    total = final_alpha_bar**-0.5 if np.allclose(t.alpha, 1, rtol=0, atol=1e-9) else 1.0
    short = total * final_alpha_bar**0.5, total * rest**0.5, np.log(final_alpha_bar / rest)
    last = s.sigma == 0
    return Steps(t, Coefs(*(np.where(last, end, value) for end, value in zip(short, s, strict=True))), steps.nodes)
