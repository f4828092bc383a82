"""The provision process is killed (SIGKILL) at the moments that hurt most; what it left behind is found, and nothing is lost.

The reconcile process stands still until the kill, so that it is provision that acts.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from runnerpool.model import RunnerState
from sandbox.github_faults import Fault
from tests.e2e_fixture import Deployment, deployed, fast_clock, pool

RATE = 30.0
"""A claim is taken over after four minutes, 8 s here; a PUT of which nobody saw the end is waited for 12 minutes, 24 s here."""

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module", autouse=True)
def clock() -> Iterator[None]:
    with fast_clock(RATE):
        yield


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def app(clock: None, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Deployment]:
    pools = [pool("cold"), pool("warm", minimum_warm_vms=1)]
    async with deployed(tmp_path_factory.mktemp("crash"), pools) as deployment:
        await deployment.settles()
        yield deployment


async def test_a_provision_killed_between_the_vm_put_and_the_rows_update_loses_nothing(app: Deployment) -> None:
    [warm] = app.vms("warm")
    app.stack.arm.faults.add({"kind": "hang", "operation": "vm.put", "seconds": 60})
    with app.frozen("reconcile"):
        jobs = app.queue("cold", count=3)
        app.queue("warm")
        await app.until(lambda: (len(app.vms("cold")), len(app.made("warm"))) == (3, 2))
        before = {**await app.rows("cold"), **await app.rows("warm")}
        app.kill("provision")
    app.stack.arm.faults.clear()
    made = [*app.made("cold"), app.made("warm")[-1]]
    assert {before[name].state for name in made} == {RunnerState.CREATING}
    assert [before[name].minted_at is None for name in made] == [False, False, False, True]
    await app.settles()
    assert sorted(app.ran_on(job) for job in jobs) == sorted(app.made("cold")), "each VM that was made took its job"
    assert app.vms("warm") == made[-1:] != [warm], "the warm VM whose making nobody saw to its end is kept"


async def test_a_provision_killed_between_the_jit_call_and_the_vm_put_loses_nothing(app: Deployment) -> None:
    app.stack.github.faults.add(Fault("hang", method="POST", path="generate-jitconfig", applied=True, seconds=60.0, times=None))
    made = len(app.made("cold"))
    with app.frozen("reconcile"):
        jobs = app.queue("cold", count=3)
        await app.until(lambda: len(app.stack.github.world.runners) == 3)
        before = await app.rows("cold")
        assert len(app.made("cold")) == made
        app.kill("provision")
    app.stack.github.faults.clear()
    assert {row.state for row in before.values()} == {RunnerState.CREATING}
    assert {row.github_id for row in before.values()} == {None}, "nobody has read the answers"
    await app.settles()
    assert sorted(app.ran_on(job) for job in jobs) == sorted(before), "the registrations are made anew under the same names"


async def test_a_provision_killed_while_it_binds_a_warm_vm_loses_nothing(app: Deployment) -> None:
    [warm] = app.vms("warm")
    app.stack.github.faults.add(Fault("hang", method="POST", path="generate-jitconfig", applied=True, seconds=60.0, times=None))
    with app.frozen("reconcile"):
        [job] = app.queue("warm")
        await app.until(lambda: warm in {runner.name for runner in app.stack.github.world.runners.values()})
        before = await app.rows("warm")
        app.kill("provision")
    app.stack.github.faults.clear()
    assert (before[warm].state, before[warm].github_id) == (RunnerState.BINDING, None)
    await app.settles()
    assert app.ran_on(job) == warm
