"""Exported sampling: the same bits as the system, from one network in the graph, whatever the batch and the steps."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from fresh_environments import fresh_environment
from lanes import in_lanes

import diffkit
from diffkit.errors import CheckpointError, OptionError
from diffkit.guidance import DPS, ClassifierFree
from diffkit.registry import registry
from diffkit.tasks.exporting import check_export, export, host
from diffkit.tasks.exporting.checking import read_metadata

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # of torch.export.load

CLASSES = dict(num_classes=3, null_class=True)
BACKBONES = {
    "mlp": (("mlp", dict(hidden=16, depth=1, **CLASSES)), (2,)),
    "dit": (("dit", dict(hidden=16, depth=1, heads=2, patch=4, **CLASSES)), (1, 8, 8)),
    "unet": (("unet", dict(channels=8, channel_mult=(1, 2), num_res_blocks=1, groups=4, **CLASSES)), (1, 8, 8)),
}


def made(name="mlp", labels=True, **parts):
    (network, options), shape = BACKBONES[name]
    backbone = network, {key: value for key, value in options.items() if labels or key not in CLASSES}
    system = diffkit.compose(schedule="cosine", backbone=backbone, data_shape=shape, num_steps=60, **parts)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in system.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
    return system.eval()


def program_of(path):
    return torch.export.load(path)


def calls(graph_module, target):
    return sum(
        node.op == "call_function" and str(node.target) == target
        for module in graph_module.modules()
        if isinstance(module, torch.fx.GraphModule)
        for node in module.graph.nodes
    )


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """The Python of an environment that has PyTorch and NumPy, and not diffkit."""
    found = fresh_environment(tmp_path_factory.mktemp("environment"), "torch", "numpy")
    done = subprocess.run([found, "-I", "-c", "import numpy, diffkit"], capture_output=True, text=True, check=False)
    assert "No module named 'diffkit'" in done.stderr
    return found


def checked(path, system, python, **options):
    """What `check_export` finds if the file is run by a Python."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", str(python))
        return check_export(path, system, **options)


def test_the_file_gives_the_same_bits_in_a_process_without_diffkit(tmp_path):
    system = made()
    path = export(system, tmp_path / "walk.pt2", sampler="ancestral", steps=5, guidance=ClassifierFree(2.0))
    found = check_export(path, system)
    assert found.difference == 0, str(found)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["f.pt2", pytest.param("f.onnx", marks=pytest.mark.slow)])
def test_a_system_that_takes_nothing_but_noise(name, tmp_path):
    if name == "f.onnx":
        pytest.importorskip("onnxscript")
    system = made(labels=False)
    path = export(system, tmp_path / name, sampler="ddim", steps=3)
    assert [each["name"] for each in read_metadata(path)["inputs"]] == ["x"]
    if name == "f.pt2":
        x = torch.randn(3, 2)
        found = program_of(path).module()(x)
        assert torch.equal(found, system.sample(3, start=x, sampler="ddim", steps=3, progress=False))


@pytest.mark.slow
def test_a_system_without_conditions(tmp_path, python):
    system = diffkit.compose(schedule="cosine", backbone=("mlp", dict(hidden=16, depth=1)), data_shape=(2,))
    path = export(system, tmp_path / "walk.pt2", sampler="ddim", steps=3)
    assert checked(path, system, python).difference == 0


@in_lanes(slow=10, parts=3)
def test_every_sampler(chosen, tmp_path):
    system, scale = made(), {"scale": 2.0}
    several = [None, ("cfg", scale), ("cfg", {**scale, "joint": False})]
    for sampler, guidance in chosen(list(product(registry("sampler").built_in_names(), several))):
        program = _program(system, tmp_path, sampler, guidance)
        for batch in range(1, 10):
            _compare(system, program, sampler, guidance, batch)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["ddim", "ancestral", "heun", "dpmpp_2m", "unipc", "sde_dpmpp_2m"])
@pytest.mark.parametrize("backbone", ["dit", "unet"])
def test_every_network(backbone, sampler, tmp_path):
    system, guidance = made(backbone), ("cfg", {"scale": 2.0, "interval": (0.1, 3.0)})
    program = _program(system, tmp_path, sampler, guidance)
    for batch in (1, 4, 9):
        _compare(system, program, sampler, guidance, batch)


