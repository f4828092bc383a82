"""The one rule for calling a port again: exponential backoff with jitter, at most five attempts, within the time that is left."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential

from runnerpool.errors import RetryLater

T = TypeVar("T")
Clock = Callable[[], datetime]

ATTEMPTS = 5
"""Bounds one call within one invocation. The plan tries again later, as long as GitHub queues the job."""

PATIENCE = timedelta(seconds=20)
"""The longest single pause inside an invocation: a service that asks for more is asked again by a later pass."""

_backoff = wait_random_exponential(multiplier=0.5, max=PATIENCE.total_seconds())


async def attempt(call: Callable[[], Awaitable[T]], *, clock: Clock, deadline: datetime) -> T:
    """Calls until it works. Raises the last RetryLater after five attempts, or at once when the pause that the service
    asks for is too long or would end past the deadline. Every other error is the caller's."""
    try:
        return await call()  # what nearly always works does without tenacity's machinery: a pass makes hundreds of calls
    except RetryLater as error:
        first = [error]

    def pause(state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked = error.after.total_seconds() if isinstance(error, RetryLater) and error.after else 0.0
        return max(asked, _backoff(state))

    def enough(state: RetryCallState) -> bool:
        wait = timedelta(seconds=state.upcoming_sleep)
        return state.attempt_number >= ATTEMPTS or wait > PATIENCE or clock() + wait >= deadline

    retrying = AsyncRetrying(retry=retry_if_exception_type(RetryLater), stop=enough, wait=pause, reraise=True)

    async def once() -> T:  # tenacity awaits coroutine functions only; `call` may be a lambda that returns a coroutine
        if first:
            raise first.pop()  # the attempt that has been made counts
        return await call()

    return await retrying(once)


def delay_after(attempts: int, asked: timedelta | None) -> timedelta:
    """How long a row rests after its act failed `attempts` times in a row: 10 s doubling to 5 minutes, or what was asked."""
    own = timedelta(seconds=min(10 * 2 ** max(attempts - 1, 0), 300))
    return max(own, asked) if asked else own
