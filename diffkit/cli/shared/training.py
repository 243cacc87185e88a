"""Shared by the commands that train: options of a run, checks before data is read, and the training itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
from attrs import frozen

from diffkit.cli.parsing.parts import names_of
from diffkit.cli.parsing.spec import ParsedOptions
from diffkit.cli.shared.data import opened, source_of
from diffkit.cli.shared.paths import check_run_folder
from diffkit.errors import OptionError
from diffkit.runtime.output import note, show
from diffkit.training.config import TrainConfig

if TYPE_CHECKING:
    from diffkit.data.base import Data
    from diffkit.training.hook import Tracker


@frozen(kw_only=True)
class RunOptions:
    """Options of a run, besides those of `diffkit.training.TrainConfig`.

    Attributes:
        out: Folder of the run: checkpoints, metrics and the result as other commands read it.
        device: Such as cpu or cuda; a GPU if there is one.
        track: Experiment trackers: tensorboard, wandb.
        dry_run: Try a few updates on a copy, print what the run would take (memory, time, size), and stop. Nothing
            is written.
    """

    out: Path
    device: str | None = None
    track: tuple[str, ...] = ()
    dry_run: bool = False


def say(text: object) -> None:
    """Print a remark, in the first process of a job only."""
    from diffkit.runtime.distributed import launched

    if launched().rank == 0:
        note(text)


def check_before_reading(options: RunOptions, config: TrainConfig, parsed: ParsedOptions) -> None:
    """Refuse what needs no data to be refused: hooks, processes, a folder of something else or of another run."""
    from diffkit.runtime.distributed import launched
    from diffkit.training.checkpoint import completed_updates
    from diffkit.training.engines import check_processes
    from diffkit.training.run_folder import check_options
    from diffkit.training.run_hooks import choose_hooks

    check_run_folder("--out", options.out)
    choose_hooks(config, hooks_of(parsed), options.track)
    check_processes(config, launched().size)
    if config.epochs is not None or config.overfit is not None:
        return  # the options depend on the data
    done = completed_updates(options.out)
    if done > config.steps:
        raise OptionError(
            f"--steps {config.steps} counts from the start of the run, and {options.out} has {done} steps already; "
            "ask for more to go on, or choose another folder"
        )
    check_options(options.out, config)


def hooks_of(parsed: ParsedOptions) -> list[tuple[str, Mapping[str, Any]]]:
    """The hooks that were chosen, as `diffkit.train` takes them."""
    joined, options = parsed.parts.get("hook", ("", {}))
    if len(names := names_of("hook", joined)) == 1:
        return [(joined, options)] if joined else []
    pairs = [(*key.partition(".")[::2], value) for key, value in options.items()]
    return [(name, {key: value for owner, key, value in pairs if owner == name}) for name in names]


def way_to_classes(parsed: ParsedOptions) -> str | None:
    """Return the option that gives data classes, if they are off; None if the data has some, as far as options show."""
    source, chosen = parsed.parts["data"][0], attrs.asdict(source_of(parsed), recurse=False)  # type: ignore[arg-type]  # an attrs class
    labels = chosen.get("labels") or bool(chosen.get("conditions"))
    if labels == "none":
        return "add --data.labels folders, or prefix"
    if labels is False and Path(source).suffix != ".npy":
        return "add --data.labels true"
    return None if labels else "use data that has some"


def train(
    system: Any,
    data: Data,
    options: RunOptions,
    config: TrainConfig,
    recipe: str,
    parsed: ParsedOptions,
    low_res: tuple[int, ...] | None = None,
    base: Path | None = None,
) -> None:
    """Train, with held-out data if there is some; with ``--dry-run`` only print what it would take.

    Args:
        system: A system or classifier.
        data: What it learns from.
        options: Options of the run.
        config: Options of training.
        recipe: What config.toml holds.
        parsed: All options of the command.
        low_res: Size of small images, if it learns to enlarge them.
        base: Where the system was loaded from, beside whose weights an adapter is trained.
    """
    import diffkit
    from diffkit.cli.shared.recipe import Recipe
    from diffkit.runtime.distributed import launched

    if options.dry_run:
        found = diffkit.training.dry_run(system, data, out=options.out, config=config, progress=True)
        if launched().rank == 0:
            show(found)
        return
    val = opened(parsed, "val", low_res) if "val" in parsed.parts else None
    track: list[str | Tracker] = [Recipe(recipe), *options.track]
    diffkit.train(system, data, out=options.out, val=val, config=config, hooks=hooks_of(parsed), track=track, base=base)
