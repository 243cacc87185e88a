"""Infer the options of a network from the shapes of a file's tensors; no module is built and no value is read."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from attrs import field, frozen

from diffkit.errors import CheckpointError, OptionError

Shapes = Mapping[str, tuple[int, ...]]


@frozen
class InferredOptions:
    """Options of a network that are inferred from shapes.

    Attributes:
        family: "unet", "classifier" or "dit".
        options: Options of the recipe, by name.
        channels_in: Channels the network reads.
        channels_out: Channels it returns; classes of a classifier.
        label_rows: Rows of the label table; 0 if there is none.
        axes: Number of spatial axes.
        attention: Whether each level has attention, finest first; () for "dit".
        widths: Channels of each level; () for "dit".
        positions: Number of patches of "dit".
        data_shape: Shape of one example if it can be inferred, a square if only the number of positions is known.
    """

    family: str
    options: Mapping[str, Any] = field(hash=False)
    channels_in: int
    channels_out: int
    label_rows: int = 0
    axes: int = 2
    attention: tuple[bool, ...] = ()
    widths: tuple[int, ...] = ()
    positions: int = 0
    data_shape: tuple[int, ...] | None = None


def infer_options(shapes: Shapes, num_res_blocks: int | None = None) -> InferredOptions:
    """Return the options of a network that shapes determine.

    Args:
        shapes: Shapes of all tensors of a file, by name.
        num_res_blocks: Chooses between layouts if shapes allow more than one.
    Raises:
        CheckpointError: The shapes are of no known family.
        OptionError: num_res_blocks must be given.
    """
    try:
        if {"x_embedder.proj.weight", "pos_embed", "blocks.0.attn.qkv.weight"} <= shapes.keys():
            return _infer_dit(shapes)
        if {"time_embed.0.weight", "input_blocks.0.0.weight"} <= shapes.keys():
            return _infer_unet(shapes, num_res_blocks)
    except OptionError:
        raise
    except (KeyError, IndexError, ValueError) as error:
        raise CheckpointError(
            f"the tensors have names of a known kind of network, but some are missing: {error}"
        ) from error
    first = next(iter(shapes), None)
    raise CheckpointError(
        f"{len(shapes)} tensors of an unknown kind of network (first: {first}); known are the U-Nets and "
        "classifiers of improved-diffusion and guided-diffusion, and DiT"
    )


# ---- U-Nets and classifiers ------------------------------------------------------------------------------------------


@frozen
class _InputBlock:
    """One input block of a U-Net in a file: its kind, its output channels, and whether it has attention."""

    kind: str  # "res", "conv" (strided) or "pool" (no tensors at all)
    width_in: int
    width: int
    attends: bool = False


@frozen
class _LevelPlan:
    """One way to divide a U-Net's input blocks into levels of equal depth."""

    depth: int
    boundary: str  # what is between levels: "res", "conv", "pool", or "" if there is one level
    levels: tuple[tuple[_InputBlock, ...], ...]


def _infer_unet(shapes: Shapes, num_res_blocks: int | None) -> InferredOptions:
    first = shapes["input_blocks.0.0.weight"]
    channels = shapes["time_embed.0.weight"][1]
    is_unet = any(name.startswith("output_blocks.") for name in shapes)
    plan = _find_level_plan(shapes, is_unet, num_res_blocks)
    widths = tuple(level[0].width for level in plan.levels)
    options: dict[str, Any] = {
        "channels": channels,
        "num_res_blocks": plan.depth,
        "channel_mult": tuple(_channel_multiple(width, channels) for width in widths),
        "scale_shift_norm": shapes["input_blocks.1.0.emb_layers.1.weight"][0] == 2 * widths[0],
        **_context_option(shapes),
    }
    if plan.boundary:
        options["resblock_updown"] = plan.boundary == "res"
    if plan.boundary in ("conv", "pool"):
        options["conv_resample"] = plan.boundary == "conv"
    head: dict[str, Any] = {}
    data_shape = None
    if is_unet:
        channels_out = shapes["out.2.weight"][0]
    else:
        head, channels_out = _classifier_head(shapes)
        data_shape = _shape_from_positions(shapes, first[1], len(first) - 2, len(widths))
    return InferredOptions(
        family="unet" if is_unet else "classifier",
        options=options | head,
        channels_in=first[1],
        channels_out=channels_out,
        label_rows=shapes.get("label_emb.weight", (0,))[0],
        axes=len(first) - 2,
        attention=tuple(level[0].attends for level in plan.levels),
        widths=widths,
        data_shape=data_shape,
    )


def _find_level_plan(shapes: Shapes, is_unet: bool, num_res_blocks: int | None) -> _LevelPlan:
    blocks = _input_blocks(shapes)
    ends = _upsampling_ends(shapes) if is_unet else None
    periods = [p for p in range(2, len(blocks) + 1) if len(blocks) % p == 0]
    plans = [plan for p in periods for plan in _plan_of_period(blocks, p) if ends is None or _ends_agree(plan, ends, p)]
    if num_res_blocks is not None and len(plans) > 1:
        plans = [plan for plan in plans if plan.depth == num_res_blocks] or plans
    if not plans:
        raise ValueError("the input blocks make no levels of equal depth")
    if len(plans) > 1:
        depths = [{"num_res_blocks": plan.depth} for plan in plans]
        raise OptionError("the shapes fit more than one number of blocks per level", fix=depths)
    return plans[0]


