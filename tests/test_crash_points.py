"""A worker that dies between any two of its steps leaves nothing undone and nothing behind."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from runnerpool.decide import CLAIM
from runnerpool.model import SKEW, Runner, RunnerState
from runnerpool.ports import AgentPhase
from tests.made_rows import ORG, claimed, clock, config, fact, job, later, pool, runner, status, virtual
from tests.memory_table import MemoryTable, Request
from tests.stand_ins import Scene

S = RunnerState


WANTED = {"target": ORG, "job_id": "1"}


class Killed(BaseException):
    """The process is dead: nothing it still tries takes effect."""


@dataclass
class Life:
    """Of a worker that dies at the `last` of its steps: before or after a call of a service or a request to the table."""

    last: int
    steps: int = 0
    over: bool = field(default=False)

    def step(self) -> None:
        self.steps += 1
        if self.steps > self.last and not self.over:
            raise Killed

    async def request(self, _request: Request) -> None:
        self.step()


async def dying(scene: Scene, life: Life) -> bool:
    """One wake-up in that life. Whether it died."""
    for service in (scene.azure, scene.hub, scene.crew):
        service.step = life.step
    with suppress(Killed):
        await scene.wake(worker="mortal")
    died, life.over = life.steps > life.last, True
    return died


async def until_it_serves(scene: Scene) -> Runner:
    for _ in range(60):
        await later(seconds=30)
        await scene.reconcile()
        for row in (await scene.runners()).values():
            found = scene.hub.registered[ORG].get(row.name)
            if row.state is S.REGISTERED and row.online_at and found and found.runner_id == row.github_id:
                return row
    raise AssertionError(f"nobody serves the job: {await scene.runners()}")


@pytest.mark.parametrize("warm", [False, True])
@virtual
async def test_wherever_a_worker_dies_the_next_ones_finish_its_work_and_leave_nothing_behind(warm: bool) -> None:
    dead, at = True, 0
    while dead:
        life = Life(at)
        table = MemoryTable()
        scene = Scene(config(pool(maximum_pool_size=2)), table=table)
        await scene.hold(fact(created_at=clock(), received_at=clock()))
        if warm:
            await scene.hold(replace(runner(S.READY, ready_at=clock()), since=clock(), accepted_at=clock()))
        table.before = table.after = life.request
        dead = await dying(scene, life)
        at += 1

        served = await until_it_serves(scene)
        word = scene.crew.words[served.name]
        assert getattr(word, "binding", None) == served.github_id
        given = [config.runner_id for configs in scene.crew.handed.values() for config in configs]
        assert len(given) == len(set(given))

        done: dict[str, Any] = {"runner_name": served.name, "runner_id": served.github_id}
        scene.crew.words[served.name] = status(AgentPhase.EXITED, binding=served.github_id, job_seen=True)
        del scene.hub.registered[ORG][served.name]  # a runner of one job is gone with it
        await scene.hold(fact("in_progress", **done), fact("completed", **done))
        for _ in range(60):
            await scene.reconcile()
            if not await scene.runners():
                break
            await later(seconds=30)
        assert await scene.runners() == {}, at
        assert scene.azure.vms == {}
        assert not scene.hub.registered[ORG]
    assert at > 15


@virtual
async def test_a_claim_is_taken_over_only_when_it_is_over_by_every_clock() -> None:
    scene = Scene(config(pool(maximum_pool_size=1)))
    await scene.hold(job(), replace(claimed(S.REQUESTED, **WANTED), claimed_by="dead"))
    await later(seconds=(CLAIM + SKEW).total_seconds() - 1)
    await scene.wake()
    assert (await scene.only()).state is S.REQUESTED
    await later(seconds=1)
    await scene.wake()
    assert (await scene.only()).state is S.BOOTING
