"""Rows and settings as tests want them, and the virtual loop on which they run: one that sleeps for an hour takes no time."""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, ParamSpec

from runnerpool.actions import Action
from runnerpool.config import Config, PoolConfig
from runnerpool.decide import CLAIM, Setting
from runnerpool.lifecycle import Seen, World
from runnerpool.model import Fact, Head, Job, Runner, RunnerState
from runnerpool.plan import plan
from runnerpool.ports import AgentPhase, AgentStatus
from tests.sim.loop import EPOCH, VirtualLoop, run

P = ParamSpec("P")
NOW = EPOCH
ORG = "org:octo-org"
MINUTE = timedelta(minutes=1)


def virtual(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """The test on a loop of its own, whose time jumps."""

    @functools.wraps(test)
    def on_a_loop(*args: P.args, **kwargs: P.kwargs) -> None:
        run(VirtualLoop(), test(*args, **kwargs))

    return on_a_loop


def clock() -> datetime:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return loop.moment()


async def later(**duration: float) -> None:
    await asyncio.sleep(timedelta(**duration).total_seconds())


# ---------------------------------------------------------------------------------------------- rows


def pool(**changes: Any) -> PoolConfig:
    given = {"labels": ["self-hosted", "linux"], "name": "linux", "vm": {"sizes": ["Standard_D4ads_v5"]}, **changes}
    return PoolConfig.model_validate(given)


def config(*pools: PoolConfig, **github: Any) -> Config:
    given = [one.model_dump(exclude_unset=True) for one in pools or (pool(),)]
    return Config.model_validate({"azure": {}, "github": {"owner": "octo-org", **github}, "pools": given})


def job(job_id: str = "1", *, age: timedelta = MINUTE, **changes: Any) -> Job:
    """A queued job that GitHub told of in time."""
    told = NOW - age
    return replace(Job(job_id, "linux", "octo-org/hello", ORG, ("linux",), told, told, queued=True, trusted=True), **changes)


def fact(action: str = "queued", job_id: str = "1", **changes: Any) -> Fact:
    """As a webhook brings it, a second after its job was created."""
    whole = Fact(job_id, action, action, "linux", "octo-org/hello", ORG, ("linux",), NOW, NOW + timedelta(seconds=1), "guid")
    if action in ("in_progress", "completed"):
        whole = replace(whole, started_at=NOW + MINUTE, runner_name="hw-linux-aaaaaaaaaa", runner_id=7)
    if action == "completed":
        whole = replace(whole, completed_at=NOW + 2 * MINUTE, conclusion="success")
    return replace(whole, **changes)


def runner(state: RunnerState = RunnerState.READY, name: str = "aaaaaaaaaa", *, age: timedelta = MINUTE, **changes: Any) -> Runner:
    """A runner that came into this state `age` ago, with what a runner in that state has."""
    S, since = RunnerState, NOW - age
    made = Runner(f"hw-linux-{name}", "linux", state, since, since - 5 * MINUTE, size="Standard_D4ads_v5")
    if state not in (S.REQUESTED, S.CREATING):
        made = replace(made, accepted_at=since if state is S.BOOTING else since - 5 * MINUTE)
    if state not in (S.REQUESTED, S.CREATING, S.BOOTING):
        made = replace(made, ready_at=since, answered_at=since, address="10.0.0.4")
    if state in (S.REGISTERED, S.BUSY, S.FINISHED, S.RETIRING):
        made = replace(made, minted_at=since, github_id=7, target=ORG, online_at=since)
    if state is S.BUSY:
        made = replace(made, busy_job="1")
    return replace(made, **changes)


def jobs(count: int, **changes: Any) -> list[Job]:
    """Waiting jobs, the first the oldest."""
    return [job(str(n), age=timedelta(seconds=100 - n), **changes) for n in range(1, count + 1)]


def runners(state: RunnerState, count: int, **changes: Any) -> list[Runner]:
    """The first has been in this state for longest."""
    return [runner(state, f"{state.value[:4]}{n:06d}", age=timedelta(seconds=90 - n), **changes) for n in range(count)]


def claimed(state: RunnerState, **changes: Any) -> Runner:
    """By the worker whose acts `Scene.act` does."""
    return runner(state, claimed_by="worker", claimed_until=NOW + CLAIM, **changes)


def world(*rows: Job | Runner) -> World:
    jobs = {row.job_id: row for row in rows if isinstance(row, Job)}
    return World(jobs, {row.name: row for row in rows if isinstance(row, Runner)}, {}, {})


def status(phase: AgentPhase = AgentPhase.WAITING, **changes: Any) -> AgentStatus:
    return replace(AgentStatus(phase, worker=False, job_seen=False, binding=None), **changes)


def setting(of: PoolConfig | None = None, **changes: Any) -> Setting:
    made = Setting(of or pool(), "hw", ORG, "worker", suffixes())
    return replace(made, **changes)


def suffixes() -> Callable[[], str]:
    numbers = itertools.count(1)
    return lambda: f"{next(numbers):010d}"


def planned(
    rows: Sequence[Job | Runner],
    *,
    head: Head | None = None,
    home: str | None = ORG,
    targets: Sequence[str] | None = None,
    seen: Seen | None = None,
    **changes: Any,
) -> list[Action]:
    return plan(NOW, pool(**changes), head or Head("linux"), world(*rows), seen=seen or Seen(), home=home, targets=targets)


def of(kind: type[Any], actions: Sequence[Action]) -> list[Any]:
    return [action for action in actions if isinstance(action, kind)]
