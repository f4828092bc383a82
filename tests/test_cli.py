"""The command line: what each command prints of a deployment's ledger, how it ends, and where its settings come from."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from runnerpool import console, overview, status, story
from runnerpool.__main__ import main
from runnerpool.config import Config
from runnerpool.console import Deployment
from runnerpool.ledger import Ledger
from runnerpool.model import Head, RunnerState
from runnerpool.ports import Upsert, Value
from runnerpool.rows import fact_to_columns, head_to_columns, job_key, job_to_columns
from runnerpool.settings import SettingsError
from sandbox.azurite import Azurite
from tests.made_rows import MINUTE, NOW, config, fact, job, pool, runner
from tests.memory_table import MemoryTable
from tests.whole_sandbox import Whole, whole

ROOT = Path(__file__).parent.parent
S = RunnerState


class Books:
    """A ledger in memory, with a history."""

    def __init__(self, file: Config | None = None) -> None:
        self.table, self.history = MemoryTable(), MemoryTable()
        self.place = Deployment(
            file or config(pool(), pool(name="arm", labels=["arm"])), Ledger(table=self.table, history=self.history)
        )

    async def put(self, partition: str, row: str, columns: Mapping[str, Value]) -> None:
        await self.table.transact(partition, [Upsert(row, columns)])

    async def explain(self, job_id: str = "1") -> tuple[int, str]:
        code, lines = await story.tell(self.place, job_id, NOW)
        return code, "\n".join(lines)


# ---------------------------------------------------------------------------------------------- explain


async def test_a_waiting_job_is_explained_by_the_reason_that_the_status_gives() -> None:
    books = Books()
    await books.put("linux", "pool", head_to_columns(Head("linux", paused=True)))
    await books.put("linux", job_key("1"), job_to_columns(job(workflow="build", job_name="test")))
    code, text = await books.explain()
    assert code == 0
    assert text.startswith(
        "job 1 (build / test) of octo-org/hello, pool linux, labels [linux]\n  queued for 60 s: pool linux is paused"
    )
    assert "created at GitHub" in text


async def test_a_jobs_timeline_is_in_the_order_of_what_happened_with_its_vms_phases() -> None:
    books = Books()
    made = runner(S.BUSY, job_id="1", accepted_at=NOW - 4 * MINUTE, ready_at=NOW - 2 * MINUTE, busy_job="1")
    await books.place.ledger.adopt(made)
    running = job(age=5 * MINUTE, started_at=NOW - MINUTE, runner_name=made.name)
    await books.put("linux", job_key("1"), job_to_columns(running))
    code, text = await books.explain()
    assert code == 0
    assert "in progress on hw-linux-aaaaaaaaaa" in text
    order = ["created at GitHub", "accepted by Azure", "aaaaaaaaaa ready", "started on hw-linux-aaaaaaaaaa"]
    assert sorted(order, key=text.index) == order
    assert "+120 s  VM hw-linux-aaaaaaaaaa ready" in text


async def test_a_fact_that_no_pass_has_folded_yet_counts() -> None:
    books = Books()
    await books.put("linux", "fact:1:x", fact_to_columns(fact()))
    assert (await books.explain())[1].splitlines()[1].startswith("  queued for 0 s: ")


async def test_a_job_that_is_history_is_found_there_also_for_a_pool_that_has_left_the_file() -> None:
    books = Books()
    await books.place.ledger.put_app_row("pool:old", {"since": "x"})
    done = replace(job(age=timedelta(days=3)), pool="old", completed_at=NOW - timedelta(days=3), conclusion="failure")
    await books.put("old", job_key("1"), job_to_columns(done))
    (there,) = (await books.place.ledger.read_pool("old")).jobs.values()
    await books.place.ledger.archive([there])
    code, text = await books.explain()
    assert code == 0
    assert "completed, failure" in text


async def test_an_unserved_job_names_the_nearest_pool_and_the_missing_label() -> None:
    books = Books()
    columns = {**fact_to_columns(fact(labels=("linux", "gpu"))), "nearest_pool": "linux", "missing_label": "gpu"}
    await books.place.ledger.put_app_row("unserved:1:x", columns)
    code, text = await books.explain()
    assert code == 0
    assert "it asks for [linux, gpu]; the nearest pool, linux, lacks gpu" in text


async def test_a_job_that_nobody_knows_exits_1_and_says_where_to_look() -> None:
    code, text = await Books().explain("9")
    assert code == 1
    assert "nothing is known of it" in text
    assert "doctor" in text


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("12", "12"),
        ("https://github.com/o/r/actions/runs/7/job/12", "12"),
        ("https://github.com/o/r/actions/runs/7/job/12?pr=1#step:2:3", "12"),
        ("https://github.com/o/r/actions/runs/7", ""),
        ("x", ""),
    ],
)
def test_a_job_is_named_by_its_id_or_its_address(given: str, expected: str) -> None:
    try:
        assert story.job_id_of(given) == expected
    except ValueError as error:
        assert not expected
        assert "neither a job's id nor its address" in str(error)


# ---------------------------------------------------------------------------------------------- status


async def test_the_table_shows_pools_and_why_jobs_wait() -> None:
    books = Books()
    await books.put("linux", "pool", head_to_columns(Head("linux", draining=True)))
    await books.put("linux", job_key("1"), job_to_columns(job()))
    for number, state in enumerate((S.BUSY, S.READY, S.BOOTING)):
        await books.place.ledger.adopt(runner(state, f"{number}" * 10))
    code, document = await status.report(NOW, books.place.config, books.place.ledger)
    lines = list(overview.lines(document))
    assert code == 200
    assert lines[0] == "health: degraded"
    assert [line.split() for line in lines if line.startswith(("pool ", "linux ", "arm "))] == [
        ["pool", "VMs", "of", "warm", "idle", "busy", "other", "waiting", "running"],
        ["linux", "3", "50", "0", "1", "1", "1", "1", "0", "draining"],
        ["arm", "0", "50", "0", "0", "0", "0", "0", "0"],
    ]
    assert "  linux: job 1 of octo-org/hello, 60 s: pool linux is being drained" in lines


async def test_a_ledger_that_cannot_be_read_is_told_as_well() -> None:
    lines = list(overview.lines({"health": "down", "checks": {"storage": {"ok": False, "detail": "no"}}, "pools": []}))
    assert lines == ["health: down", "  storage: TROUBLE, no"]


# ---------------------------------------------------------------------------------------------- settings and exit codes


def test_the_environment_goes_before_the_settings_file(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text(json.dumps({"Values": {"A": "file", "B": "file", "C": 3}}))
    env = {"A": "environment", "B": ""}
    console.load_settings(env, file)
    assert env == {"A": "environment", "B": "", "C": "3"}


def test_the_present_folders_settings_file_is_read_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    env: dict[str, str] = {}
    console.load_settings(env, None)
    assert env == {}
    (tmp_path / "local.settings.json").write_text('{"Values": {"A": "1"}}')
    console.load_settings(env, None)
    assert env == {"A": "1"}


@pytest.mark.parametrize("text", ["{", "[]", '{"Values": 3}'])
def test_a_settings_file_that_cannot_be_read_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(SettingsError, match=r"x\.json"):
        console.load_settings({}, tmp_path / "x.json")


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["explain", "x"], 2, "neither a job's id"),
        (["webhook", "install", "--url", "app.example.com"], 2, "--url: the address must begin with https://"),
        (["status", "--settings", "missing.json"], 1, "missing.json"),
    ],
)
def test_a_wrong_command_and_a_missing_file_are_told_on_standard_error(
    capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, told: str
) -> None:
    assert main(arguments) == code
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["drain"], ["drain", "linux", "--all"], ["drain", "--all", "--timeout", "soon"], []])
def test_an_incomplete_command_shows_its_usage(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage:" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------- the real thing


@pytest.fixture(scope="module")
def storage() -> Iterator[Azurite]:
    with Azurite() as running:
        yield running


async def runnerpool(place: Whole, folder: Path, *arguments: str) -> tuple[int | None, str]:
    """`python -m runnerpool`, its settings in a file: exit code and output."""
    file = folder / "settings.json"
    file.write_text(json.dumps({"IsEncrypted": False, "Values": place.env}))
    clean = {name: value for name, value in os.environ.items() if name not in place.env}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "runnerpool", *arguments, "--settings", str(file)),
        cwd=ROOT,
        env=clean,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    return process.returncode, output.decode()


async def test_every_command_runs_on_a_deployment(storage: Azurite, tmp_path: Path) -> None:
    async def run(*arguments: str) -> tuple[int | None, str]:
        return await runnerpool(place, tmp_path, *arguments)

    async with whole(storage, tmp_path, webhook_url="") as place:
        assert (await run("webhook", "install", "--url", place.receiver.url))[0] == 0
        await place.receiver.wait_for(1)
        code, text = await run("doctor")
        assert (code, "FAIL" in text) == (0, False), text
        place.around(nat_gateway=False)
        code, text = await run("doctor")
        assert code == 1
        assert "FAIL  outbound route: " in text
        now = datetime.now(UTC)
        queued = replace(fact(), created_at=now, received_at=now)
        await place.ledger.add_fact("linux", "x", queued)
        assert (await run("pause", "linux")) == (
            0,
            "paused: linux. VMs that are there go on; no new one is made until python -m runnerpool resume\n",
        )
        code, text = await run("explain", "1")
        assert code == 0
        assert "pool linux is paused" in text
        document: Any = json.loads((await run("status", "--json"))[1])
        assert document["pools"][0]["paused"]
        assert (await run("drain", "--all"))[0] == 0
        assert "draining" in (await run("status"))[1]
        assert (await run("resume", "--all"))[0] == 0
        assert (await run("drain", "nothing")) == (2, "there is no pool nothing; there are linux\n")
        head = (await place.ledger.read_pool("linux")).head
        assert (head.paused, head.draining) == (False, False)
