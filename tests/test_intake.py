"""One delivery in, an answer, at most one row and at most one wake-up out."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnerpool.config import Config
from runnerpool.intake import LARGEST_BODY, Receipt, receive
from runnerpool.model import Fact
from runnerpool.rows import fact_from_columns

NOW = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
SECRET = "it's a secret to everybody"


def config(**github: Any) -> Config:
    pools = [
        {"name": "linux-x64", "labels": ["self-hosted", "linux", "x64"], "vm": {"sizes": ["Standard_D4ads_v5"]}},
        {"name": "gpu", "labels": ["linux", "gpu"], "vm": {"sizes": ["Standard_D4ads_v5"]}},
    ]
    return Config.model_validate({"azure": {}, "github": {"owner": "octo-org", **github}, "pools": pools})


def payload(action: str = "queued", repository: dict[str, Any] | None = None, **job: Any) -> dict[str, Any]:
    """Shaped like a real delivery. A key given as `...` is left out."""
    workflow_job = {
        "id": 289782451,
        "run_id": 2202229078,
        "run_attempt": 1,
        "workflow_name": "CI",
        "name": "build",
        "status": action,
        "conclusion": None,
        "created_at": "2026-03-02T11:59:58Z",
        "started_at": "2026-03-02T11:59:58Z",
        "completed_at": None,
        "labels": ["self-hosted", "linux", "x64"],
        "runner_id": None,
        "runner_name": None,
        **job,
    }
    return {
        "action": action,
        "workflow_job": {key: value for key, value in workflow_job.items() if value is not ...},
        "repository": {"full_name": "octo-org/web", "private": True, "visibility": "private", **(repository or {})},
        "sender": {"login": "somebody"},
    }


def sign(body: bytes, secret: str = SECRET) -> str:
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def headers(body: bytes, **changes: str | None) -> dict[str, str]:
    """GitHub's headers; one that is given as None is left out."""
    given: dict[str, str | None] = {
        "Content-Type": "application/json",
        "X-GitHub-Event": "workflow_job",
        "X-GitHub-Delivery": "72d3162e-cc78-11e3-81ab-4c9367dc0958",
        "X-Hub-Signature-256": sign(body),
    }
    given |= {name.replace("_", "-"): value for name, value in changes.items()}
    return {name: value for name, value in given.items() if value is not None}


def deliver(
    content: object, *, settings: Config | None = None, secrets: tuple[str, ...] = (SECRET,), **changes: str | None
) -> Receipt:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return receive(body, headers(body, **changes), secrets=secrets, config=settings or config(), now=NOW, unique="u1")


def fact_of(receipt: Receipt) -> Fact:
    assert receipt.row is not None
    return fact_from_columns({"body": receipt.row["body"]})


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


# ---------------------------------------------------------------------------------------------- what is refused


def refused(receipt: Receipt) -> tuple[int, str]:
    assert receipt.row is None and receipt.wakeup is None
    return receipt.status, receipt.body["message"]


@pytest.mark.parametrize("secrets", [(), ("",), ("", "")])
def test_without_a_secret_nothing_is_believed(secrets: tuple[str, ...]) -> None:
    body = json.dumps(payload()).encode()
    status, message = refused(deliver(body, secrets=secrets, X_Hub_Signature_256=sign(body, "")))
    assert status == 503 and "GITHUB_WEBHOOK_SECRET" in message


def test_an_empty_secret_beside_a_real_one_verifies_nothing() -> None:
    body = json.dumps(payload()).encode()
    assert refused(deliver(body, secrets=(SECRET, ""), X_Hub_Signature_256=sign(body, "")))[0] == 401


@pytest.mark.parametrize("secrets", [(SECRET, "older"), ("newer", SECRET), (SECRET, "")])
def test_each_of_two_secrets_verifies(secrets: tuple[str, ...]) -> None:
    assert deliver(payload(), secrets=secrets).wakeup is not None


