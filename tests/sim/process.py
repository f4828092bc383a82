"""One worker process: a clock that is off, calls that take time and go wrong, and a death between any two of them.

Code and services meet only in `Process.call`. So a process that is killed there, before or after its call took effect, or
with the calls of its other tasks still on their way, has been killed at every await that anything outside can tell apart.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import ContextVar
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from runnerpool.errors import PoolError, RetryLater

if TYPE_CHECKING:
    from tests.sim.world import World

T = TypeVar("T")


class Killed(BaseException):
    """This process is dead: no code of its may do anything any more."""


class Invocation:
    """How far one invocation got: how many calls were answered to it, and to what it shares with others."""

    answered = 0


INVOCATION: ContextVar[Invocation] = ContextVar("INVOCATION")
CURRENT: ContextVar[Process] = ContextVar("CURRENT")
"""The process whose code runs: a context is inherited by tasks, as memory is within a process."""


def current_clock() -> datetime:
    return CURRENT.get().clock()


class Process:
    """`name` is unique; `skew` is what its clock is ahead by."""

    def __init__(self, world: World, name: str, skew: timedelta) -> None:
        self.world = world
        self.name = name
        self.skew = skew
        self.alive = True
        self.calls = 0
        self._pending: dict[asyncio.Future[Any], None] = {}
        self.on_death: list[Callable[[], None]] = []

    def clock(self) -> datetime:
        return self.world.now() + self.skew

    def kill(self) -> None:
        """SIGKILL. What is on its way to a service may arrive there or not."""
        if not self.alive:
            return
        self.alive = False
        self.world.note(f"{self.name} is killed")
        pending, self._pending = self._pending, {}
        for answer in pending:
            if not answer.done():
                answer.set_exception(Killed())
        for told in self.on_death:
            told()

    async def call(self, service: str, effect: Callable[[], T], *, write: bool = False, what: str = "") -> T:
        """Lets `effect` happen at the service after a while, if nothing goes wrong, and returns or raises what it does."""
        if not self.alive:
            raise Killed
        self.calls += 1
        loop = self.world.loop
        answer: asyncio.Future[T] = loop.create_future()
        self._pending[answer] = None
        loop.call_later(self.world.latency(service), self._arrive, answer, service, effect, write, what)
        result = await answer
        INVOCATION.get().answered += 1
        return result

    def _arrive(self, answer: asyncio.Future[T], service: str, effect: Callable[[], T], write: bool, what: str) -> None:
        self._pending.pop(answer, None)
        if not self.alive:
            if write and self.world.chance.random() < 0.5:
                self.world.checks.called(service, write=write, what=what)
                self._carry_out(None, effect)
            return
        self.world.checks.called(service, write=write, what=what)
        trouble = self.world.faults.trouble(service, write=write, what=what)
        if trouble is None:
            self._carry_out(answer, effect)
            return
        if trouble.kills:
            if trouble.applied:
                self._carry_out(None, effect)
            answer.set_exception(Killed())
            self.kill()
            return
        if trouble.applied:
            self.world.loop.call_later(trouble.applied_after, self._carry_out, None, effect)
        self._pending[answer] = None
        error = trouble.error or RetryLater(f"{service} does not answer", uncertain=write)
        self.world.loop.call_later(trouble.answered_after, self._fail, answer, error)

    def _fail(self, answer: asyncio.Future[T], error: PoolError) -> None:
        self._pending.pop(answer, None)
        if not answer.done():
            answer.set_exception(error)

    def _carry_out(self, answer: asyncio.Future[T] | None, effect: Callable[[], T]) -> None:
        try:
            result = effect()
        except PoolError as error:
            if answer is not None and not answer.done():
                answer.set_exception(error)
        else:
            if answer is None or answer.done():
                return
            if self.alive and self.world.faults.roll("answer late"):
                self._pending[answer] = None
                self.world.loop.call_later(self.world.faults.span(0, 10), self._answer, answer, result)
                return
            answer.set_result(result)

    def _answer(self, answer: asyncio.Future[T], result: T) -> None:
        """What it says was true some seconds ago."""
        self._pending.pop(answer, None)
        if not answer.done():
            answer.set_result(result)
