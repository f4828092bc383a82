"""The demo's verdict and its table, and that a demo which is told to stop leaves no process behind."""

from __future__ import annotations

import asyncio
import copy
import io
import os
import signal
import sys
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from rich.console import Console

from runnerpool.config import Config
from runnerpool.pool_file import load_config
from sandbox.core_tools import app_host
from sandbox.demo import POOL_FILE, scaled_pool_file
from sandbox.demo_records import Order, Records
from sandbox.host import SOURCE
from sandbox.live_table import View, line, render, summary
from tests.waiting import eventually

CONFIG: Config = load_config(POOL_FILE)
ORDER = Order(
    pool_of={1: "linux-x64", 2: "linux-x64", 3: "linux-arm64", 4: "linux-arm64"}, cancelled=frozenset({4}), replayed={1: "queued"}
)


def job(job_id: int, runner: str | None, **changes: Any) -> dict[str, Any]:
    at = "2025-01-01T00:00:00+00:00"
    done = {"status": "completed", "conclusion": "success", "created_at": at, "started_at": "2025-01-01T00:00:07+00:00"}
    return {"id": job_id, "runner_name": runner, "runner_id": None, "run_id": job_id, "name": "", "attempt": 1, **done, **changes}


def vm(name: str, pool: str) -> dict[str, Any]:
    return {"name": name, "pool": pool, "power": "running", "delete_accepted": False}


def attempt(job_id: int, action: str, *, redelivery: bool = False) -> dict[str, Any]:
    return {"job": job_id, "action": action, "redelivery": redelivery}


def good() -> tuple[dict[str, Any], dict[str, Any]]:
    """What Azure and GitHub have on record after a demo as it should be."""
    made = [("a", "linux-x64"), ("b", "linux-x64"), ("c", "linux-arm64")]
    warm = [("w1", "linux-x64"), ("w2", "linux-x64"), ("w3", "linux-arm64")]
    arm = {
        "vms": [vm(*each) for each in warm],
        "peaks": {"linux-x64": 4, "linux-arm64": 2},
        "log": [{"event": "accepted", "vm": name, "pool": pool} for name, pool in made + warm],
    }
    jobs = [job(1, "a"), job(2, "b"), job(3, "c"), job(4, None, conclusion="cancelled", started_at=None)]
    sent = [attempt(1, "queued"), attempt(1, "in_progress"), attempt(1, "completed"), attempt(1, "queued", redelivery=True)]
    return arm, {"jobs": jobs, "runners": [], "deliveries": sent}


def test_a_demo_as_it_should_be_has_no_faults() -> None:
    arm, github = good()
    records = Records(arm=arm, github=github)
    assert records.faults(ORDER, CONFIG.pools) == []
    assert records.settled(ORDER, CONFIG.pools)
    tally = records.tally("linux-x64", ORDER)
    assert (tally.completed, tally.cancelled, tally.vms_made, tally.peak, tally.left) == (2, 0, 4, 4, 2)
    assert tally.waits == [7.0, 7.0]


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (lambda arm, github: github["jobs"][0].update(status="queued", conclusion=None), "job 1 of linux-x64 is queued"),
        (lambda arm, github: github["jobs"][0].update(conclusion="failure"), "job 1 of linux-x64 ended as failure"),
        (lambda arm, github: github["jobs"][0].update(runner_name="c"), "job 1 of linux-x64 ran on c, a VM of linux-arm64"),
        (lambda arm, github: github["jobs"][0].update(runner_name="b"), "VM b ran 2 jobs"),
        (lambda arm, github: github["jobs"][3].update(conclusion="success"), "job 4 was cancelled and ended as success"),
        (lambda arm, github: arm["peaks"].update({"linux-x64": 9}), "pool linux-x64 had 9 VMs, its maximum is 8"),
        (lambda arm, github: arm["vms"].pop(), "pool linux-arm64 has 0 VMs, its warm minimum is 1"),
        (lambda arm, github: arm["vms"].append(vm("d", "linux-x64")), "pool linux-x64 has 3 VMs, its warm minimum is 2"),
        (lambda arm, github: github["runners"].append({"name": "gone"}), "registration gone has no VM"),
        (lambda arm, github: github["deliveries"].pop(), "job 1: its queued was not sent twice, late"),
    ],
)
def test_whatever_is_not_as_it_should_be_is_named(spoil: Callable[[Any, Any], None], fault: str) -> None:
    arm, github = copy.deepcopy(good())
    spoil(arm, github)
    assert fault in Records(arm=arm, github=github).faults(ORDER, CONFIG.pools)


@pytest.mark.parametrize(
    "unsettle",
    [
        lambda arm, github: github["jobs"][0].update(status="in_progress"),
        lambda arm, github: arm["vms"][0].update(delete_accepted=True),
        lambda arm, github: arm["vms"][0].update(power=None),
        lambda arm, github: arm["vms"].append(vm("d", "linux-x64")),
    ],
)
def test_nothing_is_settled_while_something_is_under_way(unsettle: Callable[[Any, Any], None]) -> None:
    arm, github = copy.deepcopy(good())
    unsettle(arm, github)
    assert not Records(arm=arm, github=github).settled(ORDER, CONFIG.pools)


