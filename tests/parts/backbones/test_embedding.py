import numpy as np
import pytest
import torch
from backbone_support import NETS

from diffkit.parts.backbones._embedding import TimeEmbedding, timestep_embedding

WIDTHS = (2, 3, 32, 33, 128)


def _stored() -> dict[str, torch.Tensor]:
    with np.load(NETS / "timestep_embedding.npz") as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays}


def _compare(time, got, want):
    # At time 4000 the float32 angle itself is uncertain by 2.4e-4; reference and diffkit round it alike or not.
    late = time.abs() > 500
    assert (got - want)[~late].abs().max() <= 2e-5
    assert (got - want)[late].abs().max() <= 3e-4


@pytest.mark.parametrize("width", WIDTHS)
def test_matches_reference(width):
    stored = _stored()
    _compare(stored["t"], timestep_embedding(stored["t"], width), stored[f"dim{width}"])
    _compare(stored["t_int"], timestep_embedding(stored["t_int"], width), stored[f"dim{width}_int"])


def test_matches_reference_with_another_period():
    stored = _stored()
    _compare(stored["t"], timestep_embedding(stored["t"], 16, max_period=100), stored["dim16_max_period100"])


@pytest.mark.parametrize("width", [1, 2, 3, 64])
def test_width_and_odd_column(width):
    embedding = timestep_embedding(torch.tensor([5.0, 6.0]), width)
    assert embedding.shape == (2, width)
    assert width % 2 == 0 or (embedding[:, -1] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
def test_is_float32_unless_time_and_network_are_float64(dtype):
    time = torch.tensor([7], dtype=dtype)
    assert timestep_embedding(time, 8).dtype == (dtype if dtype == torch.float64 else torch.float32)
    network, x = TimeEmbedding(8, 8), torch.zeros(1, 2)
    assert torch.equal(network(time, x), network(time.float(), x))


def test_distinguishes_neighbouring_times_in_bfloat16():
    network = TimeEmbedding(32, 64).bfloat16()
    first, second = network(torch.tensor([999.0, 1000.0]), torch.zeros(2, 3, dtype=torch.bfloat16))
    assert first.dtype == torch.bfloat16
    assert not torch.equal(first, second)


def test_zero_dimensional_time_is_one_row():
    network = TimeEmbedding(8, 16)
    x = torch.zeros(2, 3)
    assert torch.equal(network(torch.tensor(3.0), x), network(torch.tensor([3.0]), x))
