"""Parts that only work with others: what fills the slots that a test leaves open."""

from __future__ import annotations

TIMED = {"loss": "continuous_vlb", "var": "fixed_large"}
COMPANIONS: dict[tuple[str, str], dict[str, str]] = {
    ("schedule", "monotone"): {"timesteps": "uniform_time", **TIMED},
    ("timesteps", "uniform_time"): {"schedule": "monotone", **TIMED},
    ("schedule", "zero_snr"): {"mean": "v"},
    ("var", "learned"): {"loss": "hybrid"},
    ("var", "learned_range"): {"loss": "hybrid"},
    ("loss", "hybrid"): {"var": "learned_range"},
}
"""Kind and name of a part -> what it is composed with."""


def with_companions(parts: dict[str, str]) -> dict[str, str]:
    """Return parts with the companions of each, where the others leave their slots open."""
    filled: dict[str, str] = {}
    for part in parts.items():
        filled |= COMPANIONS.get(part, {})
    return filled | parts
