"""The files of a new plugin package, and a small working part of each kind."""

from __future__ import annotations

from string import Template

from attrs import frozen

from diffkit.registry import BUILT_IN, KINDS, registry


@frozen
class Example:
    """A part to start from.

    Attributes:
        summary: Its description in one line.
        imports: Import lines it needs besides those of every part, in order.
        body: Docstring and body of its class.
        uses: How to compose with it, in keywords.
        network: Module that a backbone's network lives in, if it is one.
    """

    summary: str
    imports: str
    body: str
    uses: str
    network: str = ""


def files(kind: str, distribution: str, part: str) -> dict[str, str]:
    """Return path -> text of every file of the package.

    Args:
        kind: Kind of the part.
        distribution: Name of the distribution, words joined by "-".
        part: Registered name, words joined by "_".
    """
    example = EXAMPLES[kind]
    package = distribution.replace("-", "_")
    words = {
        "kind": kind,
        "distribution": distribution,
        "package": package,
        "part": part,
        "cls": "".join(word.title() for word in part.split("_")),
        "protocol": KINDS[kind].contract.__name__,
        "versions": _versions(),
        "summary": example.summary,
        "imports": example.imports.strip(),
        "uses": example.uses.replace("$part", part),
    }
    words["body"] = Template(example.body.strip("\n")).substitute(words)
    written = {
        "pyproject.toml": PYPROJECT,
        "README.md": README,
        f"src/{package}/__init__.py": MODULE,
        f"src/{package}/py.typed": "",
        f"tests/test_{part}.py": TESTS,
    }
    if example.network:
        written[f"src/{package}/_network.py"] = example.network
    return {path: Template(text).substitute(words) for path, text in written.items()}


def _versions() -> str:
    """Those that a part written now is for: contracts may change with the second number."""
    own = next(entry.version for entry in registry("schedule").entries() if entry.origin == BUILT_IN)
    major, minor = own.split(".")[:2]
    return f">={major}.{minor},<{major}.{int(minor) + 1}"


PYPROJECT = """[build-system]
requires = ["hatchling>=1.24"]
build-backend = "hatchling.build"

[project]
name = "$distribution"
version = "0.1.0"
description = "$summary"
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["diffkit$versions", "attrs>=23.2"]

[project.optional-dependencies]
test = ["diffkit[testing]"]

# The whole registration: the name that compositions use, and the class.
[project.entry-points."diffkit.$kind"]
$part = "$package:$cls"

[tool.hatch.build.targets.wheel]
packages = ["src/$package"]

[tool.pytest.ini_options]
testpaths = ["tests"]
"""

README = """# $distribution

$summary A $kind for [diffkit](https://pypi.org/project/diffkit), found by its name once installed:

```python
import diffkit

system = diffkit.compose($uses, backbone="mlp", data_shape=(1, 8, 8))
```

`pip install -e ".[test]"` and `pytest` check it against the laws of its kind; `diffkit check $part` does the same from
the command line.
"""

MODULE = '''"""$summary"""

from __future__ import annotations

$imports

__all__ = ["$cls"]


@frozen
class $cls($protocol):
$body
'''

TESTS = '''"""The laws of every $kind."""

from __future__ import annotations

from diffkit.testing import parametrize_checks
from $package import $cls


@parametrize_checks("$kind", $cls())
def test_it_conforms(check):
    check()
'''

