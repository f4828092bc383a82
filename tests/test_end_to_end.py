"""The app as a whole: signed deliveries in, VMs out, and what happens where storage, Azure, GitHub or the input is bad.

Each scenario ends with the world at rest, by the records of the sandbox's Azure and GitHub and by the ledger: every job that
was not cancelled completed on a VM of its pool, no VM ran two, no pool went over its maximum, exactly the warm minimum left.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from azure.core.exceptions import ResourceNotFoundError

from runnerpool.model import RunnerState
from sandbox.azurite import Azurite
from sandbox.github_faults import Fault
from sandbox.github_world import Group
from sandbox.host import SOURCE, Host
from tests.e2e_fixture import Deployment, deployed, fast_clock, pool

RATE = 30.0
"""The reconcile pass comes every second; a pool that was refused is tried again after 10 s."""

MINTED = "runnerpool-runner-id"
"""The tag of a VM that was registered at birth."""

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module", autouse=True)
def clock() -> Iterator[None]:
    with fast_clock(RATE):
        yield


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(clock: None, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Deployment]:
    pools = [pool("warm", minimum_warm_vms=1), pool("cold"), pool("imageless"), pool("sizeless")]
    pools[2]["vm"]["image"] = "Canonical:nothing:of-this-name:latest"
    pools[3]["vm"].update(sizes=["Standard_D4ads_v5", "Standard_D4as_v5"], zones=["1", "2"])
    async with deployed(tmp_path_factory.mktemp("e2e"), pools) as deployment:
        yield deployment


@pytest_asyncio.fixture(loop_scope="module")
async def app(running: Deployment) -> AsyncIterator[Deployment]:
    """The shared deployment, at rest before and after each test."""
    await running.settles()
    yield running
    running.stack.arm.faults.clear()
    running.stack.github.faults.clear()


# ---------------------------------------------------------------------------------------------- the main job


async def test_a_job_runs_on_the_warm_vm_that_is_bound_for_it_and_the_vm_goes_away(app: Deployment) -> None:
    [warm] = app.vms("warm")
    assert MINTED not in app.stack.arm.estate.vms[warm].tags
    [job] = app.queue("warm")
    await app.settles()
    assert app.ran_on(job) == warm
    assert warm not in app.vms("warm")


async def test_where_no_vm_is_warm_one_is_made_and_registered_at_birth(app: Deployment) -> None:
    [job] = app.queue("cold", seconds=2.0)
    await app.until(lambda: bool(app.ran_on(job)))
    assert MINTED in app.stack.arm.estate.vms[app.ran_on(job)].tags
    await app.settles()


async def test_a_burst_beyond_the_maximum_runs_in_turn_without_what_was_cancelled(app: Deployment) -> None:
    jobs = app.queue("cold", count=7)
    app.cancel(jobs[-1])
    await app.settles()
    assert app.stack.arm.estate.peaks["cold"] == 4


async def test_the_status_page_is_for_those_who_have_the_token(app: Deployment) -> None:
    document = await app.told()
    assert {name: check["ok"] for name, check in document["checks"].items()} == dict.fromkeys(
        ("storage", "reconcile", "azure", "github"), True
    )
    [warm] = [pool for pool in document["pools"] if pool["name"] == "warm"]
    assert (warm["vms"], warm["runners"], warm["maximum_pool_size"]) == (1, {"ready": 1}, 4)
    for token in ("", "wrong"):
        code, refusal = await app.status(token)
        assert code == 401
        assert list(refusal) == ["message"]


async def test_two_repositories_share_one_warm_pool_of_unregistered_vms(tmp_path: Path) -> None:
    pools = [pool("shared", minimum_warm_vms=2)]
    async with deployed(tmp_path, pools, scope="repo", repositories=["backend", "website"]) as app:
        await app.settles()
        warm = app.vms("shared")
        [first], [second] = app.queue("shared", repository=0), app.queue("shared", repository=1)
        await app.settles()
        # A registration is one repository's: GitHub gives it no job of the other one.
        assert {app.ran_on(first), app.ran_on(second)} == set(warm)


# ---------------------------------------------------------------------------------------------- bad input


def signed(app: Deployment, body: bytes, *, secret: str | None = None) -> dict[str, str]:
    key = app.stack.settings["GITHUB_WEBHOOK_SECRET"] if secret is None else secret
    return {"X-Hub-Signature-256": "sha256=" + hmac.new(key.encode(), body, hashlib.sha256).hexdigest()}


def foreign(payload: dict[str, Any]) -> None:
    payload["repository"].update(full_name="somebody/backend", owner={"login": "somebody"})


def public(payload: dict[str, Any]) -> None:
    payload["repository"].update(private=False, visibility="public")


async def post(app: Deployment, body: bytes, headers: dict[str, str]) -> tuple[int, Any]:
    about = {"Content-Type": "application/json", "X-GitHub-Event": "workflow_job", "X-GitHub-Delivery": "made up"}
    async with app.http.post(f"{app.host.url}/github/webhook", data=body, headers=about | headers) as answer:
        return answer.status, await answer.json()


async def test_unsigned_foreign_and_public_deliveries_make_no_vm(app: Deployment) -> None:
    made = len(app.made("cold"))
    [job] = app.queue("cold")
    await app.settles()
    sent = next(delivery for delivery in app.stack.github.deliveries.sent if delivery.job and delivery.job.id == job)
    answers = []
    for number, spoil in enumerate((None, None, foreign, public)):
        payload = json.loads(sent.body)
        payload["workflow_job"]["id"] = 1000 + number
        if spoil is not None:
            spoil(payload)
        body = json.dumps(payload).encode()
        headers = ({}, signed(app, body, secret="another"), signed(app, body), signed(app, body))[number]
        answers.append(await post(app, body, headers))
    assert [code for code, _ in answers] == [401, 401, 202, 202]
    assert ["belong" in answers[2][1]["reason"], "public" in answers[3][1]["reason"]] == [True, True]
    app.queue("cold")
    await app.settles()
    assert len(app.made("cold")) == made + 2
    assert not {"1000", "1001", "1002", "1003"} & set((await app.ledger.read_pool("cold")).jobs)


async def test_a_poisoned_message_ends_readable_and_other_jobs_go_on(app: Deployment) -> None:
    async with app.messages("job-demand") as queue, app.messages("job-demand-poison") as poison:
        await queue.send_message(base64.b64encode(b"no wake-up").decode())
        app.queue("cold", count=2)

        async def told() -> bool:
            return any(row["message"] == "no wake-up" for row in (await app.told())["poisoned"])

        await app.until(told)
        [row] = [row for row in (await app.told())["poisoned"] if row["message"] == "no wake-up"]
        assert "not JSON" in row["error"]

        async def buried() -> bool:
            with contextlib.suppress(ResourceNotFoundError):  # the queue comes with its first message
                found = await poison.peek_messages(max_messages=32)
                return b"no wake-up" in [base64.b64decode(message.content) for message in found]
            return False

        await app.until(buried)
        assert (await queue.get_queue_properties()).approximate_message_count == 0
    await app.settles()


async def test_a_delivery_that_storage_cannot_take_is_recovered_by_a_redelivery(app: Deployment) -> None:
    await app.storage.stop()
    [job] = app.queue("cold")

    def attempts() -> list[tuple[bool, int]]:
        sent = app.stack.github.deliveries.sent
        return [(d.redelivery, d.status_code) for d in sent if d.job and d.job.id == job and d.action == "queued"]

    await app.until(lambda: attempts() == [(False, 500)])
    code, document = await app.status()
    assert (code, document["checks"]["storage"]["ok"]) == (503, False)
    await app.storage.start()
    await app.settles()
    assert attempts() == [(False, 500), (True, 202)]


# ---------------------------------------------------------------------------------------------- what Azure and GitHub refuse


async def test_a_pool_that_azure_refuses_says_so_and_stops_no_other(app: Deployment) -> None:
    missing = {"operation": "vm.put", "status": 404, "code": "PlatformImageNotFound", "match": {"image": "*:nothing:*"}}
    app.stack.arm.faults.add({"kind": "error", **missing})
    app.stack.arm.faults.add({"kind": "put_409", "code": "SkuNotAvailable", "match": {"pool": "sizeless"}})
    [imageless], [sizeless] = app.queue("imageless"), app.queue("sizeless")

    async def told() -> bool:
        return "image" in await app.reason(imageless) and "SkuNotAvailable" in await app.reason(sizeless)

    await app.until(told)
    others = app.queue("cold", count=2)
    await app.until(lambda: app.done(others))
    assert app.made("imageless") == app.made("sizeless") == []
    assert (await app.told())["health"] == "degraded"
    app.stack.arm.faults.clear()
    app.cancel(sizeless)  # Azure's word on a size is believed for a day
    await app.settles()
    assert app.done([imageless])


async def test_a_runner_group_that_does_not_exist_is_told_and_once_made_serves(tmp_path: Path) -> None:
    async with deployed(tmp_path, [pool("cold")], runner_group="builders") as app:
        [job] = app.queue("cold")

        async def told() -> bool:
            return "no runner group named 'builders'" in await app.reason(job)

        await app.until(told)
        assert app.made("cold") == []
        app.stack.github.world.groups[2] = Group(2, "builders")
        await app.settles()


# ---------------------------------------------------------------------------------------------- what cannot be reached


async def check(app: Deployment, service: str) -> bool:
    document = await app.told()
    ok: bool = document["checks"][service]["ok"]
    assert ok or document["health"] == "degraded"
    return ok


async def test_while_github_is_unreachable_the_status_says_so_and_nothing_is_deleted(app: Deployment) -> None:
    app.stack.arm.faults.add({"kind": "slow_boot", "match": {"pool": "cold"}, "times": 1, "seconds": 1.0})
    [job] = app.queue("cold")
    await app.until(lambda: bool(app.vms("cold")))
    [idle] = app.vms("cold")
    app.cancel(job)  # its VM is registered and of no more use: it would go, if GitHub could be asked
    await app.until(lambda: any(runner.online for runner in app.stack.github.world.runners.values()))
    app.stack.github.faults.add(Fault("answer", times=None, status=503))

    async def in_vain() -> bool:
        row = (await app.rows("cold"))[idle]
        return row.state is RunnerState.RETIRING and row.attempts > 0 and not await check(app, "github")

    gone = app.events("delete accepted")
    await app.until(in_vain)
    assert app.events("delete accepted") == gone
    app.stack.github.faults.clear()
    await app.settles()
    assert await check(app, "github")


async def test_while_azure_is_unreachable_the_status_says_so_and_nothing_is_given_up(app: Deployment) -> None:
    [warm] = app.vms("warm")
    [job] = app.queue("warm", seconds=1.0)
    await app.until(lambda: bool(app.ran_on(job)))
    before = {name: row.state for name, row in (await app.rows("warm")).items()}
    app.stack.arm.faults.add({"kind": "error", "status": 503, "code": "ServiceUnavailable"})

    async def in_vain() -> bool:
        row = (await app.rows("warm"))[warm]
        return row.state is RunnerState.DELETING and row.attempts > 0 and not await check(app, "azure")

    gone = app.events("delete accepted")
    await app.until(in_vain)
    assert app.events("delete accepted") == gone
    assert set(await app.rows("warm")) >= set(before)
    app.stack.arm.faults.clear()
    await app.settles()
    assert await check(app, "azure")


# ---------------------------------------------------------------------------------------------- a bad pool file


async def test_a_bad_pool_file_leaves_functions_that_say_what_is_wrong_and_recover(
    running: Deployment, azurite: Azurite, tmp_path: Path
) -> None:
    file = tmp_path / "pool-config.yaml"
    good = running.stack.pool_file.read_text()
    file.write_text(good.replace("maximum_pool_size", "maximal_pool_size"))
    settings = {**running.stack.environment, "POOL_CONFIG": str(file), "AzureWebJobsStorage": azurite.connection_string}
    with (tmp_path / "host.log").open("w") as log:
        async with (
            Host(root=SOURCE, settings=settings, log=log) as host,
            aiohttp.ClientSession() as http,
            Deployment(stack=running.stack, host=host, http=http, storage=azurite) as app,
        ):
            code, document = await app.status()
            assert (code, "maximal_pool_size" in document["message"]) == (503, True)
            assert (await app.status(""))[0] == 401
            code, answer = await post(app, b"{}", signed(app, b"{}"))
            assert (code, "maximal_pool_size" in answer["message"]) == (500, True)
            assert (await post(app, b"{}", {}))[0] == 401
            file.write_text(good)
            await app.until(app.answers)