def _input_blocks(shapes: Shapes) -> list[_InputBlock]:
    width = shapes["input_blocks.0.0.weight"][0]
    blocks = [_InputBlock("conv", 0, width)]
    for i in range(1, 1 + max(_indices(shapes, "input_blocks"))):
        conv = shapes.get(f"input_blocks.{i}.0.in_layers.2.weight")
        if conv is not None:
            blocks.append(_InputBlock("res", width, conv[0], f"input_blocks.{i}.1.qkv.weight" in shapes))
        else:
            blocks.append(_InputBlock("conv" if f"input_blocks.{i}.0.op.weight" in shapes else "pool", width, width))
        width = blocks[-1].width
    return blocks


def _plan_of_period(blocks: list[_InputBlock], period: int) -> Iterator[_LevelPlan]:
    """Yield the division of input blocks into levels of ``period - 1`` blocks with boundaries between, if possible."""
    boundaries = blocks[period::period]
    levels = tuple(tuple(blocks[i + 1 : i + period]) for i in range(0, len(blocks), period))
    kinds = {block.kind for block in boundaries}
    alike = all(
        block.kind == "res" and (block.width, block.attends) == (level[0].width, level[0].attends)
        for level in levels
        for block in level
    )
    plain = all(block.width_in == block.width and not block.attends for block in boundaries)
    if alike and plain and len(kinds) <= 1:
        yield _LevelPlan(period - 1, next(iter(kinds), ""), levels)


def _upsampling_ends(shapes: Shapes) -> dict[int, str]:
    """Return how each output block that upsamples does it, by index; pooled networks have no tensors for it."""
    ends = {}
    for name in shapes:
        found = re.fullmatch(r"output_blocks\.(\d+)\.[12]\.(conv|in_layers\.2)\.weight", name)
        if found:
            ends[int(found[1])] = "conv" if found[2] == "conv" else "res"
    return ends


def _ends_agree(plan: _LevelPlan, ends: Mapping[int, str], period: int) -> bool:
    if plan.boundary == "pool":
        return not ends
    return ends == {period * level - 1: plan.boundary for level in range(1, len(plan.levels))}


def _classifier_head(shapes: Shapes) -> tuple[dict[str, Any], int]:
    """Return the kind of a classifier's head and its number of classes."""
    if "out.2.positional_embedding" in shapes:
        return {"pool": "attention"}, shapes["out.2.c_proj.weight"][0]
    if len(shapes["out.0.weight"]) == 1:
        return {"pool": "adaptive"}, shapes["out.3.weight"][0]
    if "out.3.weight" in shapes:
        return {"pool": "spatial_v2"}, shapes["out.3.weight"][0]
    return {"pool": "spatial"}, shapes["out.2.weight"][0]


def _context_option(shapes: Shapes) -> dict[str, int]:
    """Return the width of the context, as an option, if the network reads one."""
    widths = [shape[1] for name, shape in shapes.items() if name.endswith(".cross.kv.weight")]
    return {"context": widths[0]} if widths else {}


def _shape_from_positions(shapes: Shapes, channels: int, axes: int, levels: int) -> tuple[int, ...] | None:
    """Return the shape of an example, as a square, from the positions of an attention head; None unless two axes."""
    table = shapes.get("out.2.positional_embedding")
    side = math.isqrt(table[1] - 1) if table else 0
    if not table or axes != 2 or side * side != table[1] - 1:
        return None
    return channels, side * 2 ** (levels - 1), side * 2 ** (levels - 1)


def _channel_multiple(width: int, channels: int) -> float:
    return width // channels if width % channels == 0 else width / channels


def _indices(shapes: Shapes, prefix: str) -> set[int]:
    return {int(name.split(".")[1]) for name in shapes if name.startswith(f"{prefix}.")}


# ---- transformers ----------------------------------------------------------------------------------------------------


def _infer_dit(shapes: Shapes) -> InferredOptions:
    hidden, channels, patch = shapes["x_embedder.proj.weight"][:3]
    positions = shapes["pos_embed"][1]
    side = math.isqrt(positions)
    square = side * side == positions
    options = {
        "patch": patch,
        "depth": 1 + max(_indices(shapes, "blocks")),
        "hidden": hidden,
        "mlp_ratio": shapes["blocks.0.mlp.fc1.weight"][0] / hidden,
        **_context_option(shapes),
    }
    return InferredOptions(
        family="dit",
        options=options,
        channels_in=channels,
        channels_out=shapes["final_layer.linear.weight"][0] // patch**2,
        label_rows=shapes.get("y_embedder.embedding_table.weight", (0,))[0],
        positions=positions,
        data_shape=(channels, side * patch, side * patch) if square else None,
    )
