"""`python -m runnerpool status`: the document of /runner/status, read from the ledger, as lines for a terminal. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from runnerpool.console import columns

SHOWN = 20
"""Things of one kind; `--json` has them all."""

Document = Mapping[str, Any]


def lines(document: Document) -> Iterator[str]:
    yield f"health: {document['health']}"
    for name, check in document.get("checks", {}).items():
        yield f"  {name}: {'ok' if check['ok'] else 'TROUBLE'}, {check['detail']}"
    if pools := document.get("pools"):
        yield ""
        yield from columns([HEAD, *map(_pool, pools)])
    yield from _section("alerts", (f"{it.get('area')}: {it.get('title')}" for it in document.get("alerts", [])))
    yield from _section("waiting", (_waiting(pool, job) for pool in document.get("pools", []) for job in pool["waiting"]))
    yield from _section("refused by Azure for now", (rest for pool in document.get("pools", []) for rest in _resting(pool)))
    yield from _section("served by no pool", map(_unserved, document.get("unserved", [])))
    yield from _section("wake-ups that failed for good", map(_poisoned, document.get("poisoned", [])))


HEAD = ("pool", "VMs", "of", "warm", "idle", "busy", "other", "waiting", "running", "")


def _pool(pool: Document) -> tuple[object, ...]:
    runners: Mapping[str, int] = pool["runners"]
    idle = runners.get("ready", 0) + runners.get("registered", 0)
    busy = runners.get("busy", 0)
    other = sum(runners.values()) - idle - busy
    state = "draining" if pool.get("draining") else "paused" if pool["paused"] else ""
    jobs: Mapping[str, int] = pool["jobs"]
    waiting = jobs.get("queued", 0) + jobs.get("waiting", 0)
    limits = (pool["vms"], pool["maximum_pool_size"], pool["minimum_warm_vms"])
    return (pool["name"], *limits, idle, busy, other, waiting, jobs.get("in_progress", 0), state)


def _section(title: str, entries: Iterator[str] | map[str]) -> Iterator[str]:
    listed = list(entries)
    if listed:
        yield ""
        yield f"{title}:"
        yield from (f"  {entry}" for entry in listed[:SHOWN])
        if len(listed) > SHOWN:
            yield f"  and {len(listed) - SHOWN} more (--json)"


def _waiting(pool: Document, job: Document) -> str:
    return f"{pool['name']}: job {job['job']} of {job['repository']}, {job['age_seconds']:,} s: {job['reason']}"


def _resting(pool: Document) -> list[str]:
    return [f"{pool['name']}: {offer} {until}" for offer, until in pool["resting"].items()]


def _unserved(job: Document) -> str:
    labels = ", ".join(job.get("labels") or ())
    missing = f"; the nearest, {job['nearest_pool']}, lacks {job['missing_label']}" if job.get("nearest_pool") else ""
    return f"job {job['job_id']} of {job.get('repository')} asks for [{labels}]{missing}"


def _poisoned(message: Document) -> str:
    return f"{message.get('received_at', '')} {message['id']}: {message.get('error', '')}"
