"""A minute in which everything goes wrong at random: what GitHub and Azure do, which jobs come, which process is killed.

Every choice comes from one seed. The processes' own timing does not, so a seed says what was done to them and not how it
ended: a failure that it showed once may need a few runs to show again.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
from collections.abc import Awaitable, Callable, Iterable, Mapping
from random import Random
from typing import Any

from sandbox.github_faults import Fault
from tests.e2e_fixture import Deployment, Pool, pool

SIZES = ["Standard_D4ads_v5", "Standard_E4ads_v5"]
BURST = 5
MUTED = 2
"""At most so many agents fall silent: three that do so at once are taken for trouble of our own, and kept for ever."""

UNHEARD = "website"
"""The repository of which GitHub loses more deliveries than of the other one: its long jobs are those that rule 1 is about."""
LONG_JOBS = 4

QUOTA = "Operation could not be completed as it results in exceeding approved standardDADSv5Family Cores quota."


def pools() -> list[Pool]:
    """Four kinds: unregistered warm VMs, registered ones, slow boots that are bound when they are there, and spot VMs."""
    shape = {"sizes": SIZES, "zones": ["1", "2", "3"], "os_disk": {"ephemeral": True}}
    return [
        pool("warm", minimum_warm_vms=2, maximum_pool_size=5, vm=shape),
        pool("kept", minimum_warm_vms=1, maximum_pool_size=4, keep_registered=True, vm=shape),
        pool("slow", vm=shape),
        pool("spot", rerun_evicted=True, vm={**shape, "priority": "spot-then-regular"}),
    ]


def github_faults(draw: Random) -> Iterable[Fault]:
    """A `queued` that is never told and never listed as failed cannot be known of, so only the later ones are dropped."""

    def at_most(rate: float, kind: str, **what: Any) -> Fault:
        return Fault(kind, times=None, probability=draw.uniform(0, rate), **what)

    mint, one = "generate-jitconfig", r"/actions/runners/\d+$"
    yield at_most(0.06, "answer", status=502)
    yield at_most(0.15, "answer", status=502, method="POST", path=mint, applied=True)
    yield at_most(0.15, "answer", status=500, method="DELETE", path=one, applied=True)
    yield at_most(0.10, "answer", status=409, method="POST", path=mint, message="Already exists")
    yield at_most(0.05, "answer", status=422, method="POST", path=mint, message="Invalid request")
    yield at_most(0.10, "answer", status=422, method="DELETE", path=one, message="Runner is still running a job")
    yield at_most(0.10, "answer", status=404, method="DELETE", path=one, message="Not Found")
    yield at_most(0.03, "secondary_limit")
    yield at_most(0.03, "secondary_limit", retry_after=30)
    yield at_most(0.05, "hang", seconds=draw.uniform(0.2, 2.0))
    yield at_most(0.01, "hang", seconds=20.0, applied=True)
    yield at_most(1.00, "removed_although_busy")
    yield at_most(0.50, "busy_lag", seconds=2.0)
    yield at_most(0.30, "reap", seconds=draw.uniform(0.5, 6.0))
    yield Fault("drop", times=None, probability=draw.uniform(0.3, 0.7), action="in_progress", path=UNHEARD)
    yield at_most(0.25, "drop", action="in_progress")
    yield at_most(0.25, "drop", action="completed")
    yield at_most(0.15, "fail")
    yield at_most(0.15, "double")
    yield at_most(0.15, "late", seconds=draw.uniform(0.5, 10.0))
    yield at_most(0.15, "reorder", seconds=3.0)


def azure_faults(draw: Random) -> Iterable[Mapping[str, Any]]:
    """Zone 3 always has room for E sizes, so that there is an offer to come to rest on: a refused one rests for two minutes."""

    def at_most(rate: float, kind: str, **what: Any) -> Mapping[str, Any]:
        return {"kind": kind, "probability": draw.uniform(0, rate), **what}

    for zone, code in (("1", "ZonalAllocationFailed"), ("2", "SkuNotAvailable"), ("2", "OverconstrainedZonalAllocationRequest")):
        yield at_most(0.20, "put_409", code=code, match={"zone": zone})
    yield at_most(0.10, "put_409", code="OperationNotAllowed", message=QUOTA, match={"size": SIZES[0]})
    yield at_most(0.10, "async_failure", match={"zone": "1"})
    yield at_most(0.08, "async_failure", code="OSProvisioningTimedOut")
    yield at_most(0.08, "dead_agent")
    yield at_most(0.08, "setup_fails")
    yield {
        "kind": "slow_boot",
        "match": {"pool": "slow"},
        "seconds": 6.5,
    }  # more than 3 minutes of the clock that is 30 times as fast
    yield at_most(0.20, "slow_boot", seconds=draw.uniform(1.0, 8.0))
    yield at_most(0.20, "delete_fails")
    yield at_most(0.20, "nic_left")
    yield at_most(0.30, "list_omits", seconds=2.0)
    yield {"kind": "evict", "probability": draw.uniform(0.2, 0.5), "seconds": draw.uniform(1.0, 5.0)}
    yield {"kind": "evict", "probability": draw.uniform(0.0, 0.5), "seconds": draw.uniform(0.5, 4.0), "notice": 1.0}
    yield at_most(0.05, "throttle", retry_after=5)
    yield at_most(0.05, "error")
    yield at_most(0.15, "error", operation="vm.put", status=502, code="BadGateway", applied=True)
    yield at_most(0.15, "error", operation="vm.delete", status=502, code="BadGateway", applied=True)
    yield at_most(0.10, "hang", operation="vm.put", seconds=draw.uniform(1.0, 25.0))
    yield at_most(0.05, "hang", seconds=draw.uniform(0.2, 3.0))


class Storm:
    """What befalls one deployment. `told` is what was done, for people."""

    def __init__(self, app: Deployment, seed: int) -> None:
        self.app = app
        self.seed = seed
        self.kills = 0
        self.long: list[int] = []
        self.muted: list[str] = []
        self.spoiled: list[bytes] = []
        """Messages that no wake-up ever was."""

    async def rage(self, seconds: float) -> None:
        """Goes on for so many seconds, and leaves everything sound but the machines that were given up meanwhile."""
        arm, github = self.app.stack.arm.faults, self.app.stack.github.faults
        draw = Random(f"{self.seed} faults")
        for wish in azure_faults(draw):
            arm.add(wish)
        for fault in github_faults(draw):
            github.add(fault)
        try:
            async with asyncio.timeout(seconds), asyncio.TaskGroup() as group:
                group.create_task(self._again_and_again("jobs", 0.4, 2.4, self._job))
                group.create_task(self._again_and_again("long jobs", 0.5, 4.0, self._long_job, times=LONG_JOBS))
                group.create_task(self._again_and_again("cancels", 4.0, 12.0, self._cancel))
                group.create_task(self._again_and_again("kills", 1.0, 2.0, self._kill))
                group.create_task(self._again_and_again("mutes", 6.0, 20.0, self._mute))
                group.create_task(self._again_and_again("messages", 10.0, 40.0, self._spoil))
        except TimeoutError:  # the minute is over
            pass
        finally:
            arm.clear()
            github.clear()

    async def _again_and_again(
        self, what: str, low: float, high: float, strike: Callable[[Random], Awaitable[None]], times: int | None = None
    ) -> None:
        random = Random(f"{self.seed} {what}")
        for _ in itertools.count() if times is None else range(times):
            await asyncio.sleep(random.uniform(low, high))
            await strike(random)

    async def _job(self, random: Random) -> None:
        name = random.choice(["warm", "kept", "slow", "spot"])
        count = random.randint(2, BURST) if random.random() < 0.1 else 1
        shortest = 1.5 if name == "spot" else 0.1  # an eviction has to meet some of them
        self.app.queue(name, count=count, seconds=random.uniform(shortest, 4.0), repository=random.randrange(2))

    async def _long_job(self, random: Random) -> None:
        """As long as it takes to give up a VM whose agent has died, or a little less."""
        name, seconds = random.choice(["warm", "kept", "slow"]), random.uniform(30.0, 50.0)
        self.long += self.app.queue(name, seconds=seconds, repository=1)

    async def _cancel(self, random: Random) -> None:
        """Not of the spot pool: whether a job was lost or cancelled, where both befell it, nobody can tell."""
        jobs = self.app.stack.github.world.jobs
        mine = [job for job, name in self.app.pool_of.items() if name != "spot" and job not in self.long]
        open_ones = [job for job in mine if jobs[job].status != "completed"]
        if open_ones:
            self.app.cancel(random.choice(open_ones))

    async def _kill(self, random: Random) -> None:
        if running := self.app.host.running():
            self.app.kill(random.choice(sorted(running)))
            self.kills += 1

    async def _mute(self, random: Random) -> None:
        """Rather an agent beside whose job nobody has told of, so that nobody is left to tell."""
        names = [vm.name for vm in self.app.stack.arm.estate.vms.values() if vm.power == "running"]
        sent = self.app.stack.github.deliveries.sent
        dropped = [delivery.job for delivery in sent if (delivery.action, delivery.status) == ("in_progress", "dropped")]
        unheard = {job.runner_name for job in dropped if job is not None and job.status == "in_progress" and job.id in self.long}
        names = [name for name in names if name in unheard] or names
        if names and len(self.muted) < MUTED:
            name = random.choice(names)
            self.muted += [name] * self.app.stack.machines.mute(name)

    async def _spoil(self, random: Random) -> None:
        body = f"no wake-up {random.random()}".encode()
        async with self.app.messages("job-demand") as queue:
            await queue.send_message(base64.b64encode(body).decode())
        self.spoiled.append(body)

    def __str__(self) -> str:
        jobs, cancelled = len(self.app.pool_of), len(self.app.cancelled)
        struck = self.app.stack.arm.faults.struck + self.app.stack.github.faults.struck
        faults = ", ".join(f"{count} {kind}" for kind, count in sorted(struck.items()))
        did = f"{jobs} jobs, {cancelled} of them cancelled, {self.kills} kills, {len(self.muted)} agents ended, {faults}"
        return f"seed {self.seed}: {did}"
