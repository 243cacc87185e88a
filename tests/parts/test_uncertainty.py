"""The learned weight of the loss, against its closed form."""

from __future__ import annotations

import torch

import diffkit
from diffkit.gaussian import mean_flat, squared_error


def test_the_loss_is_its_formula_and_the_weight_learns_the_log_of_the_error():
    """Where exp(u) is the mean squared error, neither u nor the network's scale is pulled."""
    torch.manual_seed(0)
    system = diffkit.compose(
        loss="uncertainty", schedule="cosine", backbone=("mlp", {"hidden": 8, "depth": 1}), data_shape=(2,), bins=None
    )
    module = system.learned["loss"]
    level, size = torch.tensor([1, 250, 500, 999]), torch.tensor([0.1, 0.5, 1.0, 2.0])
    x, noise = torch.zeros(4, 2), torch.randn(4, 2)

    def terms():
        return system.loss_terms(lambda x, time: noise + size[:, None], x, level, noise)

    assert torch.equal(terms()["loss"], terms()["mse"])
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        terms()["loss"].sum().backward()
        optimizer.step()
    found = terms()
    torch.testing.assert_close(found["log_error"], 2 * size.log(), atol=0.05, rtol=0)
    mse = mean_flat(squared_error(noise + size[:, None], noise))
    torch.testing.assert_close(found["loss"], mse / found["log_error"].exp() + found["log_error"])


def test_a_level_without_signal_has_a_weight():
    system = diffkit.compose(
        loss="uncertainty", schedule="zero_snr", mean="v", backbone=("mlp", {"hidden": 8, "depth": 1}), data_shape=(2,)
    )
    x = torch.zeros(2, 2)
    assert system.loss_terms(None, x, torch.tensor([1, 1000]), torch.randn(2, 2))["loss"].isfinite().all()
