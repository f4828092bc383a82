"""Queue triggers: polling, visibility, retries and the poison queue, as the real extension has them."""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import math
from asyncio import sleep as real_sleep  # bound here, before the app's own is hastened
from collections.abc import Awaitable, Callable
from typing import Any

from azure.core.exceptions import AzureError, ResourceNotFoundError
from azure.storage.queue import QueueMessage
from azure.storage.queue.aio import QueueClient

from sandbox.host_app import QueueSettings
from sandbox.host_invoke import queue_message, send

log = logging.getLogger("host.queue")

SHORTEST_POLL = 0.1
"""Seconds to the next poll after one that found a message; it doubles up to `maxPollingInterval` while the queue stays empty."""

HIDDEN = 600.0
"""Seconds for which a message is hidden while its function runs; renewed after half of it. A killed process leaves it hidden."""


class QueueListener:
    """Feeds one queue's messages to one function.

    `call` runs the function on an `azure.functions.QueueMessage`; what it raises fails the message. `rate` is how many times as
    fast as real time the app's clock runs: every interval here shrinks by it, but no poll follows another at once.
    """

    def __init__(
        self,
        *,
        queue: QueueClient,
        poison: QueueClient,
        settings: QueueSettings,
        call: Callable[[Any], Awaitable[None]],
        rate: float = 1.0,
    ) -> None:
        self._queue = queue
        self._poison = poison
        self._settings = settings
        self._call = call
        self._rate = rate
        self._running: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Polls until cancelled; then the messages whose functions still run are given back to the queue at once."""
        pause = SHORTEST_POLL
        try:
            while True:
                found = await self._receive()
                for message in found:
                    task = asyncio.create_task(self._process(message))
                    self._running.add(task)
                    task.add_done_callback(self._running.discard)
                if found:
                    pause = SHORTEST_POLL
                    await self._room()
                else:
                    await real_sleep(max(pause / self._rate, SHORTEST_POLL))
                    pause = min(pause * 2, self._settings.max_polling_interval)
        finally:
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)

    async def _room(self) -> None:
        """Waits until no more than `newBatchThreshold` functions run: only then is the next batch fetched."""
        while len(self._running) > self._settings.new_batch_threshold:
            await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)

    async def _receive(self) -> list[QueueMessage]:
        try:
            pages = self._queue.receive_messages(
                messages_per_page=self._settings.batch_size, visibility_timeout=self._visibility(HIDDEN)
            )
            async for page in pages.by_page():
                return [message async for message in page]
        except ResourceNotFoundError:
            return []  # nothing was ever sent: the queue comes with its first message
        except AzureError as error:
            log.warning("queue %s: %s", self._queue.queue_name, error)
        return []

    async def _process(self, message: QueueMessage) -> None:
        """One message to its end: deleted, given back, or put with the poison."""
        held = _Held(self._queue, message)
        renewal = asyncio.create_task(self._renew(held))
        try:
            failed = not await self._succeeds(message)
        except asyncio.CancelledError:
            await asyncio.shield(self._give_up(held, renewal))
            raise
        await _ended(renewal)
        if not failed:
            await self._settle(held.delete())
        elif (message.dequeue_count or 0) >= self._settings.max_dequeue_count:
            log.error("message %s failed %s times: to %s", message.id, message.dequeue_count, self._poison.queue_name)
            await self._settle(self._bury(held))
        else:
            await self._settle(held.give_back(self._visibility(self._settings.visibility_timeout)))

    async def _succeeds(self, message: QueueMessage) -> bool:
        if (message.dequeue_count or 0) > self._settings.max_dequeue_count:
            return False
        try:
            body = base64.b64decode(message.content, validate=True) if self._settings.base64 else message.content.encode()
        except binascii.Error as error:
            log.warning("message %s is not base64: %s", message.id, error)
            return False
        argument = queue_message(
            body=body,
            message_id=message.id,
            dequeue_count=message.dequeue_count or 1,
            pop_receipt=message.pop_receipt or "",
            inserted=message.inserted_on,
            expires=message.expires_on,
        )
        try:
            await self._call(argument)
        except Exception:
            log.exception("message %s failed, attempt %s", message.id, message.dequeue_count)
            return False
        return True

    async def _bury(self, held: _Held) -> None:
        await send(self._poison, held.content)
        await held.delete()

    async def _give_up(self, held: _Held, renewal: asyncio.Task[None]) -> None:
        await _ended(renewal)
        await self._settle(held.give_back(0))

    async def _renew(self, held: _Held) -> None:
        """Ends when it is cancelled, though never between a request and its answer: that brings the receipt that deletes."""
        while True:
            await real_sleep(HIDDEN / 2 / self._rate)
            request = asyncio.create_task(self._settle(held.give_back(self._visibility(HIDDEN))))
            try:
                await asyncio.shield(request)
            except asyncio.CancelledError:
                await request
                raise

    async def _settle(self, change: Awaitable[None]) -> None:
        """Storage trouble leaves the message hidden until its time is up, and then it is delivered again."""
        try:
            await change
        except AzureError as error:
            log.warning("queue %s: %s", self._queue.queue_name, error)

    def _visibility(self, seconds: float) -> int:
        """Whole real seconds, as the service takes them; rounded up, so that a rate never makes them none."""
        return math.ceil(seconds / self._rate)


async def _ended(renewal: asyncio.Task[None]) -> None:
    renewal.cancel()
    await asyncio.wait([renewal])


class _Held:
    """A received message and its newest receipt: each change of its visibility makes another one."""

    def __init__(self, queue: QueueClient, message: QueueMessage) -> None:
        self._queue = queue
        self._message = message
        self.content: str = message.content

    async def give_back(self, seconds: int) -> None:
        """Makes it visible again in so many seconds."""
        self._message = await self._queue.update_message(self._message, visibility_timeout=seconds)

    async def delete(self) -> None:
        await self._queue.delete_message(self._message)
