"""What `ports.Table` promises, sentence by sentence, of Azure's tables (as Azurite plays them) and of the stand-in alike."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Protocol

import pytest

from runnerpool import rows
from runnerpool.errors import Conflict
from runnerpool.ports import Entity, Insert, Operation, Remove, Replace, Table, Upsert, Value
from runnerpool.settings import StorageConnection
from runnerpool.tables import AzureTable
from tests.memory_table import MemoryTable
from tests.sample_rows import FACT, HEAD, JOB, RUNNER, SMALL_FACT, SMALL_JOB, SMALL_RUNNER


class CountedTable(Table, Protocol):
    """Both count their requests: they are what users pay for."""

    @property
    def operations(self) -> int: ...


@pytest.fixture(params=["memory", "azurite"])
async def table(request: pytest.FixtureRequest) -> AsyncIterator[CountedTable]:
    if request.param == "memory":
        yield MemoryTable(clock=lambda: datetime.now(UTC))
        return
    storage = StorageConnection(connection_string=request.getfixturevalue("azurite").connection_string)
    table = AzureTable(storage=storage, name=f"t{uuid.uuid4().hex}")
    await table.create_if_missing()
    table.operations = 0
    yield table
    await table.close()


async def fill(table: Table, partition: str, keys: Sequence[str]) -> None:
    for start in range(0, len(keys), 100):
        await table.transact(partition, [Insert(key, {"n": start + i}) for i, key in enumerate(keys[start : start + 100])])


async def keys(table: Table, partition: str, prefix: str = "") -> list[str]:
    return [entity.row for entity in await table.read(partition, prefix=prefix)]


# ---------------------------------------------------------------------------------------------- read


async def test_an_empty_partition_reads_as_no_rows(table: CountedTable) -> None:
    assert await table.read("nowhere") == []
    assert await table.read("nowhere", prefix="job:") == []


async def test_a_partition_is_read_whole_by_key_and_without_its_neighbours(table: CountedTable) -> None:
    await fill(table, "linux", ["runner:b", "pool", "job:10", "fact:1:x", "job:9", "runner:a", "runner:B"])
    await fill(table, "linux-x64", ["pool"])
    await fill(table, "Linux", ["pool"])
    assert await keys(table, "linux") == ["fact:1:x", "job:10", "job:9", "pool", "runner:B", "runner:a", "runner:b"]


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("job:", ["job:", "job:1", "job:1:a", "job:2", "job:~"]),
        ("job:1", ["job:1", "job:1:a"]),
        ("job", ["job", "job.x", "job:", "job:1", "job:1:a", "job:2", "job:~", "job;", "job;1", "jobs:1"]),
        ("job;", ["job;", "job;1"]),
        ("jobs:1", ["jobs:1"]),
        ("Job:", ["Job:1"]),
        ("zzz", []),
    ],
)
async def test_a_prefix_gives_exactly_the_keys_that_begin_with_it(table: CountedTable, prefix: str, expected: list[str]) -> None:
    await fill(
        table, "p", ["job", "job.x", "job:", "job:1", "job:1:a", "job:2", "job:~", "job;", "job;1", "jobs:1", "Job:1", "joa~"]
    )
    assert await keys(table, "p", prefix) == expected


@pytest.mark.parametrize("key", ["it's", "a b", "50%", "a+b", "x&y=z", "Ünïcode-名前", "a,b(c)", "_app@home!*~|"])
async def test_keys_of_unusual_characters_stay_what_they_are(table: CountedTable, key: str) -> None:
    (etag,) = await table.transact(key, [Insert(f"row:{key}", {"x": 1})])
    assert await table.get(key, f"row:{key}") == Entity(key, f"row:{key}", {"x": 1}, etag)
    assert await keys(table, key, f"row:{key}") == [f"row:{key}"]
    (etag,) = await table.transact(key, [Replace(f"row:{key}", {"x": 2}, etag)])
    await table.transact(key, [Remove(f"row:{key}", etag)])
    assert await table.read(key) == []


async def test_a_partition_of_more_than_one_page_is_read_to_the_end(table: CountedTable) -> None:
    runners = [f"runner:{n:05}" for n in range(1_050)]
    await fill(table, "big", runners)
    await fill(table, "big", ["fact:1:a", "pool", "zebra"])
    before = table.operations
    assert await keys(table, "big") == ["fact:1:a", "pool", *runners, "zebra"]
    assert await keys(table, "big", "runner:") == runners
    assert table.operations - before == 4


# ---------------------------------------------------------------------------------------------- get


async def test_get_gives_one_row_or_none(table: CountedTable) -> None:
    (etag,) = await table.transact("p", [Insert("pool", {"revision": 7})])
    assert await table.get("p", "pool") == Entity("p", "pool", {"revision": 7}, etag)
    assert await table.get("p", "poo") is None
    assert await table.get("q", "pool") is None


async def test_get_tells_when_the_service_answered_by_its_own_clock_and_what_was_read_is_the_same_all_the_same(
    table: CountedTable,
) -> None:
    await table.transact("p", [Insert("pool", {"revision": 7})])
    first, second = await table.get("p", "pool"), await table.get("p", "pool")
    assert first is not None and second is not None and first.read_at is not None and second.read_at is not None
    assert timedelta(0) <= datetime.now(UTC) - first.read_at < timedelta(minutes=1)
    assert (first.read_at.microsecond, first.read_at.utcoffset()) == (0, timedelta(0))
    assert first.read_at <= second.read_at
    assert first == replace(second, read_at=None)


async def test_get_and_read_tell_the_etag_that_the_write_returned(table: CountedTable) -> None:
    etags = await table.transact("p", [Insert("a", {"x": 1}), Upsert("b", {"x": 1})])
    assert [entity.etag for entity in await table.read("p")] == etags
    assert [entity.etag for row in "ab" if (entity := await table.get("p", row))] == etags
    assert all(etags)


async def test_each_request_counts_once(table: CountedTable) -> None:
    await table.transact("p", [Insert(f"{n}", {}) for n in range(100)])
    await table.get("p", "1")
    await table.get("p", "no")
    await table.read("p")
    with pytest.raises(Conflict):
        await table.transact("p", [Insert("1", {})])
    assert table.operations == 5


# ---------------------------------------------------------------------------------------------- one operation


async def test_an_insert_fails_where_the_row_exists(table: CountedTable) -> None:
    await table.transact("p", [Insert("a", {"x": 1})])
    with pytest.raises(Conflict):
        await table.transact("p", [Insert("a", {"x": 2})])
    assert await columns_of(table, "a") == {"x": 1}


async def test_a_replace_leaves_nothing_of_the_old_row_and_gives_it_a_new_etag(table: CountedTable) -> None:
    (first,) = await table.transact("p", [Insert("a", {"x": 1, "y": 2})])
    (second,) = await table.transact("p", [Replace("a", {"x": 3}, first)])
    assert await table.get("p", "a") == Entity("p", "a", {"x": 3}, second)
    assert second != first


async def test_a_replace_fails_with_an_etag_that_is_no_longer_the_rows(table: CountedTable) -> None:
    (first,) = await table.transact("p", [Insert("a", {"x": 1})])
    (second,) = await table.transact("p", [Replace("a", {"x": 1}, first)])
    with pytest.raises(Conflict):
        await table.transact("p", [Replace("a", {"x": 2}, first)])
    assert await table.get("p", "a") == Entity("p", "a", {"x": 1}, second)


async def test_a_replace_fails_where_the_row_is_gone(table: CountedTable) -> None:
    (etag,) = await table.transact("p", [Insert("a", {"x": 1})])
    await table.transact("p", [Remove("a", etag)])
    with pytest.raises(Conflict):
        await table.transact("p", [Replace("a", {"x": 2}, etag)])
    assert await table.get("p", "a") is None


async def test_an_etag_of_an_earlier_life_of_the_row_is_worth_nothing(table: CountedTable) -> None:
    (first,) = await table.transact("p", [Insert("a", {"x": 1})])
    await table.transact("p", [Remove("a", first)])
    await table.transact("p", [Insert("a", {"x": 1})])
    with pytest.raises(Conflict):
        await table.transact("p", [Replace("a", {"x": 2}, first)])


async def test_an_upsert_inserts_or_replaces_whatever_is_there(table: CountedTable) -> None:
    await table.transact("p", [Upsert("a", {"x": 1, "y": 2})])
    assert await columns_of(table, "a") == {"x": 1, "y": 2}
    (etag,) = await table.transact("p", [Upsert("a", {"x": 3})])
    assert await table.get("p", "a") == Entity("p", "a", {"x": 3}, etag)


async def test_a_remove_deletes_the_version_that_it_names(table: CountedTable) -> None:
    (first,) = await table.transact("p", [Insert("a", {})])
    (second,) = await table.transact("p", [Upsert("a", {})])
    with pytest.raises(Conflict):
        await table.transact("p", [Remove("a", first)])
    assert await table.transact("p", [Remove("a", second)]) == [""]
    assert await table.get("p", "a") is None


async def test_a_remove_with_a_star_fits_any_version(table: CountedTable) -> None:
    await table.transact("p", [Insert("a", {})])
    assert await table.transact("p", [Remove("a", "*")]) == [""]
    assert await table.read("p") == []


@pytest.mark.parametrize("etag", ["*", "old"])
async def test_a_remove_fails_where_the_row_is_gone(table: CountedTable, etag: str) -> None:
    (old,) = await table.transact("p", [Insert("a", {})])
    await table.transact("p", [Remove("a", "*")])
    with pytest.raises(Conflict):
        await table.transact("p", [Remove("a", old if etag == "old" else etag)])


async def columns_of(table: Table, row: str) -> dict[str, Value] | None:
    entity = await table.get("p", row)
    return dict(entity.columns) if entity else None


# ---------------------------------------------------------------------------------------------- transactions


async def test_etags_come_back_in_the_order_of_the_operations(table: CountedTable) -> None:
    a, b, c = await table.transact("p", [Insert(row, {"old": row}) for row in "abc"])
    etags = await table.transact(
        "p",
        [Upsert("z", {"new": "z"}), Remove("a", a), Replace("c", {"new": "c"}, c), Insert("d", {"new": "d"}), Remove("b", b)],
    )
    assert (etags[1], etags[4]) == ("", "")
    assert {entity.row: entity.etag for entity in await table.read("p")} == {"z": etags[0], "c": etags[2], "d": etags[3]}


@pytest.mark.parametrize("position", [0, 2, 4])
@pytest.mark.parametrize(
    "failing",
    [
        Insert("there", {}),
        Replace("there", {}, 'W/"0"'),
        Replace("gone", {}, 'W/"0"'),
        Remove("gone", "*"),
        Remove("there", 'W/"0"'),
    ],
    ids=["insert", "replace", "replace gone", "remove gone", "remove"],
)
async def test_one_failing_operation_undoes_all(table: CountedTable, failing: Operation, position: int) -> None:
    a, b, *_ = await table.transact("p", [Insert(row, {"x": row}) for row in ("a", "b", "c", "there")])
    before = await table.read("p")
    operations: list[Operation] = [Insert("new", {}), Replace("a", {}, a), Upsert("c", {"x": 9}), Remove("b", b)]
    operations.insert(position, failing)
    with pytest.raises(Conflict):
        await table.transact("p", operations)
    assert await table.read("p") == before
    operations.remove(failing)
    await table.transact("p", operations)  # nothing of the failed one stands in its way


async def test_a_hundred_rows_change_in_one_transaction(table: CountedTable) -> None:
    first = await table.transact("p", [Insert(f"{n:03}", {"n": n}) for n in range(100)])
    second = await table.transact("p", [Replace(f"{n:03}", {"n": -n}, etag) for n, etag in enumerate(first)])
    assert [(entity.columns["n"], entity.etag) for entity in await table.read("p")] == [(-n, etag) for n, etag in enumerate(second)]


@pytest.mark.parametrize(
    "operations",
    [
        [],
        [Insert(f"{n}", {}) for n in range(101)],
        [Insert("a", {}), Upsert("a", {})],
        [Insert("a/b", {})],
        [Insert("a\\b", {})],
        [Insert("a#b", {})],
        [Insert("a?b", {})],
        [Insert("a\nb", {})],
        [Insert("a\x7fb", {})],
        [Replace("a", {}, "")],
        [Remove("a", "")],
        [Insert("a", {"at": datetime(2026, 1, 1)})],  # noqa: DTZ001
    ],
    ids=lambda operations: f"{len(operations)} {operations[:1]}",
)
async def test_what_no_table_would_take_is_a_defect_of_the_caller(table: CountedTable, operations: list[Operation]) -> None:
    with pytest.raises(ValueError):
        await table.transact("p", operations)
    assert table.operations == 0


async def test_of_concurrent_transactions_on_one_etag_exactly_one_wins(table: CountedTable) -> None:
    for _ in range(5):
        (head,) = await table.transact("p", [Upsert("pool", {"revision": 0})])

        async def commit(worker: int, head: str = head) -> str:
            rows = [Upsert(f"runner:{worker}:{n}", {"worker": worker}) for n in range(10)]
            return (await table.transact("p", [*rows, Replace("pool", {"revision": 1, "worker": worker}, head)]))[-1]

        results = await asyncio.gather(*(commit(worker) for worker in range(8)), return_exceptions=True)
        winners = [worker for worker, result in enumerate(results) if isinstance(result, str)]
        assert [type(result) for result in results if not isinstance(result, str)] == [Conflict] * 7
        pool = await table.get("p", "pool")
        assert pool == Entity("p", "pool", {"revision": 1, "worker": winners[0]}, str(results[winners[0]]))
        made = await table.read("p", prefix="runner:")
        assert {entity.columns["worker"] for entity in made} == set(winners)
        await table.transact("p", [Remove(entity.row, entity.etag) for entity in made])


async def test_of_concurrent_inserts_of_one_row_exactly_one_wins(table: CountedTable) -> None:
    results = await asyncio.gather(*(table.transact("p", [Insert("a", {"n": n})]) for n in range(8)), return_exceptions=True)
    (winner,) = (n for n, result in enumerate(results) if isinstance(result, list))
    assert await columns_of(table, "a") == {"n": winner}
    assert sum(isinstance(result, Conflict) for result in results) == 7


async def test_concurrent_transactions_on_different_rows_all_succeed(table: CountedTable) -> None:
    await asyncio.gather(*(table.transact("p", [Insert(f"{n}:{m}", {}) for m in range(20)]) for n in range(16)))
    assert len(await table.read("p")) == 320


# ---------------------------------------------------------------------------------------------- values

PLUS_9 = timezone(timedelta(hours=9))


@pytest.mark.parametrize(
    "value",
    [
        "",
        "text",
        " leading and trailing ",
        'quotes " and \\ and \n lines',
        "Grüße 名前 🚀",
        "x" * 30_000,
        "2026-11-23T18:00:00.123456+00:00",
        "2026-11-23T18:00:00Z",
        "true",
        "1",
        True,
        False,
        0,
        -1,
        2**31 - 1,
        2**31,
        -(2**31) - 1,
        2**53 + 1,
        2**63 - 1,
        -(2**63),
        0.0,
        1.5,
        90.0,
        -1e300,
        datetime(2026, 11, 23, 18, 0, 0, 123456, tzinfo=UTC),
        datetime(2026, 11, 23, 18, 0, 0, 1, tzinfo=UTC),
        datetime(2026, 11, 23, 18, 0, 0, tzinfo=UTC),
        datetime(2026, 11, 24, 3, 0, 0, 5, tzinfo=PLUS_9),
    ],
    ids=lambda value: f"{value!r:.40}",
)
async def test_a_value_comes_back_as_it_went_in(table: CountedTable, value: Value) -> None:
    await table.transact("p", [Insert("a", {"value": value}), Upsert("b", {"value": value})])
    for row in "ab":
        columns = await columns_of(table, row)
        assert columns == {"value": value}
        back = columns["value"]
        assert isinstance(back, type(value))
        assert isinstance(back, bool) == isinstance(value, bool)


async def test_a_column_of_none_is_left_out(table: CountedTable) -> None:
    await table.transact("p", [Insert("a", {"here": 1, "absent": None})])  # type: ignore[dict-item]
    assert await columns_of(table, "a") == {"here": 1}


# ---------------------------------------------------------------------------------------------- the ledger's rows


async def test_the_ledgers_rows_come_back_as_they_went_in(table: CountedTable) -> None:
    facts, jobs, runners = [FACT, SMALL_FACT], [JOB, SMALL_JOB], [RUNNER, SMALL_RUNNER]
    await table.transact(
        "linux-x64",
        [
            Insert(rows.HEAD_KEY, rows.head_to_columns(HEAD)),
            *(Insert(rows.fact_key(fact.job_id, fact.delivery), rows.fact_to_columns(fact)) for fact in facts),
            *(Insert(rows.job_key(job.job_id), rows.job_to_columns(job)) for job in jobs),
            *(Insert(rows.runner_key(runner.name), rows.runner_to_columns(runner)) for runner in runners),
        ],
    )
    entities = await table.read("linux-x64")
    snapshot, unreadable = rows.snapshot(entities, "linux-x64")
    assert unreadable == []
    assert snapshot.head == HEAD
    assert snapshot.facts == {rows.fact_key(fact.job_id, fact.delivery): fact for fact in facts}
    assert snapshot.jobs == {job.job_id: job for job in jobs}
    assert snapshot.runners == {runner.name: runner for runner in runners}
    etags = {entity.row: entity.etag for entity in entities}
    assert snapshot.head.etag == etags["pool"]
    assert all(job.etag == etags[rows.job_key(job.job_id)] for job in snapshot.jobs.values())
    assert all(runner.etag == etags[rows.runner_key(runner.name)] for runner in snapshot.runners.values())
