"""The GitHub adapter against the sandbox: webhook deliveries, and a GitHub App as the credential."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from runnerpool.errors import Gone, Misconfigured, RetryLater
from runnerpool.github import App
from runnerpool.github_hooks import PAGES
from runnerpool.ports import Delivery
from sandbox.github import AppIdentity
from sandbox.github_deliveries import Delivery as Sent
from sandbox.github_hooks_api import repository_hook
from tests.github_fixture import LABELS, REPOSITORY, TARGET, Place, Start, places

EPOCH = datetime(2020, 1, 1, tzinfo=UTC)


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    async with places() as begin:
        yield begin


# ---------------------------------------------------------------------------------------------- deliveries


@pytest.mark.parametrize("hook_on", ["org", "repo"])
async def test_a_failed_delivery_is_found_and_redelivered(start: Start, hook_on: str) -> None:
    place = await start(hook_on=hook_on)
    await place.deliver(202, 500, 202)
    failed = await place.github.failed_deliveries(EPOCH)
    assert [(delivery.ok, delivery.guid) for delivery in failed] == [(False, place.sandbox.deliveries.sent[1].guid)]
    await place.github.redeliver(failed[0])
    await place.receiver.wait_for(4)
    await place.sandbox.deliveries.settled()
    assert await place.github.failed_deliveries(EPOCH) == []


async def test_a_delivery_that_failed_again_is_listed_once_by_its_newest_attempt(start: Start) -> None:
    place = await start()
    await place.deliver(500)
    place.receiver.answers = [503]
    again = place.sandbox.deliveries.redeliver(place.sandbox.deliveries.sent[0])
    await place.sandbox.deliveries.settled()
    assert [delivery.id for delivery in await place.github.failed_deliveries(EPOCH)] == [again.id]


async def test_failures_before_the_moment_asked_for_are_left_out(start: Start) -> None:
    place = await start()
    await place.deliver(500)
    assert await place.github.failed_deliveries(datetime.now(UTC) + timedelta(minutes=1)) == []


async def test_a_long_list_of_failures_is_read_page_by_page(start: Start) -> None:
    place = await start()
    place.receiver.answers = [500] * 130
    place.sandbox.world.queue(REPOSITORY, LABELS, count=130)
    await place.receiver.wait_for(130)
    await place.sandbox.deliveries.settled()
    failed = await place.github.failed_deliveries(EPOCH)
    assert len({delivery.guid for delivery in failed}) == len(failed) == 130
    assert [delivery.delivered_at for delivery in failed] == sorted((d.delivered_at for d in failed), reverse=True)


async def test_where_nothing_failed_one_call_tells(start: Start) -> None:
    place = await start()
    await place.deliver(202)
    assert await place.github.failed_deliveries(EPOCH) == []
    before = dict(place.calls())
    assert await place.github.failed_deliveries(EPOCH) == []
    assert sum(place.calls().values()) - sum(before.values()) == 1


async def test_hooks_that_are_not_ours_are_left_alone(start: Start) -> None:
    place = await start()
    await place.deliver(500)
    assert await place.api(webhook="example.com/github/webhook").failed_deliveries(EPOCH) == []


@pytest.mark.parametrize("status", [403, 404])
async def test_a_credential_that_may_not_see_hooks_finds_no_failures(start: Start, status: int) -> None:
    place = await start()
    await place.deliver(500)
    place.fail("answer", status=status, times=None, path=r"/hooks\?")
    assert await place.github.failed_deliveries(EPOCH) == []


async def test_a_hook_that_was_replaced_is_looked_for_again(start: Start) -> None:
    place = await start()
    await place.deliver(500)
    assert len(await place.github.failed_deliveries(EPOCH)) == 1
    place.fail("answer", status=404, path=r"/deliveries\?")
    with pytest.raises(RetryLater, match="looked for again"):
        await place.github.failed_deliveries(EPOCH)
    assert len(await place.github.failed_deliveries(EPOCH)) == 1


async def test_a_hook_whose_deliveries_may_no_longer_be_seen_is_missed_once_and_then_keeps_no_other_waiting(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    place = await start()
    (hook,) = place.sandbox.deliveries.hooks
    place.sandbox.deliveries.hooks.append(repository_hook(REPOSITORY, 502, hook.url, hook.secret))
    place.receiver.answers = [500, 500]
    place.queue()
    await place.sandbox.deliveries.settled()
    assert len(await place.github.failed_deliveries(EPOCH)) == 2
    place.fail("answer", status=403, times=None, path=r"^/repos/.*/deliveries")
    with pytest.raises(RetryLater, match="looked for again"):
        await place.github.failed_deliveries(EPOCH)
    for _ in range(2):
        assert [delivery.hook for delivery in await place.github.failed_deliveries(EPOCH)] == [hook.path]
    assert [record.message for record in caplog.records if "1 failed deliveries of it are not sent again" in record.message]


async def test_a_delivery_that_github_no_longer_keeps_is_gone(start: Start) -> None:
    place = await start()
    await place.deliver(500)
    failed = await place.github.failed_deliveries(EPOCH)
    place.sandbox.deliveries.sent.clear()
    with pytest.raises(Gone):
        await place.github.redeliver(failed[0])


async def test_only_what_was_listed_can_be_redelivered(start: Start) -> None:
    place = await start()
    with pytest.raises(TypeError):
        await place.github.redeliver(Delivery(id=1, guid="g", delivered_at=EPOCH, ok=False))


# ---------------------------------------------------------------------------------------------- long lists


def listed(place: Place, count: int, status: int, at: datetime, guid: str = "") -> None:
    """GitHub lists so many deliveries more, 20 seconds apart, the newest of them at `at`."""
    (hook,) = place.sandbox.deliveries.hooks
    sent = place.sandbox.deliveries.sent
    for n in reversed(range(count)):
        number = len(sent) + 1
        made = Sent(number, guid or f"guid-{number}", hook, "workflow_job", "queued", None, b"")
        made.delivered_at, made.status_code = at - timedelta(seconds=20 * n), status
        sent.append(made)


def pages_read(place: Place) -> int:
    return sum(count for endpoint, count in place.calls().items() if endpoint.endswith("/deliveries"))


async def looks(place: Place) -> tuple[int, list[Delivery]]:
    """Looks until the list has been read: how often, and what was found. No look reads more than its pages."""
    for count in range(1, 50):
        before = pages_read(place)
        try:
            return count, await place.github.failed_deliveries(EPOCH)
        except RetryLater:
            assert pages_read(place) - before <= PAGES
    raise AssertionError("the list is never read to its end")


async def test_a_failure_of_long_ago_does_not_make_each_look_read_everything_since(
    start: Start,
) -> None:
    place = await start()
    now = datetime.now(UTC)
    listed(place, 1, 500, now - timedelta(days=2))
    listed(place, 950, 202, now)
    assert len(await place.github.failed_deliveries(EPOCH)) == 1
    read = pages_read(place)
    for _ in range(5):
        assert len(await place.github.failed_deliveries(EPOCH)) == 1
    assert pages_read(place) - read == 5 * 2  # one of failures, one of successes


async def test_a_list_of_many_pages_is_read_over_several_looks_and_each_page_once(start: Start) -> None:
    place = await start()
    now = datetime.now(UTC)
    listed(place, 1, 500, now - timedelta(days=2), "old")
    listed(place, 2050, 500, now - timedelta(hours=2))
    listed(place, 1030, 202, now - timedelta(hours=1))
    listed(place, 1, 202, now, "old")
    count, failed = await looks(place)
    assert len({delivery.guid for delivery in failed}) == len(failed) == 2050
    assert pages_read(place) <= 21 + 11 + 4  # and the newest page again, after each look that did not come to the end
    assert count == 1 + (21 + 11) // PAGES


async def test_what_fails_or_succeeds_while_a_long_list_is_read_is_in_the_answer(start: Start) -> None:
    place = await start()
    now = datetime.now(UTC)
    listed(place, 100 * PAGES, 500, now - timedelta(hours=1))
    with pytest.raises(RetryLater, match="the next look reads on"):
        await place.github.failed_deliveries(EPOCH)
    listed(place, 1, 500, now, "new")
    listed(place, 1, 202, now, "guid-5")
    _, failed = await looks(place)
    guids = {delivery.guid for delivery in failed}
    assert len(guids) == 100 * PAGES
    assert "new" in guids
    assert "guid-5" not in guids


async def test_what_is_done_stays_done_when_its_failure_is_read_again(start: Start) -> None:
    place = await start()
    now = datetime.now(UTC)
    listed(place, 1, 500, now - timedelta(hours=3), "done")
    listed(place, 1, 500, now - timedelta(hours=3), "open")
    listed(place, 1, 202, now - timedelta(hours=2), "done")
    listed(place, 300, 202, now)
    for _ in range(3):
        assert [delivery.guid for delivery in await place.github.failed_deliveries(EPOCH)] == ["open"]
    assert await place.github.failed_deliveries(now - timedelta(hours=1)) == []


async def test_a_page_that_github_refuses_makes_the_reading_begin_anew(start: Start) -> None:
    place = await start()
    listed(place, 100 * PAGES + 1, 500, datetime.now(UTC))
    with pytest.raises(RetryLater):
        await place.github.failed_deliveries(EPOCH)
    place.fail("answer", status=422, path="cursor=")
    with pytest.raises(Misconfigured):
        await place.github.failed_deliveries(EPOCH)
    assert len((await looks(place))[1]) == 100 * PAGES + 1


async def test_a_look_that_a_failing_page_ended_goes_on_with_that_page(start: Start) -> None:
    place = await start()
    listed(place, 500, 500, datetime.now(UTC))
    place.fail("answer", status=502, path="cursor=")
    with pytest.raises(RetryLater):
        await place.github.failed_deliveries(EPOCH)
    assert len(await place.github.failed_deliveries(EPOCH)) == 500


# ---------------------------------------------------------------------------------------------- a GitHub App


@pytest.fixture(scope="module")
def keys() -> tuple[str, str]:
    """A private and a public RSA key in PEM form."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return private.decode(), public.decode()


