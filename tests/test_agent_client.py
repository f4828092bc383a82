"""The client of the agents, against a server that answers whatever a job could make an agent answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Any

import pytest

from runnerpool import agent_client
from runnerpool.agent_client import HttpAgents, parse_status
from runnerpool.errors import Conflict, Misconfigured, RetryLater
from runnerpool.ports import AgentPhase, AgentStatus, AgentTrouble, JitConfig
from runnerpool.vm.token import agent_token

NAME = "hw-linux-a"
CONFIG = JitConfig(7, "c2VjcmV0")
STATUS: dict[str, Any] = {
    "name": NAME,
    "phase": "listening",
    "worker": False,
    "job_seen": False,
    "binding": 7,
    "exit_code": None,
    "runner_version": "2.330.0",
    "eviction_at": None,
    "log": ["one", "two"],
}


class Agent:
    """A server that answers every request with the bytes that `answer` makes of it, and keeps the requests."""

    def __init__(self, answer: Callable[[str], bytes]) -> None:
        self.answer = answer
        self.requests: list[str] = []
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = next((int(line.split(":")[1]) for line in head.lower().split("\r\n") if line.startswith("content-length")), 0)
        self.requests.append(head + (await reader.readexactly(length)).decode())
        writer.write(self.answer(self.requests[-1]))


Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(handler: Handler) -> AsyncIterator[int]:
    """The port of a server on loopback. Leaves when every connection is closed."""
    connections: set[asyncio.Task[None]] = set()

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        with suppress(ConnectionError):  # the client had enough
            await handler(reader, writer)
            writer.close()
            await writer.wait_closed()
        writer.close()

    server = await asyncio.start_server(converse, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]
        if connections:
            await asyncio.wait(connections)


@asynccontextmanager
async def serving(answer: Callable[[str], bytes]) -> AsyncIterator[Agent]:
    agent = Agent(answer)
    async with listening(agent.serve) as agent.port:
        yield agent


def http(code: int, content: object = None, *headers: str) -> bytes:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    lines = [f"HTTP/1.1 {code} X", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode() + body


def client(port: int, *, keys: Sequence[str] = ("new key",), prefixes: Sequence[str] = ("127.0.0.0/24",)) -> HttpAgents:
    async def subnet() -> Sequence[str]:
        return prefixes

    return HttpAgents(keys=keys, subnet_prefixes=subnet, port=port)


async def asked(answer: bytes) -> AgentStatus | AgentTrouble:
    async with serving(lambda _: answer) as agent, client(agent.port) as agents:
        return await agents.status(NAME, "127.0.0.1")


async def ordered(answer: bytes) -> AgentStatus:
    async with serving(lambda _: answer) as agent, client(agent.port) as agents:
        return await agents.start(NAME, "127.0.0.1", CONFIG)


async def test_a_status_is_read_with_the_machines_own_token() -> None:
    async with serving(lambda _: http(200, STATUS)) as agent, client(agent.port) as agents:
        status = await agents.status(NAME, "127.0.0.1")
    assert status == AgentStatus(AgentPhase.LISTENING, False, False, 7, None, "2.330.0", None, ("one", "two"))
    [request] = agent.requests
    assert request.startswith("GET /runner/status HTTP/1.1\r\n")
    assert f"authorization: bearer {agent_token('new key', NAME)}\r\n" in request.lower()


async def test_a_configuration_is_handed_over_in_the_body() -> None:
    async with serving(lambda _: http(200, STATUS)) as agent, client(agent.port) as agents:
        assert (await agents.start(NAME, "127.0.0.1", CONFIG)).binding == 7
    [request] = agent.requests
    assert json.loads(request.partition("\r\n\r\n")[2]) == {"runner_id": 7, "jit_config": "c2VjcmV0"}


@pytest.mark.parametrize("path", ["status", "start"])
async def test_the_previous_key_is_tried_where_the_current_one_is_refused(path: str) -> None:
    def picky(request: str) -> bytes:
        return http(200, STATUS) if agent_token("old key", NAME) in request else http(401, {"error": "no"})

    async with serving(picky) as agent, client(agent.port, keys=("new key", "old key")) as agents:
        if path == "start":
            assert (await agents.start(NAME, "127.0.0.1", CONFIG)).binding == 7
        else:
            assert isinstance(await agents.status(NAME, "127.0.0.1"), AgentStatus)
    assert len(agent.requests) == 2


async def test_a_refused_token_is_told_from_silence() -> None:
    assert await asked(http(401, {"error": "no"})) is AgentTrouble.REFUSED
    with pytest.raises(Misconfigured) as refused:
        await ordered(http(401, {"error": "no"}))
    assert refused.value.area == "auth"


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"garbage\r\n\r\n",
        http(500, {"error": "x"}),
        http(200, b"not json"),
        http(200, b"[" * 60_000),
        http(200, []),
        http(200, {}),
        http(200, {**STATUS, "name": "hw-linux-b"}),
        http(200, {**STATUS, "phase": "dancing"}),
        http(200, {**STATUS, "phase": ["listening"]}),
        http(200, {**STATUS, "worker": None}),
        http(200, {**STATUS, "worker": "false"}),
        http(200, {**STATUS, "job_seen": 0}),
        http(200, {**STATUS, "binding": "7"}),
        http(200, {**STATUS, "binding": True}),
        http(200, {**STATUS, "log": ["x" * agent_client.LARGEST_ANSWER]}),
        http(200, STATUS).replace(b"Content-Length: ", b"Content-Length: 9"),
        http(200, STATUS, "Content-Encoding: gzip").replace(b"{", b"\x1f"),
    ],
)
async def test_whatever_cannot_be_read_is_silence(answer: bytes) -> None:
    assert await asked(answer) is AgentTrouble.SILENT
    with pytest.raises(RetryLater):
        await ordered(answer)


async def test_a_redirect_is_not_followed_and_gets_no_token() -> None:
    async with serving(lambda _: http(200, STATUS)) as other:
        elsewhere = f"Location: http://127.0.0.1:{other.port}/runner/status"
        assert await asked(http(307, {}, elsewhere)) is AgentTrouble.SILENT
        with pytest.raises(RetryLater) as refused:
            await ordered(http(307, {}, elsewhere))
    assert refused.value.uncertain
    assert other.requests == []


@pytest.mark.parametrize(
    "address", ["10.0.0.4", "127.0.1.1", "127.0.0.1@10.0.0.4", "127.0.0.1/x", "localhost", "", "::1", "169.254.169.254"]
)
async def test_an_address_outside_the_subnet_is_refused_without_a_request(address: str) -> None:
    async with serving(lambda _: http(200, STATUS)) as agent, client(agent.port) as agents:
        assert await agents.status(NAME, address) is AgentTrouble.REFUSED
        with pytest.raises(Misconfigured) as refused:
            await agents.start(NAME, address, CONFIG)
    assert refused.value.area == "network"
    assert agent.requests == []


async def test_a_subnet_that_cannot_be_read_is_no_sign_of_a_silent_agent() -> None:
    calls = 0

    async def failing() -> Sequence[str]:
        nonlocal calls
        calls += 1
        raise RetryLater("Azure is away")

    async with (
        serving(lambda _: http(200, STATUS)) as agent,
        HttpAgents(keys=("k",), subnet_prefixes=failing, port=agent.port) as it,
    ):
        assert await it.status(NAME, "127.0.0.1") is AgentTrouble.REFUSED
        assert await it.status(NAME, "127.0.0.1") is AgentTrouble.REFUSED
        with pytest.raises(RetryLater):
            await it.start(NAME, "127.0.0.1", CONFIG)
    assert (agent.requests, calls) == ([], 1)  # one failure is not repeated for every VM


async def test_the_subnet_is_asked_for_once_and_its_old_ranges_serve_while_azure_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    async def once() -> Sequence[str]:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise RetryLater("Azure is away")
        return ["127.0.0.0/24", "fd00::/64"]

    async with serving(lambda _: http(200, STATUS)) as agent, HttpAgents(keys=("k",), subnet_prefixes=once, port=agent.port) as it:
        await asyncio.gather(*(it.status(NAME, "127.0.0.1") for _ in range(5)))
        assert calls == 1
        monkeypatch.setattr(it, "_ask_again_at", 0.0)
        assert isinstance(await it.status(NAME, "127.0.0.1"), AgentStatus)
    assert calls == 2


async def test_another_binding_is_a_conflict() -> None:
    with pytest.raises(Conflict):
        await ordered(http(409, {**STATUS, "binding": 8}))


@pytest.mark.parametrize(
    ("answer", "uncertain"),
    [
        (http(503, {"error": "set-up"}), False),
        (http(400, {"error": "x"}), False),
        (http(200, {**STATUS, "binding": 8}), True),
        (http(204, b""), True),
        (b"", True),
    ],
)
async def test_what_is_not_a_success_says_whether_the_configuration_may_have_been_taken(answer: bytes, uncertain: bool) -> None:
    with pytest.raises(RetryLater) as refused:
        await ordered(answer)
    assert refused.value.uncertain is uncertain
    assert "c2VjcmV0" not in str(refused.value)


async def test_an_agent_that_nobody_runs_is_silent() -> None:
    async with serving(lambda _: b"") as agent:
        port = agent.port
    async with client(port) as agents:
        assert await agents.status(NAME, "127.0.0.1") is AgentTrouble.SILENT
        with pytest.raises(RetryLater) as refused:
            await agents.start(NAME, "127.0.0.1", CONFIG)
    assert refused.value.uncertain


async def test_a_slow_agent_costs_its_own_time_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_client, "TIMEOUT", 0.5)
    held = asyncio.Event()

    async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while not held.is_set():  # each byte comes in time, the whole never does
            writer.write(b" ")
            await asyncio.sleep(0.05)

    async with listening(trickle) as port, client(port) as agents, asyncio.timeout(30):
        answers = await asyncio.gather(*(agents.status(NAME, "127.0.0.1") for _ in range(100)))
        held.set()
    assert set(answers) == {AgentTrouble.SILENT}


@pytest.mark.parametrize(
    ("field", "value", "read"),
    [
        ("exit_code", 0, 0),
        ("exit_code", "0", None),
        ("runner_version", 2, ""),
        ("runner_version", "v" * 100, "v" * 50),
        ("eviction_at", "2026-01-02T03:04:05.678Z", datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)),
        ("eviction_at", "2026-01-02T03:04:05", None),
        ("eviction_at", "soon", None),
        ("eviction_at", 5, None),
        ("log", "text", ()),
        ("log", ["a", None, "b" * 600], ("a", "b" * 500)),
        ("log", [str(number) for number in range(99)], tuple(str(number) for number in range(49, 99))),
    ],
)
def test_what_is_only_shown_is_cut_or_left_out_where_it_is_not_right(field: str, value: object, read: object) -> None:
    status = parse_status(json.dumps({**STATUS, field: value}).encode(), NAME)
    assert status is not None
    assert getattr(status, field) == read


def test_fields_that_an_older_agent_does_not_know_are_not_needed() -> None:
    short = {key: STATUS[key] for key in ("name", "phase", "worker", "job_seen", "binding")}
    assert parse_status(json.dumps(short).encode(), NAME) == AgentStatus(AgentPhase.LISTENING, False, False, 7)
