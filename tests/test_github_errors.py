"""What the GitHub adapter makes of every kind of trouble: the sandbox's faults, and answers that are not GitHub's."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import nullcontext
from datetime import timedelta

import httpx
import pytest
from aiohttp import web

from runnerpool.errors import Conflict, Gone, Misconfigured, PoolError, RetryLater
from runnerpool.github import App, GitHubApi, Token
from runnerpool.github_errors import Call, Forbidden, refusal
from runnerpool.ports import Removal
from sandbox.github_faults import Fault
from tests.github_fixture import LABELS, REPOSITORY, TARGET, TOKEN, RunnerProgram, Start, places

SHORT = httpx.Timeout(0.3)


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    async with places() as begin:
        yield begin


# ---------------------------------------------------------------------------------------------- what goes wrong


async def test_a_wrong_token_is_a_matter_of_auth(start: Start) -> None:
    place = await start()
    with pytest.raises(Misconfigured, match="wrong, expired or revoked") as caught:
        await place.api(Token("ghp_wrong")).list_runners(TARGET)
    assert (caught.value.area, caught.value.everywhere) == ("auth", True)
    assert not isinstance(caught.value, Forbidden)


async def test_a_token_with_a_line_break_is_a_matter_of_auth_and_is_not_told(start: Start) -> None:
    place = await start()
    with pytest.raises(Misconfigured) as caught:
        await place.api(Token("ghp_verysecret\n")).list_runners(TARGET)
    assert caught.value.area == "auth"
    assert "verysecret" not in repr(caught.value) + str(caught.value.__cause__)
    assert caught.value.__suppress_context__


async def test_a_missing_permission_is_named_with_what_it_was_wanted_for(start: Start) -> None:
    place = await start()
    place.fail("answer", status=403, message="Resource not accessible by personal access token", path="jitconfig")
    with pytest.raises(Misconfigured, match="register a runner in group 'Default' of org:octo-org") as caught:
        await place.mint("hw-a")
    assert (caught.value.area, caught.value.everywhere) == ("auth", False)
    assert "Self-hosted runners: write" in str(caught.value)


async def test_a_scope_that_is_not_found_is_one_that_the_credential_may_not_see(start: Start) -> None:
    place = await start()
    with pytest.raises(Misconfigured, match="the credential lacks") as caught:
        await place.github.list_runners("org:other")
    assert caught.value.area == "auth"


@pytest.mark.parametrize(
    ("fault", "after"),
    [
        (Fault("secondary_limit", retry_after=42), timedelta(seconds=42)),
        (Fault("secondary_limit"), timedelta(seconds=60)),
        (Fault("answer", status=429, message="Too Many Requests"), timedelta(seconds=60)),
    ],
)
async def test_a_secondary_limit_says_how_long_to_stay_away_and_nothing_happened(
    start: Start, fault: Fault, after: timedelta
) -> None:
    place = await start()
    fault.path = "jitconfig"
    place.sandbox.faults.add(fault)
    with pytest.raises(RetryLater) as caught:
        await place.mint("hw-a")
    assert caught.value.after == after
    assert not caught.value.uncertain
    await place.mint("hw-a")


async def test_the_primary_limit_keeps_away_until_its_reset(start: Start) -> None:
    place = await start()
    await place.github.list_runners(TARGET)
    assert place.github.calls_left() == 4999
    place.fail("primary_limit")
    with pytest.raises(RetryLater) as caught:
        await place.github.list_runners(TARGET)
    assert caught.value.after is not None
    assert timedelta(minutes=59) < caught.value.after <= timedelta(hours=1)
    assert place.github.calls_left() == 0


@pytest.mark.parametrize("status", [500, 502, 503])
async def test_a_failing_github_is_asked_again_later_and_a_write_may_have_taken_effect(start: Start, status: int) -> None:
    place = await start()
    place.fail("answer", status=status, path=r"/runners\?")
    with pytest.raises(RetryLater) as caught:
        await place.github.list_runners(TARGET)
    assert not caught.value.uncertain
    place.fail("answer", status=status, applied=True, path="jitconfig")
    with pytest.raises(RetryLater) as caught:
        await place.mint("hw-a")
    assert caught.value.uncertain
    found = await place.github.find_runner(TARGET, "hw-a")
    assert found is not None
    place.fail("answer", status=status, applied=True, method="DELETE")
    with pytest.raises(RetryLater) as caught:
        await place.github.remove_runner(TARGET, found.runner_id)
    assert caught.value.uncertain
    assert await place.github.remove_runner(TARGET, found.runner_id) is Removal.ABSENT


async def test_a_silent_github_is_given_up_and_a_write_may_have_taken_effect(start: Start) -> None:
    place = await start()
    await place.mint("hw-a")  # so that the group is known
    place.github = place.api(timeout=SHORT)
    place.fail("hang", seconds=5, path=r"/runners\?")
    with pytest.raises(RetryLater, match="ReadTimeout") as caught:
        await place.github.list_runners(TARGET)
    assert not caught.value.uncertain
    place.fail("hang", seconds=5, applied=True, path="jitconfig")
    with pytest.raises(RetryLater, match="ReadTimeout") as caught:
        await place.mint("hw-b")
    assert caught.value.uncertain


async def test_an_unreachable_github_has_certainly_done_nothing() -> None:
    github = GitHubApi(api_url="http://127.0.0.1:1", credential=Token(TOKEN))
    with pytest.raises(RetryLater, match="ConnectError") as caught:
        await github.remove_runner(TARGET, 1)
    assert not caught.value.uncertain


async def test_a_removal_that_succeeds_in_mid_job_is_told_as_github_tells_it(start: Start) -> None:
    place = await start()
    program = await place.busy("hw-a")
    place.fail("removed_although_busy")
    assert await place.github.remove_runner(TARGET, program.config["runner_id"]) is Removal.REMOVED


CALL = Call("DELETE", "/orgs/octo-org/actions/runners/1", "remove a runner", "some permission")
REFUSALS: list[tuple[int, dict[str, str], bytes, type[PoolError], timedelta | None]] = [
    (403, {"x-ratelimit-remaining": "17"}, b'{"message":"Resource not accessible"}', Forbidden, None),
    (403, {}, b'{"message":"You have exceeded a secondary rate limit."}', RetryLater, timedelta(seconds=60)),
    (403, {}, b'{"message":"You have triggered an abuse detection mechanism."}', RetryLater, timedelta(seconds=60)),
    (429, {}, b"", RetryLater, timedelta(seconds=60)),
    (429, {"retry-after": "7"}, b"", RetryLater, timedelta(seconds=7)),
    (403, {"retry-after": "999999"}, b"", RetryLater, timedelta(hours=1)),
    (
        403,
        {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "1767322859", "date": "Fri, 02 Jan 2026 03:00:00 GMT"},
        b"",
        RetryLater,
        timedelta(seconds=60),
    ),
    (503, {"retry-after": "9"}, b"<html>", RetryLater, timedelta(seconds=9)),
    (408, {}, b"", RetryLater, None),
    (400, {}, b"{}", Misconfigured, None),
    (404, {}, b'{"message":"Not Found"}', Gone, None),
    (409, {}, b"", Conflict, None),
]


@pytest.mark.parametrize(("status", "headers", "content", "kind", "after"), REFUSALS)
def test_each_refusal_means_one_thing(
    status: int, headers: dict[str, str], content: bytes, kind: type[PoolError], after: timedelta | None
) -> None:
    error = refusal(status, httpx.Headers(headers), content, CALL)
    assert type(error) is kind
    assert getattr(error, "after", None) == after


# ---------------------------------------------------------------------------------------------- answers from elsewhere


class Elsewhere:
    """Servers that give one fixed answer, such as a proxy's. `peers` are the connections that came."""

    def __init__(self) -> None:
        self.peers: set[object] = set()
        self._runners: list[web.AppRunner] = []

    async def github(self, response: web.Response) -> GitHubApi:
        async def answer(request: web.Request) -> web.Response:
            assert request.transport is not None
            self.peers.add(request.transport.get_extra_info("peername"))
            return web.Response(status=response.status, body=response.body, headers=response.headers)

        app = web.Application()
        app.router.add_route("*", "/{path:.*}", answer)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        self._runners.append(runner)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return GitHubApi(api_url=f"http://127.0.0.1:{runner.addresses[0][1]}", credential=Token(TOKEN))

    async def stop(self) -> None:
        for runner in self._runners:
            await runner.cleanup()


