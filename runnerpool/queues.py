"""The queue of wake-ups, looked at from outside. The Functions host reads and writes it; `doctor` only asks how it is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

from azure.core.exceptions import AzureError, HttpResponseError, ResourceNotFoundError
from azure.storage.queue.aio import QueueServiceClient

from runnerpool.errors import Misconfigured, PoolError, RetryLater
from runnerpool.settings import StorageConnection

if TYPE_CHECKING:
    from azure.core.credentials_async import AsyncTokenCredential

DEMAND = "job-demand"
POISON = f"{DEMAND}-poison"
"""Where the host puts a message that failed five times."""


class AzureQueues:
    """`credential` is for a connection by identity; it stays the caller's to close."""

    def __init__(self, *, storage: StorageConnection, credential: AsyncTokenCredential | None) -> None:
        options: dict[str, Any] = {"retry_total": 0, "connection_timeout": 5.0, "read_timeout": 20.0}
        if storage.connection_string:
            self._client = QueueServiceClient.from_connection_string(storage.connection_string, **options)
        else:
            self._client = QueueServiceClient(storage.queue_uri, credential=credential, **options)

    async def close(self) -> None:
        await self._client.close()

    async def length(self, name: str) -> int | None:
        """About how many messages wait; None where there is no such queue. Nothing is taken out."""
        async with _translated(name):
            try:
                properties = await self._client.get_queue_client(name).get_queue_properties()
            except ResourceNotFoundError:
                return None
            return int(properties.approximate_message_count or 0)

    async def oldest(self, name: str) -> datetime | None:
        """Since when the first message waits that is not being worked on; None where none does. It is left where it is. The right
        to read the queue's properties does not cover this."""
        async with _translated(name):
            found = await self._client.get_queue_client(name).peek_messages(max_messages=1)
        return found[0].inserted_on if found else None


@asynccontextmanager
async def _translated(name: str) -> AsyncIterator[None]:
    try:
        yield
    except AzureError as error:
        raise _from(error, name) from None


def _from(error: AzureError, name: str) -> PoolError:
    code = str(getattr(getattr(error, "error_code", None), "value", getattr(error, "error_code", None)) or "")
    text = f"queue {name}: {code or type(error).__name__}: {(error.message or '').partition(chr(10))[0][:300]}"
    status = error.status_code or 0 if isinstance(error, HttpResponseError) else 0
    return Misconfigured(text, area="auth") if status in (401, 403) else RetryLater(text)
