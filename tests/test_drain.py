"""Draining: what the engine makes of the mark, and what the command that sets it tells."""

from __future__ import annotations

import io
from collections.abc import Awaitable, Callable
from datetime import timedelta

import pytest

from runnerpool.console import Deployment
from runnerpool.decide import decide
from runnerpool.drain import Drain, UnknownPool, chosen, pause, resume
from runnerpool.explain import reasons
from runnerpool.ledger import Ledger
from runnerpool.lifecycle import fold
from runnerpool.model import Head, RunnerState, Snapshot
from runnerpool.ports import Remove, Replace
from runnerpool.rows import runner_key
from tests.made_rows import MINUTE, NOW, config, job, pool, runner, setting
from tests.memory_table import MemoryTable

S = RunnerState
DRAINING = Head("linux", draining=True)


def states(*runners: RunnerState, jobs: int = 0, head: Head = DRAINING) -> dict[str, RunnerState]:
    """The runners' states after one decision, by their suffix; what was forgotten is left out."""
    rows = {row.name: row for number, state in enumerate(runners) if (row := runner(state, "abc"[number] * 10))}
    waiting = {str(number): job(str(number)) for number in range(jobs)}
    decision = decide(NOW, setting(pool=pool(minimum_warm_vms=3)), Snapshot(head, waiting, rows, {}))
    return {name[-1]: row.state for name, row in decision.runners.items()}


def test_idle_vms_go_at_once_registered_ones_through_github_and_intents_are_forgotten() -> None:
    assert states(S.READY, S.REGISTERED, S.REQUESTED) == {"a": S.DELETING, "b": S.RETIRING}


def test_busy_vms_finish_and_vms_on_their_way_arrive_first() -> None:
    assert states(S.BUSY, S.BOOTING, S.CREATING) == {"a": S.BUSY, "b": S.BOOTING, "c": S.CREATING}


def test_no_vm_is_made_or_kept_for_waiting_jobs_or_the_warm_minimum() -> None:
    assert states(S.READY, S.REGISTERED, jobs=5) == {"a": S.DELETING, "b": S.RETIRING}
    assert states(jobs=5) == {}


def test_without_the_mark_the_same_pool_keeps_them_and_makes_more() -> None:
    kept = states(S.READY, S.REGISTERED, jobs=1, head=Head("linux"))
    assert kept["a"] is S.READY
    assert kept["b"] is S.REGISTERED
    assert len(kept) == 4


def test_a_waiting_job_says_that_its_pool_is_being_drained() -> None:
    world = fold(Snapshot(DRAINING, {"1": job()}, {}, {}), NOW, prefix="hw")
    assert reasons(NOW, pool(), DRAINING, world) == {"1": "pool linux is being drained"}


# ---------------------------------------------------------------------------------------------- the command


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Watched:
    """A ledger in memory under the command; what happens between two looks is what `steps` say."""

    def __init__(self, *steps: Callable[[Watched], Awaitable[None]], out: io.StringIO | None = None) -> None:
        self.table = MemoryTable()
        self.ledger = Ledger(table=self.table, history=MemoryTable())
        self.place = Deployment(config(pool(), pool(name="arm", labels=["arm"])), self.ledger)
        self.now = NOW
        self.out = out or io.StringIO()
        self._steps = list(steps)

    async def add(self, *states: RunnerState) -> None:
        for number, state in enumerate(states):
            await self.ledger.adopt(runner(state, f"{number}" * 10))

    async def remove(self, number: int) -> None:
        await self.table.transact("linux", [Remove(runner_key(f"hw-linux-{str(number) * 10}"), "*")])

    async def sleep(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)
        if self._steps:
            await self._steps.pop(0)(self)

    async def drain(self, *pools: str, timeout: timedelta = timedelta(minutes=10)) -> int:
        drain = Drain(deployment=self.place, pools=pools or ("linux",), clock=lambda: self.now, out=self.out, sleep=self.sleep)
        return await drain.run(timeout)

    @property
    def lines(self) -> list[str]:
        return self.out.getvalue().splitlines()


