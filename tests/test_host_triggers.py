"""The Functions host's queue listener against Azurite, and its timer on a fast clock; no processes."""

from __future__ import annotations

import asyncio
import base64
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import pytest
from azure.storage.queue import QueueMessage
from azure.storage.queue.aio import QueueClient

from sandbox.azurite import Azurite
from sandbox.host_app import IndexingError, QueueSettings
from sandbox.host_queue import QueueListener
from sandbox.host_timer import next_occurrence, run_timer
from tests.waiting import eventually

SETTINGS = QueueSettings(max_polling_interval=0.2, max_dequeue_count=3)


class Queues:
    """A queue with its poison queue, and the bodies that have been delivered from it."""

    def __init__(self, queue: QueueClient, poison: QueueClient) -> None:
        self.queue = queue
        self.poison = poison
        self.delivered: list[tuple[bytes, int]] = []

    async def send(self, *bodies: str) -> None:
        for body in bodies:
            await self.queue.send_message(base64.b64encode(body.encode()).decode())

    async def count(self) -> int:
        """Messages in the queue, hidden ones included."""
        return (await self.queue.get_queue_properties()).approximate_message_count or 0

    async def poisoned(self) -> list[str]:
        return [message.content for message in await self.poison.peek_messages(max_messages=32)]

    @asynccontextmanager
    async def listening(
        self, call: Callable[[Any], Awaitable[None]], *, settings: QueueSettings = SETTINGS, rate: float = 1.0
    ) -> AsyncIterator[asyncio.Task[None]]:
        async def record(message: Any) -> None:
            self.delivered.append((message.get_body(), message.dequeue_count))
            await call(message)

        listener = QueueListener(queue=self.queue, poison=self.poison, settings=settings, call=record, rate=rate)
        task = asyncio.create_task(listener.run())
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
async def queues(azurite: Azurite) -> AsyncIterator[Queues]:
    name = f"q{uuid.uuid4().hex}"
    async with (
        QueueClient.from_connection_string(azurite.connection_string, name) as queue,
        QueueClient.from_connection_string(azurite.connection_string, f"{name}-poison") as poison,
    ):
        await queue.create_queue()
        await poison.create_queue()
        yield Queues(queue, poison)


async def nothing(message: Any) -> None: ...


async def refuse(message: Any) -> None:
    raise RuntimeError("cannot be handled")


async def test_a_message_arrives_decoded_and_is_deleted_when_its_function_returns(queues: Queues) -> None:
    seen: list[Any] = []

    async def keep(message: Any) -> None:
        seen.append(message)

    await queues.send('{"pool": "ä"}')
    async with queues.listening(keep):
        await eventually(lambda: _equals(queues.count, 0))
    [message] = seen
    assert (message.get_json(), message.dequeue_count) == ({"pool": "ä"}, 1)
    assert message.id and message.pop_receipt and message.insertion_time < message.expiration_time


async def test_a_failing_message_comes_back_until_it_is_poison(queues: Queues) -> None:
    await queues.send("bad", "good")

    async def call(message: Any) -> None:
        if message.get_body() == b"bad":
            await refuse(message)

    async with queues.listening(call):
        await eventually(lambda: _equals(queues.count, 0))
    assert sorted(queues.delivered) == [(b"bad", 1), (b"bad", 2), (b"bad", 3), (b"good", 1)]
    assert await queues.poisoned() == [base64.b64encode(b"bad").decode()]


async def test_what_is_not_base64_ends_as_poison_without_a_call(queues: Queues) -> None:
    await queues.queue.send_message("{not base64}")
    async with queues.listening(nothing):
        await eventually(lambda: _equals(queues.count, 0))
    assert queues.delivered == []
    assert await queues.poisoned() == ["{not base64}"]


async def test_a_failed_message_is_hidden_for_the_visibility_timeout(queues: Queues) -> None:
    await queues.send("bad")
    moments: list[float] = []

    async def fail(message: Any) -> None:
        moments.append(time.monotonic())
        await refuse(message)

    settings = QueueSettings(max_polling_interval=0.2, max_dequeue_count=2, visibility_timeout=2.0)
    async with queues.listening(fail, settings=settings):
        await eventually(lambda: _equals(queues.count, 0))
    first, second = moments
    assert second - first > 1.0  # the service counts in whole seconds


async def test_a_running_message_stays_hidden_however_long_it_runs(queues: Queues, monkeypatch: pytest.MonkeyPatch) -> None:
    done = asyncio.Event()
    renewed = _Updates(queues.queue, monkeypatch)
    await queues.send("long")
    # At this rate a message is hidden for four real seconds and renewed twice in them; after three renewals it would long be back.
    async with queues.listening(lambda _: _wait(done), rate=150.0):
        await eventually(lambda: _value(renewed.answered == 3))
        done.set()
        await eventually(lambda: _equals(queues.count, 0))
    assert queues.delivered == [(b"long", 1)]


