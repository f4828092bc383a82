"""Tokens of the shared budgets: how acts take them, wait for them, and when one is void."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from runnerpool.acting import CHUNK
from runnerpool.budget import GOOD_FOR, LIMITS
from runnerpool.errors import RetryLater
from runnerpool.model import RunnerState
from tests.made_rows import MINUTE, NOW, ORG, claimed, clock, later, virtual
from tests.memory_table import MemoryTable, Request
from tests.stand_ins import Scene

S = RunnerState
NAME = "hw-linux-aaaaaaaaaa"
WANTED = {"target": ORG, "job_id": "1"}


@virtual
async def test_tokens_are_taken_as_they_are_needed_and_for_many_at_once() -> None:
    scene = Scene()
    one = scene.acting()
    await one.token("github-writes")
    assert await scene.ledger.take("github-writes", 1000, clock()) == LIMITS["github-writes"].capacity - 1  # a lonely act takes one

    async def takes_time(_request: Request) -> None:
        await later(seconds=0.01)

    other = scene.acting()
    scene.table.before, scene.table.operations = takes_time, 0
    await asyncio.gather(*(other.token("arm-writes") for _ in range(CHUNK * 4)))
    assert scene.table.operations <= 2 * 5


@pytest.mark.parametrize(
    ("hung", "bought"), [(GOOD_FOR, timedelta(0)), (GOOD_FOR + timedelta(seconds=1), GOOD_FOR + timedelta(seconds=1))]
)
@virtual
async def test_a_token_that_was_held_while_a_service_hung_is_void(hung: timedelta, bought: timedelta) -> None:
    """What the bucket grants meanwhile is spent by others: a token for a registration that had to wait would come on top of it."""
    scene = Scene(table=MemoryTable(clock=clock))
    scene.hub.slow("runner_package", hung)
    row = (await scene.act(claimed(S.REQUESTED, **WANTED)))[NAME]
    assert (row.state, scene.hub.count("mint")) == (S.BOOTING, 1)
    for scope in ("github-writes", "arm-writes"):
        (bucket,) = await scene.ledger.app_rows(f"budget:{scope}")
        assert bucket.columns["at"] == (NOW + bought).isoformat(), f"when a token of {scope} was taken last"


@virtual
async def test_tokens_that_storage_was_slow_to_grant_are_void() -> None:
    async def takes_time(_request: Request) -> None:
        await later(seconds=GOOD_FOR.total_seconds())

    scene = Scene()
    scene.table.before = takes_time
    with pytest.raises(RetryLater, match="github-writes"):
        await scene.acting(time=timedelta(seconds=30)).token("github-writes")


@virtual
async def test_a_budget_used_up_makes_an_act_wait_and_then_leave_before_its_time_is_over() -> None:
    scene = Scene()
    await scene.ledger.take("github-writes", 1000, clock())
    await scene.acting().token("github-writes")
    assert clock() - NOW <= timedelta(seconds=2)

    await scene.ledger.take("github-writes", 1000, clock())
    with pytest.raises(RetryLater, match="github-writes"):
        await scene.acting(time=timedelta(seconds=1)).token("github-writes")


@virtual
async def test_one_services_budget_holds_up_no_act_of_another() -> None:
    scene = Scene()
    await scene.ledger.take("github-writes", 1000, clock() + MINUTE)  # by a worker whose clock is ahead
    acting = scene.acting()
    waits = asyncio.create_task(acting.token("github-writes"))
    await later(seconds=0.1)
    await acting.token("arm-deletes")
    assert not waits.done()
    await waits
