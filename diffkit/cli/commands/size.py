"""Print the size of a network before it is built: parameters, operations, memory, and the batch that fits.

Nothing is allocated. Choose the network as for diffkit train; memory is an estimate for one GPU.
"""

from __future__ import annotations

from attrs import frozen

from diffkit.cli.parsing.spec import CommandSpec, ParsedOptions
from diffkit.cli.shared.composition import PARTS, Composition, keywords
from diffkit.errors import OptionError
from diffkit.runtime.output import show


@frozen
class Options:
    """Options of ``diffkit size``.

    Attributes:
        batch_size: Examples per step and GPU.
        memory_gb: Memory of the GPU in GB; also prints the batch that fits.
        precision: "fp32", "bf16" or "fp16".
        ema: Number of running means of the weights.
    """

    batch_size: int = 1
    memory_gb: float | None = None
    precision: str = "fp32"
    ema: int = 1


SPEC = CommandSpec(
    {"Options": Options, "Composition": Composition},
    {**PARTS, "optimizer": "adamw"},
    config=True,
    preset=("composition",),
)


def run(parsed: ParsedOptions) -> None:
    """Print the sizes."""
    from diffkit.explain.network_size import size_report
    from diffkit.system.compose import compose

    options = parsed.make(Options)
    composition = keywords(parsed)
    optimizer = composition.pop("optimizer")
    system = compose(**composition, device="meta")
    if system.parts.backbone is None:
        raise OptionError("there is no network to size; choose one with --backbone")
    report = size_report(
        system.parts.backbone,
        system.parts.data_shape,
        system.parts.out_channels,
        batch_size=options.batch_size,
        memory_gb=options.memory_gb,
        precision=options.precision,
        ema=options.ema,
        optimizer=optimizer,
        learned=dict(system.learned),
        frozen=dict(system.frozen),
    )
    show(report)
