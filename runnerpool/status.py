"""What people and probes read: `GET /runner/status`, from the ledger alone. It calls neither Azure nor GitHub."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from runnerpool.config import Config, PoolConfig, departed, warm_minimum
from runnerpool.errors import PoolError
from runnerpool.explain import reasons
from runnerpool.ledger import Ledger
from runnerpool.lifecycle import fold
from runnerpool.model import JobState, Snapshot
from runnerpool.ports import Entity

STALE = timedelta(minutes=2)
"""A reconcile pass every 30 s; four missed ones are a fault."""
LISTED = 200
"""Things of one kind that are listed one by one; counts are always whole."""


def authorised(headers: Mapping[str, str], token: str) -> bool:
    """Whether the request carries the diagnostic token, compared in constant time. An empty token admits nobody."""
    given = next((value for name, value in headers.items() if name.lower() == "authorization"), "")
    scheme, _, presented = given.partition(" ")
    return bool(token) and scheme.lower() == "bearer" and hmac.compare_digest(presented.strip().encode(), token.encode())


async def report(now: datetime, config: Config, ledger: Ledger) -> tuple[int, dict[str, Any]]:
    """The status code and the document. 503 only when the ledger cannot be read; trouble elsewhere is told in the document."""
    try:
        app = {entity.row: entity for entity in await ledger.app_rows()}
        pools = [*config.pools, *(departed(row.removeprefix("pool:")) for row in app if _left(row, config))]
        snapshots = await asyncio.gather(*(ledger.read_pool(pool.name) for pool in pools))
    except PoolError as error:
        return 503, {"health": "down", "checks": {"storage": _check(False, str(error))}, "pools": []}
    checks = {"storage": _check(True, "readable"), **_checks(now, app.get("heartbeat"))}
    alerts = [_alert(entity) for row, entity in app.items() if row.startswith("alert:")]
    healthy = all(check["ok"] for check in checks.values()) and not alerts
    document = {
        "health": "ok" if healthy else "degraded",
        "time": now.isoformat(),
        "checks": checks,
        "alerts": alerts,
        "pools": [
            _pool(now, config, pool, snapshot)
            for pool, snapshot in zip(pools, snapshots, strict=True)
            if _shown(pool, config, snapshot)
        ],
        "counts": {"unserved": _count(app, "unserved:"), "poisoned": _count(app, "poison:")},
        "unserved": [_unserved(entity) for entity in _first(app, "unserved:")],
        "poisoned": [_poisoned(entity) for entity in _first(app, "poison:")],
    }
    return 200, document


def _left(row: str, config: Config) -> bool:
    """Whether this row records a pool that has left the pool file."""
    return row.startswith("pool:") and all(pool.name != row.removeprefix("pool:") for pool in config.pools)


def _shown(pool: PoolConfig, config: Config, snapshot: Snapshot) -> bool:
    """Pools of the file always; one that has left it as long as it has VMs or jobs."""
    return pool in config.pools or bool(snapshot.runners or snapshot.jobs or snapshot.facts)


def _count(app: Mapping[str, Entity], prefix: str) -> int:
    return sum(row.startswith(prefix) for row in app)


def _first(app: Mapping[str, Entity], prefix: str) -> list[Entity]:
    return [entity for row, entity in app.items() if row.startswith(prefix)][:LISTED]


def _check(ok: bool, detail: str) -> dict[str, Any]:
    return {"ok": ok, "detail": detail}


def _checks(now: datetime, heartbeat: Entity | None) -> dict[str, dict[str, Any]]:
    if heartbeat is None:
        waiting = _check(False, "no reconcile pass has ended yet; the first one comes within 30 s of the start")
        return {"reconcile": waiting, "azure": waiting, "github": waiting}
    try:
        beat = json.loads(str(heartbeat.columns.get("body", "{}")))
        age = now - datetime.fromisoformat(beat["at"])
    except (ValueError, KeyError, TypeError) as error:
        damaged = _check(False, f"the heartbeat's row cannot be read, the next reconcile writes it anew: {error!r}")
        return {"reconcile": damaged, "azure": damaged, "github": damaged}
    trouble: dict[str, str] = beat.get("trouble", {})
    failures: dict[str, str] = beat.get("failures", {})
    late = f"{int(age.total_seconds())} s ago, took {beat.get('seconds')} s"
    failed = "; ".join(f"pool {pool}: {why}" for pool, why in failures.items())
    return {
        "reconcile": _check(age <= STALE and not failures, f"{late}; {failed}" if failed else late),
        "azure": _check("azure" not in trouble, trouble.get("azure", "answered the last reconcile")),
        "github": _check("github" not in trouble, trouble.get("github", "answered the last reconcile")),
    }


def _pool(now: datetime, config: Config, pool: PoolConfig, snapshot: Snapshot) -> dict[str, Any]:
    world = fold(snapshot, now, prefix=config.azure.name_prefix)
    states = Counter(str(runner.state) for runner in world.runners.values())
    jobs = Counter(str(job.state) for job in world.jobs.values())
    why = reasons(now, pool, snapshot.head, world, snapshot.unreadable)
    started = [
        (job.started_at - job.created_at).total_seconds() for job in world.jobs.values() if job.started_at and job.runner_name
    ]
    rests = {key: f"until {rest.until:%H:%M} UTC: {rest.code}" for key, rest in snapshot.head.rests.items() if rest.until > now}
    running = [job for job in world.jobs.values() if job.state is JobState.IN_PROGRESS]
    return {
        "name": pool.name,
        "labels": list(pool.labels),
        "minimum_warm_vms": warm_minimum(pool, now),
        "maximum_pool_size": pool.maximum_pool_size,
        "paused": snapshot.head.paused,
        "draining": snapshot.head.draining,
        "vms": sum(runner.exists for runner in world.runners.values()),
        "runners": dict(sorted(states.items())),
        "jobs": dict(sorted(jobs.items())),
        "waiting": [
            {
                "job": job_id,
                "name": world.jobs[job_id].job_name,
                "repository": world.jobs[job_id].repository,
                "age_seconds": int((now - world.jobs[job_id].created_at).total_seconds()),
                "reason": reason,
            }
            for job_id, reason in list(why.items())[:LISTED]
        ],
        "running": [
            {"job": job.job_id, "name": job.job_name, "repository": job.repository, "runner": job.runner_name}
            for job in running[:LISTED]
        ],
        "time_to_start_seconds": _spread(started),
        "evicting": [
            {"runner": runner.name, "at": runner.eviction_at.isoformat()}
            for runner in world.runners.values()
            if runner.eviction_at is not None
        ],
        "evicted": [
            {"job": job.job_id, "name": job.job_name, "repository": job.repository, "reason": job.evicted, "rerun": job.rerun}
            for job in world.jobs.values()
            if job.evicted is not None
        ],
        "resting": rests,
        "failures": [
            {"at": failure.at.isoformat(), "runner": failure.name, "reason": failure.reason, "setup_log": failure.log}
            for failure in reversed(snapshot.head.failures)
        ],
        "unreadable_rows": list(snapshot.unreadable),
    }


def _spread(seconds: Sequence[float]) -> dict[str, float] | None:
    """Median and maximum over the jobs of the last hour."""
    if not seconds:
        return None
    ordered = sorted(seconds)
    return {"jobs": len(ordered), "median": ordered[len(ordered) // 2], "maximum": ordered[-1]}


def _alert(entity: Entity) -> dict[str, Any]:
    return {"id": entity.row.removeprefix("alert:"), **entity.columns}


def _unserved(entity: Entity) -> dict[str, Any]:
    try:
        fact = json.loads(str(entity.columns.get("body", "{}")))
    except ValueError:
        fact = {"job_id": entity.row.split(":")[1]}  # somebody damaged it; the columns beside it may do
    kept = ("job_id", "repository", "labels", "job_name")
    return {
        **{key: fact.get(key) for key in kept},
        "nearest_pool": entity.columns.get("nearest_pool"),
        "missing_label": entity.columns.get("missing_label"),
    }


def _poisoned(entity: Entity) -> dict[str, Any]:
    return {"id": entity.row.removeprefix("poison:"), **entity.columns}