@pytest.mark.parametrize(
    "signature",
    [None, "", "sha256=", "sha256=" + "0" * 64, "sha1=" + "0" * 40, "sha256=é", sign(b"another body"), sign(b"", "other secret")],
)
def test_a_missing_or_wrong_signature_is_refused(signature: str | None) -> None:
    assert refused(deliver(payload(), X_Hub_Signature_256=signature))[0] == 401


def test_the_signature_is_over_the_raw_bytes() -> None:
    body = json.dumps(payload(), indent=2).encode()
    assert deliver(body).wakeup is not None
    assert refused(deliver(body + b" ", X_Hub_Signature_256=sign(body)))[0] == 401


def test_a_body_over_25_mib_is_refused_before_its_signature_is_computed() -> None:
    body = b" " * (LARGEST_BODY + 1)
    assert receive(body, {}, secrets=[SECRET], config=config(), now=NOW, unique="u").status == 413
    assert receive(body[1:], {}, secrets=[SECRET], config=config(), now=NOW, unique="u").status == 401


@pytest.mark.parametrize("content_type", [None, "", "application/x-www-form-urlencoded", "text/plain", "application/jsonx"])
def test_what_is_not_json_by_content_type_is_refused(content_type: str | None) -> None:
    status, message = refused(deliver(payload(), Content_Type=content_type))
    assert status == 415 and "application/json" in message


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "Application/JSON", "application/json ;x=y"])
def test_parameters_and_case_of_the_content_type_do_not_count(content_type: str) -> None:
    assert deliver(payload(), Content_Type=content_type).wakeup is not None


@pytest.mark.parametrize(
    "body", [b"", b"{", b"payload=%7B%7D", b"\xff\xfe{}", b"[" * 200_000, b"[]", b'"x"', b"null", b"1" * 5_000]
)
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    status, message = refused(deliver(body))
    assert status == 400 and message.startswith("the body is not")


@pytest.mark.parametrize(
    ("change", "lacking"),
    [
        ({"id": ...}, "workflow_job.id"),
        ({"id": 0}, "workflow_job.id"),
        ({"id": True}, "workflow_job.id"),
        ({"id": "12/34"}, "workflow_job.id"),
        ({"labels": ...}, "workflow_job.labels"),
        ({"labels": "linux"}, "workflow_job.labels"),
        ({"labels": ["linux", 1]}, "workflow_job.labels"),
        ({"labels": ["x" * 4_001]}, "workflow_job.labels"),
        ({"created_at": ..., "started_at": None}, "workflow_job.created_at"),
        ({"id": ..., "labels": ...}, "workflow_job.id, workflow_job.labels"),
    ],
)
def test_a_needed_field_that_is_lacking_is_named(change: dict[str, Any], lacking: str) -> None:
    assert refused(deliver(payload(**change))) == (400, f"missing or not as expected: {lacking}")


@pytest.mark.parametrize("full_name", [None, "", "web", "a/b/c", "a b/c", "a/../c", "a/..", "../b", "a/b#"])
def test_a_repository_must_be_named_by_owner_and_name(full_name: str | None) -> None:
    assert refused(deliver(payload(repository={"full_name": full_name}))) == (
        400,
        "missing or not as expected: repository.full_name",
    )


def test_everything_lacking_is_named_at_once() -> None:
    status, message = refused(deliver({}))
    assert status == 400
    for name in ("action", "workflow_job.id", "repository.full_name"):
        assert name in message


def test_a_delivery_without_an_event_is_refused() -> None:
    assert refused(deliver(payload(), X_GitHub_Event=None)) == (400, "missing or not as expected: header X-GitHub-Event")


