"""What does not belong here: other people's machines and runners, forged deliveries, and things of ours that lost their rows."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING

from runnerpool.ports import VmState
from tests.sim.azure import SimNic, SimVm
from tests.sim.deliveries import Sent, headers_for, payload, signed
from tests.sim.github import SimJob, SimRunner
from tests.sim.machines import Machine
from tests.sim.scenario import OWNER, PREFIX, JobPlan

if TYPE_CHECKING:
    from tests.sim.world import World

MACHINES: tuple[tuple[str, dict[str, str]], ...] = (
    (f"{PREFIX}-linux-x64-1234567890", {}),  # our kind of name, nobody's tag
    (f"{PREFIX}-linux-x64-mine", {"runnerpool": PREFIX}),  # our tag, copied by hand, and a name that we would not make
    ("build-agent-1", {"runnerpool": PREFIX}),
    (f"{PREFIX}2-linux-x64-abcdefghij", {"runnerpool": f"{PREFIX}2"}),  # another deployment's
)
RUNNERS = (
    *("builder", f"{PREFIX}-linux-x64-mine", f"{PREFIX}2-linux-x64-abcdefghij"),
    *(f"{PREFIX}-linux-x64-theirs", f"{PREFIX}2-linux-x64-0123456789"),  # these have no VM of that name
    f"{PREFIX}-nightly-abcdefghij",  # of a pool that this deployment does not have
)
"""Offline registrations with similar names."""
FORGERIES = ("unsigned", "wrongly signed", "foreign", "public", "unlisted")


def arrive(world: World) -> None:
    """They are there from the beginning, or come during the day."""
    draw = Random(f"{world.seed} strangers")
    for name, tags in MACHINES:
        world.azure.add_foreign(name, dict(tags))
    for name in RUNNERS:
        for target in world.scenario.config.github.targets:
            runner = SimRunner(len(world.github.runners) + 1, name, target, frozenset({"linux"}), "", foreign=True)
            world.github.runners[runner.runner_id] = runner
    for number in range(20):
        kind = draw.choice(FORGERIES if world.scenario.config.github.repositories else FORGERIES[:-1])
        world.later(draw.uniform(0, world.scenario.day), _forge, world, kind, 80_000 + number)
    for number in range(draw.choice((0, 0, 2))):
        suffix = "".join(draw.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=10))
        name = f"{PREFIX}-{world.scenario.config.pools[0].name}-{suffix}"
        world.later(draw.uniform(0, world.scenario.day), (_orphan, _leftover)[number % 2], world, name)


def _forge(world: World, kind: str, number: int) -> None:
    """A delivery that must create no demand: one that GitHub did not sign, be it of a new job or of the end of a job that runs,
    or one of a repository that is not served."""
    pool = world.scenario.config.pools[0]
    plan = JobPlan(str(number), world.loop.time(), world.scenario.jobs[0].repository, tuple(pool.labels), 60.0)
    if kind == "foreign":
        plan = replace(plan, repository="somebody-else/api")
    if kind == "unlisted":
        plan = replace(plan, repository=f"{OWNER}/unlisted")
    job = SimJob(plan, "", world.now().replace(microsecond=0))
    running = next((runner for runner in world.github.runners.values() if runner.job is not None), None)
    over = kind in ("unsigned", "wrongly signed") and running is not None
    if over:
        job.status, job.conclusion, job.runner = "completed", "success", running
    document = payload(job, "completed" if over else "queued", world, private=kind != "public")
    if kind in ("foreign", "unlisted"):
        document.pop("enterprise", None)
    body = signed(document)
    sent = Sent(number, body, world.now(), forged=kind)
    if kind == "wrongly signed":
        sent.headers = headers_for(body, sent.guid, "another secret")
    if kind == "unsigned":
        sent.headers = {name: value for name, value in sent.headers.items() if name != "X-Hub-Signature-256"}
    world.host.attempt(sent)


def _orphan(world: World, name: str) -> None:
    """A VM of ours whose row is lost, with its NIC. It was never registered."""
    vm = SimVm(name, {"runnerpool": PREFIX}, "Standard_D4as_v5", None, False, world.now(), world.loop.time(), VmState.SUCCEEDED)
    vm.machine = Machine(world, name, f"10.3.0.{len(world.azure.vms) % 250}", None, 30.0)
    world.azure.place(vm)
    world.checks.names[name] += 1


def _leftover(world: World, name: str) -> None:
    """A registration and a NIC of ours without anything else."""
    world.github.register(world.scenario.config.github.targets[0], name, ("linux",))
    world.azure.nics[f"{name}-nic"] = SimNic(f"{name}-nic", None, "10.3.1.1", {"runnerpool": PREFIX})
    world.checks.names[name] += 1
