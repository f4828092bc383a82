"""A wake-up's last attempt: the row that foretells its failure, and what becomes of it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from runnerpool.app import LAST_ATTEMPT, App
from runnerpool.errors import RetryLater
from runnerpool.ledger import Ledger
from runnerpool.ports import Remove
from tests.memory_table import MemoryTable, Request
from tests.sim.host import SETTINGS

BODY = b'{"pool": "linux", "job": "1"}'


class Planner:
    """Wakes a pool, or cannot."""

    def __init__(self, error: Exception | None) -> None:
        self._error = error

    async def wake(self, _pool: str, *, deadline: object) -> None:
        if self._error:
            raise self._error


class Table:
    """So many removals fail; with `applied` each is carried out all the same. `rest` is what the service asks for."""

    def __init__(self, failures: int, *, applied: bool, rest: timedelta = timedelta(0)) -> None:
        self._left = failures
        self._rest = rest
        self._applied = applied
        self.table = MemoryTable(before=self._before, after=self._after)

    async def _before(self, request: Request) -> None:
        if not self._applied:
            self._fail(request)

    async def _after(self, request: Request) -> None:
        if self._applied:
            self._fail(request)

    def _fail(self, request: Request) -> None:
        if self._left and any(isinstance(operation, Remove) for operation in request.operations):
            self._left -= 1
            raise RetryLater("storage does not answer", after=self._rest, uncertain=True)

    def rows(self) -> dict[str, Any]:
        return {entity.row: entity.columns["error"] for entity in self.table.everything()}


def app(table: Table, error: Exception | None = None) -> App:
    made = App(SETTINGS, None)  # type: ignore[arg-type]
    made._planner = Planner(error)  # type: ignore[assignment]
    made._ledger = Ledger(table=table.table, history=MemoryTable())
    return made


@pytest.mark.parametrize("applied", [True, False])
async def test_a_row_whose_removal_got_no_answer_is_removed_again(applied: bool) -> None:
    table = Table(1, applied=applied)
    await app(table).provision(BODY, "m1", LAST_ATTEMPT)
    assert table.rows() == {}


async def test_a_wake_up_that_went_well_has_not_failed_because_its_row_stays(caplog: pytest.LogCaptureFixture) -> None:
    table = Table(1, applied=False, rest=timedelta(hours=1))
    await app(table).provision(BODY, "m1", LAST_ATTEMPT)
    assert table.rows() == {"poison:m1": "its last attempt began, and its end was not seen"}
    assert "wake-up m1 went well at its last attempt, and its row poison:m1 could not be removed" in caplog.text


async def test_a_last_attempt_that_fails_leaves_its_error() -> None:
    table = Table(0, applied=False)
    with pytest.raises(RetryLater):
        await app(table, RetryLater("Azure answers 500")).provision(BODY, "m1", LAST_ATTEMPT)
    assert table.rows() == {"poison:m1": "RetryLater: Azure answers 500"}


async def test_an_earlier_attempt_leaves_no_row() -> None:
    table = Table(0, applied=False)
    with pytest.raises(RetryLater):
        await app(table, RetryLater("Azure answers 500")).provision(BODY, "m1", LAST_ATTEMPT - 1)
    assert table.rows() == {}
