"""`doctor` on the storage account: the ledger's tables, the queue, and whether the app is alive to use them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import datetime, timedelta

from runnerpool.app import Storage, now, open_storage
from runnerpool.config import Config
from runnerpool.findings import Check, Finding, fail, ok, warn
from runnerpool.heartbeat import Heartbeat, read_heartbeat
from runnerpool.ledger import Ledger
from runnerpool.queues import DEMAND, POISON, AzureQueues
from runnerpool.settings import Settings
from runnerpool.status import STALE
from runnerpool.tables import AzureTable

ROLES = (
    "az role assignment create --assignee PRINCIPAL --scope STORAGE_ACCOUNT_ID --role 'Storage Table Data Contributor' "
    "(and 'Storage Queue Data Contributor': docs/deploy.md#identity)"
)
UNTAKEN = timedelta(minutes=10)
"""A message is hidden for that long when the instance that took it dies, and for less in any other trouble."""

APP_PAGE = "see that the app runs, and its log: docs/deploy.md#when-nothing-happens"


@dataclass(frozen=True, slots=True)
class Place:
    storage: Storage
    queues: AzureQueues
    ledger: Ledger


def checks(settings: Settings, config: Config | None, closing: AsyncExitStack) -> list[Check]:
    assert settings.storage is not None
    storage = open_storage(settings)
    queues = AzureQueues(storage=settings.storage, credential=storage.credential)
    closing.push_async_callback(storage.close)
    closing.push_async_callback(queues.close)
    place = Place(storage, queues, Ledger(table=storage.table, history=storage.history))
    return [
        Check("tables", lambda: tables(place), ROLES),
        Check("queue", lambda: queue(place), ROLES),
        Check("app", lambda: app(place, config), APP_PAGE),
    ]


async def tables(place: Place) -> Sequence[Finding]:
    """That the app may write, too, only its own heartbeat can show: see `app`."""
    return [await _table(place.storage.table), await _table(place.storage.history)]


async def _table(table: AzureTable) -> Finding:
    what = f"table {table.name}"
    if await table.exists():
        return ok(what, "can be read")
    return warn(what, "does not exist yet; the app makes it at its first start", APP_PAGE)


async def queue(place: Place) -> Sequence[Finding]:
    waiting, poisoned = await place.queues.length(DEMAND), await place.queues.length(POISON)
    if waiting is None:
        return [warn(f"queue {DEMAND}", "does not exist yet; the first delivery makes it", APP_PAGE)]
    found = [judge_waiting(waiting, await place.queues.oldest(DEMAND), now())]
    if poisoned:
        clear = f"az storage message clear --auth-mode login --account-name ACCOUNT --queue-name {POISON}"
        mend = f"python -m runnerpool status says what they were; then {clear}"
        found.append(warn(f"queue {POISON}", f"{poisoned} wake-ups failed five times", mend))
    return found


def judge_waiting(count: int, oldest: datetime | None, at: datetime) -> Finding:
    """That the host may take messages out of the queue, only the queue's own state can show."""
    what, age = f"queue {DEMAND}", at - oldest if oldest else timedelta()
    told = f"can be read, {count} wake-ups wait in it"
    if age < UNTAKEN:
        return ok(what, told)
    told = (
        f"{told}, one for {int(age.total_seconds()):,} s: `provision` does not take them, and reconcile makes up for it every 30 s"
    )
    return warn(what, told, f"see that the app's identity has 'Storage Queue Data Contributor', and the app's log: {APP_PAGE}")


async def app(place: Place, config: Config | None) -> Sequence[Finding]:
    """By the row that each reconcile pass writes."""
    what = "app"
    beat = await read_heartbeat(place.ledger) if await place.storage.table.exists() else None
    if beat is None:
        return [warn(what, "no reconcile pass has ended yet", APP_PAGE)]
    age = now() - beat.at
    told = f"its last reconcile pass ended {int(age.total_seconds()):,} s ago"
    if age > STALE:
        return [fail(what, f"{told}; there should be one every 30 s", APP_PAGE)]
    if beat.trouble or beat.failures:
        return [fail(what, f"{told}, in trouble: {_troubles(beat)}", APP_PAGE)]
    found = [ok(what, f"{told}, written with the app's own identity")]
    for pool in config.pools if config else ():
        head = (await place.ledger.read_pool(pool.name)).head
        if head.paused or head.draining:
            state = "drained" if head.draining else "paused"
            found.append(warn(f"pool {pool.name}", f"is {state}, so its jobs wait", f"python -m runnerpool resume {pool.name}"))
    return found


def _troubles(beat: Heartbeat) -> str:
    return "; ".join(f"{name}: {text}" for name, text in {**beat.trouble, **beat.failures}.items())
