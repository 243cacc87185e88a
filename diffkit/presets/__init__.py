"""Published configurations by name, as data: one TOML file for each family.

    preset = diffkit.preset("iddpm/imagenet64-uncond")
    system = preset.compose()                                        # a fresh network
    system = diffkit.load_checkpoint(preset.file, preset=preset.name)  # the published weights
    cascade = diffkit.presets.cascade("adm/imagenet64-256")          # a base and an upsampler

A file holds ``[family]`` (source, licence, address), ``[common]`` (beneath every preset), ``[presets.NAME]``, which may
start from another one with ``like``, and ``[cascades.NAME]``, with the presets of the stages. Tables are merged key by
key; "none" stands for None, which TOML lacks.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from diffkit.errors import OptionError, UnknownComponentError, did_you_mean

if TYPE_CHECKING:
    import torch
    from torch import nn

    from diffkit.system.cascade import Cascade
    from diffkit.system.module import System

_LEVELS = frozenset(("num_steps", "train_spacing", "schedule"))
FAMILIES = ("iddpm", "adm", "dit")
"""Stems of the files, in the order they are listed."""


@frozen(kw_only=True)
class Preset:
    """One published configuration.

    Attributes:
        name: "family/name".
        about: Description in one line.
        classifier: True for a classifier of noisy data, which guides sampling and is not a system.
        composition: Keywords of `diffkit.compose`; for a classifier its options, data_shape and num_classes.
        training: Keywords of `diffkit.train`, as far as they were published.
        sampling: Keywords of `System.sample` it was published with; `compose` makes them the system's defaults.
        num_parameters: Trained values of its network.
        file: Name of the published file of weights; None if none was published.
        url: Where the file was published.
        source: Source of the settings.
        license: Of the published weights.
        notes: Further remarks.
    """

    name: str
    about: str
    classifier: bool
    composition: Mapping[str, Any] = field(repr=False, hash=False)
    training: Mapping[str, Any] = field(repr=False, hash=False)
    sampling: Mapping[str, Any] = field(repr=False, hash=False)
    num_parameters: int
    file: str | None
    url: str | None = field(repr=False)
    source: str = field(repr=False)
    license: str = field(repr=False)
    notes: str = field(repr=False)

    def keywords(self, **overrides: Any) -> dict[str, Any]:
        """Return the composition, with overrides.

        Args:
            overrides: Keywords of `diffkit.compose` (for a classifier: its options). A mapping without a "name", such
                as ``backbone={"num_classes": 10}``, changes these options of the preset's part and no others.
        """
        changed = dict(self.composition)
        for name, value in overrides.items():
            old = changed.get(name)
            merge = isinstance(value, Mapping) and "name" not in value and isinstance(old, Mapping)
            changed[name] = merged(old, value) if merge else value
        return changed

    def compose(self, **overrides: Any) -> System:
        """Return the system with a fresh network; ``overrides`` as in `keywords`.

        It samples by default as published (`sampling`), unless the overrides change its levels.

        Raises:
            OptionError: It is a classifier; or as `diffkit.compose`.
        """
        if self.classifier:
            raise OptionError(
                f"{self.name!r} is a classifier, which guides sampling, not a system; build() makes its network"
            )
        from diffkit.system.compose import compose

        return compose(**{"sampling": self.sampling_with(overrides), **self.keywords(**overrides)})

    def sampling_with(self, overrides: Collection[str]) -> Mapping[str, Any] | None:
        """Return the published options of sampling, or None if overrides of these names change their levels."""
        return None if _LEVELS.intersection(overrides) else self.sampling

    def build(self, *, device: str | torch.device = "cpu", **overrides: Any) -> nn.Module:
        """Return the fresh network alone, of a system or a classifier; "meta" as device takes no memory.

        Args:
            device: Where it is built.
            overrides: As in `keywords`.
        """
        import torch

        if not self.classifier:
            network = self.compose(device=device, **overrides).network
            assert network is not None, "every preset names a backbone"
            return network
        from diffkit.guidance.classifier import Classifier

        options = self.keywords(**overrides)
        data_shape, num_classes = tuple(options.pop("data_shape")), options.pop("num_classes")
        with torch.device(device):
            return Classifier(**options).build(data_shape, num_classes)

    def __str__(self) -> str:
        weights = f"{self.file} ({self.license}), {self.url}" if self.file else "not published"
        rows = {
            "composition": _listed(self.composition),
            "training": _listed(self.training),
            "sampling": _listed(self.sampling),
            "parameters": [f"{self.num_parameters:,}"],
            "weights": [weights],
            "source": [self.source],
            "notes": [self.notes] if self.notes else [],
        }
        lines = [f"{self.name}: {self.about}"]
        for name, texts in rows.items():
            lines += [f"  {name if i == 0 else '':13}{text}" for i, text in enumerate(texts)]
        return "\n".join(lines)


@frozen
class CascadePreset:
    """A published pipeline of a base and upsamplers.

    Attributes:
        name: "family/name".
        about: Description in one line.
        stages: The presets of its stages, the base first.
        noise: Level of noise on the small images of each upsampler.
    """

    name: str
    about: str
    stages: tuple[Preset, ...]
    noise: float

    def compose(self) -> Cascade:
        """Return the cascade with fresh networks.

        With the published weights it is ``Cascade([load_checkpoint(stage.file, preset=stage.name) for stage in
        stages], noise=noise)``.
        """
        from diffkit.system.cascade import Cascade

        return Cascade([stage.compose() for stage in self.stages], noise=self.noise)


def cascade(name: str) -> CascadePreset:
    """Return a published pipeline.

    Raises:
        UnknownComponentError: There is none of that name; the nearest is suggested.
    """
    known = _cascades()
    if name not in known:
        shown = f"{did_you_mean(name, known)} (known: {', '.join(known)})"
        raise UnknownComponentError(f"no cascade named {name!r}{shown}")
    return known[name]


def preset(name: str) -> Preset:
    """Return a published configuration.

    Raises:
        UnknownComponentError: There is no preset of that name; the nearest is suggested.
    """
    known = names()
    if name not in known:
        raise UnknownComponentError(f"no preset named {name!r}{did_you_mean(name, known)} (known: {', '.join(known)})")
    return _presets()[name]


def names() -> tuple[str, ...]:
    """Return every name, family by family."""
    return tuple(_presets())


def table() -> list[tuple[str, str, str]]:
    """Return (name, number of parameters, description) of every preset and cascade, as text; for listings."""
    rows = [(p.name, p.num_parameters, p.about) for p in _presets().values()]
    rows += [(c.name, sum(p.num_parameters for p in c.stages), f"cascade: {c.about}") for c in _cascades().values()]
    return [(name, f"{count / 1e6:.1f}M", about) for name, count, about in rows]


def merged(below: Any, above: Any) -> Any:
    """Return ``above`` laid over ``below``, mappings key by key."""
    if not isinstance(below, Mapping) or not isinstance(above, Mapping):
        return above
    return {**below, **{key: merged(below.get(key), value) for key, value in above.items()}}


@cache
def _presets() -> dict[str, Preset]:
    return {found.name: found for family in FAMILIES for found in _read(family)}


@cache
def _cascades() -> dict[str, CascadePreset]:
    found = {}
    for family in FAMILIES:
        for short, entry in _data(family).get("cascades", {}).items():
            stages = tuple(preset(f"{family}/{stage}") for stage in entry["stages"])
            name = f"{family}/{short}"
            found[name] = CascadePreset(name, entry["about"], stages, entry.get("noise", 0.0))
    return found


def _data(family: str) -> dict[str, Any]:
    return tomllib.loads(files(__name__).joinpath(f"{family}.toml").read_text(encoding="utf-8"))


def _read(family: str) -> Iterator[Preset]:
    data = _data(family)
    about = data["family"]
    for name in data["presets"]:
        entry = _entry(data, name)
        file = entry.get("file")
        yield Preset(
            name=f"{family}/{name}",
            about=entry["about"],
            classifier="classifier" in entry,
            composition=_fixed(entry["classifier" if "classifier" in entry else "compose"]),
            training=_fixed(entry.get("training", {})),
            sampling=_fixed({} if "classifier" in entry else entry.get("sampling", {})),
            num_parameters=entry["num_parameters"],
            file=file,
            url=about["url"] + file if file else None,
            source=about["source"],
            license=about["license"],
            notes=entry.get("notes", ""),
        )


def _entry(data: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A preset's table merged over that of the preset named by ``like``, or over the family's ``[common]``."""
    own = dict(data["presets"][name])
    like = own.pop("like", None)
    below = data["common"] if like is None else _entry(data, like)
    if like is not None and "file" not in own:
        below = {key: value for key, value in below.items() if key != "file"}
    found: dict[str, Any] = merged(below, own)
    return found


def _fixed(value: Any) -> Any:
    """Read-only, with tuples for lists and None for "none"."""
    if isinstance(value, Mapping):
        return MappingProxyType({key: _fixed(each) for key, each in value.items()})
    if isinstance(value, list):
        return tuple(_fixed(each) for each in value)
    return None if value == "none" else value


def _listed(options: Mapping[str, Any]) -> list[str]:
    """One "name = value" for each option; those of a part behind its name."""
    return [f"{name} = {_word(value)}" for name, value in options.items()]


def _word(value: Any) -> str:
    if not isinstance(value, Mapping):
        return repr(value)
    options = ", ".join(f"{name}={each!r}" for name, each in value.items() if name != "name")
    return f"{value['name']!r} ({options})" if options else repr(value["name"])
