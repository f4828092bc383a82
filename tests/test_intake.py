"""One delivery in, an answer, at most one row and at most one wake-up out."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from runnerpool.intake import Receipt
from runnerpool.model import Fact
from tests.signed_deliveries import NOW, config, deliver, fact_of, payload


def reason(receipt: Receipt) -> str:
    """Why it was understood and ignored: nothing written, nobody woken."""
    assert (receipt.status, receipt.row, receipt.wakeup) == (202, None, None)
    assert receipt.body["message"] == "ignored"
    return receipt.body["reason"]


# ---------------------------------------------------------------------------------------------- what is accepted


def test_a_queued_job_becomes_a_fact_and_a_wake_up() -> None:
    receipt = deliver(payload())
    assert receipt.status == 202
    assert receipt.body == {"message": "recorded: job 289782451 is queued", "pool": "linux-x64", "job": "289782451"}
    assert receipt.wakeup == {"pool": "linux-x64", "job": "289782451", "delivery": "72d3162e-cc78-11e3-81ab-4c9367dc0958"}
    assert receipt.row is not None
    assert (receipt.row["PartitionKey"], receipt.row["RowKey"]) == ("linux-x64", "fact:289782451:u1")
    assert fact_of(receipt) == Fact(
        job_id="289782451",
        action="queued",
        status="queued",
        pool="linux-x64",
        repository="octo-org/web",
        target="org:octo-org",
        labels=("self-hosted", "linux", "x64"),
        created_at=NOW - timedelta(seconds=2),
        received_at=NOW,
        delivery="72d3162e-cc78-11e3-81ab-4c9367dc0958",
        started_at=NOW - timedelta(seconds=2),
        run_id="2202229078",
        workflow="CI",
        job_name="build",
    )


@pytest.mark.parametrize("action", ["queued", "waiting", "in_progress", "completed"])
def test_every_action_of_a_served_job_is_recorded(action: str) -> None:
    receipt = deliver(payload(action, status="waiting" if action == "waiting" else action))
    assert receipt.status == 202 and receipt.wakeup is not None
    assert fact_of(receipt).action == action


def test_a_queued_job_that_waits_for_an_approval_keeps_that_status() -> None:
    assert fact_of(deliver(payload(status="waiting"))).status == "waiting"


@pytest.mark.parametrize("runner_id", [0, None, ...])
def test_a_job_cancelled_before_it_started_completes_without_a_runner(runner_id: Any) -> None:
    receipt = deliver(
        payload("completed", conclusion="cancelled", runner_id=runner_id, runner_name="", completed_at="2026-03-02T12:00:00Z")
    )
    fact = fact_of(receipt)
    assert fact.runner_id in (0, None) and fact.runner_name is None
    assert (fact.conclusion, fact.completed_at) == ("cancelled", NOW)


def test_keys_that_older_servers_leave_out_are_not_needed() -> None:
    sparse = payload(created_at=..., run_attempt=..., workflow_name=..., runner_id=..., runner_name=..., conclusion=..., status=...)
    fact = fact_of(deliver(sparse))
    assert fact.created_at == NOW - timedelta(seconds=2)  # of a queued job `started_at` is when it was created
    assert (fact.status, fact.run_attempt, fact.workflow) == ("queued", 1, "")


def test_a_late_fact_of_a_job_without_timestamps_is_recorded_all_the_same() -> None:
    bare = payload(
        "completed", created_at=..., started_at=..., completed_at=..., labels=None, runner_name="hw-gpu-abc", runner_id=7
    )
    assert fact_of(deliver(bare)).created_at == NOW


@pytest.mark.parametrize(
    ("moment", "expected"),
    [
        ("2026-03-02T11:00:00Z", "2026-03-02T11:00:00+00:00"),
        ("2026-03-02T11:00:00.123Z", "2026-03-02T11:00:00.123000+00:00"),
        ("2026-03-02T12:00:00+01:00", "2026-03-02T11:00:00+00:00"),
        ("2026-03-02T11:00:00", "2026-03-02T11:00:00+00:00"),
        ("yesterday", None),
        ("0001-01-01T00:00:00+05:00", None),
        (1772449200, None),
    ],
)
def test_moments_are_read_in_every_usual_form(moment: object, expected: str | None) -> None:
    completed = fact_of(deliver(payload("completed", completed_at=moment))).completed_at
    assert (completed.isoformat() if completed else None) == expected


def test_the_label_match_decides_the_partition() -> None:
    receipt = deliver(payload(labels=["GPU"]))
    assert receipt.row is not None and receipt.row["PartitionKey"] == "gpu"


@pytest.mark.parametrize(
    ("github", "repository", "target"),
    [
        ({}, "Octo-Org/web", "org:octo-org"),
        ({"repositories": ["Web"]}, "octo-org/web", "org:octo-org"),
        ({"scope": "repo", "repositories": ["Web"]}, "octo-org/web", "repo:octo-org/Web"),
    ],
)
def test_the_target_follows_the_scope_and_the_files_spelling(github: dict[str, Any], repository: str, target: str) -> None:
    assert fact_of(deliver(payload(repository={"full_name": repository}), settings=config(**github))).target == target


# ---------------------------------------------------------------------------------------------- what is filtered


@pytest.mark.parametrize(
    ("github", "repository", "expected"),
    [
        ({}, {"full_name": "other/web"}, "the repository other/web does not belong to octo-org"),
        ({"repositories": ["api"]}, {}, "the repository octo-org/web is not in the allow-list"),
        ({"scope": "repo", "repositories": ["api"]}, {}, "the repository octo-org/web is not in the allow-list"),
        ({"scope": "repo", "repositories": ["web"]}, {"full_name": "other/web"}, "the repository other/web does not belong to"),
        ({}, {"private": False, "visibility": "public"}, "the repository octo-org/web is public"),
        ({}, {"private": False, "visibility": None}, "the repository octo-org/web is public"),
        ({}, {"private": None, "visibility": None}, "the repository octo-org/web is public"),  # nothing says that it is private
        ({}, {"private": True, "visibility": "public"}, "the repository octo-org/web is public"),
    ],
)
@pytest.mark.parametrize("action", ["queued", "completed"])
def test_foreign_unlisted_and_public_repositories_create_no_demand(
    action: str, github: dict[str, Any], repository: dict[str, Any], expected: str
) -> None:
    receipt = deliver(payload(action, repository=repository), settings=config(**github))
    assert reason(receipt).startswith(expected)


@pytest.mark.parametrize(
    ("repository", "github"),
    [
        ({"private": True, "visibility": "internal"}, {}),
        ({"private": None, "visibility": "internal"}, {}),
        ({"private": True, "visibility": None}, {}),
        ({"private": False, "visibility": "public"}, {"allow_public_repositories": True}),
    ],
)
def test_private_internal_and_by_choice_public_repositories_are_served(repository: dict[str, Any], github: dict[str, Any]) -> None:
    receipt = deliver(payload(repository=repository), settings=config(**github))
    assert receipt.wakeup is not None and fact_of(receipt).demand


@pytest.mark.parametrize(
    ("enterprise", "repositories", "served"),
    [
        ({"slug": "Octo-Org"}, [], True),
        ({"slug": "rival"}, [], False),
        (None, [], False),  # GitHub names the enterprise in each of its deliveries: one without it is not known to be ours
        ("octo-org", [], False),
        (None, ["some-org/web"], True),
        ({"slug": "octo-org"}, ["Some-Org/Web"], True),
        ({"slug": "octo-org"}, ["some-org/api"], False),
        ({"slug": "rival"}, ["some-org/web"], False),
    ],
)
def test_an_enterprise_is_known_by_its_slug_since_its_repositories_have_many_owners(
    enterprise: object, repositories: list[str], served: bool
) -> None:
    content = payload(repository={"full_name": "some-org/web"}) | ({"enterprise": enterprise} if enterprise else {})
    receipt = deliver(content, settings=config(scope="enterprise", repositories=repositories))
    assert (receipt.wakeup is not None) is served
    if served:
        assert fact_of(receipt).target == "enterprise:octo-org"


@pytest.mark.parametrize("action", ["in_progress", "completed"])
@pytest.mark.parametrize(
    ("repository", "labels", "runner", "partition", "pool", "demand"),
    [
        ({}, ["linux", "x64"], "hw-linux-x64-abc", "linux-x64", "linux-x64", True),
        ({}, ["linux", "x64"], "hw-gpu-abc", "linux-x64", "linux-x64", True),  # the job's pool, whichever pool's runner took it
        ({}, ["other"], "hw-gpu-abc", "gpu", "", True),
        ({}, ["ubuntu-latest"], "hw-gone-abc", "gone", "", True),  # a pool that has left the file
        ({}, [], "hw-gpu-abc", "gpu", "", True),
        ({"full_name": "other/web"}, ["linux", "x64"], "hw-gpu-abc", "linux-x64", "linux-x64", False),
        ({"private": False, "visibility": "public"}, ["other"], "hw-gpu-abc", "gpu", "", False),
    ],
)
def test_what_names_a_runner_of_ours_is_recorded_whatever_the_filters_say(
    action: str, repository: dict[str, Any], labels: list[str], runner: str, partition: str, pool: str, demand: bool
) -> None:
    receipt = deliver(payload(action, repository=repository, labels=labels, runner_name=runner, runner_id=42))
    fact = fact_of(receipt)
    assert receipt.row is not None and receipt.row["PartitionKey"] == partition
    assert receipt.wakeup is not None and receipt.wakeup["pool"] == partition
    assert (fact.pool, fact.demand, fact.runner_name, fact.runner_id) == (pool, demand, runner, 42)
    assert ("reason" in receipt.body) is not demand


@pytest.mark.parametrize("action", ["queued", "waiting"])
def test_a_runners_name_on_a_queued_job_opens_no_filter(action: str) -> None:
    receipt = deliver(payload(action, repository={"full_name": "other/web"}, runner_name="hw-gpu-abc", runner_id=42))
    assert "does not belong" in reason(receipt)


# ---------------------------------------------------------------------------------------------- what no pool serves


@pytest.mark.parametrize("action", ["queued", "waiting"])
def test_a_job_for_self_hosted_runners_that_no_pool_serves_is_recorded_as_no_demand(action: str) -> None:
    receipt = deliver(payload(action, labels=["self-hosted", "linux", "x64", "fpga"]))
    assert (receipt.status, receipt.wakeup) == (202, None)
    assert receipt.body["nearest_pool"] == "linux-x64" and receipt.body["missing_label"] == "fpga"
    assert receipt.body["reason"] == (
        "no pool serves the labels [self-hosted, linux, x64, fpga]: the nearest, linux-x64, lacks [fpga]"
    )
    assert receipt.row is not None
    assert receipt.row | {"body": ""} == {
        "PartitionKey": "_app",
        "RowKey": "unserved:289782451:u1",
        "body": "",
        "nearest_pool": "linux-x64",
        "missing_label": "fpga",
        "received_at": "2026-03-02T12:00:00.000000+00:00",
    }
    assert fact_of(receipt).pool == ""


@pytest.mark.parametrize("labels", [["self-hosted", "linux", "x64", "fpga"], []])
@pytest.mark.parametrize("action", ["in_progress", "completed"])
def test_a_job_that_no_pool_serves_and_that_waits_for_nobody_leaves_no_row(action: str, labels: list[str]) -> None:
    receipt = deliver(payload(action, labels=labels, runner_name="another-fleets-1", runner_id=5))
    assert reason(receipt) == f"no pool serves the labels [{', '.join(labels)}], and the job waits for no runner any more"


def test_a_job_without_labels_is_recorded_and_no_pool_is_nearest() -> None:
    receipt = deliver(payload(labels=[]))
    assert receipt.row is not None and receipt.wakeup is None
    assert (receipt.row["nearest_pool"], receipt.row["missing_label"]) == ("", "")
    assert receipt.body["reason"].startswith("the job asks for no label")


def test_a_job_for_githubs_own_machines_is_ignored() -> None:
    assert reason(deliver(payload(labels=["ubuntu-latest"]))).startswith("no pool serves the labels [ubuntu-latest]")


# ---------------------------------------------------------------------------------------------- other events


def test_a_ping_is_answered_200() -> None:
    receipt = deliver({"zen": "Keep it logically awesome."}, X_GitHub_Event="ping")
    assert (receipt.status, receipt.row, receipt.wakeup) == (200, None, None)


@pytest.mark.parametrize("event", ["push", "workflow_run", "check_run", "Workflow_Job"])
def test_other_events_are_ignored_with_the_reason(event: str) -> None:
    assert reason(deliver(payload(), X_GitHub_Event=event)).startswith(f"the event {event} is not needed")


def test_unknown_actions_are_ignored_with_the_reason() -> None:
    assert reason(deliver({"action": "requeued"})).startswith("the action requeued")


# ---------------------------------------------------------------------------------------------- what it costs


def test_the_webhooks_path_imports_no_service() -> None:
    script = (
        "import sys, runnerpool.intake, runnerpool.pool_file, runnerpool.settings;"
        "print([name for name in ('tenacity', 'azure', 'githubkit', 'httpx', 'aiohttp', 'asyncio') if name in sys.modules])"
    )
    root = Path(__file__).parent.parent
    run = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout == "[]\n"
