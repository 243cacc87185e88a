"""The loop that serves requests: one call of the network at a time, for rows of many of them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self, Unpack

import torch
from torch import Tensor

from diffkit.errors import OptionError, QueueFullError
from diffkit.options import check_flag, check_integer
from diffkit.runtime.eval_mode import eval_mode_of, modules_of
from diffkit.serving.evaluations import call_together
from diffkit.serving.request import Request
from diffkit.system.call_options import JobOptions, shows_options
from diffkit.system.module import System
from diffkit.system.sampling import TrajectoryPoint


class Loop:
    """Serves requests, each a call of `System.sample` with options of its own, that join and leave at any step.

        with Loop(system, rows_per_call=32) as loop:                # a thread of its own takes the steps
            requests = [loop.submit(1, steps=20, seed=seed) for seed in range(100)]
            images = [request.result() for request in requests]

    Each call of the network is for rows of all requests that can share one: those with data and conditions of the same
    form, whatever their samplers, steps, levels, guidance, labels and seeds. Each request's own arithmetic is that of
    `System.sample`; so samples are the same to the bit where the network computes a row alike in any batch, else up to
    the rounding of the network. Guidance that differentiates, or has a network of its own, is not shared.

    The first row of a call goes to the request with the highest priority, of equal ones to the one that waited longest;
    a request gains a priority for each ``patience`` calls that it waits, so that none waits for ever. Further rows go
    by priority, then in order of arrival.

    Thread-safe. Without a ``with``, no thread is started, and `tick` makes one call.

    Attributes:
        system: The system.
        rows_per_call: Most rows of one call of the network, which limits its memory.
        queue: Most requests at a time.
        patience: Calls after which a waiting request gains one priority.
        batch_invariant: Call the network for one request at a time, as `System.sample` does: the same samples to the
            bit with any network, at the cost of sharing no call.
        calls, rows, peak_rows: Calls of the network so far, rows in all of them, and most rows in one.
    """

    def __init__(
        self,
        system: System,
        *,
        rows_per_call: int = 16,
        queue: int = 1024,
        patience: int = 16,
        batch_invariant: bool = False,
    ):
        self.system = system
        self.rows_per_call = check_integer("rows_per_call", rows_per_call, ge=1)
        self.queue = check_integer("queue", queue, ge=1)
        self.patience = check_integer("patience", patience, ge=1)
        self.batch_invariant = check_flag("batch_invariant", batch_invariant)
        self.calls, self.rows, self.peak_rows = 0, 0, 0
        self._modules = modules_of(system)
        self._requests: list[Request] = []
        self._submitted = 0
        self._changed = threading.Condition()
        self._ticking = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False

    # ---- for clients -----------------------------------------------------------------------------------------------

    @shows_options(JobOptions)
    def submit(
        self,
        n: int = 1,
        *,
        start: Tensor | None = None,
        after: TrajectoryPoint | None = None,
        priority: int = 0,
        **options: Unpack[JobOptions],
    ) -> Request:
        """Add a request, and return it at once; all arguments are checked first.

        Args:
            n: Number of examples, at most ``rows_per_call``.
            start: As in `System.sample`.
            after: As in `System.trajectory`: `Request.point` of an earlier request with the same arguments.
            priority: Higher ones go first.
            options: Those of `diffkit.system.call_options.JobOptions`, without ``compile``.
            conditions: As in `System.sample`.
        Raises:
            OptionError, CompositionError: An argument is wrong, or the loop is closed.
            QueueFullError: The loop has as many requests as it holds.
        """
        if options.get("compile"):
            raise OptionError("a loop shares calls of the network, not steps; pass model=torch.compile(network)")
        if check_integer("n", n, ge=1) > self.rows_per_call:
            raise OptionError(
                f"n must be at most rows_per_call={self.rows_per_call}, got {n}; submit several requests, or make the "
                f"loop with rows_per_call={n}"
            )
        priority = check_integer("priority", priority)
        self._refuse_if_full()
        job = self.system.prepare(n, **options)
        request = Request(job, job.checked_start(start), after, priority)
        with self._changed:
            self._refuse_if_full()
            request.number, request.served = self._submitted, self.calls
            self._submitted += 1
            self._requests.append(request)
            self._changed.notify_all()
        return request

    def _refuse_if_full(self) -> None:
        with self._changed:
            if self._closed:
                raise OptionError("the loop is closed; make another one")
            if len(self._requests) >= self.queue:
                raise QueueFullError(
                    f"{len(self._requests)} requests are as many as the loop holds; submit again once one is done, or "
                    f"make the loop with queue={2 * self.queue}"
                )

    def __enter__(self) -> Self:
        if self._closed:
            raise OptionError("the loop is closed; make another one")
        self._thread = threading.Thread(target=self._serve, name="diffkit-loop", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(cancel=kind is not None)

    @property
    def waiting(self) -> int:
        """Number of requests that are not done."""
        with self._changed:
            return len(self._requests)

    def close(self, *, cancel: bool = False) -> None:
        """End the loop once all requests are done, and wait for that; ``cancel`` cancels them instead."""
        with self._changed:
            self._closed = True
            for request in self._requests if cancel else ():
                request.cancel()
            self._changed.notify_all()
        if self._thread is None:
            while self.tick():
                pass
        else:
            self._thread.join()

    # ---- calls of the network --------------------------------------------------------------------------------------

    def tick(self) -> int:
        """Make one call of the network, for all rows that can share it; return their number, 0 if there was nothing."""
        with self._ticking, torch.inference_mode(False), torch.no_grad(), eval_mode_of(self._modules):
            chosen = self._chosen()
            rows = sum(request.rows for request in chosen)
            if chosen:
                self.calls, self.rows = self.calls + 1, self.rows + rows
                self.peak_rows = max(self.peak_rows, min(rows, self.rows_per_call))
                self._evaluate(chosen)
                self._drop_done()
        return rows

    def _serve(self) -> None:
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._requests or self._closed)
                    if not self._requests:
                        return
                self.tick()
        except BaseException as error:  # a thread that ended silently would leave all clients waiting
            with self._changed:
                self._closed, left, self._requests = True, self._requests, []
            for request in left:
                request.fail(error)
            raise

    def _chosen(self) -> list[Request]:
        """The requests of the next call, which have all begun and need evaluations of one form."""
        with self._changed:
            waiting = list(self._requests)
        found: list[Request] = []
        left = self.rows_per_call
        for request in self._in_turn(waiting):
            if not request.has_begun and not request.done():
                with _reporting(request):
                    request.begin()
            if request.done() or (found and not (request.can_join(found[0]) and request.rows <= left)):
                continue
            found.append(request)
            left -= request.rows
            request.served = self.calls + 1
            if left <= 0 or request.needed is None or self.batch_invariant:
                break
        self._drop_done()
        return found

    def _in_turn(self, requests: list[Request]) -> list[Request]:
        """The request whose turn it is, then the others by priority and in order of arrival."""
        if not requests:
            return []

        def turn(request: Request) -> tuple[int, int, int]:
            waited = self.calls - request.served
            return request.priority + waited // self.patience, waited, -request.number

        first = max(requests, key=turn)
        others = sorted(requests, key=lambda request: (-request.priority, request.number))
        return [first, *(request for request in others if request is not first)]

    def _evaluate(self, requests: list[Request]) -> None:
        """Call the network for requests together; if that fails, for each alone, so that one fails only itself."""
        evaluations = [request.needed for request in requests if request.needed is not None]
        if not evaluations:  # one request that is not shared
            with _reporting(requests[0]):
                requests[0].go_on()
            return
        try:
            outputs = call_together(evaluations, self.rows_per_call)
        except Exception as error:
            if len(requests) == 1:
                requests[0].fail(error)
            for request in requests if len(requests) > 1 else ():
                self._evaluate([request])
            return
        for request, output in zip(requests, outputs, strict=True):
            with _reporting(request):
                request.receive(output)

    def _drop_done(self) -> None:
        with self._changed:
            done = [request for request in self._requests if request.done()]
            self._requests = [request for request in self._requests if request not in done]
        for request in done:
            if request.cancelled():
                request.set_running_or_notify_cancel()  # tells `concurrent.futures.wait`


@contextmanager
def _reporting(request: Request) -> Iterator[None]:
    """Give an error inside the block to a request."""
    try:
        yield
    except Exception as error:
        request.fail(error)
