"""A request: one call of `System.sample` that a loop takes forward, evaluation by evaluation."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from concurrent.futures import Future
from contextlib import nullcontext
from typing import Any

import attrs
from torch import Tensor

from diffkit.protocols import State
from diffkit.runtime.eval_mode import eval_mode_of, modules_of
from diffkit.runtime.finite import check_finite
from diffkit.serving.evaluations import Evaluation, Needed, Outputs, StepNetwork
from diffkit.system.prepared import SamplingJob
from diffkit.system.sampling import TrajectoryPoint, step_with_denoised
from diffkit.tensors import ordinary


class Request(Future[Tensor]):
    """The samples to come, (n, C, *S); made by `diffkit.serving.Loop.submit`.

        images = request.result()       # waits; in a coroutine: await request
        request.point                   # the newest `TrajectoryPoint`: its x_start is a preview
        request.cancel()

    Attributes:
        n: Number of examples.
        num_steps: Number of steps.
        priority: As submitted.
        number: Requests are numbered in order of arrival.
        point: What the newest step left; None before the first one is done. With it, `Loop.submit`,
            `System.trajectory` or a file of `diffkit.serving.save_point` go on.
        has_begun: Whether its noise is drawn.
        needed: The evaluation of the network that it waits for; None before it has begun, and if it is not shared.
        served: The call of the loop that it last took part in, or the one before it was submitted.
    """

    def __init__(
        self,
        job: SamplingJob,
        start: Tensor | None,
        after: TrajectoryPoint | None,
        priority: int,
    ):
        super().__init__()
        program = job.program()
        self.n, self.num_steps, self.priority = job.n, program.num_steps, priority
        self.number, self.served = 0, 0
        self.point = None if after is None else job.checked_point(after, program)
        self.has_begun = False
        self._settled = False
        self.needed: Evaluation | None = None
        # networks of guidance are no part of a shared call: run again, they would be called twice
        self._guiding = modules_of(*job.networks())
        self._outputs = Outputs(direct=bool(self._guiding))
        self._job = attrs.evolve(job, model=StepNetwork(job.model, self._outputs))
        self._program, self._start = program, start
        self._x: Tensor
        self._history: State  # `Future` has a `_state` of its own
        self._step = 0
        self._noise: Tensor | None = None

    def __await__(self) -> Generator[Any, None, Tensor]:
        return asyncio.wrap_future(self).__await__()

    # ---- for the loop ----------------------------------------------------------------------------------------------

    @property
    def rows(self) -> int:
        """Rows of the evaluation that it waits for; its own, if its calls are not shared."""
        return self.n if self.needed is None else self.needed.rows

    def can_join(self, other: Request) -> bool:
        """Whether both wait for evaluations that can share a call."""
        return self.needed is not None and other.needed is not None and self.needed.form == other.needed.form

    def begin(self) -> None:
        """Draw its noise, and take its steps up to the first evaluation it needs."""
        rows = range(self.n)
        self._draw = self._job.noise(rows)
        self._x = ordinary(self._job.begin(rows, self._draw, self._start))
        self._history = self._program.sampler.init(self._x)
        self._denoisers = self._job.denoisers(self._program, rows)
        self._rows = self._program.rows(self._x, self._draw)
        if self.point is not None:
            for _ in range(self.point.step):
                self._program.noise(self._draw)
            self._x, self._history, self._step = self.point.x, self.point.state, self.point.step
        self._start, self.has_begun = None, True
        if not self._outputs.direct:
            self.go_on()

    def receive(self, output: Any) -> None:
        """Take the output of the evaluation that it waited for, and its steps up to the next one."""
        self._outputs.known.append(output)
        self.go_on()

    def go_on(self) -> None:
        """Take steps until one needs the network, or all are done; one step only, if the network is called at once."""
        try:
            while self._step < self.num_steps:
                self._take_step()
                if self._outputs.direct:
                    break
        except Needed as needed:
            self.needed = needed.evaluation
            return
        self.needed = None
        if self._step == self.num_steps:
            self._finish()

    def fail(self, error: BaseException) -> None:
        """Give it an error in place of samples, unless it is done."""
        if self.settle():
            self.set_exception(error)

    def settle(self) -> bool:
        """Return whether a result may be set: True once, unless it was cancelled, which those who wait are told."""
        first, self._settled = not self._settled, True
        return first and self.set_running_or_notify_cancel()

    def _finish(self) -> None:
        samples = self._job.from_latents(self._x)
        if samples.is_cpu:
            check_finite(samples)
        if self.settle():
            self.set_result(samples)

    def _take_step(self) -> None:
        i, outputs = self._step, self._outputs
        if not outputs.known:
            self._noise = self._program.noise(self._draw)
        outputs.given = 0
        denoiser = self._denoisers[i] if isinstance(self._denoisers, list) else self._denoisers
        last = self._program.is_last(i)
        with eval_mode_of(self._guiding) if self._guiding else nullcontext():
            x, state, x_start = step_with_denoised(
                self._program, denoiser, self._x, self._history, self._rows[i], self._noise, last
            )
        assert x_start is not None, "a step that records its evaluations returns the last estimate"
        outputs.known.clear()
        self._x, self._history, self._step = x, state, i + 1
        self.point = TrajectoryPoint(i + 1, self._program.levels[i], x, x_start, state)
