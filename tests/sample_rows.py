"""One of each thing that the ledger holds, with a value in every field, and one with none but the needed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from runnerpool.model import Basis, Fact, Head, Job, Rest, Runner, RunnerState

NOW = datetime(2026, 11, 23, 18, 0, 0, 123456, tzinfo=UTC)

FACT = Fact(
    job_id="12345678901",
    action="completed",
    status="completed",
    pool="linux-x64",
    repository="octo-org/hello",
    target="org:octo-org",
    labels=("self-hosted", "linux", "x64"),
    created_at=NOW - timedelta(minutes=4),
    received_at=NOW,
    delivery="9d2f1c5e-0000-11ef-9d2f-1c5e00000000",
    started_at=NOW - timedelta(minutes=3),
    completed_at=NOW - timedelta(microseconds=1),
    conclusion="success",
    runner_name="hw-linux-x64-abc123",
    runner_id=2**40,
    run_id="98765432109",
    run_attempt=2,
    workflow="CI",
    job_name="build (ünï, 🚀)",
    demand=False,
)
JOB = Job(
    job_id="12345678901",
    pool="linux-x64",
    repository="octo-org/hello",
    target="org:octo-org",
    labels=("linux", "x64"),
    created_at=NOW - timedelta(minutes=4),
    received_at=NOW,
    queued=True,
    waiting=True,
    trusted=True,
    demand=False,
    started_at=NOW,
    completed_at=NOW,
    conclusion="cancelled",
    runner_name="hw-linux-x64-abc123",
    runner_id=2**40,
    run_id="98765432109",
    run_attempt=3,
    workflow="CI",
    job_name='say "hello"',
    vms_made=2,
    last_vm_at=NOW,
    checked_at=NOW,
    missing_since=NOW,
)
RUNNER = Runner(
    name="hw-linux-x64-abc123",
    pool="linux-x64",
    state=RunnerState.DELETING,
    since=NOW,
    created_at=NOW - timedelta(hours=1),
    reason="job 1 completed",
    size="Standard_D4ads_v5",
    zone="2",
    spot=True,
    target="repo:octo-org/hello",
    job_id="1",
    address="10.0.0.4",
    minted_at=NOW,
    github_id=2**40,
    online_at=NOW,
    deregistered_at=NOW,
    put_until=NOW,
    accepted_at=NOW,
    ready_at=NOW,
    busy_at=NOW,
    busy_job="1",
    completed_job="1",
    basis=Basis.COMPLETED,
    delete_accepted_at=NOW,
    silent_since=NOW,
    answered_at=NOW,
    exited_at=NOW,
    absent_since=NOW,
    claimed_by="provision-7f",
    claimed_until=NOW,
    not_before=NOW,
    attempts=3,
)
HEAD = Head(
    pool="linux-x64",
    revision=2**33,
    rests={"spot/Standard_D4ads_v5/1": Rest(until=NOW, code="SkuNotAvailable"), "spot": Rest(until=NOW, code="Überlast")},
    paused=True,
    boot_seconds=92.0,
)
SMALL_FACT = Fact("2", "queued", "queued", "linux-x64", "o/r", "org:o", (), NOW, NOW, "d")
SMALL_JOB = Job("2", "linux-x64", "o/r", "org:o", (), NOW, NOW)
SMALL_RUNNER = Runner("hw-linux-x64-1", "linux-x64", RunnerState.REQUESTED, NOW, NOW)