@pytest.mark.parametrize("end", ["its function returns", "the listener is stopped"])
async def test_a_renewal_on_its_way_keeps_nothing_from_its_end(queues: Queues, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    """A renewal changes the receipt: who deletes or gives back the message before its answer has come, does it with a stale one."""
    done = asyncio.Event()
    renewed = _Updates(queues.queue, monkeypatch, held_back=True)
    await queues.send("long")
    async with queues.listening(lambda _: _wait(done), rate=150.0) as listening:
        await eventually(lambda: _value(renewed.carried_out == 1))
        if end == "its function returns":
            done.set()
            renewed.answer.set()
            await eventually(lambda: _equals(queues.count, 0))
        else:
            listening.cancel()
            ended, _ = await asyncio.wait([listening], timeout=0.5)
            assert not ended
            renewed.answer.set()
            await asyncio.wait([listening])
            assert await queues.queue.receive_message() is not None  # given back at once, not when the renewal has run out
    assert queues.delivered == [(b"long", 1)]


class _Updates:
    """Watches a queue's renewals. `held_back`: the service carries them out, but their answers wait for `answer`."""

    def __init__(self, queue: QueueClient, monkeypatch: pytest.MonkeyPatch, *, held_back: bool = False) -> None:
        self.carried_out = self.answered = 0
        self.answer = asyncio.Event()
        if not held_back:
            self.answer.set()
        self._update = queue.update_message
        monkeypatch.setattr(queue, "update_message", self._watched)

    async def _watched(self, *args: Any, **options: Any) -> QueueMessage:
        message = await self._update(*args, **options)
        self.carried_out += 1
        await self.answer.wait()
        self.answered += 1
        return message


async def test_a_new_batch_is_fetched_only_when_few_enough_run(queues: Queues) -> None:
    done = asyncio.Event()
    await queues.send(*(str(n) for n in range(10)))
    async with queues.listening(lambda _: _wait(done), settings=QueueSettings(batch_size=4, new_batch_threshold=2)):
        await eventually(lambda: _value(len(queues.delivered) == 4))
        received = await queues.queue.receive_messages(messages_per_page=32, visibility_timeout=1).by_page().__anext__()
        assert len([message async for message in received]) == 6  # the other four are hidden, these were not fetched
        done.set()
        await eventually(lambda: _equals(queues.count, 0))
    assert len(queues.delivered) == 10


async def test_a_listener_that_is_stopped_gives_its_messages_back_at_once(queues: Queues) -> None:
    await queues.send("unfinished")
    async with queues.listening(lambda _: _wait(asyncio.Event())):
        await eventually(lambda: _value(bool(queues.delivered)))
    message = await queues.queue.receive_message()
    assert message is not None
    assert message.dequeue_count == 2


async def test_a_queue_that_does_not_exist_yet_is_no_trouble(azurite: Azurite) -> None:
    name = f"q{uuid.uuid4().hex}"
    async with QueueClient.from_connection_string(azurite.connection_string, name) as queue:
        queues = Queues(queue, queue)
        async with queues.listening(nothing):
            await queue.create_queue()
            await queues.send("first")
            await eventually(lambda: _equals(queues.count, 0))
    assert queues.delivered == [(b"first", 1)]


# ---------------------------------------------------------------------------------------------- timers


def fast_clock(rate: float) -> Callable[[], datetime]:
    origin, start = datetime(2025, 1, 1, tzinfo=UTC).timestamp(), time.monotonic()
    return lambda: datetime.fromtimestamp(origin + (time.monotonic() - start) * rate, tz=UTC)


@pytest.mark.parametrize(
    ("schedule", "after", "expected"),
    [
        ("*/30 * * * * *", "2025-01-01T00:00:10", "2025-01-01T00:00:30"),
        ("*/30 * * * * *", "2025-01-01T00:00:30", "2025-01-01T00:01:00"),
        ("5 0 3 * * mon", "2025-01-01T00:00:00", "2025-01-06T03:00:05"),
    ],
)
def test_a_schedule_begins_with_seconds(schedule: str, after: str, expected: str) -> None:
    moment = datetime.fromisoformat(after).replace(tzinfo=UTC)
    assert next_occurrence(schedule, moment) == datetime.fromisoformat(expected).replace(tzinfo=UTC)


@pytest.mark.parametrize("schedule", ["* * * * *", "* * * * * banana", "00:00:30"])
def test_a_schedule_that_is_none_is_refused(schedule: str) -> None:
    with pytest.raises(IndexingError, match="schedule"):
        next_occurrence(schedule, datetime(2025, 1, 1, tzinfo=UTC))


async def test_a_timer_runs_on_its_moments_and_never_beside_itself() -> None:
    now = fast_clock(1000.0)
    running = 0
    moments: list[datetime] = []
    enough = asyncio.Event()

    async def call(timer: Any) -> None:
        nonlocal running
        assert running == 0
        assert timer.past_due is False
        running += 1
        moments.append(now())
        await asyncio.sleep(0.05)  # some fifty seconds of its clock: longer than the schedule's interval
        running -= 1
        if len(moments) == 4:
            enough.set()
        if len(moments) % 2:
            raise RuntimeError("a failing run does not end the timer")

    timer = asyncio.create_task(run_timer(schedule="*/30 * * * * *", call=call, now=now, rate=1000.0))
    async with asyncio.timeout(30):
        await enough.wait()
    timer.cancel()
    await asyncio.gather(timer, return_exceptions=True)
    gaps = [(later - earlier).total_seconds() for earlier, later in pairwise(moments)]
    assert all(gap > 45 for gap in gaps), "what came due during a run is skipped"


async def _wait(event: asyncio.Event) -> None:
    await event.wait()


async def _value(value: bool) -> bool:
    return value


async def _equals(read: Callable[[], Awaitable[object]], expected: object) -> bool:
    return await read() == expected
