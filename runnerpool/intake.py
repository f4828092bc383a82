"""One delivery of GitHub's becomes an answer, at most one row and at most one wake-up. Pure: no clock, no I/O, no logging.

The order of the checks is fixed: nothing of the body is looked at before its signature is right, and what the filters (pools,
repositories, public repositories) turn away is answered 2xx with the reason, since GitHub could do nothing better with it.
Filters apply to demand only: `in_progress` and `completed` that name a runner of ours are recorded whatever they say.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from runnerpool.config import Config, GitHubConfig, PoolConfig
from runnerpool.delivery import Delivery, Malformed, read_delivery
from runnerpool.labels import match, nearest, pool_of_runner, wants_self_hosted
from runnerpool.model import Fact
from runnerpool.rows import fact_to_columns

LARGEST_BODY = 25 * 1024 * 1024
"""GitHub sends no larger payload."""

APP_PARTITION = "_app"
ACTIONS = ("queued", "waiting", "in_progress", "completed")


@dataclass(frozen=True, slots=True)
class Receipt:
    """`body` is the answer's JSON. `row` goes to the table output binding, `wakeup` to the queue's; the host writes both first."""

    status: int
    body: dict[str, str]
    row: dict[str, str] | None = None
    wakeup: dict[str, str] | None = None


def receive(
    body: bytes, headers: Mapping[str, str], *, secrets: Sequence[str], config: Config, now: datetime, unique: str
) -> Receipt:
    """`unique` makes the row's key new: the binding inserts, and GitHub may send one delivery twice."""
    headers = {name.lower(): value for name, value in headers.items()}
    if refused := refusal(body, headers, secrets):
        return refused
    try:
        payload = _json_object(body)
        event = headers.get("x-github-event", "")
        if not event:
            raise Malformed(["header X-GitHub-Event"])
        if event == "ping":
            return Receipt(200, {"message": "pong: the webhook is set up"})
        if event != "workflow_job":
            return _ignored(f"the event {event:.100} is not needed: subscribe to workflow_job alone")
        action = payload.get("action")
        if isinstance(action, str) and action not in ACTIONS:
            return _ignored(f"the action {action:.100} says nothing about demand")
        delivery = read_delivery(payload, headers.get("x-github-delivery", ""), now)
    except Malformed as trouble:
        return Receipt(400, {"message": str(trouble)})
    return _record(delivery, config, unique)


# ---------------------------------------------------------------------------------------------- before anything is believed


def refusal(body: bytes, headers: Mapping[str, str], secrets: Sequence[str]) -> Receipt | None:
    """The answer to a delivery whose payload is not to be looked at; None when it may be. Needs no pool file."""
    if not any(secrets):
        return Receipt(503, {"message": "no webhook secret is set: set GITHUB_WEBHOOK_SECRET to the secret of the webhook"})
    if len(body) > LARGEST_BODY:
        return Receipt(413, {"message": f"the body is larger than {LARGEST_BODY} bytes"})
    signature = headers.get("x-hub-signature-256", "")
    if not signature:
        return Receipt(401, {"message": "the header X-Hub-Signature-256 is missing: give the webhook a secret on GitHub"})
    if not verifies(body, signature, secrets):
        return Receipt(401, {"message": "the signature is wrong: GITHUB_WEBHOOK_SECRET and the webhook's secret on GitHub differ"})
    content_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        return Receipt(415, {"message": "the content type must be application/json: choose it in the webhook's settings on GitHub"})
    return None


def verifies(body: bytes, signature: str, secrets: Sequence[str]) -> bool:
    """Whether one of the secrets made this `sha256=…` signature of exactly these bytes. Takes as long for a wrong one as for
    a right one; an empty secret verifies nothing."""
    given = signature.encode("utf-8", "replace")
    outcomes = [
        hmac.compare_digest(
            b"sha256=" + hmac.new(secret.encode("utf-8", "surrogateescape"), body, hashlib.sha256).hexdigest().encode(), given
        )
        for secret in secrets
        if secret
    ]
    return any(outcomes)


