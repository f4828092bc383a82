"""An asyncio loop without waiting: `time()` jumps to the next timer, so a virtual day takes seconds."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context
from datetime import UTC, datetime, timedelta
from heapq import heappop, heappush
from typing import Any, TypeVar, TypeVarTuple, Unpack

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

EPOCH = datetime(2026, 3, 2, tzinfo=UTC)
"""The virtual beginning: a Monday, midnight."""


class Stalled(Exception):
    """Nothing is ready and no timer is set: somebody waits for what never comes."""


class VirtualLoop(asyncio.BaseEventLoop):
    """Its `time()` begins at 0 and is the virtual number of seconds since EPOCH.

    What is ready and what is due is kept here, not in the base class: a world is little else than callbacks, and the base's
    bookkeeping for I/O, for debugging and for cancelled timers would be a fifth of what it costs.
    """

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._soon: deque[asyncio.Handle] = deque()
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []  # a heap; equal times in the order they were set
        self._set = itertools.count()

    def time(self) -> float:
        return self._now

    def moment(self) -> datetime:
        return EPOCH + timedelta(seconds=self._now)

    def call_soon(self, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._soon.append(handle)
        return handle

    def call_later(
        self, delay: float, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        heappush(self._timers, (when, next(self._set), handle))
        return handle

    def _run_once(self) -> None:
        """What the base class calls again and again: everything that is ready, or else what is due next."""
        soon, timers = self._soon, self._timers
        if not soon:
            while timers and timers[0][2].cancelled():
                heappop(timers)
            if not timers:
                raise Stalled
            self._now = max(self._now, timers[0][0])
            while timers and timers[0][0] <= self._now:
                soon.append(heappop(timers)[2])
        for _ in range(len(soon)):
            handle = soon.popleft()
            if not handle.cancelled():
                handle._run()


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
