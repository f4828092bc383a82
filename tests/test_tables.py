"""How Table Storage's refusals and silences reach the rest of the house: each one translated once, nothing tried again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import Any
from unittest.mock import AsyncMock, Mock

import pytest
from aiohttp import web
from azure.core.exceptions import ClientAuthenticationError
from azure.identity import CredentialUnavailableError

from runnerpool.errors import Misconfigured, PoolError, RetryLater
from runnerpool.ports import Insert
from runnerpool.settings import StorageConnection
from runnerpool.tables import AzureTable

KEY = "c2VjcmV0LWtleS1vZi10aGUtYWNjb3VudA=="
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]
Call = Callable[[AzureTable], Awaitable[Any]]

CALLS: dict[str, Call] = {
    "read": lambda table: table.read("p"),
    "get": lambda table: table.get("p", "row"),
    "transact": lambda table: table.transact("p", [Insert("row", {"x": 1})]),
    "create": lambda table: table.create_if_missing(),
}


def table_at(port: int, *, seconds: float = 20.0) -> AzureTable:
    endpoint = f"http://127.0.0.1:{port}/account"
    connection = f"DefaultEndpointsProtocol=http;AccountName=account;AccountKey={KEY};TableEndpoint={endpoint};"
    storage = StorageConnection(connection_string=connection)
    return AzureTable(storage=storage, name="runnerpool", timeout=timedelta(seconds=seconds))


class Service:
    """A table service that answers as it is told, and counts."""

    def __init__(self) -> None:
        self.answer: Answer | None = None
        self.requests = 0
        self.port = 0

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests += 1
        await request.read()
        assert self.answer is not None
        return await self.answer(request)

    def refuses(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        body = (
            {"odata.error": {"code": code, "message": {"lang": "en-US", "value": "What went wrong.\nRequestId:1"}}} if code else {}
        )

        async def answer(_request: web.Request) -> web.StreamResponse:
            return web.Response(status=status, text=json.dumps(body), headers=headers, content_type="application/json")

        self.answer = answer


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    service = Service()
    app = web.Application()
    app.router.add_route("*", "/{anything:.*}", service.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    service.port = runner.addresses[0][1]
    yield service
    await runner.cleanup()


async def trouble(table: AzureTable, call: str) -> PoolError:
    try:
        with pytest.raises(PoolError) as caught:
            await CALLS[call](table)
    finally:
        await table.close()
    assert KEY not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("status", "code", "applied"),
    [
        (429, "", False),
        (503, "ServerBusy", False),
        (503, "", True),  # a gateway on the way may answer so after the service has acted
        (500, "OperationTimedOut", True),
        (500, "InternalError", True),
        (502, "", True),
        (408, "", True),
        (409, "TableBeingDeleted", False),
    ],
)
async def test_throttling_and_failures_are_for_later_and_only_a_write_may_have_been_applied(
    service: Service, call: str, status: int, code: str, applied: bool
) -> None:
    service.refuses(status, code, {"Retry-After": "7"})
    table = table_at(service.port)
    error = await trouble(table, call)
    assert isinstance(error, RetryLater)
    assert error.after == timedelta(seconds=7)
    assert error.uncertain == (applied and call in ("transact", "create"))
    assert service.requests == table.operations == 1


@pytest.mark.parametrize("call", ["read", "transact"])
async def test_a_service_that_names_no_time_leaves_it_open(service: Service, call: str) -> None:
    service.refuses(503, "ServerBusy")
    error = await trouble(table_at(service.port), call)
    assert isinstance(error, RetryLater)
    assert error.after is None


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("status", "code", "area"),
    [
        (403, "AuthenticationFailed", "auth"),
        (403, "AuthorizationPermissionMismatch", "auth"),
        (401, "InvalidAuthenticationInfo", "auth"),
        (404, "TableNotFound", "setup"),
        (400, "PropertyValueTooLarge", "setup"),
        (413, "RequestBodyTooLarge", "setup"),
    ],
)
async def test_what_a_person_must_change_is_named_with_the_services_code(
    service: Service, call: str, status: int, code: str, area: str
) -> None:
    service.refuses(status, code)
    error = await trouble(table_at(service.port), call)
    assert isinstance(error, Misconfigured)
    assert error.area == area
    assert code in str(error)
    assert "RequestId" not in str(error)
    assert service.requests == 1


@pytest.mark.parametrize("call", CALLS)
async def test_a_hanging_service_costs_the_timeout_and_a_write_is_uncertain(service: Service, call: str) -> None:
    released = asyncio.Event()

    async def hang(_request: web.Request) -> web.StreamResponse:
        await released.wait()
        return web.Response(status=500)

    service.answer = hang
    error = await trouble(table_at(service.port, seconds=0.2), call)
    released.set()
    assert isinstance(error, RetryLater)
    assert error.uncertain == (call in ("transact", "create"))


@pytest.mark.parametrize("call", CALLS)
async def test_where_nobody_listens_nothing_was_applied(call: str) -> None:
    server = await asyncio.start_server(lambda _reader, _writer: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    error = await trouble(table_at(port), call)
    assert isinstance(error, RetryLater)
    assert not error.uncertain


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 202 Accepted\r\nContent-Type: multipart/mixed; boundary=b\r\nContent-Length: 999\r\n\r\n--b\r\n"]
)
async def test_a_write_whose_answer_broke_off_is_uncertain(call: str, answer: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        error = await trouble(table_at(server.sockets[0].getsockname()[1]), call)
    assert isinstance(error, RetryLater)
    assert error.uncertain == (call in ("transact", "create"))


@pytest.mark.parametrize("call", ["read", "get", "transact"])
async def test_an_answer_that_is_not_the_services_is_for_later(service: Service, call: str) -> None:
    async def page(_request: web.Request) -> web.StreamResponse:
        return web.Response(text="<html>Sign in to the network</html>", content_type="application/json")

    service.answer = page
    error = await trouble(table_at(service.port), call)
    assert isinstance(error, RetryLater)
    assert error.uncertain == (call == "transact")


async def test_a_partition_of_which_a_later_page_fails_is_not_half_read(service: Service) -> None:
    async def first_page_then_failure(request: web.Request) -> web.StreamResponse:
        if "NextRowKey" in request.query:
            return web.Response(status=500)
        row = {"PartitionKey": "p", "RowKey": "a", "odata.etag": 'W/"1"'}
        headers = {"x-ms-continuation-NextPartitionKey": "p", "x-ms-continuation-NextRowKey": "b"}
        return web.json_response({"value": [row]}, headers=headers)

    service.answer = first_page_then_failure
    error = await trouble(table_at(service.port), "read")
    assert isinstance(error, RetryLater)
    assert service.requests == 2


def token_service_answer(status: int) -> Mock:
    return Mock(status_code=status, headers={}, content_type="application/json", text=lambda _encoding=None: '{"error": "x"}')


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("refusal", "expected"),
    [
        (CredentialUnavailableError("no managed identity here"), Misconfigured),
        (ClientAuthenticationError("invalid client secret", response=token_service_answer(401)), Misconfigured),
        (ClientAuthenticationError("invalid client secret", response=token_service_answer(400)), Misconfigured),
        (ClientAuthenticationError("try again", response=token_service_answer(503)), RetryLater),
    ],
    ids=["none", "401", "400", "503"],
)
async def test_a_credential_that_gives_no_token_is_a_matter_of_auth(
    call: str, refusal: Exception, expected: type[PoolError]
) -> None:
    credential = Mock(get_token=AsyncMock(side_effect=refusal), spec=["get_token"])
    storage = StorageConnection(table_uri="https://account.table.core.windows.net")
    error = await trouble(AzureTable(storage=storage, name="runnerpool", credential=credential), call)
    assert isinstance(error, expected)
    assert not isinstance(error, Misconfigured) or error.area == "auth"


async def test_creating_a_table_that_exists_is_fine(service: Service) -> None:
    service.refuses(409, "TableAlreadyExists")
    table = table_at(service.port)
    await table.create_if_missing()
    await table.close()
