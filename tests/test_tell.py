"""Redelivery, and alerts told once and told when over."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta

import pytest

from runnerpool.budget import GOOD_FOR
from runnerpool.errors import Gone, Misconfigured, RetryLater
from runnerpool.model import Head, Rest, RunnerState
from runnerpool.ports import Alert, Delivery, Upsert
from runnerpool.redelivery import PORTION, PROBES, REDELIVERABLE, SOON, WATCHED
from tests.made_rows import MINUTE, NOW, clock, config, later, pool, virtual
from tests.stand_ins import Scene

S = RunnerState


def failures(count: int, hook: str = "") -> list[Delivery]:
    return [Delivery(n, f"00000000-0000-0000-0000-{n:012d}", NOW, ok=False, hook=hook) for n in range(count)]


async def counts(scene: Scene) -> list[int]:
    """How often each failed delivery was asked for, as the heartbeat says."""
    return [count for count, _ in (await scene.heartbeat())["deliveries"]["tries"].values()]


@virtual
async def test_failed_deliveries_are_asked_for_again_at_each_look_first_and_more_rarely_then() -> None:
    scene = Scene()
    scene.hub.failed = [Delivery(1, "never", NOW, ok=False)]
    for _ in range(SOON + 6):
        await scene.reconcile()
        await later(minutes=5)
    assert scene.hub.count("redeliver") == SOON + 2
    assert scene.hub.count("failed_deliveries") == SOON + 6
    scene.hub.failed = []
    await scene.reconcile()
    assert (await scene.heartbeat())["deliveries"]["tries"] == {}


@virtual
async def test_failed_deliveries_are_listed_every_five_minutes_only() -> None:
    scene = Scene()
    for _ in range(8):
        await scene.reconcile()
        await later(seconds=30)
    assert scene.hub.count("failed_deliveries") == 1


@virtual
async def test_each_look_goes_three_days_back_whatever_the_last_one_did_not_show() -> None:
    """A hook that is out of sight for a while shows no failures; they are still there when it is seen again."""
    scene = Scene()
    asked: list[timedelta] = []

    async def noted(since: datetime) -> list[Delivery]:
        asked.append(clock() - since)
        return failures(1) if len(asked) == 1 else []

    scene.hub.failed_deliveries = noted  # type: ignore[method-assign]
    for _ in range(3):
        await scene.reconcile()
        await later(minutes=5)
    assert asked == [REDELIVERABLE] * 3


@virtual
async def test_after_a_long_outage_deliveries_come_back_in_portions_within_githubs_limit() -> None:
    scene = Scene()
    scene.hub.failed = failures(2 * WATCHED)
    for turn in range(1, 6):
        await scene.reconcile()
        assert scene.hub.count("redeliver") == turn * PORTION
        got_through = {guid for method, guid in scene.hub.calls if method == "redeliver"}
        scene.hub.failed = [delivery for delivery in scene.hub.failed if delivery.guid not in got_through]
        await later(seconds=30)
    (entity,) = await scene.ledger.app_rows("heartbeat")
    assert len(str(entity.columns["body"])) < 32_000


@virtual
async def test_a_webhook_that_takes_nothing_is_probed_now_and_then_and_takes_no_tokens_from_the_vms() -> None:
    scene = Scene()
    scene.hub.failed = failures(2 * WATCHED)
    for _ in range(20):
        await scene.reconcile()
        await later(seconds=30)
    assert scene.hub.count("redeliver") == PORTION + 2 * PROBES  # at once, at the next tick, and five minutes later
    assert scene.hub.count("failed_deliveries") == 3


@virtual
async def test_a_webhook_that_takes_nothing_is_told_of_and_that_it_does_again() -> None:
    scene = Scene()
    scene.hub.failed = failures(3, hook="/orgs/octo-org/hooks/1")
    await refuse(scene, minutes=60)
    scene.hub.failed = []
    await refuse(scene, minutes=10)
    assert [(alert.id, alert.area) for alert in scene.mail.sent] == [
        ("webhook--orgs-octo-org-hooks-1", "setup"),
        ("webhook--orgs-octo-org-hooks-1", "resolved"),
    ]


@virtual
async def test_a_list_of_deliveries_that_cannot_be_read_stops_nothing() -> None:
    scene = Scene()
    scene.hub.fails("failed_deliveries", Misconfigured("403", area="auth"))
    await scene.reconcile()
    assert (await scene.heartbeat())["at"]


@pytest.mark.parametrize("method", ["failed_deliveries", "redeliver"])
@virtual
async def test_a_github_that_hangs_while_deliveries_are_looked_at_keeps_no_pass_from_its_heartbeat(method: str) -> None:
    scene = Scene()
    scene.hub.failed = failures(30)

    async def hangs(_what: object) -> list[Delivery]:
        await asyncio.sleep(600)
        raise RetryLater("GitHub gave no answer")

    setattr(scene.hub, method, hangs)
    begun = clock()
    await scene.reconcile()
    assert clock() - begun < timedelta(seconds=60)
    beat = await scene.heartbeat()
    assert bool(beat["deliveries"].get("tries")) == (method == "redeliver")  # what may have been asked for counts


@virtual
async def test_a_github_that_is_slow_is_asked_for_as_many_deliveries_as_its_tokens_are_good_for() -> None:
    scene = Scene()
    scene.hub.failed = failures(PORTION)
    scene.hub.slow("redeliver", GOOD_FOR / 2)
    await scene.reconcile()
    assert scene.hub.count("redeliver") == 2
    assert await counts(scene) == [1, 1]


@virtual
async def test_a_long_list_is_read_on_by_the_next_pass_and_no_attempt_is_forgotten_meanwhile() -> None:
    scene = Scene()
    scene.hub.failed = failures(1)
    await scene.reconcile()
    await later(minutes=5)
    scene.hub.fails("failed_deliveries", *[RetryLater("it is long", after=timedelta(seconds=25))] * 2)
    for _ in range(2):
        await scene.reconcile()
        assert await counts(scene) == [1]
        await later(seconds=30)
    await scene.reconcile()
    assert scene.hub.count("failed_deliveries") == 4
    assert await counts(scene) == [2]


@virtual
async def test_a_delivery_that_github_refuses_to_repeat_is_left_like_one_that_fails() -> None:
    scene = Scene()
    scene.hub.failed = failures(2)
    for _ in range(SOON + 6):
        scene.hub.fails("redeliver", Gone("404"))
        await scene.reconcile()
        await later(minutes=5)
    assert scene.hub.count("redeliver") == 2 * (SOON + 2)


@virtual
async def test_what_an_older_version_had_given_up_after_five_attempts_is_asked_for_again() -> None:
    scene = Scene()
    scene.hub.failed = failures(2)
    old = f'{{"at": "{NOW.isoformat()}", "deliveries": {{"at": null, "tries": {{"{scene.hub.failed[0].guid}": 5}}}}}}'
    await scene.table.transact("_app", [Upsert("heartbeat", {"body": old})])
    await scene.reconcile()
    assert scene.hub.count("redeliver") == 2


# ---------------------------------------------------------------------------------------------- telling


async def refuse(scene: Scene, *, minutes: int) -> None:
    for _ in range(2 * minutes):
        await scene.reconcile()
        await later(seconds=30)


@virtual
async def test_a_condition_is_told_once_and_once_more_when_it_is_over() -> None:
    scene = Scene()
    scene.azure.fails("list_vms", *[Misconfigured("403 for the identity", area="auth")] * 4)
    await refuse(scene, minutes=5)
    assert [(alert.id, alert.area) for alert in scene.mail.sent] == [("service-azure", "auth"), ("service-azure", "resolved")]


@virtual
async def test_a_pool_that_is_refused_again_and_again_is_told_of_once() -> None:
    scene = Scene(config(pool(minimum_warm_vms=1)))
    scene.azure.fails("create_vm", *[Misconfigured("no such image", area="provisioning")] * 6)
    await refuse(scene, minutes=25)
    assert [alert.id for alert in scene.mail.sent] == ["pool-linux"]
    assert "no such image" in scene.mail.sent[0].text
    await refuse(scene, minutes=20)
    assert [alert.area for alert in scene.mail.sent] == ["setup", "resolved"]


@virtual
async def test_what_could_not_be_sent_is_sent_by_a_later_pass_and_so_is_that_it_is_over() -> None:
    scene = Scene()
    await scene.hold(Head("linux", rests={"pool": Rest(NOW + 5 * MINUTE, "refused")}))
    scene.mail.fails("send", RetryLater("no mail server"))
    await refuse(scene, minutes=2)
    assert [alert.id for alert in scene.mail.sent] == ["pool-linux"]

    scene.mail.fails("send", RetryLater("no mail server"))
    await refuse(scene, minutes=10)
    assert [alert.area for alert in scene.mail.sent] == ["setup", "resolved"]


@virtual
async def test_a_mail_server_that_hangs_delays_neither_the_heartbeat_nor_the_pass_for_long() -> None:
    pools = [pool(name=f"p{n}", labels=[f"p{n}"]) for n in range(20)]
    scene = Scene(config(*pools))
    await scene.hold(*(Head(one.name, rests={"pool": Rest(NOW + 60 * MINUTE, "refused")}) for one in scene.config.pools))
    beaten: list[bool] = []
    tried: list[str] = []

    async def hangs(alert: Alert) -> None:
        tried.append(alert.id)
        beaten.append(bool(await scene.ledger.app_rows("heartbeat")))
        await later(seconds=30)
        raise RetryLater("mail: TimeoutError")

    scene.mail.send = hangs  # type: ignore[method-assign]
    begun = clock()
    await scene.reconcile()
    assert (len(tried), beaten) == (1, [True])
    assert clock() - begun < timedelta(minutes=1)
