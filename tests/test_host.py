"""The sandbox's Functions host from the outside: an app of the test's own in a folder, real processes, Azurite."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path

import aiohttp
import azure.functions as func
import pytest
from azure.data.tables.aio import TableClient
from azure.storage.queue.aio import QueueClient

from sandbox.azurite import Azurite
from sandbox.host import SOURCE, Host, local_settings
from sandbox.host_app import IndexingError, QueueSettings, read_functions, read_host_json, seconds
from sandbox.host_invoke import table_entity
from tests.waiting import eventually

HOST_JSON = {
    "version": "2.0",
    "functionTimeout": "00:00:05",
    "extensions": {
        "http": {"routePrefix": ""},
        "queues": {"maxPollingInterval": "00:00:01", "visibilityTimeout": "00:00:00", "maxDequeueCount": 2},
    },
}

APP = """
import asyncio, json, os
import azure.functions as func

app = func.FunctionApp(http_auth_level=func.AuthLevel.ANONYMOUS)

@app.route(route="store/{key}", methods=["POST"])
@app.queue_output(arg_name="message", queue_name="QUEUE", connection="STORAGE")
@app.table_output(arg_name="row", table_name="TABLE", connection="STORAGE")
async def store(req: func.HttpRequest, row: func.Out[str], message: func.Out[str]) -> func.HttpResponse:
    if req.get_body():
        row.set(json.dumps({"PartitionKey": "p", "RowKey": req.route_params["key"], "body": req.get_body().decode()}))
        message.set(req.get_body().decode())
    return func.HttpResponse(json.dumps(dict(req.params)), status_code=202, mimetype="application/json", headers={"X-Mine": "yes"})

@app.route(route="pid", methods=["GET"])
def pid(req: func.HttpRequest) -> str:
    return str(os.getpid())

@app.route(route="slow", methods=["GET"])
async def slow(req: func.HttpRequest) -> str:
    await asyncio.sleep(30)
    return "never"

@app.queue_trigger(arg_name="message", queue_name="QUEUE", connection="STORAGE")
@app.table_output(arg_name="row", table_name="TABLE", connection="STORAGE")
def consume(message: func.QueueMessage, row: func.Out[str]) -> None:
    if message.get_body() == b"bad":
        raise RuntimeError("cannot be handled")
    row.set(json.dumps({"PartitionKey": "seen", "RowKey": message.id, "body": message.get_body().decode(), "pid": os.getpid()}))
