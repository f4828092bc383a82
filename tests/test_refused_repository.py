"""With scope `repo`, a repository where GitHub refuses to register runners rests alone: nobody else waits for it."""

from __future__ import annotations

from typing import Any

import pytest

from runnerpool.capacity import POOL, TARGET_REST, target_key
from runnerpool.errors import Misconfigured
from runnerpool.model import Job, Runner, RunnerState
from runnerpool.ports import JobReport
from tests.made_rows import MINUTE, NOW, config, job, later, pool, runner, virtual
from tests.stand_ins import Scene

S = RunnerState
A, B = "repo:octo-org/a", "repo:octo-org/b"
REFUSAL = Misconfigured("GitHub answered 403 when asked to register a runner of repo:octo-org/b", area="auth")


def scene(*repositories: str, **changes: Any) -> Scene:
    made = Scene(config(pool(**changes), scope="repo", repositories=list(repositories or ("a", "b"))))
    made.hub.closed[B] = REFUSAL
    return made


def job_of(target: str, number: int, **changes: Any) -> Job:
    return job(str(number), target=target, repository=target.removeprefix("repo:"), **changes)


def older_ones_of_b(count: int) -> list[Job]:
    return [job_of(B, number, age=5 * MINUTE) for number in range(count)]


async def rests(place: Scene) -> dict[str, Any]:
    return dict((await place.ledger.read_pool("linux")).head.rests)


def named(runners: dict[str, Runner], state: RunnerState) -> list[str | None]:
    return [row.job_id for row in runners.values() if row.state is state]


@virtual
async def test_a_job_of_another_repository_gets_its_vm_in_the_same_pass() -> None:
    place = scene()
    await place.hold(*older_ones_of_b(5), job_of(A, 9))
    await place.wake()
    runners = await place.runners()
    assert named(runners, S.BOOTING) == ["9"]
    assert (await place.jobs())["9"].vms_made == 1
    assert (await rests(place)).keys() == {target_key(B)}
    assert len(place.hub.registered[A]) == 1


@virtual
async def test_while_it_rests_no_vm_is_made_for_it_and_afterwards_it_is_tried_again() -> None:
    place = scene()
    place.hub.jobs["1"] = JobReport("1", "queued", None, None, None, None, None)
    await place.hold(job_of(B, 1))
    await place.wake()
    await later(seconds=TARGET_REST.total_seconds() - 60)
    await place.wake()
    assert (place.hub.count("mint"), (await place.jobs())["1"].vms_made) == (1, 1)

    place.hub.closed.clear()
    await later(seconds=61)
    await place.wake()
    assert named(await place.runners(), S.BOOTING) == ["1"]


@virtual
async def test_what_many_acts_would_be_refused_most_of_them_do_not_ask() -> None:
    place = scene()
    await place.hold(*older_ones_of_b(40))
    await place.wake()
    assert place.hub.count("mint") <= 24  # as many as are under way at one time


@virtual
async def test_ready_vms_that_its_older_jobs_took_go_on_to_another_repositorys_at_once() -> None:
    place = scene(minimum_warm_vms=2, maximum_pool_size=2)
    warm = [runner(S.READY, name * 10) for name in "xy"]
    await place.at_rest(*warm, *older_ones_of_b(2), job_of(A, 9))
    await place.wake()
    used = (await place.runners()).values()
    assert {(row.state, row.target, row.not_before) for row in used} == {(S.READY, None, None), (S.REGISTERED, A, None)}


@virtual
async def test_a_vm_that_it_had_before_stays_its_own_and_is_not_bound_again_meanwhile() -> None:
    place = scene()
    await place.at_rest(runner(S.READY, minted_at=NOW - MINUTE, target=B), job_of(B, 1), job_of(A, 2))
    await place.wake()
    mine = (await place.runners())["hw-linux-aaaaaaaaaa"]
    assert (mine.state, mine.target, place.hub.count("mint")) == (S.READY, B, 2)


@virtual
async def test_registering_ahead_of_need_is_not_tried_over_and_over() -> None:
    place = scene("b", keep_registered=True, minimum_warm_vms=1)
    await place.at_rest(runner(S.READY))
    for _ in range(3):
        await place.wake()
    assert place.hub.count("mint") == 1


@pytest.mark.parametrize("repositories", [("a", "b"), ("b", "a")])
@virtual
async def test_which_runner_to_download_is_asked_where_github_answers(repositories: tuple[str, str]) -> None:
    place = scene(*repositories, minimum_warm_vms=1)
    await place.wake()
    assert (await place.only()).state is S.BOOTING
    assert not await rests(place)


@virtual
async def test_where_no_repository_says_which_runner_to_download_the_pool_rests() -> None:
    place = scene(minimum_warm_vms=1)
    place.hub.closed[A] = Misconfigured("GitHub answered 403", area="auth")
    await place.wake()
    assert (await rests(place)).keys() == {POOL}


@virtual
async def test_a_credential_that_is_no_good_anywhere_rests_the_pool() -> None:
    place = scene()
    place.hub.closed[B] = Misconfigured("GitHub answered 401", area="auth", everywhere=True)
    await place.hold(job_of(B, 1))
    await place.wake()
    assert (await rests(place)).keys() == {POOL}


@virtual
async def test_a_refusal_at_the_organisation_rests_the_pool() -> None:
    place = Scene()
    place.hub.closed["org:octo-org"] = Misconfigured("GitHub answered 403", area="auth")
    await place.hold(job())
    await place.wake()
    assert (await rests(place)).keys() == {POOL}
