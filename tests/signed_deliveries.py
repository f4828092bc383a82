"""Deliveries of `workflow_job`, signed as GitHub signs them, and what the intake makes of one."""

from __future__ import annotations

import hashlib
import hmac
import json
from datetime import UTC, datetime
from typing import Any

from runnerpool.config import Config
from runnerpool.intake import Receipt, receive
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
