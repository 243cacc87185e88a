"""Score data under a saved system: the variational bound on its negative log-likelihood, in bits per dimension.

The .npz has, for B examples and S levels: total (B,) and prior (B,), terms, x_start_mse and eps_mse (B, S), each in
ascending order of levels (S,), and index (B,), the examples' places in the data. total = terms.sum(1) + prior; column
0 of terms is the decoder's negative log-likelihood.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from diffkit._errors import DataError, OptionError
from diffkit.cli._options import POSITIONAL
from diffkit.cli._paths import check_file
from diffkit.cli._takes import Given, Takes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from diffkit.bound import Bound
    from diffkit.cli._saved import Saved
    from diffkit.data.base import Batch, Data


@frozen
class Options:
    """Options of ``diffkit nll``.

    Attributes:
        run: A saved system or training run (a folder).
        num: How many examples, drawn from the data without replacement; 100, or all if there are fewer.
        steps: How many levels to visit, or "10,15,20", "ddim50", ...; all levels by default, which is the bound that
            was trained.
        out: Write every term into this .npz file.
        seed: Decides which examples are drawn, and the noise.
        rows_per_call: How many pairs of an example and a level the network is given at a time; 16 on a CPU, else 256.
        device: Such as cpu or cuda; a GPU if there is one.
    """

    run: Path = field(metadata=POSITIONAL)
    num: int | None = None
    steps: int | str | tuple[int, ...] | None = None
    out: Path | None = None
    seed: int = 0
    rows_per_call: int | None = None
    device: str | None = None


def takes() -> Takes:
    """Return the options."""
    return Takes({"Options": Options}, {"data": None}, required=frozenset({"data"}), config=True)


def run(given: Given) -> None:
    """Score the data."""
    from diffkit.cli._saved import load
    from diffkit.options import check_integer

    options = given.make(Options)
    if options.num is not None:
        check_integer("num", options.num, ge=1)
    check_file("--out", options.out, (".npz",))
    data = _open(*given.parts["data"])
    saved = load(options.run, options.device)
    if options.out is not None:
        print(f"writing {options.out}", flush=True)
    index = chosen(len(data), options.num, options.seed)
    bound = score(saved, data.batch(index), options)
    print(bound)
    if options.out is not None:
        write(options.out, bound, index)


def score(saved: Saved, batch: Batch, options: Options) -> Bound:
    """Return the bound of some examples."""
    from diffkit.data.base import scaled

    system = saved.system
    _check_fit(saved, batch)
    conditions: dict[str, Any] = batch.conditions if saved.num_classes is not None else {}
    return system.bits_per_dim(
        scaled(batch.images, saved.bins).to(system.device),
        steps=options.steps,
        seed=options.seed,
        rows_per_call=options.rows_per_call,
        progress=True,
        **conditions,
    )


def chosen(size: int, num: int | None, seed: int) -> NDArray[np.int64]:
    """Indices of ``num`` examples out of ``size``, ascending; a function of the seed.

    Raises:
        OptionError: There are not so many.
    """
    import numpy as np

    if num is None:
        num = min(size, 100)
    if num > size:
        raise OptionError(f"--num must be <= {size}, the examples in the data, got {num}")
    return np.sort(np.random.default_rng(seed).permutation(size)[:num])


def write(path: Path, bound: Bound, index: NDArray[np.int64]) -> None:
    """Write every term; the layout is described in the module."""
    import attrs
    import numpy as np

    names = [field.name for field in attrs.fields(type(bound))]
    arrays: dict[str, Any] = {name: getattr(bound, name).cpu().numpy() for name in names}
    np.savez(path, **arrays, index=index)


def _open(source: str, options: Any) -> Data:
    from diffkit.data import source_for

    return source_for(source, **options).open()


def _check_fit(saved: Saved, batch: Batch) -> None:
    """Refuse data that is not what the system was made for."""
    shape, wanted = tuple(batch.images.shape[1:]), saved.system.data_shape
    if shape != wanted:
        raise DataError(f"the data has shape {shape}, the system was composed for {wanted}")
    if saved.num_classes is not None and "y" not in batch.conditions:
        raise DataError(f"the system has {saved.num_classes} classes, but the data has no labels; load it with labels")
