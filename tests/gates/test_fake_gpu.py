"""Everything that runs on a GPU, walked on one that is not there: no devices mix, and nothing makes the host wait."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from companions import with_companions
from fake_gpu import GPU, READS, fake_gpu
from lanes import some_by_default
from torch.utils import _pytree as pytree

import diffkit
from diffkit import tasks
from diffkit.data.arrays import ArrayData
from diffkit.data.base import Batch
from diffkit.guidance import (
    DPS,
    MMPS,
    Autoguidance,
    Classifier,
    ClassifierFree,
    ClassifierGuidance,
    DiffPIR,
    DynamicThreshold,
    NoisyClassifier,
    PiGDM,
    StaticThreshold,
)
from diffkit.likelihood import score
from diffkit.registry import registry
from diffkit.training import validation
from diffkit.training.config import TrainConfig
from diffkit.training.engines import Engine
from diffkit.training.hook import HookFacts
from diffkit.training.run_hooks import RunHooks, choose_hooks
from diffkit.training.trainer import Trainer

pytestmark = pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter:UserWarning")
SHAPE, CLASSES = (3, 4, 4), 4
LABELS = {"num_classes": CLASSES, "null_class": True}
MLP = ("mlp", {"hidden": 4, "depth": 1, **LABELS})
UNET = ("unet", {"channels": 4, "channel_mult": (1, 2), "num_res_blocks": 1, "groups": 2, "num_heads": 2, **LABELS})
DIT = ("dit", {"patch": 2, "depth": 1, "hidden": 8, "heads": 2, **LABELS})
FLAT = ("mlp", {"hidden": 4, "depth": 1})


@pytest.fixture
def gpu(monkeypatch):
    with fake_gpu(monkeypatch) as mode:
        yield mode


def system_of(backbone=FLAT, **changes) -> diffkit.System:
    parts = {"schedule": "cosine", "var": "learned_range", "loss": "hybrid"} | changes
    return diffkit.compose(backbone=backbone, data_shape=SHAPE, num_steps=20, device=GPU, **parts)


def images(device=GPU) -> torch.Tensor:
    return torch.rand(2, *SHAPE, device=device)


# ---- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", [UNET, DIT, MLP], ids=lambda slot: slot[0])
def test_a_network_computes_where_it_was_composed(gpu, backbone):
    system = system_of(backbone)
    assert system.device == GPU and {b.device for b in system.buffers()} <= {GPU}
    system(images(), y=torch.ones(2, dtype=torch.long, device=GPU))["loss"].mean().backward()
    assert {p.grad.device for p in system.parameters()} == {GPU}


@pytest.mark.parametrize("name", registry("loss").built_in_names())
def test_a_loss_stays_on_the_device(gpu, name):
    learned = registry("loss").create(name).needs_learned_variance
    system = system_of(loss=name, var="learned_range" if learned else "fixed_large")
    system(images())["loss"].mean().backward()


def trainer_of(
    system: diffkit.System | NoisyClassifier,
    precision: str = "fp32",
    kind: type[Trainer] = Trainer,
    microbatch: int | None = None,
    **more: Any,
) -> Trainer:
    config = TrainConfig(
        steps=9,
        batch_size=4,
        microbatch=microbatch,
        precision=precision,
        grad_clip=1.0,
        ema=(0.9, 0.99),
        ema_power=(0.1,),
        label_dropout=0.1,
        flip=0.5,
        **more,
    )
    return kind(system.train(), system.network, config, Engine(system.device))


def a_batch() -> Batch:
    y = torch.ones(4, dtype=torch.long)
    return Batch(torch.arange(4), torch.zeros(4, *SHAPE, dtype=torch.uint8), {"y": y})


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("generator", [None, "cpu", "cuda:0"])
@pytest.mark.parametrize("name", registry("timesteps").built_in_names())
def test_levels_are_drawn_whoever_has_state_and_generator(gpu, name, generator, fresh):
    system = system_of(**with_companions({"timesteps": name}))
    state = None if fresh else pytree.tree_map(lambda tensor: tensor.to(GPU), system.parts.timesteps.init(system.table))
    source = None if generator is None else torch.Generator(generator)
    system.draw_levels(2, generator=source, timesteps_state=state)


TRAININGS = [(name, "fp32") for name in registry("timesteps").built_in_names()]
TRAININGS += [("uniform", "bf16"), ("uniform", "fp16"), ("loss_second_moment", "fp16")]


@pytest.mark.parametrize(("timesteps", "precision"), TRAININGS)
def test_an_update_stays_on_the_device(gpu, timesteps, precision):
    trainer = trainer_of(system_of(MLP, **with_companions({"timesteps": timesteps})), precision)
    trainer.update(a_batch())
    state = [trainer.ema.means, trainer.timesteps, trainer.window.rows, dict(trainer.optimizer.state)]
    assert {leaf.device for leaf in pytree.tree_leaves(state) if isinstance(leaf, torch.Tensor)} == {GPU}


def test_a_hook_reads_nothing_from_the_device_by_itself(gpu, tmp_path):
    trainer = trainer_of(system_of(MLP))
    hooks = choose_hooks(trainer.config, [("gradient_norms", {"depth": 1}), ("early_stopping", {"metric": "loss"})], ())
    own = RunHooks(hooks, HookFacts(0, 9, tmp_path, trainer.config, None, trainer=trainer, begun=0.0))
    own.begin(0)
    trainer.after_backward = lambda: own.call("after_backward", 0, logs=True)
    trainer.update(a_batch())
    own.call("after_update", 1, logs=True)
    assert own.error is None and own.metrics
    assert {norm.device for norm in own.metrics.values()} == {GPU}


def test_updates_in_pieces_stay_on_the_device(gpu):
    trainer = trainer_of(system_of(MLP), microbatch=3)
    for _ in range(2):
        trainer.update(a_batch())


def test_muon_and_groups_stay_on_the_device(gpu):
    how = {"optimizer": "muon", "param_groups": ({"pattern": "*.bias", "weight_decay": 0},), "lr_schedule": "wsd"}
    trainer = trainer_of(system_of(MLP), **how)
    for _ in range(2):
        trainer.update(a_batch())
    kinds = {kind for state in trainer.optimizer.state.values() for kind in state}
    assert kinds == {"momentum_buffer", "step", "exp_avg", "exp_avg_sq"}
    assert {leaf.device for leaf in pytree.tree_leaves([*trainer.optimizer.state.values()])} == {GPU}


def test_what_was_saved_goes_back_to_the_device(gpu):
    trainer = trainer_of(system_of(MLP, timesteps="adaptive"), "fp16")
    trainer.update(a_batch())
    with gpu.reading():
        files = pytree.tree_map(lambda tensor: tensor.cpu(), trainer.files())
        assert {w.device.type for w in trainer.sampling_weights().values()} == {"cpu"}
    trainer.restore(1, files)
    state = [*trainer.optimizer.state.values()]
    assert {leaf.device for leaf in pytree.tree_leaves(state)} == {GPU}
    trainer.update(a_batch())


def test_metrics_are_all_that_is_read(gpu):
    trainer = trainer_of(system_of(MLP))
    trainer.update(a_batch())
    with pytest.raises(READS):
        trainer.metrics()
    with gpu.reading():
        assert trainer.metrics()["loss"] == 1
        trainer.raise_if_diverged()


def test_a_preview_is_drawn_on_the_device(gpu):
    trainer = trainer_of(system_of(MLP), "bf16")
    with trainer.averaged():
        trainer.system.sample(2, steps=3, seed=1, model=trainer.eval_model, progress=False, y=[1, 2])


def test_a_classifier_learns_on_the_device(gpu):
    trainer = trainer_of(a_classifier(system_of(MLP)))
    trainer.update(a_batch())


def test_validation_stays_on_the_device(gpu, monkeypatch):
    monkeypatch.setattr(validation, "batch_problems", lambda *_: iter(()))  # looks at values on the host
    labels = np.ones(5, np.int64)
    data = ArrayData(np.zeros((5, *SHAPE), np.uint8), bins=256, labels=labels, classes=[*"abcd"])
    with gpu.reading():
        validation.validate(system_of(MLP), data, batch_size=2)


# ---- sampling --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [None, 3, [1, 2]], ids=str)
def test_a_sample_is_made_on_the_device(gpu, seed):
    system = system_of(MLP)
    assert system.sample(2, steps=3, seed=seed, batch_size=1, progress=False, y=[1, 2]).device == GPU
    assert system.sample(2, steps=3, seed=seed, start=images("cpu"), progress=False, y=1).device == GPU


@pytest.mark.parametrize("name", some_by_default(registry("sampler").built_in_names(), 2))
def test_a_sampler_stays_on_the_device(gpu, name):
    moments = system_of().trajectory(2, sampler=name, steps=5)
    assert all(moment.x.device == moment.x_start.device == GPU for moment in moments)


@pytest.mark.parametrize("where", ["cpu", "cuda:0"])
@pytest.mark.parametrize("start", ["clean", "level1"])
def test_an_encoding_is_made_on_the_device(gpu, start, where):
    assert system_of().encode(images(where), steps=4, start=start).device == GPU


def a_classifier(system: diffkit.System) -> NoisyClassifier:
    recipe = Classifier(channels=4, channel_mult=(1,), num_res_blocks=1, groups=2, num_heads=2, num_head_channels=None)
    return NoisyClassifier(system, recipe, CLASSES)


GUIDANCE = {
    "cfg": lambda system: ClassifierFree(2.0),
    "cfg in two calls": lambda system: ClassifierFree(
        torch.tensor([2.0, 3.0]), (0.1, 3.0), joint=False, rescale=0.7, by_level="cosine"
    ),
    "cfg, null on the host": lambda system: ClassifierFree(2.0, null={"y": torch.tensor(CLASSES)}),
    "classifier": lambda system: ClassifierGuidance(a_classifier(system)),
    "classifier, mean": lambda system: ClassifierGuidance(a_classifier(system), shift="mean", at="mean"),
    "worse": lambda system: Autoguidance(system_of(MLP), 2.0),
    "several": lambda system: [ClassifierFree(2.0), DynamicThreshold(), StaticThreshold()],
}


@pytest.mark.parametrize("name", GUIDANCE)
def test_guidance_stays_on_the_device(gpu, name):
    system = system_of(MLP)
    assert system.sample(2, guidance=GUIDANCE[name](system), y=[1, 2], steps=3, progress=False).device == GPU


def test_a_cascade_stays_on_the_device(gpu):
    up = {"channels": 8, "channel_mult": (1,), "num_res_blocks": 1, "groups": 4, "attention_resolutions": ()}
    up |= {"low_res_channels": 3, "low_res_level": True}
    large = diffkit.compose(
        schedule="cosine", num_steps=4, backbone=("unet", up), data_shape=(3, 8, 8), device=GPU
    ).eval()
    cascade = diffkit.Cascade([system_of(MLP), large], noise=0.2)
    made = list(cascade.each_stage(2, y=[1, 2], seed=0, batch_size=1, progress=False))
    assert [each.device for each in made] == [GPU, GPU] and made[1].shape == (2, 3, 8, 8)


METHODS = {
    "mmps": lambda operator: MMPS(operator, noise_std=0.1, iterations=2),
    "pigdm": lambda operator: PiGDM(operator, iterations=2),
    "diffpir": lambda operator: DiffPIR(operator, iterations=2),
    "dps": DPS,
}


@pytest.mark.parametrize("name", METHODS)
def test_a_measurement_is_explained_on_the_device(gpu, name):
    system, method = system_of(), METHODS[name](tasks.average_pool(2))
    measured = torch.zeros(2, 3, 2, 2)
    assert system.sample(2, guidance=method, measurement=measured, steps=2, progress=False).device == GPU


def test_measurements_are_not_looked_at_while_sampling(gpu, monkeypatch):
    """Before it begins, the operator is tried, whose results are looked at; fake ones have no values."""
    method = METHODS["diffpir"](tasks.masked(torch.ones(4, 4)))
    tried = lambda method, system, *_: method.operator(torch.zeros(1, *system.data_shape, device=system.device))  # noqa: E731
    monkeypatch.setattr("diffkit.tasks.inverse.check_operator", tried)
    with gpu.reading(0):
        assert tasks.solve(system_of(), torch.zeros(SHAPE), method, n=2, steps=2, progress=False).device == GPU


TASKS = {
    "inpainting": lambda s, x: tasks.inpaint(s, x, torch.ones(4, 4), steps=4, jump=2, resample=2, seed=0),
    "editing": lambda s, x: tasks.image_to_image(s, x, strength=0.5, steps=4, seed=0),
    "inversion": lambda s, x: tasks.invert(s, x, steps=4, progress=False).error,
    "interpolation": lambda s, x: tasks.interpolate(s, x[0], x[1], 3, steps=4),
    "exact": lambda s, x: tasks.exact_decode(s, tasks.exact_encode(s, x, steps=4), steps=4),
}


@pytest.mark.parametrize("where", ["cpu", "cuda:0"])
@pytest.mark.parametrize("name", TASKS)
def test_a_task_takes_images_from_anywhere(gpu, name, where, capsys):
    assert TASKS[name](system_of(), images(where)).device == GPU


def test_small_images_are_enlarged_on_the_device(gpu):
    name, options = UNET
    options = {k: v for k, v in options.items() if k not in LABELS}
    system = system_of((name, options | {"low_res_channels": 3}))
    assert tasks.super_resolve(system, torch.ones(2, 3, 2, 2), each=2, steps=2, progress=False).device == GPU


# ---- scoring ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seed", "where"), [(None, "cuda:0"), (3, "cuda:0"), (3, "cpu")])
def test_a_bound_is_found_on_the_device(gpu, seed, where):
    guidance = ClassifierFree(2.0)
    bound = system_of(MLP).bits_per_dim(images(where), steps=4, seed=seed, rows_per_call=3, guidance=guidance, y=[1, 2])
    assert bound.total.device == GPU


def test_a_model_of_the_caller_finds_its_data_where_they_are(gpu):
    """The system's own network is elsewhere."""
    model = system_of().network
    system = diffkit.compose(schedule="cosine", var="learned_range", loss="hybrid", backbone=FLAT, data_shape=SHAPE)
    assert system.bits_per_dim(images(), steps=2, model=model).total.device == GPU
    assert system.encode(images(), steps=2, model=model).device == GPU


