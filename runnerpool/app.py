"""The app put together: settings and pool file into adapters, adapters into the engine; what each trigger calls.

One `App` a process, made at its first trigger. The SDKs are imported where they are first needed: the HTTP functions'
process reads the ledger and must not wait for Azure's and GitHub's.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import TYPE_CHECKING, Any

from runnerpool import status
from runnerpool.config import Config
from runnerpool.errors import PoolError
from runnerpool.ledger import Ledger
from runnerpool.pool_file import load_config
from runnerpool.retry import Clock, attempt
from runnerpool.settings import Settings, SettingsError
from runnerpool.tables import AzureTable

if TYPE_CHECKING:
    from azure.core.credentials_async import AsyncTokenCredential

    from runnerpool.planner import Planner

log = logging.getLogger(__name__)

for library in ("azure", "httpx"):
    logging.getLogger(library).setLevel(logging.WARNING)  # both log every request at INFO, which the user pays for by the gigabyte

PROVISION_TIME = timedelta(minutes=4)
"""Acting stops a minute before host.json's functionTimeout; the next wake-up or tick goes on."""
RECONCILE_TIME = timedelta(seconds=90)
"""A pass that acts longer than this leaves the rest to the next one, so that agents are polled again soon."""
POISON_TIME = timedelta(seconds=50)
"""What is left of functionTimeout for saying that a message failed."""
LAST_ATTEMPT = 5
"""host.json's maxDequeueCount: after it the host moves the message to the poison queue."""


def system_clock() -> datetime:
    return datetime.now(UTC)


clock: Clock = system_clock
"""The present moment, for everything below; the sandbox sets another one before the first trigger."""


@cache
def current() -> App:
    """This process's app. Raises SettingsError or ConfigError, anew at each call, until what they name is mended."""
    settings = Settings.from_env(os.environ)
    config = load_config(settings.pool_config)
    return App(settings, config)


async def close() -> None:
    """Closes this process's connections, if it made any. Azure ends processes without asking; a local host need not."""
    if current.cache_info().currsize:
        await current().close()
        current.cache_clear()


class App:
    """What the triggers call."""

    def __init__(self, settings: Settings, config: Config) -> None:
        self.settings = settings
        self.config = config
        self._planner: Planner | None = None
        self._ledger: Ledger | None = None
        self._storage: Storage | None = None
        self._opening = asyncio.Lock()  # a queue's first batch asks for everything sixteen times at once

    async def ledger(self) -> Ledger:
        """The ledger, its tables made where they are missing."""
        async with self._opening:
            if self._ledger is None:
                self._storage = self._storage or open_storage(self.settings)
                await self._storage.create_if_missing()
                self._ledger = Ledger(table=self._storage.table, history=self._storage.history)
            return self._ledger

    async def planner(self) -> Planner:
        """Everything that planning and acting need. Raises SettingsError where a setting of theirs is missing."""
        if self.settings.lacking:
            raise SettingsError(self.settings.lacking)
        ledger = await self.ledger()
        if self._planner is None:
            from runnerpool.planner import Planner

            self._planner = Planner.open(self.settings, self.config, ledger, now)
        return self._planner

    async def close(self) -> None:
        if self._planner is not None:
            await self._planner.close()
        if self._storage is not None:
            await self._storage.close()

    async def provision(self, body: bytes, message_id: str, dequeue_count: int) -> None:
        """A wake-up. What keeps failing ends as a readable row, and in the poison queue.

        The last attempt writes that row before it begins: a process that dies in it has left it.
        """
        last = dequeue_count >= LAST_ATTEMPT
        try:
            if last:
                await self._poison(body, message_id, "its last attempt began, and its end was not seen")
            pool = wakeup_pool(body)
            planner = await self.planner()
            await planner.wake(pool, deadline=now() + PROVISION_TIME)
        except Exception as error:
            log.exception("wake-up %s failed (attempt %d of %d)", message_id, dequeue_count, LAST_ATTEMPT)
            if last:
                await self._poison(body, message_id, f"{type(error).__name__}: {error}")
            raise
        if last:
            await self._unpoison(message_id)

    async def _poison(self, body: bytes, message_id: str, why: str) -> None:
        text = body[:2000].decode("utf-8", "replace")
        columns = {"received_at": now().isoformat(), "message": text, "error": why[:2000]}
        ledger = await self.ledger()
        row = f"poison:{_safe(message_id)}"
        await attempt(lambda: ledger.put_app_row(row, columns), clock=now, deadline=now() + POISON_TIME)

    async def _unpoison(self, message_id: str) -> None:
        """What is done is done, even where the row that foretold its failure cannot be taken back."""
        ledger = await self.ledger()
        row = f"poison:{_safe(message_id)}"
        try:
            await attempt(lambda: ledger.remove_app_rows([row]), clock=now, deadline=now() + POISON_TIME)
        except PoolError as error:
            log.warning("wake-up %s went well at its last attempt, and its row %s could not be removed: %s", message_id, row, error)

    async def reconcile(self) -> None:
        """The timer's pass."""
        planner = await self.planner()
        await planner.reconcile(deadline=now() + RECONCILE_TIME)

    async def runner_status(self, headers: Mapping[str, str]) -> tuple[int, dict[str, Any]]:
        """Status code and JSON of `/runner/status`."""
        if not self.settings.runner_status_token:
            return 503, {"message": "no diagnostic token is set: set RUNNER_STATUS_TOKEN"}
        if not status.authorised(headers, self.settings.runner_status_token):
            return 401, {"message": "send the header Authorization: Bearer <RUNNER_STATUS_TOKEN>"}
        return await status.report(now(), self.config, await self.ledger())


def now() -> datetime:
    return clock()


def wakeup_pool(body: bytes) -> str:
    """The pool that a wake-up names. Raises ValueError, saying what is wrong with the message."""
    try:
        message = json.loads(body)
    except ValueError as error:
        raise ValueError(f"the message is not JSON: {error}") from error
    pool = message.get("pool") if isinstance(message, dict) else None
    if not isinstance(pool, str) or not pool:
        raise ValueError("the message names no pool; a wake-up is {pool, job, delivery}")
    return pool


def _safe(text: str) -> str:
    """Fit for a row key."""
    return "".join(character if character.isalnum() or character in "-_." else "-" for character in text)[:200] or "unnamed"


# ---------------------------------------------------------------------------------------------- storage


@dataclass(frozen=True, slots=True)
class Storage:
    """The two tables, and the credential that opened them (None for a connection string)."""

    table: AzureTable
    history: AzureTable
    credential: AsyncTokenCredential | None

    async def create_if_missing(self) -> None:
        await self.table.create_if_missing()
        await self.history.create_if_missing()

    async def close(self) -> None:
        await self.table.close()
        await self.history.close()
        if self.credential is not None:
            await self.credential.close()


def open_storage(settings: Settings) -> Storage:
    """The ledger's tables, over the connection that the Functions host uses for its bindings."""
    storage = settings.storage
    if storage is None:
        raise SettingsError(settings.lacking)
    credential: AsyncTokenCredential | None = None
    if not storage.connection_string:
        from azure.identity.aio import DefaultAzureCredential

        credential = DefaultAzureCredential(managed_identity_client_id=storage.client_id or None)
    table = AzureTable(storage=storage, name="runnerpool", credential=credential)
    return Storage(table, AzureTable(storage=storage, name="history", credential=credential), credential)
