"""``diffkit check``: the kit on any installed part, by its name."""

from __future__ import annotations

import pytest

from diffkit.cli._app import run
from diffkit.registry import refresh, registry


@pytest.fixture
def check(capsys):
    def command(*words):
        try:
            code = run(["check", *words])
        except SystemExit as stopped:
            code = stopped.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return command


@pytest.fixture
def broken_plugin(tmp_path, monkeypatch):
    """A distribution that offers a sampler with a mistake, and a schedule with the sampler's name."""
    folder = tmp_path / "diffkit_broken-1.2.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: diffkit-broken\nVersion: 1.2\n")
    (folder / "entry_points.txt").write_text(
        "[diffkit.sampler]\nbroken = diffkit_broken:WrongAlpha\nddim = diffkit_broken:OtherDDIM\n"
        "[diffkit.schedule]\nbroken = diffkit_broken:Levels\n"
    )
    # Classes of its own, since the registry remembers where a class came from.
    (tmp_path / "diffkit_broken.py").write_text(
        "from attrs import frozen\n"
        "from mutants.samplers import CurrentAlpha, Linear\n"
        "from mutants.schedules_and_means import Exploding\n"
        "WrongAlpha = frozen(type('WrongAlpha', (CurrentAlpha,), {}))\n"
        "OtherDDIM = frozen(type('OtherDDIM', (Linear,), {}))\n"
        "Levels = frozen(type('Levels', (Exploding,), {}))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("DIFFKIT_PLUGINS", "diffkit-broken")
    refresh()
    yield
    monkeypatch.undo()
    refresh()


def test_a_built_in_part_passes(check):
    code, out, _ = check("cosine")
    lines = out.splitlines()
    assert code == 0
    assert lines[0] == "schedule cosine: Cosine(s=0.008, max_beta=0.999)"
    assert lines[1].split(maxsplit=2) == [
        "passed", "contract", "A part has every member of its protocol, with the right arguments and types"
    ]  # fmt: skip
    assert "  17 passed, 6 skipped" in [line.split(" in ")[0] for line in lines]
    assert "lr_schedule cosine: Cosine(end=None)" in lines  # the other part of that name


def test_options_of_the_part_and_chosen_checks(check):
    code, out, _ = check("--sampler", "ddim", "--sampler.eta", "0.5", "--only", "order_as_declared,contract")
    lines = out.splitlines()
    assert code == 0
    assert lines[0] == "sampler ddim: DDIM(eta=0.5, clipped_eps=True)"
    assert [line.split()[:2] for line in lines[1:3]] == [["passed", "contract"], ["passed", "order_as_declared"]]
    assert lines[2].endswith("order 1 declared; 0.99 on vp, 0.99 on ve, 0.99 on linear")


def test_a_broken_plugin_fails_with_a_review(check, broken_plugin):
    code, out, _ = check("broken", "--kind", "sampler", "--only", "keeps_the_marginals")
    assert code == 1
    assert out.splitlines()[0] == "sampler broken: WrongAlpha(eta=0.0)"
    assert "  1 failed in " in out
    assert "usually:  alpha or sigma of the wrong end of the step" in out


def test_one_cause_fails_one_law(check, tmp_path, monkeypatch):
    monkeypatch.setattr(registry("sampler"), "_here", {})
    (tmp_path / "never_finite.py").write_text(
        "import numpy as np\n"
        "from attrs import frozen\n"
        "from diffkit.protocols import Sampler\n"
        "from diffkit.registry import registry\n\n"
        "@registry('sampler').register('never_finite')\n"
        "@frozen\n"
        "class NeverFinite(Sampler):\n"
        "    def plan(self, steps):\n"
        "        return {'x': np.full(len(steps.t.alpha), np.inf)}\n\n"
        "    def step(self, denoise, x, state, row, noise, last):\n"
        "        return x, state\n"
    )
    code, out, _ = check("--import", str(tmp_path / "never_finite.py"), "never_finite")
    assert code == 1 and out.count("fails '") == 1 and "fails 'plan_is_finite'" in out


def test_a_name_of_several_kinds_is_checked_as_each(check, broken_plugin):
    code, out, _ = check("broken", "--only", "contract")
    assert code == 0
    assert "sampler broken" in out and "schedule broken" in out


def test_a_full_name_reaches_what_a_built_in_shadows(check, broken_plugin):
    code, out, _ = check("diffkit-broken:ddim", "--only", "contract")
    assert code == 0 and "OtherDDIM(eta=0.0)" in out


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["dimm"], "no part of any kind is named 'dimm'; did you mean 'ddim'?"),
        (["ab2.py"], "'ab2.py' is a file, not the name of a part; write --import ab2.py NAME"),
        (["--sampler", "ab2.py"], "'ab2.py' is a file, not the name of a part; write --import ab2.py --sampler NAME"),
        (["cosine", "--kind", "mean"], "no mean named 'cosine' (known: "),
        (["cosine", "--kind", "schedules"], "no kind 'schedules'; did you mean 'schedule'?"),
        (
            ["ddim", "--only", "oder_as_declared"],
            "no check 'oder_as_declared' of kind 'sampler'; did you mean 'order_as",
        ),
        ([], "which part? write its name, as diffkit list shows it, or --sampler NAME"),
        (["--sampler", "ddim", "--sampler.eta", "2"], "eta must be >= 0 and <= 1, got 2.0"),
    ],
)
def test_what_is_refused(check, words, text):
    code, out, error = check(*words)
    assert code == 2 and not out
    assert text in error
