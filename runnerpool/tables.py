"""Table Storage: the port `Table` on azure-data-tables.

Every write is a batch (an entity group transaction), also a write of one row: it costs the same one request, errors have one
shape, and the SDK's own `delete_entity` would take a row that is gone for one that it deleted.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import aiohttp
from azure.core import MatchConditions
from azure.core.credentials_async import AsyncTokenCredential
from azure.core.exceptions import AzureError, ClientAuthenticationError, HttpResponseError, ServiceRequestTimeoutError
from azure.data.tables import EdmType, EntityProperty, TableEntity, UpdateMode
from azure.data.tables.aio import TableClient

from runnerpool.errors import Conflict, Gone, Misconfigured, PoolError, RetryLater
from runnerpool.ports import Entity, Insert, Operation, Remove, Replace, Upsert, Value
from runnerpool.settings import StorageConnection

MOST_OPERATIONS = 100
"""Table Storage's limit for one transaction."""

CONNECT_SECONDS = 5.0

T = TypeVar("T")


class AzureTable:
    """One table. Raises what `ports.Table` says, and ValueError for what Table Storage would never take.

    `operations` counts the requests sent: what Azure bills, a transaction as one.
    """

    def __init__(
        self,
        *,
        storage: StorageConnection,
        name: str,
        credential: AsyncTokenCredential | None = None,
        timeout: timedelta = timedelta(seconds=20),
    ) -> None:
        """`credential` is for a connection by identity; it stays the caller's to close. `timeout` bounds one request, or one
        page of up to 1,000 rows; the service itself answers a query within 5 s."""
        self.name = name
        self.operations = 0
        self._timeout = timeout
        options: dict[str, Any] = {"retry_total": 0, "connection_timeout": CONNECT_SECONDS, "raw_request_hook": self._count}
        if storage.connection_string:
            self._client = TableClient.from_connection_string(storage.connection_string, name, **options)
        else:
            self._client = TableClient(storage.table_uri, name, credential=credential, **options)

    async def create_if_missing(self) -> None:
        """Creates the table unless it exists. Before anything else, once."""
        with contextlib.suppress(Conflict):
            await self._send(self._client.create_table(), write=True)

    async def exists(self) -> bool:
        """Whether the table is there; nothing is made."""
        try:
            async for _ in self._client.query_entities("PartitionKey eq ''", results_per_page=1).by_page():
                break
        except HttpResponseError as error:
            if getattr(error, "error_code", None) == "TableNotFound":
                return False
            raise _translated(error, self.name, write=False) from error
        except AzureError as error:
            raise _translated(error, self.name, write=False) from error
        return True

    async def read(self, partition: str, *, prefix: str = "") -> list[Entity]:
        query = f"PartitionKey eq {_quoted(partition)}"
        if prefix:
            # Keys are in the order of their characters: those with a prefix end where its last character is raised by one.
            end = prefix[:-1] + chr(ord(prefix[-1]) + 1)
            query += f" and RowKey ge {_quoted(prefix)} and RowKey lt {_quoted(end)}"
        entities: list[Entity] = []
        pages = self._client.query_entities(query).by_page()
        while (page := await self._send(anext(pages, None), write=False)) is not None:
            entities += [_entity(row) async for row in page]
        return entities

    async def get(self, partition: str, row: str) -> Entity | None:
        # The `Date` that the service generates: learn.microsoft.com/javascript/api/@azure/data-tables/tableinsertentityheaders
        dates: list[str] = []

        def keep_date(response: Any) -> None:
            dates.append(response.http_response.headers.get("Date", ""))

        call = self._client.get_entity(partition, row, raw_response_hook=keep_date)
        try:
            entity = _entity(await self._send(call, write=False))
        except Gone:
            return None
        return replace(entity, read_at=answered_at(dates[-1] if dates else ""))

    async def transact(self, partition: str, operations: Sequence[Operation]) -> list[str]:
        _check(partition, operations)
        batch = [_batched(partition, operation) for operation in operations]
        try:
            answers = await self._send(self._client.submit_transaction(batch), write=True)
        except Gone as error:
            raise Conflict(str(error)) from error
        return [answer.get("etag", "") for answer in answers]

    async def close(self) -> None:
        await self._client.close()

    def _count(self, _request: object) -> None:
        self.operations += 1

    async def _send(self, call: Awaitable[T], *, write: bool) -> T:
        try:
            async with asyncio.timeout(self._timeout.total_seconds()):
                return await call
        except TimeoutError as error:
            raise RetryLater(f"table {self.name}: no answer in {self._timeout.total_seconds():g} s", uncertain=write) from error
        except AzureError as error:
            raise _translated(error, self.name, write=write) from error


# ---------------------------------------------------------------------------------------------- what goes out


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


_FORBIDDEN = re.compile(r"[/\\#?\x00-\x1f\x7f-\x9f]")


