"""Networks, and walks down all levels, exported by torch with a batch of any size."""

import io

import pytest
import torch
from backbone_support import NETWORKS, Case, close, randomize
from torch import Tensor, nn

import diffkit
from diffkit.guidance import ClassifierFree

BATCHES = range(1, 10)
FAST = ("dit", "mlp", "unet of one level")
CASES = [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS]


@pytest.mark.parametrize("name", CASES)
def test_a_network_takes_any_batch(name):
    case, batch = Case(name), torch.export.Dim("batch")
    dynamic = {key: {0: batch} for key in ("x", "time", *case.conditions)}
    program = torch.export.export(case.network, (case.x, case.time), case.conditions, dynamic_shapes=dynamic).module()
    _check_any_batch(case, program)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name, (recipe, _) in NETWORKS.items() if not getattr(recipe, "checkpoint", 0)]
)
def test_a_network_takes_any_batch_without_python(name):
    case, batch = Case(name), torch.export.Dim("batch", min=2, max=64)
    dynamic = {key: {0: batch} for key in ("x", "time", *case.conditions)}
    with torch.no_grad():
        program = torch.export.export(
            case.network, (case.x, case.time), case.conditions, dynamic_shapes=dynamic, strict=True
        )
    _check_any_batch(case, program.module(), BATCHES[1:])


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("name", CASES)
def test_a_traced_network_takes_any_batch(name):
    case = Case(name)
    given = (case.x, case.time, *case.conditions.values())
    traced = torch.jit.trace(_Positional(case), given, check_trace=False)
    _check_any_batch(case, lambda x, time, **conditions: traced(x, time, *conditions.values()))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the exporters' own
@pytest.mark.parametrize("dynamo", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_onnx_takes_any_batch(name, dynamo):
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    runtime = pytest.importorskip("onnxruntime")
    case, batch, file = Case(name), torch.export.Dim("batch"), io.BytesIO()
    names = ("x", "time", *case.conditions)
    if dynamo:
        dynamic = {key: {0: batch} for key in names}
        torch.onnx.export(
            case.network, (case.x, case.time), kwargs=case.conditions, dynamic_shapes=dynamic, dynamo=True
        ).save(file)
    else:
        given, axes = (case.x, case.time, *case.conditions.values()), {key: {0: "batch"} for key in names}
        torch.onnx.export(
            _Positional(case).eval(), given, file, input_names=list(names), dynamic_axes=axes, dynamo=False
        )
    session = runtime.InferenceSession(file.getvalue())

    def run(*given: Tensor, **conditions: Tensor) -> Tensor:
        fed = dict(zip(names, (tensor.numpy() for tensor in (*given, *conditions.values())), strict=True))
        return torch.from_numpy(session.run(None, fed)[0])

    _check_any_batch(case, run)


class _Positional(nn.Module):
    """A network whose conditions are positional, as tracing takes them."""

    def __init__(self, case: Case):
        super().__init__()
        self.network, self.names = case.network, tuple(case.conditions)

    def forward(self, x: Tensor, time: Tensor, *conditions: Tensor) -> Tensor:
        return self.network(x, time, **dict(zip(self.names, conditions, strict=True)))


def _check_any_batch(case: Case, program, batches=BATCHES) -> None:
    with torch.no_grad():
        for batch in batches:
            x, time, conditions = case.arguments(batch)
            close(program(x, time, **conditions), case.network(x, time, **conditions), 1e-4)


class Walk(nn.Module):
    """All steps of a sampler, with guidance where there is a null class."""

    def __init__(self, backbone, **options):
        super().__init__()
        self.system = diffkit.compose(schedule="cosine", backbone=backbone, data_shape=(1, 8, 8), num_steps=50).eval()
        self.options = options
        randomize(self.system)

    def forward(self, x: Tensor, noise: Tensor, y: Tensor | None = None) -> Tensor:
        drawn = iter(noise.unbind(1))
        table = self.system.table_for(2)
        conditions = {} if y is None else {"y": y}
        return self.system.sample_from(None, x, lambda: next(drawn), table, **self.options, **conditions)


CLASSES = dict(num_classes=3, null_class=True)
MLP = ("mlp", dict(hidden=16, depth=1, **CLASSES))
DIT = ("dit", dict(hidden=16, depth=1, heads=2, patch=4, **CLASSES))
UNET = ("unet", dict(channels=8, channel_mult=(1,), num_res_blocks=1, groups=4, **CLASSES))
GUIDED = dict(guidance=ClassifierFree(2.0))


@pytest.mark.parametrize(
    ("backbone", "options"),
    [
        (MLP, dict(sampler="ancestral")),
        (MLP, dict(sampler="dpmpp_2m", **GUIDED)),
        pytest.param(MLP, dict(sampler="heun", guidance=ClassifierFree(2.0, joint=False)), marks=pytest.mark.slow),
        pytest.param(MLP, dict(sampler="unipc"), marks=pytest.mark.slow),
        pytest.param(DIT, dict(sampler="ddim", **GUIDED), marks=pytest.mark.slow),
        pytest.param(UNET, dict(sampler="ddim", **GUIDED), marks=pytest.mark.slow),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else value["sampler"],
)
def test_an_exported_sampling_loop_takes_any_batch(backbone, options):
    walk, batch = Walk(backbone, **options), torch.export.Dim("batch")

    def given(n: int) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(n)
        x, noise = torch.randn(n, 1, 8, 8, generator=generator), torch.randn(n, 2, 1, 8, 8, generator=generator)
        return x, noise, torch.arange(n) % 3

    program = torch.export.export(walk, given(3), dynamic_shapes=({0: batch},) * 3).module()
    with torch.no_grad():
        for n in BATCHES:
            close(program(*given(n)), walk(*given(n)), 1e-4)
