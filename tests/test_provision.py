"""The engine's rounds, the contest with other planners, and the sharing of passes."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import pytest

from runnerpool.decide import CLAIM
from runnerpool.errors import NoCapacity, RetryLater
from runnerpool.lifecycle import NOTHING_SEEN
from runnerpool.model import Runner, RunnerState
from runnerpool.ports import Insert, VmSpec
from runnerpool.provision import CONTEST, ROUNDS, SharedPasses
from runnerpool.rows import fact_to_columns
from tests.made_rows import MINUTE, NOW, ORG, clock, config, fact, job, later, pool, runner, virtual
from tests.memory_table import Request
from tests.stand_ins import Scene

S = RunnerState
TWO_SIZES = ["Standard_D4ads_v5", "Standard_D4as_v5"]


def conflicts(scene: Scene, times: int) -> None:
    """The next commits of the pool lose to somebody else's."""

    async def somebody_else(request: Request) -> None:
        nonlocal times
        if request.kind == "transact" and request.partition == "linux" and times > 0:
            times -= 1
            scene.table.before = nobody
            await scene.ledger.revise_head("linux", lambda head: replace(head, boot_seconds=float(times + 1)))
            scene.table.before = somebody_else

    async def nobody(_request: Request) -> None: ...

    scene.table.before = somebody_else


# ---------------------------------------------------------------------------------------------- rounds


@virtual
async def test_a_wake_up_leads_from_a_fact_to_a_vm_and_a_second_one_finds_nothing_to_do() -> None:
    scene = Scene()
    await scene.hold(fact())
    await scene.wake()
    row = await scene.only()
    assert (row.state, row.job_id) == (S.BOOTING, "1")
    assert list(scene.azure.vms) == [row.name]

    before = scene.rows()
    await scene.wake()
    assert scene.rows() == before


@virtual
async def test_a_warm_vm_is_bound_to_the_job_and_another_one_takes_its_place() -> None:
    scene = Scene(config(pool(minimum_warm_vms=1)))
    await scene.hold(fact(), runner(S.READY))
    await scene.wake()
    assert sorted(str(row.state) for row in (await scene.runners()).values()) == ["booting", "registered"]
    assert scene.crew.handed["hw-linux-aaaaaaaaaa"]


@virtual
async def test_what_an_act_leaves_undone_is_planned_anew_but_not_for_ever() -> None:
    scene = Scene(config(pool(vm={"sizes": TWO_SIZES})))
    scene.azure.fails("create_vm", *[NoCapacity("AllocationFailed", "full")] * 99)
    await scene.hold(fact())
    await scene.wake()
    assert scene.azure.count("create_vm") == len(TWO_SIZES)  # then every offer rests

    reads = 0

    async def count(request: Request) -> None:
        nonlocal reads
        reads += request.kind == "read"

    scene.table.before = count
    await scene.wake()
    assert reads <= ROUNDS


@virtual
async def test_past_its_deadline_a_run_acts_no_more() -> None:
    scene = Scene()
    await scene.hold(fact())
    await scene.engine().run("linux", deadline=clock())
    assert not scene.azure.calls
    assert (await scene.only()).state is S.REQUESTED


@virtual
async def test_a_run_whose_acts_outlast_its_time_claims_no_row_that_it_would_leave_lying() -> None:
    scene = Scene()
    await scene.hold(fact())
    create = scene.azure.create_vm

    async def slowly(spec: VmSpec) -> None:
        await later(minutes=2)
        await scene.table.transact("linux", [Insert("fact:2:late", fact_to_columns(fact(job_id="2")))])
        await create(spec)

    scene.azure.create_vm = slowly  # type: ignore[method-assign]
    await scene.engine().run("linux", deadline=clock() + MINUTE)
    scene.azure.create_vm = create  # type: ignore[method-assign]
    await scene.wake(worker="another")
    assert sorted(str(row.job_id) for row in (await scene.runners()).values() if row.state is S.BOOTING) == ["1", "2"]