def _check(partition: str, operations: Sequence[Operation]) -> None:
    rows = [operation.row for operation in operations]
    if not 1 <= len(rows) <= MOST_OPERATIONS:
        raise ValueError(f"a transaction takes 1 to {MOST_OPERATIONS} operations, not {len(rows)}")
    if len(set(rows)) < len(rows):
        raise ValueError("a transaction takes one operation a row")
    for key in (partition, *rows):
        if _FORBIDDEN.search(key):
            raise ValueError(f"not a key of Table Storage: {key!r}")


def _batched(partition: str, operation: Operation) -> tuple[str, dict[str, Any], dict[str, Any]]:
    keys = {"PartitionKey": partition, "RowKey": operation.row}
    match operation:
        case Insert(columns=columns):
            return "create", {**_columns(columns), **keys}, {"response_preference": "return-no-content"}
        case Upsert(columns=columns):
            return "upsert", {**_columns(columns), **keys}, {"mode": UpdateMode.REPLACE}
        case Replace(columns=columns, etag=etag):
            return "update", {**_columns(columns), **keys}, {"mode": UpdateMode.REPLACE, **_if(etag)}
        case Remove(etag=etag):
            return "delete", keys, _if(etag)


def _if(etag: str) -> dict[str, Any]:
    if not etag:
        raise ValueError("this operation needs the ETag of the row")
    if etag == "*":
        return {"match_condition": MatchConditions.Unconditionally}  # the SDK's word for If-Match: *
    return {"etag": etag, "match_condition": MatchConditions.IfNotModified}


def _columns(columns: Mapping[str, Value]) -> dict[str, Any]:
    """Every integer as Int64, so that a column is of one type whatever its value; the service keeps no None."""
    out: dict[str, Any] = {}
    for name, value in columns.items():
        if isinstance(value, datetime) and value.tzinfo is None:
            raise ValueError(f"column {name}: {value} has no offset from UTC")
        if isinstance(value, int) and not isinstance(value, bool):
            out[name] = (value, EdmType.INT64)
        elif value is not None:
            out[name] = value
    return out


# ---------------------------------------------------------------------------------------------- what comes back


def _entity(row: TableEntity) -> Entity:
    partition, key = row.pop("PartitionKey"), row.pop("RowKey")
    columns = {name: value.value if isinstance(value, EntityProperty) else value for name, value in row.items()}
    return Entity(partition=partition, row=key, columns=columns, etag=row.metadata["etag"] or "")


def answered_at(date: str) -> datetime | None:
    """When the service answered, as the `Date` of its answer says; None where it says nothing. The sandbox hastens it, too."""
    try:
        return parsedate_to_datetime(date).astimezone(UTC)
    except ValueError:
        return None


_CONFLICTS = frozenset({"EntityAlreadyExists", "TableAlreadyExists", "UpdateConditionNotSatisfied", "ConditionNotMet"})
_ROW_GONE = frozenset({"EntityNotFound", "ResourceNotFound"})


def _translated(error: AzureError, table: str, *, write: bool) -> PoolError:
    """The SDK's exception in our words: the first line of what it says, which names neither keys nor signatures."""
    code = getattr(error, "error_code", None)
    code = str(getattr(code, "value", code) or "")
    text = f"table {table}: {code or type(error).__name__}: {(error.message or '').partition(chr(10))[0][:300]}"
    status = error.status_code or 0 if isinstance(error, HttpResponseError) else 0
    if code in _CONFLICTS:
        return Conflict(text)
    if code in _ROW_GONE:
        return Gone(text)
    # Below 400: no answer, or one that was not understood. 409: the table, or its account, is being created or deleted.
    passing = status < 400 or status in (408, 409, 429) or status >= 500
    # The SDK takes a refusal by the credential's own service for one of Table Storage, and keeps the former as the cause.
    by_credential = isinstance(error, ClientAuthenticationError) or isinstance(error.__cause__, ClientAuthenticationError)
    if status in (401, 403) or (by_credential and not (status and passing)):
        return Misconfigured(text, area="auth")
    if passing:
        refused = status in (409, 429) or code == "ServerBusy" or _never_sent(error)
        return RetryLater(text, after=_retry_after(error), uncertain=write and not refused)
    return Misconfigured(text, area="setup")


def _never_sent(error: AzureError) -> bool:
    """Whether no connection was made. The SDK's ServiceRequestError alone does not say so: its aiohttp transport raises it
    for a connection that broke after the request was written, too."""
    return isinstance(error, ServiceRequestTimeoutError) or isinstance(error.inner_exception, aiohttp.ClientConnectorError)


def _retry_after(error: AzureError) -> timedelta | None:
    seconds = getattr(getattr(error, "response", None), "headers", {}).get("Retry-After", "")
    return timedelta(seconds=int(seconds)) if seconds.isdecimal() else None
