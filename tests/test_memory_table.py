"""The hooks through which a simulation lets the stand-in misbehave. What it promises as a table is in test_table_contract.py."""

from __future__ import annotations

import asyncio

import pytest

from runnerpool.errors import Conflict, RetryLater
from runnerpool.ports import Insert, Replace, Upsert
from tests.memory_table import MemoryTable, Request


async def lose(_request: Request) -> None:
    raise RetryLater("no answer", uncertain=True)


async def test_a_request_lost_on_its_way_changes_nothing() -> None:
    table = MemoryTable(before=lose)
    with pytest.raises(RetryLater):
        await table.transact("p", [Insert("a", {})])
    assert table.everything() == []
    assert table.operations == 1


async def test_a_request_whose_answer_is_lost_was_carried_out() -> None:
    table = MemoryTable(after=lose)
    with pytest.raises(RetryLater):
        await table.transact("p", [Insert("a", {"x": 1})])
    (entity,) = table.everything()
    assert (entity.row, entity.columns) == ("a", {"x": 1})


async def test_what_happens_while_a_transaction_is_on_its_way_counts_before_it() -> None:
    table = MemoryTable()
    (etag,) = await table.transact("p", [Insert("a", {})])
    arriving, go = asyncio.Event(), asyncio.Event()

    async def wait(_request: Request) -> None:
        table.before = MemoryTable().before
        arriving.set()
        await go.wait()

    table.before = wait
    slow = asyncio.create_task(table.transact("p", [Replace("a", {"by": "slow"}, etag)]))
    await arriving.wait()
    await table.transact("p", [Replace("a", {"by": "fast"}, etag)])
    go.set()
    with pytest.raises(Conflict):
        await slow
    assert [entity.columns for entity in table.everything()] == [{"by": "fast"}]


async def test_a_long_read_is_one_request_a_page_and_no_snapshot() -> None:
    table = MemoryTable(page_rows=2)
    await table.transact("p", [Insert(row, {}) for row in "abde"])

    async def write_between_pages(request: Request) -> None:
        if request.kind == "read":
            table.after = MemoryTable().after
            await table.transact("p", [Upsert("aa", {}), Upsert("c", {})])

    table.after = write_between_pages
    before = table.operations
    assert [entity.row for entity in await table.read("p")] == ["a", "b", "c", "d", "e"]
    assert table.operations - before == 3 + 1


async def test_a_hook_sees_what_is_asked_for() -> None:
    seen: list[Request] = []

    async def note(request: Request) -> None:
        seen.append(request)

    table = MemoryTable(before=note)
    await table.read("p", prefix="job:")
    await table.get("p", "pool")
    await table.transact("p", [Upsert("pool", {})])
    assert seen == [
        Request("read", "p", "job:"),
        Request("get", "p", "pool"),
        Request("transact", "p", operations=(Upsert("pool", {}),)),
    ]


async def test_the_same_calls_give_the_same_etags() -> None:
    async def etags() -> list[str]:
        table = MemoryTable()
        return [etag for row in "abc" for etag in await table.transact("p", [Upsert(row, {}), Upsert("pool", {})])]

    assert await etags() == await etags()
    assert len(set(await etags())) == 6


async def test_a_row_cannot_be_changed_through_what_was_written_or_read() -> None:
    table = MemoryTable()
    columns = {"x": 1}
    await table.transact("p", [Insert("a", columns)])
    columns["x"] = 2
    entity = await table.get("p", "a")
    assert entity is not None
    with pytest.raises(TypeError):
        entity.columns["x"] = 3  # type: ignore[index]
    assert await table.get("p", "a") == entity
    assert entity.columns == {"x": 1}
