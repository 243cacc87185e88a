"""A network with a mapping among its conditions: training, sampling, bound, likelihood, tasks, serving in any batch."""

import pytest
import torch
from torch import nn

import diffkit
from diffkit import tasks
from diffkit.likelihood import ode_likelihood
from diffkit.serving import Loop

N = 5


class Reading(nn.Module):
    """A convolution, shifted by the mean of the words that are there, and scaled."""

    def __init__(self):
        super().__init__()
        self.line, self.words = nn.Conv2d(1, 1, 3, padding=1), nn.Linear(3, 1)

    def forward(self, x, time, *, text, size):
        mask = text["mask"][..., None]
        mean = (text["tokens"] * mask).sum(1) / mask.sum(1).clamp_min(1)
        shift = self.words(mean)[..., None, None] + time.view(-1, 1, 1, 1) / 1000
        return self.line(x) * (1 + size.view(-1, 1, 1, 1)) + shift


class Described(diffkit.data.MapData):
    shape, bins, classes = (1, 4, 4), None, None

    def __len__(self):
        return N

    def __getitem__(self, index):
        image = torch.randn(self.shape, generator=torch.Generator().manual_seed(index))
        mask = (torch.arange(4) <= index % 4).float()
        return image, {"text": {"tokens": torch.full((4, 3), 0.1 * index), "mask": mask}, "size": 0.1 * (index % 3)}


def composed():
    torch.manual_seed(0)
    null = {"text": {"tokens": 0.0, "mask": 0.0}, "size": 0.0}
    return diffkit.compose(
        backbone=Reading(), schedule="cosine", data_shape=(1, 4, 4), num_steps=8, bins=None, null_conditions=null
    )


@pytest.fixture(scope="module")
def system():
    return composed().eval()


CONDITIONS = {
    "text": {
        "tokens": torch.randn(N, 4, 3, generator=torch.Generator().manual_seed(1)),
        "mask": (torch.arange(4) <= torch.arange(N)[:, None] % 4).float(),
    },
    "size": torch.linspace(-0.3, 0.3, N),
}
IMAGE = torch.randn(N, 1, 4, 4, generator=torch.Generator().manual_seed(2))
KNOWN = torch.ones(4, 4).tril().bool()


def some(rows, length=4):
    text = {name: value[rows, :length] for name, value in CONDITIONS["text"].items()}
    return {"text": text, "size": CONDITIONS["size"][rows]}


CALLS = {
    "sample": lambda system, **o: system.sample(N, seed=0, guidance=("cfg", {"scale": 2.0}), **o),
    "inpaint": lambda system, **o: tasks.inpaint(system, IMAGE, KNOWN, resample=2, jump=2, seed=0, **o),
    "edit": lambda system, **o: tasks.image_to_image(system, IMAGE, strength=0.5, seed=0, **o),
}


@pytest.mark.parametrize("name", CALLS)
def test_calls_in_any_batch_size(system, name):
    whole, *others = (CALLS[name](system, **CONDITIONS, batch_size=size, progress=False) for size in (N, 1, 2))
    # an untrained network on unbounded data draws values of thousands
    assert all((other - whole).abs().max() <= 1e-6 * whole.abs().max() for other in others)


def test_bound_and_likelihood_row_by_row(system):
    whole = system.bits_per_dim(IMAGE, seed=0, progress=False, **CONDITIONS).total
    first = system.bits_per_dim(IMAGE[:2], seed=0, progress=False, **some(slice(2))).total
    assert (whole[:2] - first).abs().max() <= 1e-5
    exact, alone = (
        ode_likelihood(system, IMAGE[rows], divergence="exact", **some(rows)).bits for rows in (slice(3), slice(1))
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


@pytest.mark.parametrize("guidance", [None, ("cfg", {"scale": 2.0})], ids=["plain", "guided"])
def test_requests_share_calls(system, guidance):
    """Those of the same length do, by rows; another length has calls of its own, and the samples are those alone."""
    given = [some(slice(0, 2)), some(slice(2, 3)), some(slice(3, 5)), some(slice(0, 1), 2)]
    loop = Loop(system, rows_per_call=2 * N)
    requests = [loop.submit(len(each["size"]), seed=i, guidance=guidance, **each) for i, each in enumerate(given)]
    loop.close()
    for i, (request, each) in enumerate(zip(requests, given, strict=True)):
        alone = system.sample(request.n, seed=i, guidance=guidance, progress=False, **each)
        assert (request.result(0) - alone).abs().max() <= 1e-6 * alone.abs().max()
    assert loop.peak_rows == N * (1 + bool(guidance))
