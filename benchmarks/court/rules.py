"""What every solver is held to, fixed before the first run: no library has numbers of its own.

The laws and their thresholds are those of `diffkit.testing.check_solver`: an order at most 0.2 below the declared one,
an error, a spread and a lag of at most 0.05 at the finest grid. Here are only the grids, and what makes a failure an
alarm.
"""

from __future__ import annotations

COUNTS = (40, 80, 160)
"""Numbers of steps between log_snr -4 and 4, where a solver takes any times."""

OWN_COUNTS = (30, 70, 130, 300)
"""Numbers of steps that a solver which decides on its times itself is called with; log_snr -4 to 4 of its grid counts.

Ordinary numbers, of which only some divide a table of 1,000 levels.
"""

FLOOR = {"float64": 1e-10, "float32": 1e-5}
"""Errors that are rounding, by the precision of a library's tables."""

REFERENCE_STEPS = 4000
"""Steps of the classical Runge-Kutta method, in log(sigma / alpha), that an alarm is confirmed by."""

DRAWN = 20_000
"""Samples with the library's own random numbers that an alarm about a distribution is confirmed by."""

CHANCE = 4.0
"""Standard errors by which a figure that is drawn must be off to count."""