def waits(gpu, do) -> int:
    """Copies that the host waits for meanwhile."""
    before = gpu.waits
    do()
    return gpu.waits - before


@pytest.mark.parametrize("score_of", ["bits_per_dim", "score"])
def test_the_pairs_of_a_bound_are_not_waited_for(gpu, score_of):
    system, x = system_of(), images()
    score_of = system.bits_per_dim if score_of == "bits_per_dim" else lambda *a, **k: score(system, *a, **k)
    with gpu.reading():
        few, many = (waits(gpu, lambda rows=rows: score_of(x, steps=4, rows_per_call=rows)) for rows in (8, 2))
    assert few == many


def test_an_update_waits_for_no_copy(gpu):
    trainer = trainer_of(system_of(MLP))
    trainer.update(a_batch())  # uploads its table
    assert waits(gpu, lambda: trainer.update(a_batch())) == 0


def test_a_copy_that_is_waited_for_is_caught(gpu):
    assert waits(gpu, lambda: torch.ones(2).to(GPU)) == waits(gpu, lambda: torch.tensor([1], device=GPU)) == 1
    assert waits(gpu, lambda: torch.ones(2).to(GPU, non_blocking=True)) == 0


def test_a_score_is_read_at_the_end(gpu):
    with gpu.reading():
        score(system_of(), images("cpu"), steps=4, levels_per_example=3, rows_per_call=4)


