"""The ledger over Azure's tables (as Azurite plays them) and over the stand-in alike."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

import pytest

from runnerpool.budget import LIMITS
from runnerpool.decide import Decision, decide
from runnerpool.errors import Conflict, RetryLater
from runnerpool.ledger import APP, Ledger
from runnerpool.model import Fact, Job, Runner, RunnerState
from runnerpool.ports import Insert, Operation, Remove, Table
from runnerpool.rows import fact_to_columns, job_to_columns, runner_to_columns
from runnerpool.settings import StorageConnection
from runnerpool.tables import AzureTable
from tests.made_rows import MINUTE, NOW, fact, job, pool, runner, setting
from tests.memory_table import MemoryTable, Request

S = RunnerState


@dataclass
class Storage:
    table: Table
    history: Table

    @property
    def ledger(self) -> Ledger:
        return Ledger(table=self.table, history=self.history)

    async def hold(self, *rows: Fact | Job | Runner) -> None:
        for number, row in enumerate(rows):
            match row:
                case Fact():
                    operation = Insert(f"fact:{row.job_id}:{number}", fact_to_columns(row))
                case Job():
                    operation = Insert(f"job:{row.job_id}", job_to_columns(row))
                case Runner():
                    operation = Insert(f"runner:{row.name}", runner_to_columns(row))
            await self.table.transact(row.pool, [operation])

    async def keys(self, partition: str = "linux") -> list[str]:
        return [entity.row for entity in await self.table.read(partition)]

    async def decided(self, maximum: int = 50) -> Decision:
        return decide(NOW, setting(pool(maximum_pool_size=maximum)), await self.ledger.read_pool("linux"))


@pytest.fixture(params=["memory", "azurite"])
async def storage(request: pytest.FixtureRequest) -> AsyncIterator[Storage]:
    if request.param == "memory":
        yield Storage(MemoryTable(), MemoryTable())
        return
    connection = StorageConnection(connection_string=request.getfixturevalue("azurite").connection_string)
    tables = [AzureTable(storage=connection, name=f"t{uuid.uuid4().hex}") for _ in range(2)]
    for table in tables:
        await table.create_if_missing()
    yield Storage(*tables)
    for table in tables:
        await table.close()


# ---------------------------------------------------------------------------------------------- committing a decision


async def test_a_commit_writes_what_changed_and_returns_it_with_its_etags(storage: Storage) -> None:
    await storage.hold(fact(), job("2", completed_at=NOW))
    runners, jobs = await storage.ledger.commit(await storage.decided())
    read = await storage.ledger.read_pool("linux")
    assert read.runners == runners
    assert read.jobs == jobs
    assert {name: row.etag for name, row in read.runners.items()} == {name: row.etag for name, row in runners.items()}
    assert read.jobs["1"].etag == jobs["1"].etag
    assert not read.facts
    assert await storage.keys() == ["job:1", "job:2", "pool", "runner:hw-linux-0000000001"]


async def test_of_two_that_planned_from_the_same_rows_one_commits(storage: Storage) -> None:
    await storage.hold(job())
    first, second = await storage.decided(maximum=1), await storage.decided(maximum=1)
    await storage.ledger.commit(first)
    with pytest.raises(Conflict):
        await storage.ledger.commit(second)
    assert len((await storage.ledger.read_pool("linux")).runners) == 1


async def test_a_runner_that_moved_meanwhile_makes_the_commit_fail(storage: Storage) -> None:
    row = runner(S.FAILED)
    await storage.hold(row)
    decision = await storage.decided()
    await storage.ledger.revise_runner(decision.before.runners[row.name], lambda one: replace(one, silent_since=NOW))
    with pytest.raises(Conflict):
        await storage.ledger.commit(decision)
    assert (await storage.ledger.read_pool("linux")).runners[row.name].state is S.FAILED


async def test_a_fact_that_comes_while_a_plan_is_made_is_left_for_the_next(storage: Storage) -> None:
    await storage.hold(fact())
    decision = await storage.decided()
    await storage.table.transact("linux", [Insert("fact:1:late", fact_to_columns(fact("completed")))])
    await storage.ledger.commit(decision)
    assert "fact:1:late" in await storage.keys()


async def test_three_hundred_jobs_at_once_become_a_chain_whose_last_links_add_capacity(storage: Storage) -> None:
    await storage.table.transact("linux", [Insert(f"fact:{n}:x", fact_to_columns(fact(job_id=str(n)))) for n in range(100)])
    await storage.table.transact("linux", [Insert(f"fact:{n}:x", fact_to_columns(fact(job_id=str(n)))) for n in range(100, 200)])
    decision = await storage.decided(maximum=150)
    await storage.ledger.commit(decision)
    read = await storage.ledger.read_pool("linux")
    assert (len(read.jobs), len(read.runners), len(read.facts)) == (200, 150, 0)
    assert read.head.revision >= 6


class Spy:
    """A table that remembers its transactions, and fails the one asked for."""

    def __init__(self, fails_at: int = -1) -> None:
        self.seen: list[Request] = []
        self.fails_at = fails_at

    async def __call__(self, request: Request) -> None:
        if request.kind == "transact":
            self.seen.append(request)
            if len(self.seen) - 1 == self.fails_at:
                raise RetryLater("lost")


async def many_facts(spy: Spy) -> Storage:
    """120 facts about one job, whose runner they finish."""
    storage = Storage(MemoryTable(), MemoryTable())
    await storage.hold(runner(S.BUSY), *(fact("completed") for _ in range(120)))
    assert isinstance(storage.table, MemoryTable)
    storage.table.before = spy
    return storage


async def test_no_transaction_has_more_than_a_hundred_operations_and_every_one_is_chained_on_the_head() -> None:
    spy = Spy()
    storage = await many_facts(spy)
    await storage.ledger.commit(await storage.decided())
    assert [request.operations[0].row for request in spy.seen] == ["pool", "pool"]
    assert all(len(request.operations) <= 100 for request in spy.seen)


async def test_facts_never_go_before_what_they_made() -> None:
    """A worker that dies between two links of the chain loses nothing."""
    storage = await many_facts(Spy(fails_at=1))
    with pytest.raises(RetryLater):
        await storage.ledger.commit(await storage.decided())
    read = await storage.ledger.read_pool("linux")
    assert read.facts
    assert read.jobs["1"].completed_at is not None
    assert read.runners["hw-linux-aaaaaaaaaa"].completed_job == "1"


async def test_what_adds_capacity_never_shares_a_transaction_with_what_a_fact_can_touch() -> None:
    spy = Spy()
    storage = Storage(MemoryTable(before=spy), MemoryTable())
    await storage.hold(fact(), fact(job_id="2"), runner(S.FAILED))
    spy.seen.clear()
    await storage.ledger.commit(await storage.decided())
    chain = [request.operations[1:] for request in spy.seen]
    adds = [any(isinstance(op, Insert) and op.row.startswith("runner:") for op in operations) for operations in chain]
    facts = [any(op.row.startswith("fact:") for op in operations) for operations in chain]
    assert adds == sorted(adds), "capacity comes last"
    assert any(adds)
    assert not any(adding and touched for adding, touched in zip(adds, facts, strict=True))


async def test_a_vm_counts_against_its_jobs_tries_only_in_the_transaction_that_makes_it() -> None:
    def lost(partition: str, operations: Sequence[Operation]) -> bool:
        return any(isinstance(op, Insert) and op.row.startswith("runner:") for op in operations)

    storage = Storage(MemoryTable(), MemoryTable())
    await storage.hold(fact())
    decision = await storage.decided()
    whole = storage.table.transact

    async def conflicts(partition: str, operations: Sequence[Operation]) -> list[str]:
        if lost(partition, operations):
            raise Conflict("somebody else planned first")
        return await whole(partition, operations)

    storage.table.transact = conflicts  # type: ignore[method-assign]
    with pytest.raises(Conflict):
        await storage.ledger.commit(decision)
    assert (await storage.ledger.read_pool("linux")).jobs["1"].vms_made == 0
    storage.table.transact = whole  # type: ignore[method-assign]
    await storage.ledger.commit(await storage.decided())
    assert (await storage.ledger.read_pool("linux")).jobs["1"].vms_made == 1


async def test_facts_for_another_pool_are_written_there_before_they_go_here(storage: Storage) -> None:
    told = fact("completed", runner_name="hw-windows-bbbbbbbbbb")
    await storage.hold(told)
    await storage.ledger.commit(await storage.decided())
    assert await storage.keys("windows") == ["fact:1:0"]
    assert await storage.keys() == ["job:1", "pool"]
    await storage.table.transact("linux", [Insert("fact:1:0", fact_to_columns(told))])  # a worker that died between the two
    await storage.ledger.commit(await storage.decided())
    assert await storage.keys("windows") == ["fact:1:0"]


# ---------------------------------------------------------------------------------------------- single rows


async def test_a_change_is_applied_to_the_row_as_it_now_is(storage: Storage) -> None:
    await storage.hold(runner(S.RETIRING))
    stale = (await storage.ledger.read_pool("linux")).runners["hw-linux-aaaaaaaaaa"]
    await storage.ledger.revise_runner(stale, lambda row: replace(row, zone="3"))
    written = await storage.ledger.revise_runner(stale, lambda row: replace(row, size="other"))
    assert written is not None
    assert (written.zone, written.size) == ("3", "other")
    assert (await storage.ledger.read_pool("linux")).runners[stale.name].etag == written.etag


async def test_a_change_that_declines_what_it_sees_writes_nothing_and_so_does_one_that_changes_nothing(storage: Storage) -> None:
    await storage.hold(runner(S.RETIRING))
    row = (await storage.ledger.read_pool("linux")).runners["hw-linux-aaaaaaaaaa"]
    assert await storage.ledger.revise_runner(row, lambda _row: None) is None
    assert await storage.ledger.revise_runner(row, lambda same: same) == row
    assert (await storage.ledger.read_pool("linux")).runners[row.name].etag == row.etag


async def test_a_row_that_is_gone_is_not_revived(storage: Storage) -> None:
    await storage.hold(runner(S.RETIRING), job())
    read = await storage.ledger.read_pool("linux")
    row, one = read.runners["hw-linux-aaaaaaaaaa"], read.jobs["1"]
    await storage.table.transact("linux", [Remove(f"runner:{row.name}", "*"), Remove("job:1", "*")])
    assert await storage.ledger.revise_runner(row, lambda seen: replace(seen, zone="3")) is None
    assert await storage.ledger.revise_job(one, lambda seen: replace(seen, checked_at=NOW)) is None
    assert await storage.keys() == []


async def test_a_rest_in_the_head_makes_every_older_plan_fail(storage: Storage) -> None:
    await storage.hold(job())
    older = await storage.decided()
    await storage.ledger.revise_head("linux", lambda head: replace(head, boot_seconds=60.0))
    with pytest.raises(Conflict):
        await storage.ledger.commit(older)


async def test_a_vm_is_adopted_once(storage: Storage) -> None:
    row = runner(S.FAILED)
    assert [await storage.ledger.adopt(row), await storage.ledger.adopt(row)] == [True, False]
    assert await storage.ledger.has_runner("linux", row.name)
    assert not await storage.ledger.has_runner("linux", "hw-linux-other")


async def test_finished_jobs_go_to_the_history_of_their_day_and_what_is_there_stays(storage: Storage) -> None:
    done = job(completed_at=NOW, conclusion="success")
    await storage.hold(done)
    await storage.ledger.archive((await storage.ledger.read_pool("linux")).jobs.values())
    await storage.hold(replace(done, conclusion=None))  # a late delivery made a row that knows less
    await storage.ledger.archive((await storage.ledger.read_pool("linux")).jobs.values())
    (kept,) = await storage.history.read(f"linux:{NOW:%Y-%m-%d}")
    assert (kept.row, kept.columns["conclusion"]) == ("1", "success")
    assert await storage.keys() == []


async def test_a_job_that_changed_meanwhile_is_archived_by_the_next_pass(storage: Storage) -> None:
    await storage.hold(job(completed_at=NOW))
    stale = (await storage.ledger.read_pool("linux")).jobs["1"]
    await storage.ledger.revise_job(stale, lambda row: replace(row, checked_at=NOW))
    await storage.ledger.archive([stale])
    assert await storage.keys() == ["job:1"]


async def test_a_damaged_row_is_named_and_stops_no_other(storage: Storage) -> None:
    await storage.hold(job(), runner())
    await storage.table.transact("linux", [Insert("runner:hw-linux-broken", {"state": "dreaming"})])
    read = await storage.ledger.read_pool("linux")
    assert read.unreadable == ("runner:hw-linux-broken",)
    assert (len(read.jobs), len(read.runners)) == (1, 1)


# ---------------------------------------------------------------------------------------------- what belongs to no pool


async def test_rows_that_another_timer_removed_meanwhile_stop_nothing(storage: Storage) -> None:
    for name in ("alert:a", "alert:b", "alert:c"):
        await storage.ledger.put_app_row(name, {"title": name})
    await storage.table.transact(APP, [Remove("alert:b", "*")])
    await storage.ledger.remove_app_rows(["alert:a", "alert:b", "alert:c"])
    assert await storage.keys(APP) == []


async def test_a_budget_is_shared_and_refills_by_the_tables_clock_whatever_time_its_takers_believe_it_is() -> None:
    moments = [NOW]
    table = MemoryTable(clock=lambda: moments[-1])
    some, other = (Ledger(table=table, history=table) for _ in range(2))
    limit = LIMITS["github-writes"]
    assert await some.take("github-writes", 10, NOW) == 10
    assert await other.take("github-writes", 1000, NOW + 2 * MINUTE) == limit.capacity - 10
    assert await some.take("github-writes", 1, NOW + 2 * MINUTE) == 0
    moments.append(NOW + timedelta(seconds=10))
    assert await some.take("github-writes", 1000, NOW - 2 * MINUTE) == int(10 * limit.per_second)


async def test_a_budget_on_which_all_pull_at_once_is_not_overdrawn() -> None:
    async def somebody_else_is_first(request: Request) -> None:
        if request.kind == "transact" and not pulled:
            pulled.append(1)
            await Ledger(table=table, history=table).take("arm-writes", 100, NOW)

    pulled: list[int] = []
    table = MemoryTable(before=somebody_else_is_first)
    assert await Ledger(table=table, history=table).take("arm-writes", 100, NOW) == 60
