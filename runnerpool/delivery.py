"""Reads a `workflow_job` payload, tolerantly: GHES leaves keys out, a job without a runner has `runner_id` 0 or null.

Of what is needed everything that is lacking is named at once; what is not needed and not as expected counts as absent.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from runnerpool.model import Fact

LONGEST_NAME = 300
"""Characters that are kept of a text that only people read."""

LONGEST_LABELS = 4_000
"""Characters of all labels of one job together. A fact must fit one column of Table Storage, and cutting a label would change
which pool serves the job."""


class Malformed(Exception):
    """A signed delivery that cannot be understood. `lacking` names what is missing or is not what it should be."""

    def __init__(self, lacking: Sequence[str], message: str = "") -> None:
        super().__init__(message or f"missing or not as expected: {', '.join(lacking)}")
        self.lacking = tuple(lacking)


@dataclass(frozen=True, slots=True)
class Delivery:
    """A fact as yet without pool and target, and what the filters want to know. `enterprise` is a slug, "" where none is named."""

    fact: Fact
    public: bool
    enterprise: str


def read_delivery(payload: Mapping[str, Any], delivery: str, now: datetime) -> Delivery:
    """Raises Malformed. A repository that does not say that it is private counts as public."""
    read = _Reading()
    job, repository = _object(payload, "workflow_job"), _object(payload, "repository")
    action = read.needed("action", _text(payload.get("action")))
    created = _first_moment(job, "created_at", "started_at", "completed_at")
    fact = Fact(
        job_id=read.needed("workflow_job.id", _number_text(job.get("id"))),
        action=action,
        status=_text(job.get("status")) or action,
        pool="",
        repository=read.needed("repository.full_name", _repository(repository)),
        target="",
        labels=_labels(read, job.get("labels"), needed=action in ("queued", "waiting")),
        # A later pass judges by this whether the delivery is late; of the other actions only the runner matters.
        created_at=created or (read.moment_needed("workflow_job.created_at", now) if action == "queued" else now),
        received_at=now,
        delivery=delivery[:LONGEST_NAME],
        started_at=_moment(job.get("started_at")),
        completed_at=_moment(job.get("completed_at")),
        conclusion=_text(job.get("conclusion")) or None,
        runner_name=_text(job.get("runner_name")) or None,
        runner_id=_whole(job.get("runner_id")),
        run_id=_number_text(job.get("run_id")),
        run_attempt=_whole(job.get("run_attempt")) or 1,
        workflow=_text(job.get("workflow_name")),
        job_name=_text(job.get("name")),
    )
    if read.lacking:
        raise Malformed(read.lacking)
    return Delivery(fact, _is_public(repository), _text(_object(payload, "enterprise").get("slug")))


@dataclass(slots=True)
class _Reading:
    lacking: list[str] = field(default_factory=list)

    def needed(self, name: str, value: str) -> str:
        if not value:
            self.lacking.append(name)
        return value

    def moment_needed(self, name: str, stand_in: datetime) -> datetime:
        self.lacking.append(name)
        return stand_in


def _labels(read: _Reading, value: object, *, needed: bool) -> tuple[str, ...]:
    labels = () if value is None and not needed else value
    if (
        not isinstance(labels, (list, tuple))
        or not all(isinstance(label, str) for label in labels)
        or sum(map(len, labels)) > LONGEST_LABELS
    ):
        read.lacking.append("workflow_job.labels")
        return ()
    return tuple(map(_clean, labels))


def _object(parent: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = parent.get(key)
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str:
    return _clean(value[:LONGEST_NAME]) if isinstance(value, str) else ""


def _clean(text: str) -> str:
    """JSON may spell half a surrogate pair, which no storage service takes."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _whole(value: object) -> int | None:
    return value if type(value) is int and 0 <= value < 2**63 else None


def _number_text(value: object) -> str:
    """GitHub's ids, numbers in JSON, are text everywhere in the ledger, where they are parts of keys."""
    number = int(value) if isinstance(value, str) and re.fullmatch(r"[0-9]{1,19}", value) else _whole(value)
    return str(number) if number else ""


def _repository(repository: Mapping[str, Any]) -> str:
    name = _text(repository.get("full_name"))
    return name if re.fullmatch(r"[\w-]+/(?!\.{1,2}$)[\w.-]+", name, re.ASCII) else ""


def _is_public(repository: Mapping[str, Any]) -> bool:
    if repository.get("visibility") == "public":
        return True
    return repository.get("private") is not True and repository.get("visibility") not in ("private", "internal")


def _moment(value: object) -> datetime | None:
    """ISO 8601 as GitHub writes it, in UTC; one without an offset is meant in UTC."""
    if not isinstance(value, str):
        return None
    try:
        moment = datetime.fromisoformat(value)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):  # OverflowError: the year 1 or 9999 with an offset that leads out of the calendar
        return None


def _first_moment(job: Mapping[str, Any], *names: str) -> datetime | None:
    return next((moment for name in names if (moment := _moment(job.get(name)))), None)