def _program(system, folder, sampler, guidance):
    return program_of(export(system, folder / "f.pt2", sampler=sampler, steps=6, guidance=guidance)).module()


def _compare(system, program, sampler, guidance, batch):
    generator, y = torch.Generator().manual_seed(batch), torch.arange(batch) % 3
    job = system.prepare(batch, sampler=sampler, steps=6, guidance=guidance, y=y)
    steps = job.program()
    x = torch.randn(batch, *system.data_shape, generator=generator)
    noise = torch.randn(steps.num_steps, *x.shape, generator=generator)
    drawn, given = iter(noise), [noise] if steps.stochastic else []
    with torch.no_grad():
        expected = job.finish(steps, range(batch), x.clone(), lambda: next(drawn), lambda _: None)
        found = program(x, *given, y)
    assert torch.equal(found, expected), (sampler, guidance, batch, float((found - expected).abs().max()))


@pytest.mark.slow
def test_a_negative_prompt_of_another_length(tmp_path):
    backbone = ("dit", dict(hidden=16, depth=1, heads=2, patch=4, context=3))
    system = diffkit.compose(schedule="cosine", backbone=backbone, data_shape=(1, 8, 8), num_steps=60)
    with torch.no_grad():
        for weight in system.parameters():
            weight.normal_(std=0.1)
    context, guidance = torch.randn(2, 4, 3), ("cfg", {"scale": 2.0, "null": {"context": torch.randn(1, 2, 3)}})
    path = export(system, tmp_path / "f.pt2", sampler="ddim", steps=3, guidance=guidance, context=context)
    assert [each["name"] for each in read_metadata(path)["inputs"]] == ["x", "context", "context_mask"]
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        found = program_of(path).module()(x, context, torch.ones(2, 4, dtype=torch.bool))
    options = {"sampler": "ddim", "steps": 3, "guidance": guidance, "context": context, "progress": False}
    assert torch.equal(found, system.sample(2, start=x, **options))


@pytest.mark.slow
def test_the_network_is_in_the_graph_once_and_steps_cost_nothing(tmp_path):
    system, sizes = made(), []
    for steps in (10, 50):
        path = export(system, tmp_path / f"{steps}.pt2", sampler="ddim", steps=steps)
        linear = sum(isinstance(module, torch.nn.Linear) for module in system.network.modules())
        assert calls(program_of(path).graph_module, "aten.linear.default") == linear
        sizes.append(path.stat().st_size)
    assert sizes[1] - sizes[0] <= 10_000
    weights = sum(4 * weight.numel() for weight in system.parameters())
    assert sizes[1] <= weights + 1_000_000


@pytest.mark.slow
def test_nothing_of_this_machine_is_in_the_file(tmp_path):
    path = export(made(), tmp_path / "f.pt2", sampler="ddim", steps=3)
    with zipfile.ZipFile(path) as archive:
        content = b"".join(archive.read(name) for name in archive.namelist())
    assert str(Path(diffkit.__file__).parent).encode() not in content


@pytest.mark.slow
def test_what_it_is_stands_inside(tmp_path):
    system = made()
    record = read_metadata(export(system, tmp_path / "f.pt2", sampler="ancestral", steps="ddim6", clip=True))
    assert [(each["name"], each["shape"]) for each in record["inputs"]] == [
        *[("x", ["batch", 2]), ("noise", [6, "batch", 2]), ("y", ["batch"])]
    ]
    assert record["system"] == json.loads(json.dumps(system.spec()))
    assert record["sampling"]["steps"] == "ddim6"


@pytest.mark.slow
def test_noise_may_be_drawn_inside(tmp_path):
    system = made()
    program = program_of(export(system, tmp_path / "f.pt2", sampler="ancestral", steps=4, draw_noise=True)).module()
    x, y = torch.randn(2, 2), torch.tensor([0, 1])
    torch.manual_seed(3)
    found = program(x, y)
    torch.manual_seed(3)
    job = system.prepare(2, sampler="ancestral", steps=4, y=y)
    expected = job.finish(job.program(), range(2), x.clone(), lambda: torch.randn_like(x), lambda _: None)
    assert torch.equal(found, expected)


@pytest.mark.slow
def test_the_null_class_may_be_given(tmp_path):
    system = made()
    program = program_of(export(system, tmp_path / "f.pt2", sampler="ddim", steps=3)).module()
    x = torch.randn(2, 2)
    assert torch.equal(program(x, torch.tensor([-1, -1])), program(x, torch.tensor([3, 3])))