@pytest.fixture
def solver():
    """Imported before the GPU is there: its tableaux would be fake for the tests that follow."""
    return pytest.importorskip("torchdiffeq")


@pytest.mark.parametrize("dequantize", ["uniform", "decoder"])
@pytest.mark.parametrize("divergence", ["hutchinson", "exact"])
def test_a_flow_is_followed_on_the_device(solver, gpu, dequantize, divergence):
    """The solver reads its time and nothing else."""
    from diffkit.likelihood import ode_likelihood

    how = {"method": "euler", "options": {"step_size": 2.0}}
    with gpu.reading():
        found = ode_likelihood(system_of(), images("cpu"), dequantize=dequantize, divergence=divergence, **how)
    assert found.bits.device == GPU


# ---- what must not get through ---------------------------------------------------------------------------------------


def mutant(change):
    """A system whose estimates are changed on the way."""
    return system_of().sample(2, steps=2, x_transform=change, progress=False)


MIXING = {
    "sum": lambda x: x + torch.ones(4),
    "gather": lambda x: torch.arange(3)[torch.zeros(3, dtype=torch.long, device=GPU)] * x,
    "joined": lambda x: torch.cat([x, torch.ones(2, *SHAPE)])[:2],
    "generator": lambda x: x + torch.randn(x.shape, device=GPU, generator=torch.Generator()),
}
READING = {
    "item": lambda x: x * x.sum().item(),
    "branch": lambda x: x if x.isfinite().all() else -x,
    "selection": lambda x: x * x[x > 0].sum(),
    "count": lambda x: x * len(x.nonzero()),
    "copy": lambda x: x.cpu().to(GPU),
    "copy in place": lambda x: x * torch.empty(2, *SHAPE).copy_(x).to(GPU),
    "list": lambda x: x * x.flatten().tolist()[0],
    "equality": lambda x: x * torch.equal(x, x),
}


@pytest.mark.parametrize("name", MIXING)
def test_devices_that_mix_are_caught(gpu, name):
    with pytest.raises(RuntimeError, match="device"):
        mutant(MIXING[name])


@pytest.mark.parametrize("name", READING)
def test_a_host_read_is_caught(gpu, name):
    with pytest.raises(READS):
        mutant(READING[name])


class Reading(Trainer):
    """Looks at the norm, as the published scripts do."""

    def _step(self, norm, finite):
        if norm > 1:
            super()._step(norm, finite)


class Mixing(Trainer):
    """Weighs the loss on the host."""

    def _loss(self, x, draws, conditions):
        return super()._loss(x, draws._replace(weight=torch.ones(len(x))), conditions)


@pytest.mark.parametrize(("kind", "error"), [(Reading, READS), (Mixing, RuntimeError)])
def test_a_trainer_that_reads_or_mixes_is_caught(gpu, kind, error):
    with pytest.raises(error):
        trainer_of(system_of(MLP), kind=kind).update(a_batch())