"""


class World:
    """A folder with the app, its storage, and clients to look at it with."""

    def __init__(self, folder: Path, connection_string: str) -> None:
        self.folder = folder
        self.connection_string = connection_string
        self.table_name = f"t{uuid.uuid4().hex}"
        self.queue_name = f"q{uuid.uuid4().hex}"
        (folder / "function_app.py").write_text(APP.replace("TABLE", self.table_name).replace("QUEUE", self.queue_name))
        (folder / "host.json").write_text(json.dumps(HOST_JSON))

    def host(self, *, forked: bool = False, **settings: str) -> Host:
        return Host(root=self.folder, settings={"STORAGE": self.connection_string, **settings}, forked=forked)

    async def rows(self, partition: str) -> list[dict[str, object]]:
        async with TableClient.from_connection_string(self.connection_string, self.table_name) as table:
            return [dict(row) async for row in table.query_entities(f"PartitionKey eq '{partition}'")]

    def queue(self, suffix: str = "") -> QueueClient:
        return QueueClient.from_connection_string(self.connection_string, self.queue_name + suffix)


@pytest.fixture
def world(tmp_path: Path, azurite: Azurite) -> World:
    return World(tmp_path, azurite.connection_string)


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def test_outputs_are_stored_before_the_http_answer(world: World, http: aiohttp.ClientSession) -> None:
    async with world.host() as host:
        os.kill(host.pid("consume"), signal.SIGSTOP)  # leaves the message where it can be looked at
        async with http.post(f"{host.url}/store/one?a=b", data="hello") as answer:
            assert (answer.status, answer.headers["X-Mine"], answer.content_type) == (202, "yes", "application/json")
            assert await answer.json() == {"a": "b"}
        assert [(row["RowKey"], row["body"]) for row in await world.rows("p")] == [("one", "hello")]
        async with world.queue() as queue:
            content = [message.content for message in await queue.peek_messages()]
        assert [base64.b64decode(text) for text in content] == [b"hello"]
        os.kill(host.pid("consume"), signal.SIGCONT)


async def test_a_function_that_sets_no_output_stores_nothing(world: World, http: aiohttp.ClientSession) -> None:
    async with world.host() as host, http.post(f"{host.url}/store/one") as answer:
        assert answer.status == 202
    with pytest.raises(Exception, match="TableNotFound"):
        await world.rows("p")


async def test_an_output_that_cannot_be_stored_makes_the_answer_500(world: World, http: aiohttp.ClientSession) -> None:
    async with world.host() as host:
        statuses = []
        for _ in range(2):  # the second time the key exists
            async with http.post(f"{host.url}/store/same", data="hello") as answer:
                statuses.append(answer.status)
        assert statuses == [202, 500]
    async with world.host(STORAGE="UseNothing") as host, http.post(f"{host.url}/store/other", data="hello") as answer:
        assert answer.status == 500


async def test_a_function_that_outlasts_the_timeout_is_cancelled(world: World, http: aiohttp.ClientSession) -> None:
    (world.folder / "host.json").write_text(json.dumps(HOST_JSON | {"functionTimeout": "00:00:00.2"}))
    async with world.host() as host, http.get(f"{host.url}/slow") as answer:
        assert answer.status == 500


@pytest.mark.parametrize("forked", [False, True])
async def test_groups_run_in_processes_of_their_own_and_are_started_again(
    world: World, http: aiohttp.ClientSession, forked: bool
) -> None:
    async def served_by() -> int:
        with contextlib.suppress(aiohttp.ClientError):
            async with http.get(f"{host.url}/pid") as answer:
                return int(await answer.text())
        return 0

    async with world.host(forked=forked) as host:
        first = await served_by()
        assert first == host.pid("http")
        async with http.post(f"{host.url}/store/one", data="hello"):
            pass
        await eventually(lambda: _has_rows(world, "seen"))
        [row] = await world.rows("seen")
        assert row["pid"] == host.pid("consume") != first
        groups = set(host.running())
        assert {"http", "consume"} <= groups

        async def ended() -> bool:
            return set(host.running()) == groups - {"http"}

        os.kill(first, signal.SIGKILL)
        await eventually(ended)
        await eventually(lambda: _differs(served_by, {0, first}))


async def test_a_message_that_fails_for_good_ends_in_the_poison_queue(world: World, http: aiohttp.ClientSession) -> None:
    async with world.host() as host, world.queue("-poison") as poison:
        async with http.post(f"{host.url}/store/one", data="bad") as answer:
            assert answer.status == 202

        async def buried() -> bool:
            with contextlib.suppress(Exception):
                return [base64.b64decode(message.content) for message in await poison.peek_messages()] == [b"bad"]
            return False

        await eventually(buried)
        async with world.queue() as queue:
            assert (await queue.get_queue_properties()).approximate_message_count == 0


async def test_every_process_ends_with_the_host_however_it_ends(world: World, http: aiohttp.ClientSession) -> None:
    host = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "sandbox.host", "--root", str(world.folder), "--port", "0", cwd=SOURCE, stdout=asyncio.subprocess.PIPE
    )
    assert host.stdout is not None
    url = (await host.stdout.readline()).decode().split()[1]
    async with http.get(f"{url}/pid") as answer:
        worker = int(await answer.text())
    host.kill()
    await host.wait()
    await eventually(lambda: _dead(worker))


async def test_sigterm_ends_the_host_and_its_processes(world: World, http: aiohttp.ClientSession) -> None:
    async with asyncio.timeout(30):
        host = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "sandbox.host",
            "--root",
            str(world.folder),
            "--port",
            "0",
            cwd=SOURCE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert host.stdout is not None
        url = (await host.stdout.readline()).decode().split()[1]
        async with http.get(f"{url}/pid") as answer:
            worker = int(await answer.text())
        host.terminate()
        assert await host.wait() == 0
    assert await _dead(worker)


FORKED = """
import asyncio, sys
from pathlib import Path
from sandbox.host import Host