def test_the_checks_come_in_a_fixed_order() -> None:
    """Each delivery has every fault that is checked later: only the first one shows."""
    huge, bad = b"[" * (LARGEST_BODY + 1), b"["
    assert deliver(huge, secrets=(), X_Hub_Signature_256=None, Content_Type="text/plain").status == 503
    assert deliver(huge, X_Hub_Signature_256=None, Content_Type="text/plain").status == 413
    assert deliver(bad, X_Hub_Signature_256=None, Content_Type="text/plain").status == 401
    assert deliver(bad, Content_Type="text/plain").status == 415
    assert deliver(bad).status == 400
    assert deliver(bad, X_GitHub_Event="ping").status == 400


# ---------------------------------------------------------------------------------------------- robustness


def test_header_names_are_matched_without_regard_to_case() -> None:
    body = json.dumps(payload()).encode()
    for change in (str.lower, str.upper):
        given_headers = {change(name): value for name, value in headers(body).items()}
        assert receive(body, given_headers, secrets=[SECRET], config=config(), now=NOW, unique="u").wakeup is not None


def test_long_and_broken_texts_still_fit_a_row() -> None:
    wild = payload(name="\ud800" + "x" * 100_000, workflow_name="é" * 100_000, labels=["self-hosted", "\udfff"])
    receipt = deliver(wild, X_GitHub_Delivery="d" * 100_000)
    assert receipt.row is not None
    assert json.dumps(receipt.row, ensure_ascii=False).encode()  # no half of a surrogate pair is left
    assert all(len(value) < 32_000 for value in receipt.row.values())


def test_the_answer_names_no_secret() -> None:
    for receipt in (deliver(payload()), deliver(payload(), X_Hub_Signature_256="sha256=x"), deliver(b"[")):
        assert SECRET not in json.dumps([receipt.body, receipt.row, receipt.wakeup])


KEY = re.compile(r"[^/\\#?\x00-\x1f\x7f-\x9f]+")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
NAMES = st.sampled_from(["Content-Type", "X-GitHub-Event", "x-hub-signature-256", "X-GitHub-Delivery", "content-type"]) | st.text(
    max_size=10
)


@given(st.binary(max_size=300), st.dictionaries(NAMES, st.text(max_size=80), max_size=6), st.lists(st.text(max_size=5), max_size=2))
def test_no_bytes_and_headers_whatever_raise_or_get_a_row_without_a_signature(
    body: bytes, given_headers: dict[str, str], secrets: list[str]
) -> None:
    receipt = receive(body, given_headers, secrets=secrets, config=config(), now=NOW, unique="u")
    assert receipt.row is None and receipt.wakeup is None
    assert receipt.status == (401 if any(secrets) else 503)


@given(JSON, st.text(max_size=20))
def test_no_signed_json_whatever_raises(content: object, event: str) -> None:
    assert deliver(content, X_GitHub_Event=event).status in (200, 202, 400)
    assert deliver(content).status in (202, 400)


@given(
    st.sampled_from(["queued", "waiting", "in_progress", "completed"]),
    st.dictionaries(st.sampled_from(list(payload()["workflow_job"])), JSON | st.sampled_from(["hw-gpu-a", "hw-a b-c", "7"])),
    st.dictionaries(st.sampled_from(["full_name", "private", "visibility"]), JSON),
)
def test_no_field_whatever_raises_or_makes_an_unfit_row(action: str, job: dict[str, Any], repository: dict[str, Any]) -> None:
    receipt = deliver(payload(action, repository=repository, **job))
    assert receipt.status in (202, 400)
    json.dumps([receipt.body, receipt.wakeup]).encode()
    if receipt.row is not None:
        assert KEY.fullmatch(receipt.row["PartitionKey"]) and KEY.fullmatch(receipt.row["RowKey"])
        assert fact_of(receipt).job_id.isdigit()


def test_the_webhooks_path_imports_no_service() -> None:
    script = (
        "import sys, runnerpool.intake, runnerpool.pool_file, runnerpool.settings;"
        "print([name for name in ('tenacity', 'azure', 'githubkit', 'httpx', 'aiohttp', 'asyncio') if name in sys.modules])"
    )
    root = Path(__file__).parent.parent
    run = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout == "[]\n"
