"""One invocation: what a trigger brings becomes an `azure.functions` object, and what the function leaves in its outputs is stored.

The conversions are the library's own, the ones that Azure's Python worker uses.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import inspect
import json
import re
from collections.abc import Mapping
from contextlib import AsyncExitStack
from datetime import datetime
from typing import Any

import azure.functions as func
from azure.core.exceptions import ResourceExistsError, ResourceNotFoundError
from azure.data.tables.aio import TableServiceClient
from azure.functions.meta import Datum
from azure.storage.queue.aio import QueueClient

from sandbox.host_app import Function, HostSettings

_CONVERTERS: Any = func.get_binding_registry()  # type: ignore[no-untyped-call]
_ISO_DATE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)?")


RETRIES_OF_TABLES: dict[str, Any] = {"retry_total": 3, "retry_backoff_factor": 0.2}
RETRIES_OF_QUEUES: dict[str, Any] = {"retry_total": 3, "initial_backoff": 0, "increment_base": 1, "random_jitter_range": 1}
"""Three more attempts within seconds, as the real bindings have them: a kept connection may turn out to be closed."""


class Out(func.Out[Any]):
    """An output parameter; what is set last is what is stored, and nothing set stores nothing."""

    def __init__(self) -> None:
        self._value: Any = None

    def set(self, val: Any) -> None:
        self._value = val

    def get(self) -> Any:
        return self._value


class Storage:
    """The storage accounts that bindings name by an app setting, and the clients of their tables and queues."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._tables: dict[str, TableServiceClient] = {}
        self._queues: dict[tuple[str, str], QueueClient] = {}
        self._opened = AsyncExitStack()

    async def __aenter__(self) -> Storage:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._opened.aclose()

    async def queue(self, connection: str, name: str) -> QueueClient:
        if (connection, name) not in self._queues:
            client = QueueClient.from_connection_string(self._connection_string(connection), name, **RETRIES_OF_QUEUES)
            self._queues[connection, name] = await self._opened.enter_async_context(client)
        return self._queues[connection, name]

    async def tables(self, connection: str) -> TableServiceClient:
        if connection not in self._tables:
            client = TableServiceClient.from_connection_string(self._connection_string(connection), **RETRIES_OF_TABLES)
            self._tables[connection] = await self._opened.enter_async_context(client)
        return self._tables[connection]

    def _connection_string(self, connection: str) -> str:
        value = self._environment.get(connection)
        if not value:
            raise RuntimeError(f"the app setting {connection} is not set (this host knows connection strings only)")
        return value


async def invoke(function: Function, argument: object, *, storage: Storage, settings: HostSettings, timeout: float) -> Any:
    """Runs the function within `timeout` seconds, then stores its outputs, then returns what it returned.

    Raises whatever the function raises, TimeoutError, and whatever storage raises: all three are a failed invocation.
    """
    outs = {binding["name"]: Out() for binding in function.outputs if binding["name"] != "$return"}
    arguments = {function.trigger["name"]: argument, **outs}
    async with asyncio.timeout(timeout):
        if inspect.iscoroutinefunction(function.call):
            result = await function.call(**arguments)
        else:
            result = await asyncio.to_thread(function.call, **arguments)
        for binding in function.outputs:
            if binding["name"] in outs and (value := outs[binding["name"]].get()) is not None:
                await _store(binding, value, storage=storage, base64_queues=settings.queues.base64)
    return result


async def _store(binding: Mapping[str, Any], value: Any, *, storage: Storage, base64_queues: bool) -> None:
    text = value.decode() if isinstance(value, bytes) else value
    if not isinstance(text, str):
        raise TypeError(f"output {binding['name']} was given a {type(value).__name__}; the worker takes str or bytes")
    if binding["type"] == "queue":
        queue = await storage.queue(binding["connection"], binding["queueName"])
        await send(queue, base64.b64encode(text.encode()).decode() if base64_queues else text)
    else:
        await _insert(await storage.tables(binding["connection"]), binding["tableName"], json.loads(text))


