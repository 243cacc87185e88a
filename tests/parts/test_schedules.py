"""Schedules against the formulas of their papers; that their tables are sound is the kit's to check."""

from __future__ import annotations

import numpy as np

from diffkit.table import ProcessTable


def test_tables_from_log_snr_lose_no_digits():
    log_snr = np.array([60.0, 20.0, 0.0, -20.0, -np.inf])
    table = ProcessTable.from_log_snr(log_snr)
    np.testing.assert_array_equal(table.log_snr[1:], log_snr)
    assert np.all(table.scale == 1) and table.alpha_bar[-1] == 0
    np.testing.assert_allclose(table.sigma[1], np.exp(-30), rtol=1e-15)
    shifted = ProcessTable.from_log_snr(log_snr[:3], scale=[1.0, 2.0, 3.0], time=[5.0, 6.0, 7.0])
    assert shifted.scale.tolist() == [1, 1, 2, 3] and shifted.time.tolist() == [0, 5, 6, 7]
