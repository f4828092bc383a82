"""Redelivery, and alerts told once and told when over."""

from __future__ import annotations

from runnerpool.errors import Misconfigured, RetryLater
from runnerpool.model import Head, Rest, RunnerState
from runnerpool.ports import Delivery
from runnerpool.reconcile import REDELIVERED, REDELIVERIES, WATCHED
from tests.made_rows import MINUTE, NOW, config, later, pool, virtual
from tests.stand_ins import Scene

S = RunnerState


@virtual
async def test_failed_deliveries_are_asked_for_again_a_few_times_and_then_left() -> None:
    scene = Scene()
    scene.hub.failed = [Delivery(1, "never", NOW, ok=False)]
    for _ in range(REDELIVERIES + 3):
        await scene.reconcile()
        await later(minutes=5)
    assert scene.hub.count("redeliver") == REDELIVERIES
    assert scene.hub.count("failed_deliveries") == REDELIVERIES + 3
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
async def test_after_a_long_outage_deliveries_come_back_in_portions_within_githubs_limit() -> None:
    scene = Scene()
    scene.hub.failed = [Delivery(n, f"00000000-0000-0000-0000-{n:012d}", NOW, ok=False) for n in range(2 * WATCHED)]
    await scene.reconcile()
    assert scene.hub.count("redeliver") == REDELIVERED
    for _ in range(40):
        await later(seconds=30)
        await scene.reconcile()
    (entity,) = await scene.ledger.app_rows("heartbeat")
    assert len(str(entity.columns["body"])) < 32_000


@virtual
async def test_a_list_of_deliveries_that_cannot_be_read_stops_nothing() -> None:
    scene = Scene()
    scene.hub.fails("failed_deliveries", Misconfigured("403", area="auth"))
    await scene.reconcile()
    assert (await scene.heartbeat())["at"]


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
