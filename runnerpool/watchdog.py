"""How long a VM may take to become useful, phase by phase, learned from how long the pool's VMs usually take. Pure.

Two deadlines a phase. Past the usual one a VM is late: it serves nobody any more, so a replacement is made, and is welcome
when it comes after all. Past the hard one it is given up, and what it was waiting for is the reason that people read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from runnerpool.model import Runner, RunnerState

S = RunnerState

LATE = 3
"""A VM is late after three times the usual: hosts differ by a factor of two, and a replacement costs a VM."""
LOST = 6
"""It is given up after six times the usual: a pool whose every boot is slow is slow for a reason."""
WEIGHT = 0.3
"""How much one new duration moves the usual one: some five boots make a new image the usual case."""
LONGEST = timedelta(hours=2)
"""No phase may take longer, whatever a pool has got used to: the VM is paid for all the while."""


class Phase(StrEnum):
    """What comes next for a VM that is on its way."""

    RUNNING = "running"  # accepted by Azure, not seen running
    ANSWERING = "answering"  # running, its agent has not answered
    READY = "ready"  # its agent answers, the bootstrap still runs
    LISTENING = "listening"  # given its JIT config, its runner does not listen yet


@dataclass(frozen=True, slots=True)
class Floor:
    """Neither deadline of a phase is ever shorter than this, whatever a pool has learned."""

    late: timedelta
    lost: timedelta
    failure: str


FLOORS: Mapping[Phase, Floor] = {
    # Azure gives its own provisioning 20 minutes, and usually needs less than one.
    Phase.RUNNING: Floor(timedelta(minutes=5), timedelta(minutes=20), "Azure did not have it running"),
    # The agent is the first thing that cloud-init starts, but a healthy boot has been seen to take 15 minutes.
    Phase.ANSWERING: Floor(timedelta(minutes=8), timedelta(minutes=20), "its agent did not answer"),
    # A VM that answers is alive: it may be downloading the runner, or be in a long setup_script.
    Phase.READY: Floor(timedelta(minutes=10), timedelta(minutes=30), "its setup did not end"),
    # The runner program connects within seconds; minutes mean that it cannot reach GitHub.
    Phase.LISTENING: Floor(timedelta(minutes=5), timedelta(minutes=10), "its runner did not listen"),
}


def phase(runner: Runner) -> tuple[Phase, datetime] | None:
    """What this runner is on its way to, and since when; None when it is on no such way."""
    if runner.state is S.REGISTERED and runner.online_at is None:
        return Phase.LISTENING, runner.since
    if runner.state is not S.BOOTING:
        return None
    if runner.answered_at is not None:
        return Phase.READY, runner.answered_at
    if runner.running_at is not None:
        return Phase.ANSWERING, runner.running_at
    return Phase.RUNNING, runner.accepted_at or runner.since


def late(now: datetime, runner: Runner, usual: Mapping[str, float]) -> bool:
    """Whether it has taken longer than VMs of its pool usually do. `usual` holds seconds, by phase."""
    found = phase(runner)
    return found is not None and now - found[1] > _deadline(FLOORS[found[0]].late, LATE, usual.get(found[0]))


def lost(now: datetime, runner: Runner, usual: Mapping[str, float]) -> str:
    """Why this runner is to be given up, "" while it may still come."""
    found = phase(runner)
    if found is None:
        return ""
    limit = _deadline(FLOORS[found[0]].lost, LOST, usual.get(found[0]))
    minutes = int(limit.total_seconds() // 60)
    return f"{FLOORS[found[0]].failure} within {minutes} minutes" if now - found[1] > limit else ""


def _deadline(floor: timedelta, factor: int, usual: float | None) -> timedelta:
    return min(max(floor, factor * timedelta(seconds=usual or 0.0)), LONGEST)


def learned(usual: Mapping[str, float], before: Runner, after: Runner) -> Mapping[str, float]:
    """The usual durations, with those of the phases that ended in this step. The same object where none did."""
    found = {name: seconds for name, begun, end in _ended(before, after) if (seconds := _seconds(begun, end)) is not None}
    return {**usual, **{name: smoothed(usual.get(name), seconds) for name, seconds in found.items()}} if found else usual


def smoothed(usual: float | None, took: float) -> float:
    return round(took if usual is None else usual + WEIGHT * (took - usual), 1)


def _ended(before: Runner, after: Runner) -> Iterable[tuple[Phase, datetime | None, datetime]]:
    if before.running_at is None and after.running_at is not None:
        yield Phase.RUNNING, after.accepted_at, after.running_at
    if before.answered_at is None and after.answered_at is not None:
        yield Phase.ANSWERING, after.running_at, after.answered_at
    if before.ready_at is None and after.ready_at is not None:
        yield Phase.READY, after.answered_at, after.ready_at
    if before.state is S.REGISTERED and before.online_at is None and after.online_at is not None:
        yield Phase.LISTENING, before.since, after.online_at


def _seconds(begun: datetime | None, end: datetime) -> float | None:
    """Two workers' clocks may have written the two: what seems to end before it began took no time."""
    return None if begun is None else max((end - begun).total_seconds(), 0.0)