def _json_object(body: bytes) -> Mapping[str, Any]:
    try:
        payload = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError):
        raise Malformed([], "the body is not JSON") from None
    if not isinstance(payload, dict):
        raise Malformed([], "the body is not a JSON object")
    return payload


# ---------------------------------------------------------------------------------------------- what becomes of a delivery


def _record(delivery: Delivery, config: Config, unique: str) -> Receipt:
    fact = delivery.fact
    pool = match(fact.labels, config.pools)
    filtered = why_no_demand(delivery, config.github)
    fact = replace(fact, pool=pool.name if pool else "", target=config.github.target(fact.repository), demand=not filtered)
    ours = pool_of_runner(fact.runner_name, config.azure.name_prefix) if fact.action in ("in_progress", "completed") else None
    if ours:
        return _accepted(fact, pool.name if pool else ours, unique, filtered)
    if pool is None:
        return _unserved(fact, config.pools, unique)
    if filtered:
        return _ignored(filtered)
    return _accepted(fact, pool.name, unique, "")


def why_no_demand(delivery: Delivery, github: GitHubConfig) -> str:
    """Why this delivery's repository gets no VMs; "" when it does."""
    repository = delivery.fact.repository
    owner, _, name = repository.partition("/")
    allowed = {entry.lower() for entry in github.repositories}
    listed = (repository if github.scope == "enterprise" else name).lower() in allowed
    if github.scope == "enterprise":
        # Its organisations have owners of their own. GitHub names the enterprise in each delivery of one.
        belongs = delivery.enterprise.lower() == github.owner.lower() or (listed and not delivery.enterprise)
    else:
        belongs = owner.lower() == github.owner.lower()
    if not belongs:
        return f"the repository {repository} does not belong to {github.owner} (github.owner)"
    if allowed and not listed:
        return f"the repository {repository} is not in the allow-list (github.repositories)"
    if delivery.public and not github.allow_public_repositories:
        return f"the repository {repository} is public: anybody's pull request could run code (github.allow_public_repositories)"
    return ""


def _accepted(fact: Fact, partition: str, unique: str, filtered: str) -> Receipt:
    body = {"message": f"recorded: job {fact.job_id} is {fact.action}", "pool": partition, "job": fact.job_id}
    if filtered:
        body["reason"] = f"recorded for the sake of its runner only: {filtered}"
    row = {"PartitionKey": partition, "RowKey": f"fact:{fact.job_id}:{unique}", **fact_to_columns(fact)}
    return Receipt(202, body, row, {"pool": partition, "job": fact.job_id, "delivery": fact.delivery})


def _unserved(fact: Fact, pools: Sequence[PoolConfig], unique: str) -> Receipt:
    """A job that waits for a runner that nobody makes is worth a row that says so; one that GitHub's own machines run is not, and
    neither is one that another fleet's runner has, or has had."""
    if fact.labels and not wants_self_hosted(fact.labels):
        return _ignored(f"no pool serves the labels {_listed(fact.labels)}, and they do not ask for a self-hosted runner")
    if fact.action not in ("queued", "waiting"):
        return _ignored(f"no pool serves the labels {_listed(fact.labels)}, and the job waits for no runner any more")
    pool, missing = nearest(fact.labels, pools)
    if not fact.labels:
        reason = "the job asks for no label, so no pool serves it: name the labels of a pool in its runs-on"
    else:
        reason = f"no pool serves the labels {_listed(fact.labels)}: the nearest, {pool}, lacks {_listed(missing)}"
    row = {
        "PartitionKey": APP_PARTITION,
        "RowKey": f"unserved:{fact.job_id}:{unique}",
        **fact_to_columns(fact),
        "nearest_pool": pool,
        "missing_label": ", ".join(missing),
        "received_at": fact.received_at.astimezone(UTC).isoformat(timespec="microseconds"),
    }
    answer = {"message": "recorded as unserved", "reason": reason, "job": fact.job_id, "nearest_pool": pool}
    return Receipt(202, {**answer, "missing_label": row["missing_label"]}, row)


def _ignored(reason: str) -> Receipt:
    return Receipt(202, {"message": "ignored", "reason": reason})


def _listed(labels: Sequence[str]) -> str:
    return f"[{', '.join(labels)}]"[:300]