@pytest.mark.slow
def test_the_network_alone(tmp_path, python):
    system = made("dit", var="learned_range", loss="hybrid")
    path = export(system, tmp_path / "f.pt2", loop=False)
    assert checked(path, system, python).difference == 0
    assert read_metadata(path)["output"]["shape"] == ["batch", 2, 8, 8]


@pytest.mark.slow
@pytest.mark.parametrize("loop", [True, False])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_onnx(backbone, loop, tmp_path):
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    onnxruntime = pytest.importorskip("onnxruntime")
    python = fresh_environment(tmp_path / "environment", "onnxruntime", "numpy")
    system = made(backbone)
    options = dict(sampler="dpmpp_2m", steps=5, guidance=("cfg", {"scale": 2.0})) if loop else {}
    path = export(system, tmp_path / "f.onnx", loop=loop, **options)
    found = checked(path, system, python)
    assert found.ok, str(found)
    more = {"y": np.zeros(2, np.int64)} if loop else {"time": np.ones(2, np.float32), "y": np.zeros(2, np.int64)}
    with pytest.raises(Exception, match="Got invalid dimensions for input: x"):  # of ONNX Runtime
        onnxruntime.InferenceSession(path).run(
            None, {"x": np.zeros((2, *system.data_shape[:-1], 5), np.float32), **more}
        )


@pytest.mark.slow
def test_an_operator_that_onnx_has_not_is_named(tmp_path, capsys):
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)

    class Zeta(torch.nn.Module):
        def forward(self, x, time):
            return torch.special.zeta(x, x + 1.5)

    system = diffkit.compose(backbone=Zeta(), data_shape=(2,), bins=None)
    assert "No ONNX function found for <OpOverload(op='prims.zeta'" in refused(
        system=system, path=tmp_path / "f.onnx", loop=False
    )
    assert not list(tmp_path.iterdir()) and capsys.readouterr() == ("", "")
    (tmp_path / "x.onnx").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"no file that diffkit\.export wrote"):
        check_export(tmp_path / "x.onnx", system)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["mlp", "unet"])
def test_a_compiled_file(backbone, tmp_path, python):
    system = made(backbone)
    path = export(system, tmp_path / "f.pt2", sampler="dpmpp_2m", steps=5, compiled=True)
    for examples in (1, 3):
        found = checked(path, system, python, examples=examples)
        assert found.ok, str(found)
    assert list(tmp_path.iterdir()) == [path]
    shape = (2, *system.data_shape[:-1], 5)
    with pytest.raises(RuntimeError, match=r"unmatched dim value at \d, expected: \d, but got: 5"):
        host.load(str(path))(np.zeros(shape, np.float32), np.zeros(2, np.int64))


@pytest.mark.slow
@pytest.mark.skipif(not all(map(shutil.which, ("cmake", "g++"))), reason="needs cmake and g++")
def test_the_host_in_cpp_of_the_page(tmp_path, python):
    page = (Path(__file__).parents[3] / "docs/learn/sampling-as-a-file.md").read_text(encoding="utf-8")
    for name, language in (("host.cpp", "cpp"), ("CMakeLists.txt", "cmake")):
        (tmp_path / name).write_text(page.partition(f"```{language}\n")[2].partition("```")[0])
    backbone = ("mlp", dict(hidden=16, depth=1, num_classes=10))
    system = diffkit.compose(schedule="cosine", backbone=backbone, data_shape=(1, 8, 8), num_steps=20)
    path = export(system, tmp_path / "digits.pt2", sampler="dpmpp_2m", steps=4, compiled=True)
    place = [python, "-I", "-c", "import torch; print(torch.utils.cmake_prefix_path)"]
    prefix = f"-DCMAKE_PREFIX_PATH={subprocess.check_output(place, text=True).strip()}"
    for command in (["cmake", "-B", "build", prefix], ["cmake", "--build", "build"], ["build/host", path]):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert "[4, 1, 8, 8]" in done.stdout


# --- refused


def refused(**options):
    path = options.pop("path", Path("f.pt2"))
    with pytest.raises(OptionError) as caught:
        export(options.pop("system", None) or made(), path, **options)
    return str(caught.value)


