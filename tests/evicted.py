"""A job on a spot VM that is taken away, as rows: shared by the tests of how that is known and of what follows."""

from __future__ import annotations

from typing import Any

from runnerpool.model import Runner, RunnerState
from tests.made_rows import MINUTE, NOW, runner

S = RunnerState
NAME = "hw-linux-aaaaaaaaaa"
SPOT: dict[str, Any] = {"vm": {"sizes": ["Standard_D4ads_v5"], "priority": "spot"}, "rerun_evicted": True}
RAN: dict[str, Any] = {"runner_name": NAME, "started_at": NOW - 5 * MINUTE, "run_id": "77", "job_name": "build"}
FAILED: dict[str, Any] = {**RAN, "completed_at": NOW, "conclusion": "failure"}
EVICTED: dict[str, Any] = {**FAILED, "evicted": "its spot VM was taken away"}


def spot(state: RunnerState = S.BUSY, **changes: Any) -> Runner:
    return runner(state, spot=True, busy_at=NOW - 5 * MINUTE, **changes)