@virtual
async def test_a_run_tells_which_other_pools_runners_its_facts_named() -> None:
    scene = Scene(config(pool(), pool(labels=["windows"], name="windows")))
    row = replace(runner(S.BUSY), name="hw-windows-bbbbbbbbbb", pool="windows")
    await scene.hold(row, fact("completed", runner_name=row.name))
    assert await scene.wake() == {"windows"}
    await scene.wake("windows")
    assert (await scene.runners("windows"))[row.name].state is S.DELETING


@virtual
async def test_a_pool_that_left_the_file_is_drained_and_its_running_job_ends_in_peace() -> None:
    scene = Scene(config(pool(labels=["other"], name="other")))
    await scene.hold(runner(S.READY, "idle"), runner(S.BUSY, "busy"), fact())
    await scene.wake()
    states = {row.name: row.state for row in (await scene.runners()).values()}
    assert states == {"hw-linux-idle": S.REGISTERED, "hw-linux-busy": S.BUSY}  # the idle one still serves the job that waits

    await scene.hold(fact("completed", runner_name="hw-linux-busy"))
    await scene.wake()
    assert (await scene.runners())["hw-linux-busy"].state is S.DELETING


@virtual
async def test_two_runs_of_one_process_do_not_take_each_others_claims_for_their_own() -> None:
    scene = Scene()
    await scene.hold(job())
    engine = scene.engine()
    await engine.plan_once("linux", NOTHING_SEEN, "worker.0")
    await engine.run("linux", deadline=clock() + MINUTE)
    assert not scene.azure.calls
    assert (await scene.only()).claimed_until == NOW + CLAIM


# ---------------------------------------------------------------------------------------------- the contest


@virtual
async def test_a_plan_that_lost_to_another_is_made_anew() -> None:
    scene = Scene()
    await scene.hold(fact())
    conflicts(scene, CONTEST - 1)
    await scene.wake()
    assert (await scene.only()).state is S.BOOTING


@virtual
async def test_whoever_loses_again_and_again_leaves_the_pool_to_the_others() -> None:
    scene = Scene()
    await scene.hold(fact())
    conflicts(scene, 10 * CONTEST)
    assert await scene.wake() == set()
    assert not await scene.runners()


@virtual
async def test_ten_workers_at_once_never_exceed_the_maximum() -> None:
    scene = Scene(config(pool(maximum_pool_size=7)))

    async def takes_time(_request: Request) -> None:
        await later(seconds=0.01)

    await scene.hold(*(fact(job_id=str(n)) for n in range(20)))
    scene.table.before = takes_time
    await asyncio.gather(*(scene.wake(worker=f"worker{n}") for n in range(10)))
    assert len(scene.azure.vms) == 7
    assert len({row.job_id for row in (await scene.runners()).values()}) == 7
    assert scene.hub.count("mint") == 7


@pytest.mark.parametrize("uncertain", [False, True])
@virtual
async def test_storage_that_fails_for_long_is_an_error_and_for_a_moment_is_none(uncertain: bool) -> None:
    scene = Scene()
    await scene.hold(fact())
    failures = 3

    async def fails(request: Request) -> None:
        nonlocal failures
        if request.kind == "transact" and failures > 0:
            failures -= 1
            raise RetryLater("503", uncertain=uncertain)

    scene.table.before = fails
    await scene.wake()
    assert (await scene.only()).state is S.BOOTING

    await scene.hold(fact(job_id="2"))
    failures = 99
    with pytest.raises(RetryLater):
        await scene.wake()


@virtual
async def test_a_commit_whose_answer_was_lost_is_not_made_twice() -> None:
    scene = Scene()
    await scene.hold(fact())
    lost = [RetryLater("no answer", uncertain=True)]

    async def loses_one(request: Request) -> None:
        if request.kind == "transact" and lost:
            raise lost.pop()

    scene.table.after = loses_one
    await scene.wake()
    assert len(await scene.runners()) == 1


# ---------------------------------------------------------------------------------------------- sharing passes


@dataclass
class Slow:
    """Stands in for the engine: its reading takes a second, its acting ten; `reads` are the moments at which it read."""

    fails: list[BaseException] = field(default_factory=list)
    reads: list[datetime] = field(default_factory=list)
    committed: int = 0
    at_once: int = 0
    most: int = 0

    async def run(self, name: str, *, deadline: datetime, planned: asyncio.Future[None]) -> set[str]:
        self.reads.append(clock())
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        try:
            await later(seconds=1)
            if self.fails:
                raise self.fails.pop(0)
        finally:
            self.at_once -= 1
        self.committed += 1
        planned.set_result(None)
        await later(seconds=10)
        return {f"other than {name}"}


