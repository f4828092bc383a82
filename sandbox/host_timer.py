"""Timer triggers: a function runs at the moments that its schedule names, and never while it still runs."""

from __future__ import annotations

import logging
from asyncio import sleep as real_sleep  # bound here, before the app's own is hastened
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

from cronsim import CronSim, CronSimError

from sandbox.host_app import IndexingError
from sandbox.host_invoke import timer_request

log = logging.getLogger("host.timer")


def next_occurrence(schedule: str, after: datetime) -> datetime:
    """The first moment after `after` that an NCRONTAB expression (second, minute, hour, day, month, day of week) names.

    Raises IndexingError for anything else.
    """
    if len(schedule.split()) != 6:
        raise IndexingError(f"schedule {schedule!r}: an NCRONTAB expression has six fields, the first of them seconds")
    try:
        return next(CronSim(schedule, after))
    except CronSimError as error:
        raise IndexingError(f"schedule {schedule!r}: {error}") from error


async def run_timer(
    *, schedule: str, call: Callable[[Any], Awaitable[None]], now: Callable[[], datetime], rate: float = 1.0
) -> None:
    """Runs until cancelled. The next moment is looked up after the call has ended: what came due meanwhile is skipped.

    `now` is the app's clock and `rate` how many times as fast as real time it runs.
    """
    due = next_occurrence(schedule, now())
    while True:
        remaining = (due - now()).total_seconds() / rate
        if remaining > 0:
            await real_sleep(remaining)
            continue
        try:
            await call(timer_request(past_due=False))
        except Exception:
            log.exception("the timer's function failed")
        due = next_occurrence(schedule, now())