async def main():
    host = Host(root=Path(sys.argv[1]), settings={"STORAGE": sys.argv[2]}, forked=True)
    await host.start()
    print(*(host.pid(group) for group in host.running()), flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_no_forked_process_outlives_a_host_that_is_killed(world: World) -> None:
    host = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", FORKED, str(world.folder), world.connection_string), cwd=SOURCE, stdout=asyncio.subprocess.PIPE
    )
    assert host.stdout is not None
    try:
        workers = [int(pid) for pid in (await host.stdout.readline()).split()]
    finally:
        host.kill()
        await host.wait()
    assert len(workers) == 2
    for worker in workers:
        await eventually(partial(_dead, worker))


def test_the_host_reads_the_bindings_that_azure_functions_generates(world: World) -> None:
    read = {function.name: [*function.outputs, function.trigger] for function in read_functions(world.folder)}
    namespace: dict[str, object] = {}
    exec((world.folder / "function_app.py").read_text(), namespace)
    app = namespace["app"]
    assert isinstance(app, func.FunctionApp)
    generated = {
        declared.get_function_name(): json.loads(declared.get_function_json())["bindings"] for declared in app.get_functions()
    }
    by_name = {name: sorted(bindings, key=json.dumps) for name, bindings in read.items()}
    assert by_name == {name: sorted(bindings, key=json.dumps) for name, bindings in generated.items()}
    assert {function.name: function.group for function in read_functions(world.folder)} == {
        "store": "http",
        "pid": "http",
        "slow": "http",
        "consume": "consume",
    }


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("import nothing_of_this_name", "nothing_of_this_name"),
        ("app = 1", "get_functions"),
        ("@app.route(route='x')\ndef f(request): ...", "parameters are"),
        ("@app.blob_trigger(arg_name='b', path='x', connection='C')\ndef f(b): ...", "blobTrigger"),
        ("@app.queue_output(arg_name='q', queue_name='x', connection='C')\ndef f(q): ...", "trigger"),
    ],
)
def test_an_app_that_a_real_host_finds_no_functions_in_is_refused(tmp_path: Path, source: str, complaint: str) -> None:
    (tmp_path / "function_app.py").write_text(f"import azure.functions as func\napp = func.FunctionApp()\n{source}\n")
    with pytest.raises(IndexingError, match=complaint):
        read_functions(tmp_path)


def test_host_json_is_read_with_the_real_defaults(tmp_path: Path) -> None:
    (tmp_path / "host.json").write_text('{"version": "2.0"}')
    settings = read_host_json(tmp_path)
    assert (settings.route_prefix, settings.function_timeout, settings.queues) == ("api", 300.0, QueueSettings())
    (tmp_path / "host.json").write_text("{")
    with pytest.raises(IndexingError, match=r"host\.json"):
        read_host_json(tmp_path)


@pytest.mark.parametrize(("text", "expected"), [("00:00:15", 15.0), ("01:02:03.5", 3723.5)])
def test_time_spans(text: str, expected: float) -> None:
    assert seconds(text) == expected


def test_the_table_binding_takes_keys_in_any_case_and_makes_dates_of_what_looks_like_one() -> None:
    entity = table_entity({"partitionKey": "p", "ROWKEY": "r", "at": "2025-01-02T03:04:05+00:00", "n": 1, "text": "2025-01-02"})
    assert {"PartitionKey": "p", "RowKey": "r", "n": 1, "text": "2025-01-02"}.items() <= entity.items()
    assert entity["at"].isoformat() == "2025-01-02T03:04:05+00:00"
    with pytest.raises(TypeError, match="column nested"):
        table_entity({"nested": {}})


def test_local_settings_give_way_to_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SET_ALREADY", "here")
    assert local_settings(tmp_path) == {}
    (tmp_path / "local.settings.json").write_text('{"IsEncrypted": false, "Values": {"SET_ALREADY": "there", "OTHER": "x"}}')
    assert local_settings(tmp_path) == {"OTHER": "x"}


async def _has_rows(world: World, partition: str) -> bool:
    return bool(await world.rows(partition))


async def _differs(read: Callable[[], Awaitable[int]], known: set[int]) -> bool:
    return await read() not in known


async def _dead(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False