def test_arguments_that_make_no_sense(tmp_path):
    folder = tmp_path / "folder.pt2"
    folder.mkdir()
    assert "ends in .pt2 or .onnx, got 'f.pt'" in refused(path=tmp_path / "f.pt")
    assert "is not a folder" in refused(path=tmp_path / "none" / "f.pt2")
    assert "is a folder; name a file" in refused(path=folder)
    of_network = dict(path=tmp_path / "f.pt2", loop=False)
    assert refused(**of_network, steps=3) == "steps is of sampling, and the graph is the network alone; use loop=True"
    assert refused(**of_network, draw_noise=True).startswith("draw_noise is of sampling")
    assert "compiled=True is for .pt2 files; ONNX has neither" in refused(path=tmp_path / "f.onnx", compiled=True)
    assert "a file has no seed" in refused(path=tmp_path / "f.pt2", seed=3)
    assert "takes a batch of any size" in refused(path=tmp_path / "f.pt2", n=3)
    assert "use compiled=True" in refused(path=tmp_path / "f.pt2", compile="step")
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.slow
def test_guidance_that_differentiates_is_named_and_leaves_no_file(tmp_path):
    system = made()
    guidance = DPS(lambda x: x[:, :1], 1.0)
    text = refused(
        system=system,
        path=tmp_path / "f.pt2",
        sampler="ddim",
        steps=3,
        guidance=guidance,
        measurement=torch.zeros(2, 1),
    )
    assert text.startswith("sampler 'ddim' with guidance 'DPS' cannot be exported as one graph: it computes gradients")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_an_operator_that_is_not_pytorchs_own_is_refused(tmp_path):
    @torch.library.custom_op("of_this_test::double", mutates_args=())
    def double(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    double.register_fake(torch.empty_like)

    class Doubles(torch.nn.Module):
        def forward(self, x, time):
            return double(x)

    system = diffkit.compose(backbone=Doubles(), data_shape=(2,), bins=None)
    text = refused(system=system, path=tmp_path / "f.pt2", sampler="ddim", steps=3)
    assert text.startswith("sampler 'ddim' needs the operator of_this_test.double.default, which is not")
    assert not list(tmp_path.iterdir())


def test_a_text_is_no_input(tmp_path):
    class Reads(torch.nn.Module):
        def forward(self, x, time, caption):
            return x

    system = diffkit.compose(backbone=Reads(), data_shape=(2,), bins=None)
    text = refused(system=system, path=tmp_path / "f.pt2", caption=["a", "b"])
    assert "condition 'caption' is a list, and an exported graph takes tensors" in text


@pytest.mark.slow
def test_a_wrong_shape_at_a_call_is_an_error(tmp_path):
    program = program_of(export(made("dit"), tmp_path / "f.pt2", sampler="ddim", steps=2)).module()
    with pytest.raises(Exception, match=r"shape|Guard|size"):
        program(torch.zeros(2, 1, 8, 4), torch.tensor([0, 1]))


@pytest.mark.slow
def test_other_files_and_other_weights_are_told(tmp_path):
    system = made()
    path = export(system, tmp_path / "f.pt2", sampler="ddim", steps=2)
    with torch.no_grad():
        next(system.parameters()).add_(1)
    with pytest.raises(OptionError, match="exported with other weights"):
        check_export(path, system)
    (tmp_path / "x.pt2").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"no file that diffkit\.export wrote"):
        check_export(tmp_path / "x.pt2", system)


@pytest.mark.slow
def test_the_command(tmp_path):
    system = made("unet", sampler="ddim")
    system.save(tmp_path / "saved")

    def diffkit_(*words):
        command = [sys.executable, "-m", "diffkit", *words]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    sampling = ("--sampler", "dpmpp_2m", "--guidance", "cfg", "--guidance.scale", "2", "--steps", "4")
    done = diffkit_("export", "saved", "--loop", *sampling, "--to", "f.pt2")
    assert done.returncode == 0, done.stderr
    done = diffkit_("check-export", "f.pt2", "saved")
    assert (done.returncode, "the same bits" in done.stdout) == (0, True), done.stderr
    assert "add --loop" in diffkit_("export", "saved", "--steps", "4", "--to", "g.pt2").stderr
    assert "file of weights" in diffkit_("export", "saved", "--loop", "--to", "g.pt").stderr
