"""The GitHub adapter against the sandbox, over real HTTP: runners, jobs, packages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest

from runnerpool.errors import Conflict, Gone, Misconfigured, RetryLater
from runnerpool.github import GitHubApi, Token
from runnerpool.ports import GitHub, Removal
from sandbox.github import Group
from tests.github_fixture import LABELS, REPOSITORY, TARGET, TARGETS, TOKEN, Start, places, runner_of

EPOCH = datetime(2020, 1, 1, tzinfo=UTC)


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    async with places() as begin:
        yield begin


# ---------------------------------------------------------------------------------------------- runners


def test_the_adapter_is_the_port() -> None:
    port: GitHub = GitHubApi(api_url="https://api.github.com", credential=Token(TOKEN))
    assert port.calls_left() is None


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("prefix", ["", "/api/v3"])
async def test_a_runner_is_registered_found_listed_and_removed_in_every_scope(start: Start, target: str, prefix: str) -> None:
    place = await start(prefix=prefix)
    async with place.github as github:
        config = await github.mint_jit_config(target, "hw-a", LABELS, "Default")
        found = await github.find_runner(target, "hw-a")
        assert found is not None
        assert (found.runner_id, found.name, found.online, found.busy) == (config.runner_id, "hw-a", False, False)
        assert await github.list_runners(target) == [found]
        assert await github.find_runner(target, "hw-b") is None
        assert await github.remove_runner(target, config.runner_id) is Removal.REMOVED
        assert await github.remove_runner(target, config.runner_id) is Removal.ABSENT
        assert await github.list_runners(target) == []


async def test_a_runner_carries_exactly_the_labels_that_it_was_minted_with(start: Start) -> None:
    place = await start()
    await place.mint("hw-a")
    assert runner_of(place.sandbox, "hw-a").labels == tuple(LABELS)


async def test_the_runner_group_is_looked_up_by_name_once(start: Start) -> None:
    place = await start()
    await asyncio.gather(place.mint("hw-a", group="gpu machines"), place.mint("hw-b", group="gpu machines"))
    await place.mint("hw-c", group="gpu machines")
    assert runner_of(place.sandbox, "hw-a").group.id == 7
    assert place.calls()["GET /orgs/{org}/actions/runner-groups"] == 1


async def test_a_runner_group_that_is_not_there_is_a_matter_of_setup(start: Start) -> None:
    place = await start()
    with pytest.raises(Misconfigured, match="no runner group named 'GPUs'") as caught:
        await place.mint("hw-a", group="GPUs")
    assert caught.value.area == "setup"


async def test_a_runner_group_made_again_under_another_id_is_found_at_the_next_attempt(start: Start) -> None:
    place = await start()
    await place.mint("hw-a", group="GPU machines")
    place.sandbox.world.groups = {1: Group(1, "Default"), 8: Group(8, "GPU machines")}
    with pytest.raises(Misconfigured):
        await place.mint("hw-b", group="GPU machines")
    await place.mint("hw-b", group="GPU machines")
    assert runner_of(place.sandbox, "hw-b").group.id == 8


async def test_a_name_that_is_registered_already_is_a_conflict(start: Start) -> None:
    place = await start()
    await place.mint("hw-a")
    with pytest.raises(Conflict, match="already exists"):
        await place.mint("hw-a")


async def test_labels_that_github_refuses_are_a_matter_of_setup(start: Start) -> None:
    place = await start()
    with pytest.raises(Misconfigured, match="422") as caught:
        await place.github.mint_jit_config(TARGET, "hw-a", [], "Default")
    assert caught.value.area == "setup"


async def test_a_runner_that_runs_a_job_is_shown_busy_and_not_removed(start: Start) -> None:
    place = await start()
    program = await place.busy("hw-a")
    found = await place.github.find_runner(TARGET, "hw-a")
    assert found is not None
    assert found.online
    assert found.busy
    assert await place.github.remove_runner(TARGET, program.config["runner_id"]) is Removal.BUSY


# ---------------------------------------------------------------------------------------------- long lists


async def test_a_long_list_is_read_to_its_end(start: Start) -> None:
    place = await start()
    names = {f"hw-{number}" for number in range(205)}
    for name in names:
        place.sandbox.world.register(TARGET, name, LABELS, place.sandbox.world.groups[1])
    runners = await place.github.list_runners(TARGET)
    assert {runner.name for runner in runners} == names
    assert len(runners) == len(names)
    assert place.calls()["GET /orgs/{org}/actions/runners"] == 6  # three pages, twice


async def test_a_list_of_one_page_is_read_once(start: Start) -> None:
    place = await start()
    for number in range(100):
        place.sandbox.world.register(TARGET, f"hw-{number}", LABELS, place.sandbox.world.groups[1])
    assert len(await place.github.list_runners(TARGET)) == 100
    assert place.calls()["GET /orgs/{org}/actions/runners"] == 1


@pytest.mark.parametrize("shifts", [1, 2, 3])
async def test_a_list_that_shifts_while_it_is_read_loses_no_name(start: Start, shifts: int) -> None:
    place = await start()
    names = {f"hw-{number}" for number in range(250)}
    for name in names:
        place.sandbox.world.register(TARGET, name, LABELS, place.sandbox.world.groups[1])
    place.fail("shift", times=shifts)
    assert {runner.name for runner in await place.github.list_runners(TARGET)} == names


async def test_a_list_that_never_stands_still_is_no_list(start: Start) -> None:
    place = await start()
    for number in range(150):
        place.sandbox.world.register(TARGET, f"hw-{number}", LABELS, place.sandbox.world.groups[1])
    place.fail("shift", times=None)
    with pytest.raises(RetryLater, match="kept shifting"):
        await place.github.list_runners(TARGET)


async def test_a_list_that_fails_half_way_is_no_list(start: Start) -> None:
    place = await start()
    for number in range(150):
        place.sandbox.world.register(TARGET, f"hw-{number}", LABELS, place.sandbox.world.groups[1])
    place.fail("answer", status=503, path="[?&]page=2")
    with pytest.raises(RetryLater):
        await place.github.list_runners(TARGET)
    assert place.calls()["GET /orgs/{org}/actions/runners"] == 2


# ---------------------------------------------------------------------------------------------- jobs and packages


async def test_a_job_is_reported_in_every_state(start: Start) -> None:
    place = await start()
    job = place.sandbox.world.queue(REPOSITORY, LABELS)[0]
    queued = await place.github.get_job(REPOSITORY, str(job.id))
    assert queued is not None
    assert (queued.job_id, queued.status, queued.started_at, queued.runner_id) == (str(job.id), "queued", None, None)
    program = await place.mint("hw-a")
    await program.run_one_job()
    done = await place.github.get_job(REPOSITORY, str(job.id))
    assert done is not None
    assert (done.status, done.conclusion, done.runner_name) == ("completed", "success", "hw-a")
    assert done.runner_id == program.config["runner_id"]
    assert done.started_at is not None
    assert done.completed_at is not None
    assert EPOCH < done.started_at <= done.completed_at


async def test_a_job_cancelled_without_a_runner_names_none(start: Start) -> None:
    place = await start()
    for job in place.sandbox.world.queue(REPOSITORY, LABELS, count=8):
        place.sandbox.world.cancel(job)
        report = await place.github.get_job(REPOSITORY, str(job.id))
        assert report is not None
        assert (report.conclusion, report.runner_id, report.runner_name) == ("cancelled", None, None)


async def test_a_job_that_github_does_not_know_is_none(start: Start) -> None:
    place = await start()
    assert await place.github.get_job(REPOSITORY, "1") is None
    assert await place.github.get_job("octo-org/none", "1") is None


async def test_whether_a_404_about_a_job_is_proof_shows_in_the_other_jobs_of_its_repository(start: Start) -> None:
    place = await start()
    assert await place.github.reads_jobs(REPOSITORY)
    assert not await place.github.reads_jobs("octo-org/none")
    place.fail("answer", status=503, path="/actions/runs")
    with pytest.raises(RetryLater):
        await place.github.reads_jobs(REPOSITORY)
    place.fail("answer", status=403, path="/actions/runs")
    with pytest.raises(Misconfigured, match="Actions: read"):
        await place.github.reads_jobs(REPOSITORY)


@pytest.mark.parametrize(
    ("os", "arch", "ending"), [("linux", "x64", ".tar.gz"), ("linux", "arm64", ".tar.gz"), ("win", "x64", ".zip")]
)
async def test_the_runner_package_is_what_the_downloads_endpoint_names(start: Start, os: str, arch: str, ending: str) -> None:
    place = await start()
    package = await place.github.runner_package(TARGET, os, arch)
    assert package.version == "2.330.0"
    assert package.url.endswith(f"/v2.330.0/actions-runner-{os}-{arch}-2.330.0{ending}")
    assert len(package.sha256) == 64


async def test_a_platform_without_a_runner_is_a_matter_of_setup(start: Start) -> None:
    place = await start()
    with pytest.raises(Misconfigured, match="linux on riscv64") as caught:
        await place.github.runner_package(TARGET, "linux", "riscv64")
    assert caught.value.area == "setup"


# ---------------------------------------------------------------------------------------------- jobs run again


async def test_a_job_is_run_again_as_a_new_job_of_the_same_run_once_the_run_is_over(start: Start) -> None:
    place = await start()
    job = place.queue(outcome="failure")
    with pytest.raises(RetryLater, match="already running") as caught:
        await place.github.rerun_job(REPOSITORY, str(job.id))
    assert not caught.value.uncertain
    await (await place.client.mint("hw-a")).run_one_job()
    await place.github.rerun_job(REPOSITORY, str(job.id))
    again = next(one for one in place.sandbox.world.jobs.values() if one is not job)
    assert (again.run_id, again.name, again.attempt, again.status) == (job.run_id, job.name, 2, "queued")
    with pytest.raises(Gone):
        await place.github.rerun_job(REPOSITORY, "1")
