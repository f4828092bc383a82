"""The one rule for calling a port again."""

from __future__ import annotations

from datetime import timedelta

import pytest

from runnerpool.errors import Conflict, RetryLater
from runnerpool.retry import ATTEMPTS, PATIENCE, attempt, delay_after
from tests.made_rows import MINUTE, clock, virtual

SECOND = timedelta(seconds=1)


class Call:
    """Raises these errors one after the other, then answers."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.made = 0

    async def __call__(self) -> str:
        self.made += 1
        if self.errors:
            raise self.errors.pop(0)
        return "answer"


def later(after: float | None = None) -> RetryLater:
    return RetryLater("busy", after=None if after is None else timedelta(seconds=after))


@virtual
async def test_a_call_is_made_again_until_it_works() -> None:
    call = Call(*[later()] * (ATTEMPTS - 1))
    assert await attempt(call, clock=clock, deadline=clock() + 10 * MINUTE) == "answer"
    assert call.made == ATTEMPTS


@virtual
async def test_five_attempts_are_all_and_the_last_error_is_raised() -> None:
    call = Call(*[later()] * 4, RetryLater("the last"), RetryLater("never seen"))
    with pytest.raises(RetryLater, match="the last"):
        await attempt(call, clock=clock, deadline=clock() + 10 * MINUTE)
    assert call.made == ATTEMPTS


@virtual
async def test_the_pause_that_the_service_asks_for_is_kept() -> None:
    began = clock()
    await attempt(Call(later(12)), clock=clock, deadline=clock() + 10 * MINUTE)
    assert clock() - began >= 12 * SECOND


@virtual
async def test_who_is_asked_to_wait_long_leaves_at_once() -> None:
    began, call = clock(), Call(later(PATIENCE.total_seconds() + 1))
    with pytest.raises(RetryLater):
        await attempt(call, clock=clock, deadline=clock() + 10 * MINUTE)
    assert (call.made, clock()) == (1, began)


@virtual
async def test_no_pause_ends_past_the_deadline() -> None:
    began, call = clock(), Call(later(10), later(10))
    with pytest.raises(RetryLater):
        await attempt(call, clock=clock, deadline=clock() + 15 * SECOND)
    assert call.made == 2
    assert clock() - began < 15 * SECOND


@virtual
async def test_every_other_error_is_the_callers() -> None:
    call = Call(Conflict("412"))
    with pytest.raises(Conflict):
        await attempt(call, clock=clock, deadline=clock() + MINUTE)
    assert call.made == 1


@pytest.mark.parametrize(
    ("attempts", "asked", "seconds"),
    [(1, None, 10), (2, None, 20), (5, None, 160), (6, None, 300), (1000, None, 300), (1, 60, 60), (6, 60, 300)],
)
def test_a_row_rests_longer_after_each_failure(attempts: int, asked: int | None, seconds: int) -> None:
    assert delay_after(attempts, None if asked is None else timedelta(seconds=asked)) == timedelta(seconds=seconds)
