"""What the agent answers to requests that are wrong, huge, slow or hostile."""

from __future__ import annotations

import asyncio

import pytest

from runnerpool.vm import agent
from tests.agent_vm import TOKEN, Vm
from tests.agent_vm import machine as machine
from tests.agent_vm import vm as vm


@pytest.mark.parametrize("token", [None, "", "wrong", TOKEN + "x", TOKEN.upper(), "tökén"])
async def test_without_the_machines_token_nothing_is_told(vm: Vm, token: str | None) -> None:
    authorization = "" if token is None else f"Authorization: Bearer {token}\r\n"
    for path in ("/runner/status", "/runner/start", "/nothing"):
        answer = await exchange(vm, f"GET {path} HTTP/1.1\r\n{authorization}\r\n".encode())
        assert answer.startswith(b"HTTP/1.1 401 ")
        assert b"hw-linux-a" not in answer


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", "/", 404),
        ("GET", "/runner", 404),
        ("GET", "/runner/status/", 404),
        ("POST", "/runner/status", 405),
        ("HEAD", "/runner/status", 405),
        ("GET", "/runner/start", 405),
        ("DELETE", "/runner/start", 405),
        ("GET", "/runner/status?verbose=1", 200),
    ],
)
async def test_paths_and_methods_that_do_not_exist_are_told_apart(vm: Vm, method: str, path: str, code: int) -> None:
    assert (await vm.call(method, path)).status_code == code


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "JSON"),
        (b"{", "JSON"),
        (b"\xff\xfe", "JSON"),
        (b"[" * 50_000, "JSON"),
        (b"[]", "runner_id"),
        (b'{"jit_config": "aaaa"}', "runner_id"),
        (b'{"runner_id": "7", "jit_config": "aaaa"}', "runner_id"),
        (b'{"runner_id": true, "jit_config": "aaaa"}', "runner_id"),
        (b'{"runner_id": 0, "jit_config": "aaaa"}', "runner_id"),
        (b'{"runner_id": 99999999999999999999, "jit_config": "aaaa"}', "runner_id"),
        (b'{"runner_id": 7}', "jit_config"),
        (b'{"runner_id": 7, "jit_config": ""}', "jit_config"),
        (b'{"runner_id": 7, "jit_config": "two\\nlines"}', "jit_config"),
        (b'{"runner_id": 7, "jit_config": "nul\\u0000"}', "jit_config"),
    ],
)
async def test_a_malformed_order_is_refused_with_the_name_of_what_is_wrong(vm: Vm, body: bytes, words: str) -> None:
    answer = await vm.call("POST", "/runner/start", content=body)
    assert answer.status_code == 400
    assert words in answer.json()["error"]
    assert (await vm.status())["binding"] is None


async def test_an_oversized_body_is_refused_and_its_sender_can_read_why(vm: Vm) -> None:
    answer = await vm.call("POST", "/runner/start", content=b"x" * 5_000_000)
    assert answer.status_code == 413
    assert "65536" in answer.json()["error"]


def head(*lines: str) -> bytes:
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode("latin-1")


KEY = f"Authorization: Bearer {TOKEN}"


@pytest.mark.parametrize(
    ("request_bytes", "code"),
    [
        (head("GET /runner/status HTTP/1.1", KEY, "X: " + "y" * 9000), 431),
        (b"z" * 20_000, 431),
        (head("nonsense"), 400),
        (head("GET /runner/status SPDY/3", KEY), 400),
        (head("GET /runner/status HTTP/1.1", KEY, "no colon"), 400),
        (head("GET /runner/status HTTP/1.1", KEY, " folded: line"), 400),
        (head("GET /runner/status HTTP/1.1", KEY, KEY), 400),
        (head("POST /runner/start HTTP/1.1", KEY), 411),
        (head("POST /runner/start HTTP/1.1", KEY, "Transfer-Encoding: chunked"), 411),
        (head("POST /runner/start HTTP/1.1", KEY, "Content-Length: -5"), 411),
        (head("POST /runner/start HTTP/1.1", KEY, "Content-Length: " + "9" * 50), 413),
        (head("GET /runner/status HTTP/1.1", KEY), 200),
    ],
)
async def test_what_is_not_a_proper_request_gets_a_clear_answer(vm: Vm, request_bytes: bytes, code: int) -> None:
    assert (await exchange(vm, request_bytes)).startswith(f"HTTP/1.1 {code} ".encode())


async def exchange(vm: Vm, request: bytes) -> bytes:
    reader, writer = await connect(vm)
    writer.write(request)
    async with asyncio.timeout(30):
        answer = await reader.read()
    writer.close()
    return answer


async def connect(vm: Vm) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = vm.url.removeprefix("http://").partition(":")
    return await asyncio.open_connection(host, int(port))


async def test_idle_and_trickling_clients_shut_nobody_out(vm: Vm) -> None:
    idle = [await connect(vm) for _ in range(3 * agent.CONNECTIONS)]
    for _, writer in idle[-agent.CONNECTIONS :]:
        writer.write(b"GET /runner/status HT")
    assert (await vm.status())["phase"] == "waiting"
    first_reader = idle[0][0]
    async with asyncio.timeout(30):  # the oldest ones had to go
        assert await first_reader.read() == b""
    for _, writer in idle:
        writer.close()


async def test_a_client_that_never_finishes_is_cut_off(vm: Vm) -> None:
    reader, writer = await connect(vm)
    writer.write(head("POST /runner/start HTTP/1.1", KEY, "Content-Length: 60000") + b"{")
    async with asyncio.timeout(6 * agent.PATIENCE):
        assert await reader.read() == b""
    writer.close()


async def test_clients_that_vanish_do_no_harm(vm: Vm) -> None:
    for request in (b"", b"GET /run", head("GET /runner/status HTTP/1.1", KEY)):
        _, writer = await connect(vm)
        writer.write(request)
        writer.transport.abort()
    assert (await vm.status())["phase"] == "waiting"


async def test_a_failure_inside_is_answered_and_logged_by_its_kind_and_place_only(
    machine: Vm, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: agent.Agent, runner_id: int, jit_config: str) -> int:
        raise ValueError(f"{runner_id} and {jit_config} are no good")

    machine.ready()
    monkeypatch.setattr(agent.Agent, "start", fail)
    body = b'{"runner_id": 7, "jit_config": "c2VjcmV0"}'
    answer = agent.Server(agent.Agent(machine.root)).answer(
        head("POST /runner/start HTTP/1.1", KEY, f"Content-Length: {len(body)}") + body
    )
    assert answer is not None
    assert answer.startswith(b"HTTP/1.1 500 ")
    told = answer.decode() + "".join(capsys.readouterr())
    assert "ValueError" in told
    assert "c2VjcmV0" not in told