def shared(engine: Slow) -> SharedPasses:
    return SharedPasses(engine)  # type: ignore[arg-type]


@virtual
async def test_a_burst_of_wake_ups_costs_two_passes_and_each_returns_after_a_plan_that_read_after_it_came() -> None:
    engine = Slow()
    passes = shared(engine)

    async def wake_up(at: float) -> None:
        await later(seconds=at)
        came = clock()
        await passes.wake("linux", deadline=came + MINUTE)
        assert any(read >= came for read in engine.reads[: engine.committed])

    await asyncio.gather(*(wake_up(n / 300) for n in range(200)))
    assert len(engine.reads) == 2
    assert engine.most == 1


@virtual
async def test_acting_holds_up_no_plan_and_sharing_no_caller_until_the_acts_are_done() -> None:
    engine = Slow()
    passes = shared(engine)
    leader = asyncio.create_task(passes.wake("linux", deadline=clock() + MINUTE))
    await later(seconds=0.5)
    second = asyncio.create_task(passes.wake("linux", deadline=clock() + MINUTE))
    await later(seconds=0.1)
    assert await passes.wake("linux", deadline=clock() + MINUTE) == set()  # shares the second one's pass
    assert clock() - NOW == timedelta(seconds=2)
    assert not leader.done()
    assert await leader == await second == {"other than linux"}


@virtual
async def test_pools_do_not_wait_for_each_other() -> None:
    engine = Slow()
    passes = shared(engine)
    await asyncio.gather(*(passes.wake(name, deadline=clock() + MINUTE) for name in ("linux", "windows")))
    assert engine.reads == [NOW, NOW]


@virtual
async def test_what_a_shared_pass_died_of_reaches_all_who_shared_it_and_the_next_one_works() -> None:
    engine = Slow(fails=[RetryLater("first"), RetryLater("second")])
    passes = shared(engine)

    async def wake_up(at: float) -> str:
        await later(seconds=at)
        try:
            await passes.wake("linux", deadline=clock() + MINUTE)
        except RetryLater as error:
            return str(error)
        return "fine"

    results = await asyncio.gather(*map(wake_up, (0, 0.1, 0.2, 0.3, 5)))
    assert results == ["first", "second", "second", "second", "fine"]


@virtual
async def test_a_leader_that_is_cancelled_leaves_nobody_waiting() -> None:
    engine = Slow()
    passes = shared(engine)
    first = asyncio.create_task(passes.wake("linux", deadline=clock() + MINUTE))
    await later(seconds=0.1)
    leader = asyncio.create_task(passes.wake("linux", deadline=clock() + MINUTE))
    await later(seconds=0.1)
    sharer = asyncio.create_task(passes.wake("linux", deadline=clock() + MINUTE))
    await later(seconds=0.1)
    leader.cancel()
    with pytest.raises(RetryLater):  # it must come again: nobody has planned for it
        await sharer
    await passes.wake("linux", deadline=clock() + MINUTE)
    await first
    assert len(engine.reads) == 2


@virtual
async def test_a_burst_on_the_real_engine_makes_one_vm_a_job() -> None:
    scene = Scene()
    passes = SharedPasses(scene.engine())
    reads = 0

    async def takes_time(request: Request) -> None:
        nonlocal reads
        reads += request.kind == "read" and request.partition == "linux"
        await later(seconds=0.01)

    async def delivered(number: int) -> None:
        await later(seconds=number / 1000)
        await scene.ledger.add_fact("linux", "x", fact(job_id=str(number)))
        await passes.wake("linux", deadline=clock() + 4 * MINUTE)

    scene.table.before = takes_time
    await asyncio.gather(*map(delivered, range(40)))
    made: dict[str, Runner] = await scene.runners()
    assert sorted(row.job_id or "" for row in made.values()) == sorted(str(n) for n in range(40))
    assert {row.target for row in made.values()} == {ORG}
    assert reads < 25