@pytest.mark.parametrize("prefix", ["", "/api/v3"])
async def test_an_app_works_as_its_installation_and_exchanges_its_key_once(
    start: Start, keys: tuple[str, str], prefix: str
) -> None:
    place = await start(app=AppIdentity(4711, 77, keys[1]), tokens=[], prefix=prefix)
    async with place.api(App(app_id="4711", installation_id=77, private_key=keys[0])) as github:
        await github.mint_jit_config(TARGET, "hw-a", LABELS, "Default")
        assert len(await github.list_runners(TARGET)) == 1
    async with github:
        assert len(await github.list_runners(TARGET)) == 1
    assert place.calls()[r"POST /app/installations/{installation_id:\d+}/access_tokens"] == 1


async def test_an_apps_own_webhook_is_read_with_the_apps_key(start: Start, keys: tuple[str, str]) -> None:
    place = await start(app=AppIdentity(4711, 77, keys[1]), tokens=[], hook_on="app")
    await place.deliver(500)
    assert place.receiver.got[0].payload["installation"]["id"] == 77
    github = place.api(App(app_id="4711", installation_id=77, private_key=keys[0]))
    failed = await github.failed_deliveries(EPOCH)
    assert len(failed) == 1
    await github.redeliver(failed[0])
    await place.receiver.wait_for(2)
    await place.sandbox.deliveries.settled()
    assert await github.failed_deliveries(EPOCH) == []


@pytest.mark.parametrize(
    ("app_id", "installation_id", "broken_key"), [("4712", 77, False), ("4711", 78, False), ("4711", 77, True)]
)
async def test_an_app_that_is_set_up_wrongly_is_a_matter_of_auth(
    start: Start, keys: tuple[str, str], app_id: str, installation_id: int, broken_key: bool
) -> None:
    place = await start(app=AppIdentity(4711, 77, keys[1]), tokens=[])
    private = keys[0][:200] if broken_key else keys[0]
    github = place.api(App(app_id=app_id, installation_id=installation_id, private_key=private))
    with pytest.raises(Misconfigured, match="GITHUB_APP_") as caught:
        await github.list_runners(TARGET)
    assert caught.value.area == "auth"
    assert "BEGIN" not in str(caught.value)
