"""An asyncio loop without waiting: `time()` jumps to the next timer, so a virtual day takes seconds."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from datetime import UTC, datetime, timedelta
from heapq import heappop, heappush
from typing import Any, TypeVar, TypeVarTuple, Unpack

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

EPOCH = datetime(2026, 3, 2, tzinfo=UTC)
"""The virtual beginning: a Monday, midnight."""


class Stalled(Exception):
    """Nothing is ready and no timer is set: somebody waits for what never comes."""


class Call:
    """What is to be called; of `asyncio.Handle` what anybody asks for: `cancel`."""

    __slots__ = ("args", "callback", "context")

    def __init__(self, callback: Callable[..., object] | None, args: tuple[Any, ...], context: Context) -> None:
        self.callback = callback
        self.args = args
        self.context = context

    def cancel(self) -> None:
        self.callback = None


class VirtualLoop(asyncio.BaseEventLoop):
    """Its `time()` begins at 0 and is the virtual number of seconds since EPOCH.

    What is ready and what is due is kept here, not in the base class: a world is little else than callbacks, and the base's
    bookkeeping for I/O, for debugging and for cancelled timers would be a quarter of what it costs.
    """

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._soon: deque[Call] = deque()
        self._timers: list[tuple[float, int, Call]] = []  # a heap; equal times in the order they were set
        self._set = itertools.count()

    def time(self) -> float:
        return self._now

    def moment(self) -> datetime:
        return EPOCH + timedelta(seconds=self._now)

    def call_soon(self, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None) -> Any:
        call = Call(callback, args, copy_context() if context is None else context)
        self._soon.append(call)
        return call

    def call_later(self, delay: float, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None) -> Any:
        call = Call(callback, args, copy_context() if context is None else context)
        heappush(self._timers, (self._now + delay, next(self._set), call))
        return call

    def call_at(self, when: float, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None) -> Any:
        call = Call(callback, args, copy_context() if context is None else context)
        heappush(self._timers, (when, next(self._set), call))
        return call

    def _run_once(self) -> None:
        """What the base class calls again and again: everything that is ready, or else what is due next."""
        soon, timers = self._soon, self._timers
        if not soon:
            while timers and timers[0][2].callback is None:
                heappop(timers)
            if not timers:
                raise Stalled
            now = self._now = max(self._now, timers[0][0])
            while timers and timers[0][0] <= now:
                soon.append(heappop(timers)[2])
        for _ in range(len(soon)):
            call = soon.popleft()
            if call.callback is None:
                continue
            try:
                call.context.run(call.callback, *call.args)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:
                self.call_exception_handler({"message": f"{call.callback!r} failed", "exception": error})


def run(loop: VirtualLoop, main: Coroutine[Any, Any, T]) -> T:
    """Runs `main` on the loop and ends whatever it left behind, without letting that go on."""
    asyncio.set_event_loop(loop)
    try:
        return loop.run_until_complete(main)
    finally:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        asyncio.set_event_loop(None)
        loop.close()