@pytest.fixture
async def elsewhere() -> AsyncIterator[Elsewhere]:
    servers = Elsewhere()
    yield servers
    await servers.stop()


@pytest.mark.parametrize(
    ("response", "uncertain"),
    [
        (web.Response(status=201, text="<html>welcome</html>"), True),
        (web.Response(status=201, text='{"encoded_jit_config": "s3cr3t"}'), True),
        (web.Response(status=200, text="{}"), True),
        (web.Response(status=304), True),
        (web.Response(status=429, headers={"Retry-After": "Fri, 02 Jan 2026 03:00:00 GMT"}), False),
    ],
)
async def test_an_answer_that_cannot_be_githubs_is_asked_again_later(
    elsewhere: Elsewhere, response: web.Response, uncertain: bool
) -> None:
    github = await elsewhere.github(response)
    with pytest.raises(RetryLater) as caught:
        await github.mint_jit_config(f"repo:{REPOSITORY}", "hw-a", LABELS, "Default")
    assert caught.value.uncertain is uncertain
    assert "s3cr3t" not in str(caught.value)


async def test_values_that_githubkit_does_not_know_are_taken_as_they_come(elsewhere: Elsewhere) -> None:
    body = {"total_count": 1, "runners": [{"id": 1, "name": "hw-a", "status": "hibernating", "busy": False, "labels": None}]}
    github = await elsewhere.github(web.json_response(body))
    assert [(runner.name, runner.online) for runner in await github.list_runners(TARGET)] == [("hw-a", False)]


