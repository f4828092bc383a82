"""An asyncio loop without waiting: `time()` jumps to the next timer, so a virtual day takes seconds."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

T = TypeVar("T")

EPOCH = datetime(2026, 3, 2, tzinfo=UTC)
"""The virtual beginning: a Monday, midnight."""


class Stalled(Exception):
    """Nothing is ready and no timer is set: somebody waits for what never comes."""


class _Jump(selectors.SelectSelector):
    """Instead of waiting for I/O, of which there is none, moves the clock."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Stalled
        self.now += max(timeout, 0.0)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """Its `time()` begins at 0 and is the virtual number of seconds since EPOCH."""

    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)

    def time(self) -> float:
        return self._jump.now

    def moment(self) -> datetime:
        return EPOCH + timedelta(seconds=self._jump.now)


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