async def test_drain_sets_the_mark_and_waits_until_nothing_is_left() -> None:
    watched = Watched(lambda it: it.remove(0), lambda it: it.remove(1))
    await watched.add(S.READY, S.BUSY)
    assert await watched.drain() == 0
    assert (await watched.ledger.read_pool("linux")).head.draining
    assert watched.lines[1:] == [
        "[........................] 0 of 2 VMs gone; 1 busy, 1 idle",
        "[############............] 1 of 2 VMs gone; 1 busy",
        "[########################] 2 of 2 VMs gone; nothing left",
        "drained: nothing is left. New jobs wait until python -m runnerpool resume",
    ]


async def test_on_a_terminal_one_line_is_drawn_anew() -> None:
    watched = Watched(lambda it: it.remove(0), out=Terminal())
    await watched.add(S.READY)
    assert await watched.drain() == 0
    assert watched.out.getvalue().count("\r\x1b[K[") == 2


async def test_an_empty_pool_is_drained_at_once() -> None:
    watched = Watched()
    assert await watched.drain() == 0
    assert watched.now == NOW


async def test_what_is_left_after_the_timeout_is_named_and_the_mark_stays() -> None:
    watched = Watched()
    await watched.add(S.BUSY, S.BOOTING, S.DELETING)
    assert await watched.drain(timeout=MINUTE) == 1
    assert "not drained in time: 1 busy, 1 leaving, 1 on their way" in watched.lines[-1]
    assert (await watched.ledger.read_pool("linux")).head.draining


async def test_a_silent_app_is_pointed_out_once() -> None:
    watched = Watched()
    await watched.add(S.BUSY)
    assert await watched.drain(timeout=5 * MINUTE) == 1
    assert [line for line in watched.lines if "does the app run?" in line] == [
        "no reconcile pass for 2 minutes: does the app run? It does the work"
    ]


async def test_an_app_that_reconciles_is_not_asked_after() -> None:
    watched = Watched()
    await watched.add(S.BUSY)
    await watched.ledger.put_app_row("heartbeat", {"body": f'{{"at": "{(NOW + MINUTE).isoformat()}"}}'})
    assert await watched.drain(timeout=2 * MINUTE) == 1
    assert not any("does the app run?" in line for line in watched.lines)


async def test_a_row_that_cannot_be_read_is_not_taken_for_absent() -> None:
    watched = Watched()
    await watched.ledger.adopt(runner(S.BUSY))
    [entity] = await watched.table.read("linux")
    await watched.table.transact("linux", [Replace(entity.row, {"state": "nonsense"}, entity.etag)])
    assert await watched.drain(timeout=MINUTE) == 1
    assert "1 in rows that cannot be read" in watched.lines[-1]


async def test_pause_and_resume_set_and_take_the_marks() -> None:
    watched = Watched()
    await pause(watched.place, ["linux", "arm"], watched.out)
    assert (await watched.ledger.read_pool("arm")).head.paused
    await watched.drain("linux")
    await resume(watched.place, ["linux"], watched.out)
    head = (await watched.ledger.read_pool("linux")).head
    assert (head.paused, head.draining) == (False, False)
    assert (await watched.ledger.read_pool("arm")).head.paused


async def test_all_means_the_pools_of_the_file_and_those_that_left_it() -> None:
    watched = Watched()
    await watched.ledger.put_app_row("pool:linux", {"since": "x"})
    await watched.ledger.put_app_row("pool:old", {"since": "x"})
    assert await chosen(watched.place, None) == ["linux", "arm", "old"]
    assert await chosen(watched.place, "old") == ["old"]
    with pytest.raises(UnknownPool, match="there are linux, arm, old"):
        await chosen(watched.place, "linx")
