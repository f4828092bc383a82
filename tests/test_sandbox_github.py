"""The sandbox's GitHub gives jobs to runners, and keeps registrations, as the real one does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from random import Random

import pytest

from sandbox.github import Group, Repository
from sandbox.github_world import NotRegistered, World
from tests.github_fixture import LABELS, ORG, OTHER, PUBLIC, REPOSITORY, Start, places, runner_of

JITCONFIG = f"/orgs/{ORG}/actions/runners/generate-jitconfig"
RUNNERS = f"/orgs/{ORG}/actions/runners"


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    async with places() as begin:
        yield begin


# ---------------------------------------------------------------------------------------------- who gets which job


async def test_a_job_runs_on_an_ephemeral_runner_from_queued_to_completed(start: Start) -> None:
    place = await start()
    program = await place.client.mint("hw-a")
    job = place.queue(outcome="failure")
    assert job.id > 2**32
    assert await program.run_one_job() == str(job.id)
    got = await place.receiver.wait_for(3)
    assert [received.action for received in got] == ["queued", "in_progress", "completed"]
    said = [received.payload["workflow_job"] for received in got]
    assert [it["runner_name"] for it in said] == [None, "hw-a", "hw-a"]
    assert said[2]["conclusion"] == "failure"
    _, listed, _ = await place.client.call("GET", RUNNERS)
    assert listed["total_count"] == 0
    assert (await program.poll())[0] == 404
    assert await program.connect() == 404


@pytest.mark.parametrize(
    ("asked", "offered", "taken"),
    [
        (["self-hosted", "Linux", "X64"], ["self-hosted", "linux", "x64"], True),
        (["linux"], ["self-hosted", "linux", "x64"], True),
        (["self-hosted", "gpu"], ["self-hosted", "linux", "x64"], False),
        (["self-hosted"], ["linux"], False),
    ],
)
async def test_a_runner_takes_a_job_whose_labels_it_has_whatever_their_case(
    start: Start, asked: list[str], offered: list[str], taken: bool
) -> None:
    place = await start(runner_poll=0.05)
    job = place.queue(*asked)
    program = await place.client.mint("hw-a", labels=offered)
    await program.connect()
    assert (await program.poll())[0] == (200 if taken else 204)
    assert job.status == ("in_progress" if taken else "queued")


async def test_any_runner_that_matches_may_get_the_job_and_the_seed_decides(start: Start) -> None:
    winners = set()
    for seed in range(6):
        place = await start(seed=seed, runner_poll=0.2)
        polls = {name: (await place.polling(name))[1] for name in ("hw-a", "hw-b")}
        job = place.queue()
        winners.add(job.runner_name)
        await asyncio.gather(*polls.values())
    assert winners == {"hw-a", "hw-b"}


async def test_the_oldest_job_is_served_first(start: Start) -> None:
    place = await start()
    first, second = place.queue(), place.queue()
    assert await (await place.client.mint("hw-a")).run_one_job() == str(first.id)
    assert await (await place.client.mint("hw-b")).run_one_job() == str(second.id)


@pytest.mark.parametrize(
    ("scope", "repository", "taken"),
    [
        (f"/orgs/{ORG}", REPOSITORY, True),
        (f"/orgs/{ORG}", OTHER, False),  # not among the group's repositories
        (f"/orgs/{ORG}", PUBLIC, False),  # the group admits it, but no public ones
        (f"/repos/{REPOSITORY}", REPOSITORY, True),
        (f"/repos/{REPOSITORY}", OTHER, False),
    ],
)
async def test_a_job_goes_only_to_runners_whose_scope_and_group_admit_its_repository(
    start: Start, scope: str, repository: str, taken: bool
) -> None:
    place = await start(runner_poll=0.05, groups=[Group(1, "Default", repositories=frozenset({REPOSITORY, PUBLIC}))])
    place.queue(repository=repository)
    program = await place.client.mint("hw-a", scope=scope)
    await program.connect()
    assert (await program.poll())[0] == (200 if taken else 204)


async def test_a_runner_program_that_hangs_up_gets_no_job(start: Start) -> None:
    place = await start()
    _, poll = await place.polling("hw-a")
    poll.cancel()
    runner = runner_of(place.sandbox, "hw-a")
    async with asyncio.timeout(30):
        while runner.poll is not None:
            await asyncio.sleep(0)
    assert not runner.online
    assert place.queue().status == "queued"


async def test_a_job_whose_runner_never_reports_fails_as_lost(start: Start) -> None:
    place = await start(lost_after=0.05)
    job = place.queue(seconds=0)
    program = await place.client.mint("hw-a")
    await program.connect()
    await program.poll()
    await place.receiver.wait_for(3)
    assert (job.status, job.conclusion) == ("completed", "failure")
    assert await program.finish(str(job.id)) == 404


async def test_a_jit_config_serves_one_runner_program_at_a_time(start: Start) -> None:
    place = await start()
    program, poll = await place.polling("hw-a")
    assert await program.connect() == 409
    program.config["token"] = "another"
    assert await program.connect() == 401
    poll.cancel()


# ---------------------------------------------------------------------------------------------- before and instead of a run


async def test_a_job_that_waits_for_approval_gets_a_runner_only_after_it(start: Start) -> None:
    place = await start(runner_poll=0.05)
    job = place.queue(environment="production")
    program = await place.client.mint("hw-a")
    await program.connect()
    assert (await program.poll())[0] == 204
    await place.client.call("POST", f"/_admin/jobs/{job.id}/approve")
    assert (await program.poll())[0] == 200
    await place.receiver.wait_for(3)
    assert place.receiver.actions == ["waiting", "queued", "in_progress"]


async def test_a_job_cancelled_early_completes_with_runner_id_zero_or_null(start: Start) -> None:
    place = await start()
    for _ in range(12):
        job = place.queue()
        await place.client.call("POST", f"/_admin/jobs/{job.id}/cancel")
    got = await place.receiver.wait_for(24)
    ended = [received.payload["workflow_job"] for received in got if received.action == "completed"]
    assert {it["conclusion"] for it in ended} == {"cancelled"}
    assert {it["runner_id"] for it in ended} == {0, None}


async def test_a_running_job_that_is_cancelled_ends_cancelled(start: Start) -> None:
    place = await start()
    job = place.queue()
    program = await place.client.mint("hw-a")
    await program.connect()
    await program.poll()
    place.sandbox.world.cancel(job)
    await program.finish(str(job.id), "success")
    assert job.conclusion == "cancelled"


# ---------------------------------------------------------------------------------------------- registrations


async def test_a_name_is_registered_once_in_a_scope(start: Start) -> None:
    place = await start()
    body = {"name": "hw-a", "labels": LABELS, "runner_group_id": 1}
    assert (await place.client.call("POST", JITCONFIG, body))[0] == 201
    status, told, _ = await place.client.call("POST", JITCONFIG, body)
    assert status == 409
    assert told["message"] == "Already exists - A runner with the name hw-a already exists."
    await place.client.mint("hw-a", scope=f"/repos/{REPOSITORY}")


async def test_a_busy_runner_is_not_removed_and_an_idle_one_ends_without_a_job(start: Start) -> None:
    place = await start()
    job = place.queue()
    busy = await place.client.mint("hw-busy")
    await busy.connect()
    await busy.poll()
    path = f"{RUNNERS}/{busy.config['runner_id']}"
    status, told, _ = await place.client.call("DELETE", path)
    assert status == 422
    assert told["message"] == 'Bad request - Runner "hw-busy" is still running a job"'
    idle, poll = await place.polling("hw-idle")
    assert (await place.client.call("DELETE", f"{RUNNERS}/{idle.config['runner_id']}"))[0] == 204
    assert (await poll)[0] == 404
    assert (await place.client.call("DELETE", f"{RUNNERS}/{idle.config['runner_id']}"))[0] == 404
    assert job.status == "in_progress"


async def test_runners_are_listed_in_pages_with_links(start: Start) -> None:
    place = await start(points_per_minute=10_000)
    for number in range(5):
        await place.client.mint(f"hw-{number}")
    status, told, headers = await place.client.call("GET", f"{RUNNERS}?per_page=2&page=2")
    assert (status, told["total_count"], [runner["name"] for runner in told["runners"]]) == (200, 5, ["hw-2", "hw-3"])
    assert f'<{place.client.base}{RUNNERS}?per_page=2&page=3>; rel="next"' in headers["Link"]
    _, told, _ = await place.client.call("GET", f"{RUNNERS}?name=hw-4")
    assert [runner["name"] for runner in told["runners"]] == ["hw-4"]


async def test_the_world_lets_a_session_end_with_its_registration() -> None:
    world = World(
        repositories=[Repository(REPOSITORY)],
        groups=[Group(1, "Default")],
        random=Random(0),
        lost_after=1,
        emit=lambda job, action: None,
    )
    runner = world.register(f"org:{ORG}", "hw-a", LABELS, world.groups[1])
    session = world.connect(runner.id, runner.token)
    world.remove(runner)
    with pytest.raises(NotRegistered):
        await world.next_job(session, timeout=1)