async def test_a_github_that_names_no_limit_leaves_the_calls_uncounted(elsewhere: Elsewhere) -> None:
    github = await elsewhere.github(web.json_response({"total_count": 0, "runners": []}))
    await github.list_runners(TARGET)
    assert github.calls_left() is None


# ---------------------------------------------------------------------------------------------- secrets, connections


async def test_no_secret_shows_in_a_repr_an_error_or_a_log(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    place = await start()
    config = await place.github.mint_jit_config(TARGET, "hw-a", LABELS, "Default")
    credentials = [Token(TOKEN), App(app_id="1", installation_id=1, private_key="a private key")]
    with pytest.raises(Conflict) as caught:
        await place.mint("hw-a")
    shown = f"{credentials!r} {place.github!r} {vars(place.github)!r} {config!r} {caught.value!r} {caplog.text}"
    for secret in (TOKEN, "a private key", config.encoded):
        assert secret not in shown


async def test_overlapping_passes_each_have_their_connections(start: Start) -> None:
    place = await start()

    async def one_pass(name: str) -> None:
        async with place.github:
            await asyncio.gather(place.mint(name), place.github.list_runners(TARGET))

    await asyncio.gather(one_pass("hw-a"), one_pass("hw-b"), one_pass("hw-c"))
    assert {runner.name for runner in await place.github.list_runners(TARGET)} == {"hw-a", "hw-b", "hw-c"}


async def test_a_task_that_outlives_its_pass_still_reaches_github(start: Start) -> None:
    place = await start()
    over = asyncio.Event()

    async def later() -> RunnerProgram:
        await over.wait()
        return await place.mint("hw-a")

    async with place.github:
        await place.github.list_runners(TARGET)
        task = asyncio.create_task(later())
    over.set()
    assert (await task).config["url"] == place.base


@pytest.mark.parametrize(("inside", "connections"), [(True, 1), (False, 3)])
async def test_the_calls_of_a_pass_share_a_connection(elsewhere: Elsewhere, inside: bool, connections: int) -> None:
    github = await elsewhere.github(web.json_response({"total_count": 0, "runners": []}))
    async with github if inside else nullcontext():
        for _ in range(3):
            await github.list_runners(TARGET)
    assert len(elsewhere.peers) == connections
