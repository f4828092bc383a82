"""What `doctor` makes of what it has read, for faults that the sandbox's Azure and GitHub cannot be given."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from runnerpool.compute_catalog import Image, Size
from runnerpool.config import PoolConfig
from runnerpool.doctor_alerts import alerts
from runnerpool.doctor_compute import judge_image, judge_sizes
from runnerpool.doctor_storage import UNTAKEN, judge_waiting
from runnerpool.findings import Level
from runnerpool.github import Token
from runnerpool.github_client import GitHubClient
from runnerpool.github_setup import GitHubSetup
from sandbox.azurite import Azurite
from tests.test_alerts import mail_server
from tests.test_doctor import app_key, spot
from tests.whole_sandbox import whole

NOW = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
SECOND = timedelta(seconds=1)

SIZE = Size(
    name="Standard_D4ads_v5",
    family="standarddadsv5family",
    cores=4,
    architecture="x64",
    ephemeral=True,
    spot=True,
    generations=frozenset({"V1", "V2"}),
    zones=frozenset({"1", "2"}),
)
IMAGE = Image(version="1.0.0", architecture="x64", generation="V2")


@pytest.fixture(scope="module")
def storage() -> Iterator[Azurite]:
    with Azurite() as running:
        yield running


def pool(**vm: Any) -> PoolConfig:
    return PoolConfig.model_validate({"labels": ["linux"], "vm": {"sizes": [SIZE.name], "zones": ["1"], **vm}})


# ---------------------------------------------------------------------------------------------- Azure


def test_a_size_that_is_not_sold_as_spot_serves_no_spot_pool() -> None:
    regular = {SIZE.name.lower(): replace(SIZE, spot=False)}
    [finding] = judge_sizes(pool(priority="spot"), regular, "westus")
    assert (finding.level, "not sold as spot" in finding.text) == (Level.FAIL, True)
    [finding] = judge_sizes(pool(priority="spot-then-regular"), regular, "westus")
    assert finding.level is Level.OK


def not_ok(lines: list[str]) -> list[str]:
    return [line for line in lines if not line.startswith("ok ")]


@pytest.mark.parametrize(
    ("image", "size", "told"),
    [
        (IMAGE, SIZE, ""),
        (replace(IMAGE, plan=True), SIZE, "sold under a plan"),
        (IMAGE, replace(SIZE, generations=frozenset({"V1"})), "of generation V2, which Standard_D4ads_v5 cannot boot"),
        (IMAGE, replace(SIZE, architecture="arm64"), "does not run on Standard_D4ads_v5"),
    ],
)
def test_an_image_has_to_fit_the_sizes_and_be_for_everybody(image: Image, size: Size, told: str) -> None:
    finding = judge_image("image of linux", pool(), image, {SIZE.name.lower(): size})
    assert finding.level is (Level.FAIL if told else Level.OK)
    assert told in finding.text
    assert bool(finding.mend) is bool(told)


# ---------------------------------------------------------------------------------------------- storage


@pytest.mark.parametrize(
    ("oldest", "level"),
    [(None, Level.OK), (NOW - UNTAKEN + SECOND, Level.OK), (NOW - UNTAKEN, Level.WARN)],
)
def test_a_wake_up_that_nobody_takes_shows_that_the_host_may_not_read_the_queue(oldest: datetime | None, level: Level) -> None:
    finding = judge_waiting(3, oldest, NOW)
    assert finding.level is level
    assert ("Storage Queue Data Contributor" in finding.mend) is (level is Level.WARN)


# ---------------------------------------------------------------------------------------------- GitHub


async def test_a_right_to_write_is_not_tried_on_an_archived_repository() -> None:
    async def repositories(_: web.Request) -> web.Response:
        shown = [{"full_name": "octo-org/old", "archived": True}, {"full_name": "octo-org/backend", "archived": False}]
        return web.json_response(shown)

    application = web.Application()
    application.router.add_get("/orgs/octo-org/repos", repositories)
    async with TestServer(application) as server:
        client = GitHubClient(api_url=str(server.make_url("")).rstrip("/"), credential=Token("t"))
        async with client:
            assert await GitHubSetup(client).some_repository("octo-org") == "octo-org/backend"


@pytest.mark.parametrize(("actions", "code"), [("read", 1), ("write", 0)])
async def test_an_app_that_runs_evicted_jobs_again_needs_actions_write(
    storage: Azurite, tmp_path: Path, actions: str, code: int
) -> None:
    identity, settings = app_key({"organization_self_hosted_runners": "write", "actions": actions})
    async with whole(storage, tmp_path, app=identity, hook_on="app") as place:
        place.env |= settings
        place.write(spot())
        found, lines = await place.doctor()
    assert found == code, not_ok(lines)
    assert any("lacks actions: write" in line for line in lines) is bool(code)


async def test_no_job_is_run_again_by_looking_whether_one_might_be(storage: Azurite, tmp_path: Path) -> None:
    async with whole(storage, tmp_path) as place:
        place.write(spot())
        before = {job: repr(of_it) for job, of_it in place.github.world.jobs.items()}
        code, lines = await place.doctor()
        assert code == 0, not_ok(lines)
        assert "ok    jobs: can be read and run again in octo-org/backend" in lines
        assert {job: repr(of_it) for job, of_it in place.github.world.jobs.items()} == before
        assert before


# ---------------------------------------------------------------------------------------------- mail


async def test_a_mail_server_is_greeted_and_gets_no_mail() -> None:
    async with mail_server() as server:
        [finding] = await alerts(server.settings)
        assert finding.level is Level.WARN  # it answers, and does not encrypt
        assert "in the clear" in finding.text
        assert server.mails == []