def evicted(**second: Any) -> tuple[Records, Order]:
    """Job 2 was lost with its VM; `second` is its second attempt."""
    arm, github = good()
    arm["log"] += [{"event": "accepted", "vm": "s", "pool": "linux-x64", "detail": "spot"}]
    arm["log"] += [{"event": "accepted", "vm": "r", "pool": "linux-x64"}]
    github["jobs"][1].update(conclusion="failure", runner_name="s", run_id=7, name="build", attempt=1)
    if second:
        github["jobs"].append(job(9, **{"run_id": 7, "name": "build", "attempt": 2, **second}))
    return Records(arm=arm, github=github), replace(ORDER, evicted=frozenset({2}))


def test_a_job_lost_to_an_eviction_has_to_be_run_again_on_a_regular_vm() -> None:
    records, order = evicted(runner="r")
    assert records.faults(order, CONFIG.pools) == []
    assert records.settled(order, CONFIG.pools)
    assert records.tally("linux-x64", order).completed == 2
    for second in ({}, {"runner": "r", "conclusion": "failure"}, {"runner": "s2"}, {"runner": "s"}):
        records, order = evicted(**second)
        assert records.faults(order, CONFIG.pools)
        assert not records.settled(order, CONFIG.pools)
    assert records.faults(ORDER, CONFIG.pools)  # a job that fails otherwise is not excused


def test_a_lost_delivery_and_a_new_registration_are_seen_in_the_records() -> None:
    arm, github = good()
    github["deliveries"] = [{"job": 1, "action": "completed", "status": "dropped"}]
    github["jobs"][0].update(runner_id=8)
    github["runners"] = [{"name": "w1", "id": 5}]
    records = Records(arm=arm, github=github)
    assert not records.told(1)
    assert records.registered_again("a", 7)
    assert not records.registered_again("w1", 5)


def test_the_demo_with_faults_has_a_pool_file_in_which_they_can_be_come_through(tmp_path: Path) -> None:
    spot, kept = load_config(scaled_pool_file(tmp_path, 24, faults=True)).pools
    assert (spot.vm.priority, spot.rerun_evicted, kept.keep_registered) == ("spot-then-regular", True, True)


def test_more_jobs_get_larger_pools(tmp_path: Path) -> None:
    assert [pool.maximum_pool_size for pool in load_config(scaled_pool_file(tmp_path, 24)).pools] == [8, 6]
    assert [pool.maximum_pool_size for pool in load_config(scaled_pool_file(tmp_path, 200)).pools] == [40, 40]


def test_the_table_fits_eighty_columns_and_shows_what_the_app_complains_of() -> None:
    pool = {"name": "linux-x64", "vms": 3, "maximum_pool_size": 8, "minimum_warm_vms": 2, "runners": {"ready": 2, "busy": 1}}
    status = {"health": "degraded", "checks": {"azure": {"ok": False, "detail": "it does not answer"}}, "pools": [pool]}
    jobs = Counter({"queued": 4, "in_progress": 1, "success": 7})
    view = View(stage="a burst", status=status, jobs={"linux-x64": jobs}, waits={"linux-x64": [1.0, 2.0, 9.0]})
    arm, github = good()
    console = Console(file=io.StringIO(), width=80)
    console.print(render(view, 12.0))
    console.print(summary([Records(arm=arm, github=github).tally("linux-x64", ORDER)]))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in text
    for part in ("2 ready, 1 busy", "azure: it does not answer", "linux-x64", "2.0 s", "9.0 s", "7.0 s"):
        assert part in text
    assert "3 VMs (2 ready, 1 busy), jobs 4 waiting, 1 running, 7 completed" in line(view, 12.0)


FUNC = """#!/bin/sh
test "$1 $2" = "start --port" || exit 2
exec {python} -c 'import http.server, sys; http.server.test(port=int(sys.argv[1]), bind="127.0.0.1")' "$3"
"""
"""Core Tools that only listen, and answer everything 501: what is tested is how they are started, waited for and ended."""


async def test_core_tools_are_used_where_they_are_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    func = tmp_path / "func"
    func.write_text(FUNC.format(python=sys.executable))
    func.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with (tmp_path / "log").open("w") as log:
        async with app_host("auto", settings={}, log=log) as url, aiohttp.ClientSession() as http, http.get(url) as answer:
            assert answer.status == 501
        async with aiohttp.ClientSession() as http:
            with pytest.raises(aiohttp.ClientConnectionError):
                await http.get(url)
        func.write_text("#!/bin/sh\nexit 1\n")
        with pytest.raises(RuntimeError, match="func start"):
            async with app_host("auto", settings={}, log=log):
                pass


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
async def test_a_demo_that_is_ended_early_leaves_no_process_behind(tmp_path: Path, number: signal.Signals) -> None:
    mark = uuid.uuid4().hex
    folder = tmp_path / mark
    demo = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sandbox.demo", "--host", "sandbox", "--folder", str(folder)),
        cwd=SOURCE,
        env={**os.environ, "DEMO_MARK": mark},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert demo.stdout is not None
    async with asyncio.timeout(60):
        while b"health:" not in await demo.stdout.readline():
            pass
    assert await _processes(mark) > 3
    demo.send_signal(number)
    async with asyncio.timeout(30):
        code = await demo.wait()
    assert code == (-signal.SIGKILL if number == signal.SIGKILL else 130)
    await eventually(lambda: _none_left(mark))


async def _none_left(mark: str) -> bool:
    return await _processes(mark) == 0


async def _processes(mark: str) -> int:
    """How many processes have the mark in their environment or command line."""
    found = 0
    for process in os.listdir("/proc"):
        try:
            found += any(mark.encode() in Path("/proc", process, part).read_bytes() for part in ("environ", "cmdline"))
        except OSError:
            continue  # not a process, or it ended meanwhile
    return found
