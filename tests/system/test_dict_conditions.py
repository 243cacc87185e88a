"""A network with a mapping of conditions: training, sampling, bound, likelihood and tasks in any batch size."""

import pytest
import torch
from torch import nn

import diffkit
from diffkit import tasks
from diffkit.likelihood import ode_likelihood

N = 5


class Reading(nn.Module):
    """A convolution, shifted by the mean of the words that are there."""

    def __init__(self):
        super().__init__()
        self.line, self.words = nn.Conv2d(1, 1, 3, padding=1), nn.Linear(3, 1)

    def forward(self, x, time, *, text):
        mask = text["mask"][..., None]
        mean = (text["tokens"] * mask).sum(1) / mask.sum(1).clamp_min(1)
        return self.line(x) + self.words(mean)[..., None, None] + time.view(-1, 1, 1, 1) / 1000


class Described(diffkit.data.MapData):
    shape, bins, classes = (1, 4, 4), None, None

    def __len__(self):
        return N

    def __getitem__(self, index):
        image = torch.randn(self.shape, generator=torch.Generator().manual_seed(index))
        mask = (torch.arange(4) <= index % 4).float()
        return image, {"text": {"tokens": torch.full((4, 3), 0.1 * index), "mask": mask}}


def composed():
    torch.manual_seed(0)
    null = {"text": {"tokens": 0.0, "mask": 0.0}}
    return diffkit.compose(
        backbone=Reading(), schedule="cosine", data_shape=(1, 4, 4), num_steps=8, bins=None, null_conditions=null
    )


@pytest.fixture(scope="module")
def system():
    return composed().eval()


TEXT = {
    "tokens": torch.randn(N, 4, 3, generator=torch.Generator().manual_seed(1)),
    "mask": (torch.arange(4) <= torch.arange(N)[:, None] % 4).float(),
}
IMAGE = torch.randn(N, 1, 4, 4, generator=torch.Generator().manual_seed(2))
KNOWN = torch.ones(4, 4).tril().bool()


def some(rows):
    return {name: value[rows] for name, value in TEXT.items()}


CALLS = {
    "sample": lambda system, **o: system.sample(N, seed=0, guidance=("cfg", {"scale": 2.0}), **o),
    "inpaint": lambda system, **o: tasks.inpaint(system, IMAGE, KNOWN, resample=2, jump=2, seed=0, **o),
    "edit": lambda system, **o: tasks.image_to_image(system, IMAGE, strength=0.5, seed=0, **o),
}


@pytest.mark.parametrize("name", CALLS)
def test_calls_in_any_batch_size(system, name):
    whole, *others = (CALLS[name](system, text=TEXT, batch_size=size, progress=False) for size in (N, 1, 2))
    # an untrained network on unbounded data draws values of thousands
    assert all((other - whole).abs().max() <= 1e-6 * whole.abs().max() for other in others)


def test_bound_and_likelihood_row_by_row(system):
    whole = system.bits_per_dim(IMAGE, seed=0, progress=False, text=TEXT).total
    first = system.bits_per_dim(IMAGE[:2], seed=0, progress=False, text=some(slice(2))).total
    assert (whole[:2] - first).abs().max() <= 1e-5
    exact, alone = (
        ode_likelihood(system, IMAGE[rows], divergence="exact", text=some(rows)).bits for rows in (slice(3), slice(1))
    )
    assert (exact[:1] - alone).abs().max() <= 1e-3  # the solver's steps are those of the batch


def test_training_in_any_microbatch(tmp_path):
    found = []
    for microbatch in (None, 1, 2):
        out = tmp_path / str(microbatch)
        options = dict(steps=3, batch_size=N, lr=1e-2, label_dropout=0.4, ema=(), progress=False)
        trained = diffkit.train(composed(), Described(), out=out, microbatch=microbatch, **options)
        found.append(torch.cat([p.detach().flatten() for p in trained.parameters()]))
    assert all((other - found[0]).abs().max() <= 1e-5 for other in found[1:])
