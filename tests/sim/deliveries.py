"""Deliveries as GitHub sends them: JSON bytes, signed."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.sim.github import SimJob
    from tests.sim.world import World

SECRET_KEY = "s3cr3t-webhook"
PATIENCE = timedelta(seconds=10)
"""How long GitHub waits for an answer."""


@dataclass(slots=True)
class Sent:
    """One delivery with its attempts. `forged` says what is wrong with it, for those that must change nothing."""

    number: int
    body: bytes
    at: datetime
    headers: Mapping[str, str] = field(default_factory=dict)
    attempts: list[tuple[datetime, bool]] = field(default_factory=list)
    forged: str = ""

    def __post_init__(self) -> None:
        if not self.headers:
            self.headers = headers_for(self.body, self.guid, SECRET_KEY)

    @property
    def guid(self) -> str:
        return f"guid-{self.number}"

    @property
    def ok(self) -> bool:
        return any(good for _, good in self.attempts)

    def overdue(self, now: datetime) -> bool:
        """Whether GitHub has given its first attempt up, as far as it has made one."""
        return bool(self.attempts) or now - self.at > PATIENCE


def headers_for(body: bytes, guid: str, key: str) -> dict[str, str]:
    return {
        "Content-Type": "application/json",
        "X-GitHub-Event": "workflow_job",
        "X-GitHub-Delivery": guid,
        "X-Hub-Signature-256": "sha256=" + hmac.new(key.encode(), body, hashlib.sha256).hexdigest(),
    }


def signed(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document).encode()


def _time(moment: datetime | None) -> str | None:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ") if moment else None


def payload(job: SimJob, action: str, world: World, *, repository: str = "", private: bool = True) -> dict[str, Any]:
    """The delivery about a job as it stands."""
    runner = job.runner
    name = repository or job.plan.repository
    status = job.status if action != "queued" or job.status == "waiting" else "queued"
    document: dict[str, Any] = {
        "action": action,
        "workflow_job": {
            "id": int(job.plan.job_id),
            "run_id": int(job.plan.run_id or job.plan.job_id),
            "run_attempt": job.plan.attempt,
            "status": status,
            "conclusion": job.conclusion,
            "created_at": _time(job.created_at),
            "started_at": _time(job.started_at or job.created_at),
            "completed_at": _time(job.completed_at),
            "name": "build",
            "workflow_name": "CI",
            "labels": list(job.plan.labels),
            "runner_id": runner.runner_id if runner else 0 if action == "completed" else None,
            "runner_name": runner.name if runner else "" if action == "completed" else None,
        },
        "repository": {"full_name": name, "private": private, "visibility": "private" if private else "public"},
    }
    if world.scenario.config.github.scope == "enterprise":
        document["enterprise"] = {"slug": world.scenario.config.github.owner}
    return document