EXAMPLES = {
    "schedule": Example(
        summary="A schedule whose log alpha_bar falls as a square.",
        uses='schedule="$part", num_steps=100',
        imports="""
import numpy as np
from attrs import frozen
from diffkit.options import number
from diffkit.protocols import NoiseSchedule
from diffkit.table import ProcessTable
""",
        body='''
    """$summary

    ``alpha_bar(u) = exp(-rate u^2)``, u from 0 to 1

    Attributes:
        rate: How much signal is lost in all, > 0; 10 leaves a share of exp(-10).
    Source: which paper, which equation.
    """

    rate: float = number(10.0, gt=0)

    def table(self, num_steps: int) -> ProcessTable:
        """Return the table; any num_steps works."""
        u = np.arange(num_steps + 1) / num_steps
        return ProcessTable.from_alpha_bar(np.exp(-self.rate * u**2))
''',
    ),
    "mean": Example(
        summary="The network predicts the noise as it stands in x_t, sigma eps.",
        uses='mean="$part"',
        imports="""
from attrs import frozen
from diffkit.protocols import MeanParameterization, Scalings
from diffkit.table import Coefs
""",
        body='''
    """$summary

    ``x_start = c_skip x_t + c_out F(c_in x_t)`` defines it; the training target follows from it.

    Source: which paper, which equation.
    """

    def scalings(self, at: Coefs, prev: Coefs | None) -> Scalings:
        """Return (1/alpha, -1/alpha, 1)."""
        return Scalings(1 / at.alpha, -1 / at.alpha, at.alpha**0)
''',
    ),
    "var": Example(
        summary="A fixed variance between the two usual ones.",
        uses='var="$part"',
        imports="""
from collections.abc import Mapping
from typing import TYPE_CHECKING

from attrs import frozen
from diffkit.options import number
from diffkit.protocols import VarianceParameterization

if TYPE_CHECKING:
    from diffkit.table import F64, ProcessTable
    from torch import Tensor
""",
        body='''
    """$summary

    ``log_variance = share log(beta) + (1 - share) log(posterior variance)``

    Attributes:
        share: 0 is the posterior's variance, 1 is beta; in [0, 1].
    Source: which paper, which equation.
    """

    share: float = number(0.5, ge=0, le=1)

    def columns(self, table: ProcessTable) -> Mapping[str, F64]:
        """Return what is needed at every level of the table in use, float64 (T+1,)."""
        low, high = table.posterior_log_variance, table.upper_log_variance
        return {"log_variance": self.share * high + (1 - self.share) * low}

    def log_variance(self, raw: Tensor | None, cols: Mapping[str, Tensor]) -> Tensor:
        """Return the log-variance in nats, 0-d or (B,1..)."""
        return cols["log_variance"]
''',
    ),
    "loss": Example(
        summary="A squared error that grows only linearly for examples far off.",
        uses='loss="$part"',
        imports="""
from collections.abc import Mapping
from typing import TYPE_CHECKING

from attrs import frozen
from diffkit.gaussian import mean_flat, squared_error
from diffkit.options import number
from diffkit.protocols import Loss, LossInputs

if TYPE_CHECKING:
    from torch import Tensor
""",
        body='''
    """$summary

    ``L = sqrt(mse + c^2) - c``

    Attributes:
        c: Root mean squared error from which the growth is linear, > 0.
    Source: which paper, which equation.
    """

    c: float = number(1.0, gt=0)

    def __call__(self, at: LossInputs) -> Mapping[str, Tensor]:
        """Return "loss" and "mse", each (B,)."""
        mse = mean_flat(squared_error(at.out, at.target))
        return {"loss": (mse + self.c**2).sqrt() - self.c, "mse": mse}
''',
    ),
    "timesteps": Example(
        summary="Levels drawn more often from one end of the chain.",
        uses='timesteps="$part"',
        imports="""
from typing import TYPE_CHECKING

from attrs import frozen
from diffkit.options import number
from diffkit.protocols import State, TimestepSampler

if TYPE_CHECKING:
    from torch import Tensor
""",
        body='''
    """$summary

    ``t = ceil(T u^power)``, so ``p(t) = (t/T)^(1/power) - ((t-1)/T)^(1/power)``, and the weight is 1 / (T p(t)).

    Attributes:
        power: Above 1 favours low levels, below 1 high ones; > 0.
    Source: which paper, which equation.
    """

    power: float = number(1.5, gt=0)

    def sample(self, state: State, u: Tensor, num_steps: int) -> tuple[Tensor, Tensor]:
        """Return levels 1..T, (B,) int64, and weights, (B,) float32."""
        t = (num_steps * u**self.power).long().clamp(max=num_steps - 1) + 1
        share = (t / num_steps).double() ** (1 / self.power) - ((t - 1) / num_steps).double() ** (1 / self.power)
        return t, (1 / (num_steps * share)).float()
''',
    ),
    "sampler": Example(
        summary="One step along the straight line from x_t to the estimate of x_start.",
        uses='sampler="$part"',
        imports="""
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from attrs import frozen
from diffkit.protocols import Denoise, Sampler, State, StepRow

if TYPE_CHECKING:
    from diffkit.table import F64, Steps
    from torch import Tensor
""",
        body='''
    """$summary

    ``x_s = (sigma_s / sigma_t) x_t + (alpha_s - alpha_t sigma_s / sigma_t) x_start``

    Source: which paper, which equation.
    """

    order: ClassVar[int] = 1

    def plan(self, steps: Steps) -> Mapping[str, F64]:
        """Return the coefficients of every step, float64 (T,): all that depends on the levels is computed here."""
        t, s = steps
        keep = s.sigma / t.sigma
        return {"x": keep, "x_start": s.alpha - keep * t.alpha}

    def step(
        self, denoise: Denoise, x: Tensor, state: State, row: StepRow, noise: Tensor | None, last: bool
    ) -> tuple[Tensor, State]:
        """Return x one level down; a pure function of its arguments."""
        c = row.coef
        return c["x"] * x + c["x_start"] * denoise(x, row.t).x_start, state
''',
    ),
    "backbone": Example(
        summary="A network with one hidden layer over all values at once.",
        uses='backbone="$part"',
        imports="""
import math
from typing import TYPE_CHECKING

from attrs import frozen
from diffkit.options import integer
from diffkit.protocols import Backbone

if TYPE_CHECKING:
    from torch import nn
""",
        body='''
    """$summary

    This class is the recipe: options only. The network lives in a file of its own, so that the options can be read
    without importing torch.

    Attributes:
        hidden: Width of the hidden layer, >= 1.
    Source: which paper, which section.
    """

    hidden: int = integer(64, ge=1)

    def build(self, data_shape: tuple[int, ...], out_channels: int) -> nn.Module:
        """Return a network (B, C, *S), (B,) -> (B, out_channels, *S)."""
        from $package._network import Network

        return Network(math.prod(data_shape), self.hidden, (out_channels, *data_shape[1:]))
''',
        network='''"""The network of $cls."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


WAVES = 16


class Network(nn.Module):
    """One hidden layer, conditioned on the time by its sines and cosines."""

    def __init__(self, values: int, hidden: int, out_shape: tuple[int, ...]):
        super().__init__()
        self.out_shape = out_shape
        inputs = values + 2 * WAVES
        self.layers = nn.Sequential(nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, math.prod(out_shape)))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Return (B, out_channels, *S) for x (B, C, *S) and time (B,)."""
        # In float32 whatever the weights are: bfloat16 cannot distinguish a thousand times.
        frequency = 10_000 ** -(torch.arange(WAVES, device=x.device) / WAVES)
        angle = time.float()[:, None] * frequency
        inputs = torch.cat([x.flatten(1), angle.cos().to(x.dtype), angle.sin().to(x.dtype)], 1)
        out: Tensor = self.layers(inputs)
        return out.view(x.shape[0], *self.out_shape)
''',
    ),
}
