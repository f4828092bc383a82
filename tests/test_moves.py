"""What becomes of queued jobs when the pool file changes: pools renamed, split, rolled back, mended."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from runnerpool.errors import RetryLater
from runnerpool.model import Fact, Job
from runnerpool.ports import JobReport, Remove
from runnerpool.reconcile import ADOPTED
from runnerpool.rows import fact_to_columns
from runnerpool.status import report
from tests.made_rows import NOW, clock, config, fact, job, later, pool, virtual
from tests.memory_table import Request
from tests.stand_ins import Scene

OLD, NEW = config(pool(name="old")), config(pool(name="new"))


def old_job(**changes: Any) -> Job:
    return replace(job(), pool="old", **changes)


async def jobs(scene: Scene, name: str) -> dict[str, Job]:
    return dict((await scene.ledger.read_pool(name)).jobs)


async def made_for(scene: Scene, name: str) -> list[str | None]:
    """The jobs for which the pool has a VM."""
    return [row.job_id for row in (await scene.runners(name)).values()]


async def shown(scene: Scene) -> dict[str, Any]:
    """The pools of the status page, by name."""
    _, document = await report(clock(), scene.config, scene.ledger)
    return {one["name"]: one for one in document["pools"]}


async def known_to_both() -> Scene:
    """Both names of the pool are on record."""
    scene = Scene(OLD)
    await scene.reconcile()
    scene.config = NEW
    await scene.reconcile()
    return scene


# ---------------------------------------------------------------------------------------------- a pool renamed


@virtual
async def test_a_queued_job_of_a_renamed_pool_moves_and_leaves_nothing_behind() -> None:
    scene = await known_to_both()
    await scene.hold(old_job())
    await scene.reconcile()
    assert await jobs(scene, "old") == {}
    assert (await made_for(scene, "old"), await made_for(scene, "new")) == ([], ["1"])
    assert list(await shown(scene)) == ["new"]


@virtual
async def test_a_job_that_moved_moves_back_when_the_file_is_rolled_back() -> None:
    scene = await known_to_both()
    await scene.hold(old_job())
    scene.azure.fails("create_vm", *[RetryLater("503")] * 99)
    await scene.reconcile()
    assert (await jobs(scene, "new"))["1"].wants_runner
    scene.config = OLD
    scene.azure.before.clear()
    await later(seconds=30)
    await scene.reconcile()
    assert (await jobs(scene, "new"), list(await jobs(scene, "old"))) == ({}, ["1"])
    assert (await jobs(scene, "old"))["1"].wants_runner
    assert await made_for(scene, "old") == ["1"]


@virtual
async def test_a_job_whose_fact_nobody_took_up_before_the_roll_back_moves_back_too() -> None:
    scene = await known_to_both()
    await scene.hold(replace(fact(), pool="new"))
    scene.config = OLD
    for _ in range(2):  # the first pass takes it up, the second moves it
        await later(seconds=30)
        await scene.reconcile()
    assert (await made_for(scene, "new"), await made_for(scene, "old")) == ([], ["1"])


@pytest.mark.parametrize("arrived", [False, True])
@virtual
async def test_a_pass_that_dies_between_the_two_writes_of_a_move_loses_and_doubles_nothing(arrived: bool) -> None:
    scene = await known_to_both()
    await scene.hold(old_job())

    async def dies(request: Request) -> None:
        if any(isinstance(operation, Remove) and operation.row == "job:1" for operation in request.operations):
            scene.table.before = scene.table.after = _nothing
            raise RetryLater("the process has died")

    if arrived:
        scene.table.after = dies
    else:
        scene.table.before = dies
    with suppress(RetryLater):
        await scene.reconcile()
    await scene.wake("old")
    await scene.wake("new")
    await later(seconds=30)
    await scene.reconcile()
    assert (list(await jobs(scene, "old")), list(await jobs(scene, "new"))) == ([], ["1"])
    assert (await made_for(scene, "old"), await made_for(scene, "new")) == ([], ["1"])


@virtual
async def test_what_is_told_of_a_job_while_it_moves_is_kept() -> None:
    scene = await known_to_both()
    await scene.hold(old_job())

    async def starts_meanwhile(request: Request) -> None:
        if request.kind == "transact" and request.partition == "new":
            scene.table.before = _nothing
            (row,) = (await jobs(scene, "old")).values()
            await scene.ledger.revise_job(row, lambda row: replace(row, started_at=NOW))

    scene.table.before = starts_meanwhile
    await scene.reconcile()
    assert (await jobs(scene, "old"))["1"].started_at == NOW


@virtual
async def test_a_job_of_which_there_is_news_does_not_move_before_it_is_taken_up() -> None:
    scene = await known_to_both()
    await scene.hold(old_job(), fact("completed", pool="old"))
    await scene.reconcile()
    assert (await jobs(scene, "new"), (await jobs(scene, "old"))["1"].state) == ({}, "completed")
    assert not scene.azure.specs


@virtual
async def test_rows_that_earlier_versions_left_behind_after_a_move_go() -> None:
    scene = await known_to_both()
    await scene.hold(old_job(demand=False))
    await scene.reconcile()
    assert (await jobs(scene, "old"), await jobs(scene, "new")) == ({}, {})
    assert list(await shown(scene)) == ["new"]


@virtual
async def test_such_a_row_goes_although_its_pool_is_in_the_file_again() -> None:
    """The move back would be merged with it, and be no demand: the job would be lost."""
    scene = await known_to_both()
    await scene.hold(job("1", pool="new", demand=False), old_job())
    for _ in range(2):
        await scene.reconcile()
    assert (await jobs(scene, "old"), (await jobs(scene, "new"))["1"].wants_runner) == ({}, True)


@virtual
async def test_a_foreign_job_on_a_vm_of_a_departed_pool_keeps_its_row() -> None:
    scene = await known_to_both()
    await scene.hold(old_job(demand=False, started_at=NOW, runner_name="hw-old-aaaaaaaaaa"))
    await scene.reconcile()
    assert list(await jobs(scene, "old")) == ["1"]


# ---------------------------------------------------------------------------------------------- labels that a pool has no more

GPU = ("self-hosted", "linux", "gpu")
WITHOUT = pool(labels=["self-hosted", "linux"])
SPLIT = config(WITHOUT, pool(name="gpu", labels=list(GPU)))


def gpu_job(job_id: str = "1", **changes: Any) -> Job:
    return job(job_id, labels=GPU, **changes)


@virtual
async def test_jobs_that_are_queued_when_their_pool_is_split_move_to_the_part_that_has_their_labels() -> None:
    scene = Scene(SPLIT)
    await scene.hold(gpu_job("1"), job("2"))
    await scene.reconcile()
    assert (list(await jobs(scene, "linux")), list(await jobs(scene, "gpu"))) == (["2"], ["1"])
    assert (await made_for(scene, "linux"), await made_for(scene, "gpu")) == (["2"], ["1"])


@virtual
async def test_a_wake_up_before_the_move_makes_no_vm_that_could_not_serve_the_job() -> None:
    scene = Scene(SPLIT)
    await scene.hold(gpu_job())
    await scene.wake("linux")
    assert not scene.azure.specs
    ((told,),) = (one["waiting"] for one in (await shown(scene)).values() if one["name"] == "linux")
    assert "pool linux lacks [gpu] now" in told["reason"]


@virtual
async def test_a_split_that_is_rolled_back_takes_its_jobs_back() -> None:
    scene = Scene(SPLIT)
    await scene.hold(gpu_job())
    await scene.reconcile()
    scene.config = config(pool(labels=list(GPU)))
    await later(seconds=30)
    await scene.reconcile()
    assert (list(await jobs(scene, "linux")), await jobs(scene, "gpu")) == (["1"], {})
    assert await made_for(scene, "linux") == ["1"]


@pytest.mark.parametrize(
    ("name", "part"), [("linux", "pool linux lacks [gpu] now"), ("old", "pool old has left the pool file; the job moves")]
)
@virtual
async def test_a_job_that_no_pool_serves_any_more_is_set_aside_with_the_reason(name: str, part: str) -> None:
    scene = Scene(config(WITHOUT))
    await scene.ledger.put_app_row("pool:old", {"since": NOW.isoformat()})
    await scene.hold(replace(gpu_job(), pool=name))
    scene.hub.jobs["1"] = JobReport("1", "queued", None, None, None, None, None)
    for _ in range(60):
        await scene.reconcile()
        await later(seconds=30)
    assert not scene.azure.specs
    ((told,),) = (one["waiting"] for one in (await shown(scene)).values() if one["waiting"])
    assert told["job"] == "1" and part in told["reason"]
    assert scene.hub.count("get_job") == 3  # in half an hour, so that its end is known even where its delivery is lost


@virtual
async def test_a_job_that_is_set_aside_is_served_once_a_pool_has_its_labels() -> None:
    scene = Scene(config(WITHOUT))
    await scene.hold(gpu_job())
    await scene.reconcile()
    scene.config = config(pool(labels=list(GPU)))
    await later(seconds=30)
    await scene.reconcile()
    assert await made_for(scene, "linux") == ["1"]


@virtual
async def test_jobs_that_have_nowhere_to_go_cost_neither_a_write_nor_a_call() -> None:
    calls = []
    for rows in ([], [gpu_job(str(n)) for n in range(5)]):
        scene = Scene(config(WITHOUT))
        await scene.hold(*rows)
        await scene.reconcile()
        before, asked, scene.table.operations = scene.rows(without="heartbeat"), len(scene.hub.calls), 0
        await later(seconds=30)
        await scene.reconcile()
        assert scene.rows(without="heartbeat") == before
        calls.append((scene.table.operations, len(scene.hub.calls) - asked))
    assert calls[0] == calls[1]


# ---------------------------------------------------------------------------------------------- jobs that no pool served

HAS_GPU = config(pool(labels=list(GPU)))


async def unserved(scene: Scene, *rows: Fact) -> None:
    """As the webhook writes them."""
    for number, row in enumerate(rows):
        columns = {**fact_to_columns(row), "nearest_pool": "linux", "missing_label": "gpu"}
        received = {"received_at": row.received_at.isoformat()}
        await scene.ledger.put_app_row(f"unserved:{row.job_id}:u{number}", {**columns, **received})


def gpu_fact(job_id: str = "1", **changes: Any) -> Fact:
    return fact(job_id=job_id, pool="", labels=GPU, **changes)


async def kept(scene: Scene) -> list[str]:
    return [entity.row for entity in await scene.ledger.app_rows("unserved:")]


async def ticks(scene: Scene, count: int) -> None:
    for _ in range(count):
        await later(seconds=30)
        await scene.reconcile()


@pytest.mark.parametrize("age", [timedelta(0), timedelta(hours=3)])
@virtual
async def test_a_job_that_came_before_the_file_was_mended_gets_its_vm_once_github_says_that_it_is_queued(age: timedelta) -> None:
    scene = Scene(HAS_GPU)
    await unserved(scene, gpu_fact(created_at=NOW - age, received_at=NOW - age))
    scene.hub.fails("get_job", *[RetryLater("503")] * 9)
    await scene.reconcile()
    assert (await kept(scene), (await jobs(scene, "linux"))["1"].trusted) == ([], False)
    assert not scene.azure.specs
    scene.hub.before.clear()
    scene.hub.jobs["1"] = JobReport("1", "queued", None, None, None, None, None)
    await ticks(scene, 12)  # GitHub is asked again after five minutes
    assert await made_for(scene, "linux") == ["1"]
    assert (await shown(scene))["linux"]["jobs"] == {"queued": 1}


@virtual
async def test_a_job_that_another_fleet_has_run_meanwhile_gets_no_vm() -> None:
    scene = Scene(HAS_GPU)
    await unserved(scene, gpu_fact())
    scene.hub.jobs["1"] = JobReport("1", "completed", "success", "theirs-1", 5, NOW, NOW)
    await ticks(scene, 3)
    assert (await kept(scene), (await jobs(scene, "linux"))["1"].state) == ([], "completed")
    assert (scene.hub.count("get_job"), scene.azure.specs) == (1, [])


@virtual
async def test_several_deliveries_of_one_job_become_one_job() -> None:
    scene = Scene(HAS_GPU)
    await unserved(scene, gpu_fact("1", action="waiting", status="waiting"), gpu_fact(), gpu_fact())
    scene.hub.jobs["1"] = JobReport("1", "queued", None, None, None, None, None)
    await ticks(scene, 2)
    assert (await kept(scene), await made_for(scene, "linux")) == ([], ["1"])


@pytest.mark.parametrize(
    ("changes", "github"),
    [
        ({"demand": False}, {}),
        ({"repository": "octo-org/secret"}, {"repositories": ["hello"]}),  # the file allows it no more
        ({"repository": "other/hello"}, {}),
        ({"action": "in_progress"}, {}),  # earlier versions wrote rows of these, too
        ({"action": "completed"}, {}),
    ],
)
@virtual
async def test_what_is_no_demand_becomes_none_and_its_note_which_is_wrong_now_goes(
    changes: dict[str, Any], github: dict[str, Any]
) -> None:
    scene = Scene(config(pool(labels=list(GPU)), **github))
    await unserved(scene, gpu_fact(**changes))
    await scene.reconcile()
    assert (await kept(scene), await jobs(scene, "linux")) == ([], {})
    assert not scene.hub.count("get_job")


@virtual
async def test_the_target_is_what_the_file_says_now() -> None:
    scene = Scene(config(pool(labels=list(GPU)), scope="repo", repositories=["hello"]))
    await unserved(scene, gpu_fact())
    await scene.reconcile()
    assert (await jobs(scene, "linux"))["1"].target == "repo:octo-org/hello"


@virtual
async def test_a_pass_that_dies_before_the_note_is_removed_doubles_nothing() -> None:
    scene = Scene(HAS_GPU)
    await unserved(scene, gpu_fact())
    scene.hub.jobs["1"] = JobReport("1", "queued", None, None, None, None, None)

    async def dies(request: Request) -> None:
        if any(isinstance(operation, Remove) and operation.row == "unserved:1:u0" for operation in request.operations):
            scene.table.before = _nothing
            raise RetryLater("the process has died")

    scene.table.before = dies
    with suppress(RetryLater):
        await scene.reconcile()
    await scene.wake()
    assert (await kept(scene), await made_for(scene, "linux")) == (["unserved:1:u0"], ["1"])
    await ticks(scene, 2)
    assert (await kept(scene), await made_for(scene, "linux"), list(await jobs(scene, "linux"))) == ([], ["1"], ["1"])
    assert len(scene.azure.specs) == 1


@virtual
async def test_the_newest_of_many_come_first_a_few_in_each_pass() -> None:
    scene = Scene(HAS_GPU)
    many = [gpu_fact(str(n), created_at=NOW - timedelta(minutes=n)) for n in range(ADOPTED + 5)]
    await unserved(scene, *many)
    await scene.reconcile()
    assert sorted(await jobs(scene, "linux"), key=int) == [str(n) for n in range(ADOPTED)]
    await ticks(scene, 1)
    assert len(await jobs(scene, "linux")) == ADOPTED + 5
    assert await kept(scene) == []


@virtual
async def test_what_no_pool_serves_still_and_what_cannot_be_read_stays_and_costs_nothing() -> None:
    scene = Scene(config(WITHOUT))
    await unserved(scene, gpu_fact())
    await scene.ledger.put_app_row("unserved:2:x", {"body": "]"})
    await scene.reconcile()
    before = scene.rows(without="heartbeat")
    await ticks(scene, 3)
    assert scene.rows(without="heartbeat") == before
    assert await kept(scene) == ["unserved:1:u0", "unserved:2:x"]
    assert not scene.hub.count("get_job")


async def _nothing(_request: Request) -> None: ...
