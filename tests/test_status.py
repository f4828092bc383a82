"""What `/runner/status` tells, from the ledger alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytest

from runnerpool import status as status_page
from runnerpool.errors import RetryLater
from runnerpool.model import RunnerState
from runnerpool.ports import Upsert
from runnerpool.status import LISTED, STALE, authorised
from tests.made_rows import MINUTE, NOW, clock, config, fact, job, later, pool, runner, virtual
from tests.memory_table import Request
from tests.stand_ins import Scene

S = RunnerState


async def report(scene: Scene) -> dict[str, Any]:
    code, document = await status_page.report(clock(), scene.config, scene.ledger)
    assert code == 200
    assert json.loads(json.dumps(document)) == document
    return document


@pytest.mark.parametrize(
    ("headers", "token", "admitted"),
    [
        ({"Authorization": "Bearer secret"}, "secret", True),
        ({"authorization": "bearer secret"}, "secret", True),
        ({"Authorization": "Bearer other"}, "secret", False),
        ({"Authorization": "Basic secret"}, "secret", False),
        ({"Authorization": "secret"}, "secret", False),
        ({}, "secret", False),
        ({"Authorization": "Bearer "}, "", False),  # an empty token admits nobody
        ({"Authorization": "Bearer sécret"}, "secret", False),
    ],
)
def test_who_may_read_it(headers: Mapping[str, str], token: str, admitted: bool) -> None:
    assert authorised(headers, token) is admitted


@virtual
async def test_a_pool_is_told_with_its_limits_its_counts_and_each_job_that_waits() -> None:
    scene = Scene(config(pool(minimum_warm_vms=1, maximum_pool_size=3)))
    await scene.hold(
        runner(S.READY), runner(S.BUSY, "busy"), runner(S.DELETING, "gone", delete_accepted_at=NOW), job(job_name="build")
    )
    running = job("2", started_at=NOW, runner_name="hw-linux-busy", age=2 * MINUTE)
    await scene.hold(running, fact("queued", "3"))  # a fact that nobody has taken up yet counts
    (told,) = (await report(scene))["pools"]
    assert (told["minimum_warm_vms"], told["maximum_pool_size"], told["vms"]) == (1, 3, 2)
    assert told["runners"] == {"busy": 1, "deleting": 1, "ready": 1}
    assert told["jobs"] == {"in_progress": 1, "queued": 2}
    assert [(one["job"], one["name"], one["age_seconds"]) for one in told["waiting"]] == [("1", "build", 60), ("3", "", 0)]
    assert all(one["reason"] for one in told["waiting"])
    assert [(one["job"], one["runner"]) for one in told["running"]] == [("2", "hw-linux-busy")]
    assert told["time_to_start_seconds"] == {"jobs": 1, "median": 120, "maximum": 120}


@virtual
async def test_health_follows_the_last_reconcile() -> None:
    scene = Scene()
    before = await report(scene)
    assert (before["health"], before["checks"]["reconcile"]["ok"]) == ("degraded", False)
    await scene.reconcile()
    assert (await report(scene))["health"] == "ok"
    await later(seconds=STALE.total_seconds() + 60)
    assert (await report(scene))["checks"]["reconcile"]["ok"] is False


@virtual
async def test_a_service_in_trouble_shows_with_its_error_and_the_others_stay_well() -> None:
    scene = Scene()
    scene.azure.fails("list_vms", *[RetryLater("Azure is away")] * 5)
    await scene.reconcile()
    told = await report(scene)
    assert told["health"] == "degraded"
    assert {name: check["ok"] for name, check in told["checks"].items()} == {
        "storage": True,
        "reconcile": True,
        "azure": False,
        "github": True,
    }
    assert told["checks"]["azure"]["detail"] == "Azure is away"


@virtual
async def test_a_ledger_that_cannot_be_read_answers_503_with_the_reason() -> None:
    scene = Scene()

    async def away(_request: Request) -> None:
        raise RetryLater("storage is away")

    scene.table.before = away
    code, document = await status_page.report(clock(), scene.config, scene.ledger)
    assert (code, document["health"]) == (503, "down")
    assert document["checks"]["storage"] == {"ok": False, "detail": "storage is away"}


@virtual
async def test_damaged_rows_are_told_and_break_nothing() -> None:
    scene = Scene()
    await scene.hold(job())
    await scene.table.transact("_app", [Upsert("heartbeat", {"body": "{"}), Upsert("unserved:7:x", {"body": "]"})])
    await scene.table.transact("linux", [Upsert("runner:hw-linux-broken", {"state": "dreaming"})])
    told = await report(scene)
    assert "cannot be read" in told["checks"]["reconcile"]["detail"]
    assert told["unserved"][0]["job_id"] == "7"
    assert told["pools"][0]["unreadable_rows"] == ["runner:hw-linux-broken"]
    assert "runner:hw-linux-broken" in told["pools"][0]["waiting"][0]["reason"]


@virtual
async def test_unserved_jobs_poisoned_messages_and_alerts_are_told() -> None:
    scene = Scene()
    body = json.dumps({"job_id": "7", "repository": "octo-org/hello", "labels": ["gpu"], "job_name": "train"})
    await scene.ledger.put_app_row("unserved:7:x", {"body": body, "nearest_pool": "linux", "missing_label": "gpu"})
    await scene.ledger.put_app_row("poison:m1", {"message": "{", "error": "not JSON"})
    await scene.ledger.put_app_row("alert:pool-linux", {"title": "pool linux makes no VMs", "area": "setup"})
    told = await report(scene)
    assert told["unserved"][0] | {"labels": None} == {
        "job_id": "7",
        "repository": "octo-org/hello",
        "labels": None,
        "job_name": "train",
        "nearest_pool": "linux",
        "missing_label": "gpu",
    }
    assert told["poisoned"] == [{"id": "m1", "message": "{", "error": "not JSON"}]
    assert told["counts"] == {"unserved": 1, "poisoned": 1}
    assert [alert["id"] for alert in told["alerts"]] == ["pool-linux"]


@virtual
async def test_lists_are_cut_and_counts_are_not() -> None:
    scene = Scene()
    for n in range(LISTED + 20):
        await scene.hold(job(str(n), age=timedelta(seconds=n)))
        await scene.ledger.put_app_row(f"poison:m{n}", {"message": "{", "error": "not JSON"})
    page = await report(scene)
    (told,) = page["pools"]
    assert (len(page["poisoned"]), page["counts"]["poisoned"]) == (LISTED, LISTED + 20)
    assert len(told["waiting"]) == LISTED
    assert told["jobs"] == {"queued": LISTED + 20}