async def send(queue: QueueClient, content: str) -> None:
    """Puts a message, as it stands, into a queue that is created if need be."""
    try:
        await queue.send_message(content)
    except ResourceNotFoundError:
        with contextlib.suppress(ResourceExistsError):  # another invocation was quicker
            await queue.create_queue()
        await queue.send_message(content)


async def _insert(tables: TableServiceClient, name: str, document: Any) -> None:
    """Inserts the row or rows: a key that exists is an error, as the real binding has it. Creates the table if need be."""
    table = tables.get_table_client(name)
    for row in document if isinstance(document, list) else [document]:
        entity = table_entity(row)
        try:
            await table.create_entity(entity)
        except ResourceNotFoundError:
            await tables.create_table_if_not_exists(name)
            await table.create_entity(entity)


def table_entity(row: Mapping[str, Any]) -> dict[str, Any]:
    """The entity that the real binding makes of a JSON object: keys named in any case, and what looks like a date becomes one."""
    names = {"partitionkey": "PartitionKey", "rowkey": "RowKey"}
    entity = {}
    for name, value in row.items():
        if isinstance(value, dict | list):
            raise TypeError(f"column {name}: the table binding stores text, numbers and booleans only")
        dated = isinstance(value, str) and _ISO_DATE.fullmatch(value) is not None
        entity[names.get(name.lower(), name)] = datetime.fromisoformat(value) if dated else value
    return entity


def http_request(
    *, method: str, url: str, headers: Mapping[str, str], query: Mapping[str, str], route: Mapping[str, str], body: bytes
) -> Any:
    """An `azure.functions.HttpRequest`."""
    return _decode(
        "httpTrigger",
        Datum(
            type="http",
            value={
                "method": _text(method),
                "url": _text(url),
                "headers": {name: _text(value) for name, value in headers.items()},
                "query": {name: _text(value) for name, value in query.items()},
                "params": {name: _text(value) for name, value in route.items()},
                "body": Datum(type="bytes", value=body),
            },
        ),
        {},
    )


def http_response(result: Any) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of what an HTTP function returned: a response or text. Raises NotImplementedError otherwise."""
    datum = _CONVERTERS.get("http").encode(result, expected_type=None)
    if datum.type == "string":
        return 200, {"Content-Type": "text/plain; charset=utf-8"}, datum.value.encode()
    headers = {name: value.value for name, value in datum.value["headers"].items()}
    return int(datum.value["status_code"].value), headers, datum.value["body"].value


def queue_message(
    *, body: bytes, message_id: str, dequeue_count: int, pop_receipt: str, inserted: datetime | None, expires: datetime | None
) -> Any:
    """An `azure.functions.QueueMessage`. The body is the message's content after base64."""
    metadata = {
        "Id": _text(message_id),
        "DequeueCount": _text(str(dequeue_count)),
        "PopReceipt": _text(pop_receipt),
    }
    for name, moment in (("InsertionTime", inserted), ("ExpirationTime", expires)):
        if moment is not None:
            metadata[name] = _text(moment.isoformat())
    return _decode("queueTrigger", Datum(type="bytes", value=body), metadata)


def timer_request(*, past_due: bool) -> Any:
    """An `azure.functions.TimerRequest`. Schedules shorter than a minute have no status in the real host either."""
    information = {"IsPastDue": past_due, "ScheduleStatus": None, "Schedule": {"AdjustForDST": True}}
    return _decode("timerTrigger", Datum(type="json", value=json.dumps(information)), {})


def _decode(binding: str, datum: Datum, metadata: Mapping[str, Datum]) -> Any:
    return _CONVERTERS.get(binding).decode(datum, trigger_metadata=metadata)


def _text(value: str) -> Datum:
    return Datum(type="string", value=value)
