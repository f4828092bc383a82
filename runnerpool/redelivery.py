"""Which failed deliveries GitHub is asked to send again, and what is remembered of that between two passes. Pure.

The memory is the heartbeat's `deliveries`. Of a webhook whose receiver refuses all that it is sent again, be it our own app in an
outage or a deployment that is gone, only a few are asked for until one gets through. A delivery that fails again and again is
asked for at longer intervals, but as long as GitHub may still queue its job: nobody else knows of that.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import zip_longest
from typing import Any

from runnerpool.ports import Alert, Delivery

INTERVAL = timedelta(minutes=5)
"""How often failed deliveries are listed: a lost `queued` costs its job at most about this."""
REDELIVERABLE = timedelta(days=3)
"""GitHub redelivers for three days."""
SOON = 5
"""So many times a delivery is asked for at every look; after that twice as late each time, up to `RARELY`."""
RARELY = timedelta(minutes=30)
"""The longest pause between two attempts at one delivery, and so what a job may wait after its webhook was mended."""
ATTEMPTS = 102
"""Attempts at one delivery before it is left to a person. The last comes 48 hours after the first: GitHub queues no job for
longer (`decide.GAVE_UP`)."""
PORTION = 25
"""Deliveries asked for again in one pass: the shared budget of writes holds 40, and the VMs want some of it."""
PROBES = 5
"""The same of a webhook of which nothing got through the last time."""
WATCHED = 300
"""Deliveries whose attempts are counted at one time: the count lies in a column of 32 Ki characters. Beyond that those that were
given up are forgotten first, and may be asked for again."""
NOTICED = timedelta(minutes=15)
"""How long what is sent again must fail before a person hears of it: a deploy or a storage outage is over by then."""


@dataclass(frozen=True, slots=True)
class Tries:
    """How often GitHub was asked for one delivery, and when it may be asked again, to the minute."""

    count: int
    due: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """`at`: the last whole look. `again`: more is due than was asked for, so the next pass looks. `tries`: by guid. `asked`: by
    hook, the guids that were asked for last. `failing`: by hook, since when what is sent again fails again.

    From which moment on nothing is due is not remembered: a hook that cannot be seen for a while would not be looked through again.
    """

    at: datetime | None = None
    again: bool = False
    tries: Mapping[str, Tries] = field(default_factory=dict)
    asked: Mapping[str, Sequence[str]] = field(default_factory=dict)
    failing: Mapping[str, datetime] = field(default_factory=dict)

    def is_due(self, now: datetime) -> bool:
        return self.again or self.at is None or now - self.at >= INTERVAL

    def times(self, guid: str) -> int:
        """How often GitHub was asked for this delivery."""
        return self.tries[guid].count if guid in self.tries else 0

    def document(self) -> dict[str, Any]:
        """As the heartbeat has it."""
        return {
            "at": self.at and self.at.isoformat(),
            "again": self.again,
            "tries": {guid: [tries.count, int(tries.due.timestamp()) // 60] for guid, tries in self.tries.items()},
            "asked": {hook: list(a) for hook, a in self.asked.items()},
            "failing": {hook: since.isoformat() for hook, since in self.failing.items()},
        }


def read(document: object) -> Cursor:
    """What an earlier pass wrote. A part that is missing, as in a row of an older version, or damaged is begun anew."""
    if not isinstance(document, Mapping):
        return Cursor()
    tries, asked, failing = (document.get(part) for part in ("tries", "asked", "failing"))
    return Cursor(
        at=_moment(document.get("at")),
        again=document.get("again") is True,
        tries={str(g): t for g, written in tries.items() if (t := _tries(written))} if isinstance(tries, Mapping) else {},
        asked={str(h): [str(g) for g in a] for h, a in asked.items() if isinstance(a, list)} if isinstance(asked, Mapping) else {},
        failing={str(h): at for h, text in failing.items() if (at := _moment(text))} if isinstance(failing, Mapping) else {},
    )


def _tries(written: object) -> Tries | None:
    """None for the bare number of an older version, too: what it had given up is asked for again."""
    match written:
        case [int(count), int(minute)] if 0 <= minute * 60 < datetime.max.replace(tzinfo=UTC).timestamp():
            return Tries(count, datetime.fromtimestamp(minute * 60, UTC))
    return None


def _moment(text: object) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None
    return moment.replace(tzinfo=UTC) if moment and moment.tzinfo is None else moment


def pause(count: int) -> timedelta:
    """Between the attempt of this number and the next one."""
    return min(INTERVAL * (1 << min(max(count - SOON + 1, 0), 8)), RARELY)


def choose(now: datetime, failed: Sequence[Delivery], cursor: Cursor) -> list[Delivery]:
    """What to ask for now, of all that is listed as failed, newest first. The hooks take turns, so that none keeps another one's
    from being sent; of each those come first that were asked for least, and the newest of these."""
    by_hook = []
    for hook, due in _due(now, failed, cursor.tries).items():
        limit = PROBES if _is_stuck(hook, failed, cursor) else PORTION
        by_hook.append(sorted(due, key=lambda delivery: cursor.times(delivery.guid))[:limit])
    return [delivery for turn in zip_longest(*by_hook) for delivery in turn if delivery is not None][:PORTION]


def after(now: datetime, failed: Sequence[Delivery], cursor: Cursor, asked: Sequence[Delivery]) -> Cursor:
    """The memory after a look that found `failed` and asked for `asked`."""
    counts = {delivery.guid: cursor.tries[delivery.guid] for delivery in failed if delivery.guid in cursor.tries}
    for delivery in asked:
        count = cursor.times(delivery.guid) + 1
        counts[delivery.guid] = Tries(count, now + pause(count))
    kept = sorted((d.guid for d in failed if d.guid in counts), key=lambda guid: counts[guid].count >= ATTEMPTS)[:WATCHED]
    tries = {guid: counts[guid] for guid in kept}
    hooks = {delivery.hook for delivery in failed}
    last = {hook: [d.guid for d in asked if d.hook == hook] or cursor.asked.get(hook, ()) for hook in hooks}
    now_asked = {delivery.guid for delivery in asked}
    again = {delivery.hook for delivery in failed if delivery.guid in tries and tries[delivery.guid].count > SOON}
    left = _due(now, [delivery for delivery in failed if delivery.guid not in now_asked], tries)
    return Cursor(
        at=now,
        again=any(not _is_stuck(hook, failed, cursor) for hook in left),
        tries=tries,
        asked={hook: guids for hook, guids in last.items() if guids},
        failing={hook: cursor.failing.get(hook, now) for hook in hooks if hook in again or _is_stuck(hook, failed, cursor)},
    )


def alerts(now: datetime, cursor: Cursor) -> list[Alert]:
    """One for each hook of which something fails whenever it is sent."""
    return [_alert(hook, since) for hook, since in cursor.failing.items() if now - since >= NOTICED]


def _alert(hook: str, since: datetime) -> Alert:
    text = (
        f"Since {since:%Y-%m-%d %H:%M} UTC GitHub has sent deliveries again that had failed, and they failed again. A job of which "
        "only they tell gets no VM, and the status page does not show it. Nothing is lost yet: GitHub is asked for each of them "
        f"every {RARELY.seconds // 60} minutes, for 48 hours.\n"
        "python -m runnerpool doctor says how the last one failed, and what mends it: the secret, the URL, access restrictions. "
        "If this is the webhook of a deployment that is gone, delete it at GitHub."
    )
    return Alert(f"webhook-{re.sub('[^A-Za-z0-9._-]', '-', hook)}", "setup", f"deliveries of {hook} fail again and again", text)


def lapsing(now: datetime, failed: Sequence[Delivery], cursor: Cursor) -> list[Delivery]:
    """What will have left GitHub's list by the next look without being delivered or given up; each is named by one look."""
    begin = cursor.at - REDELIVERABLE + INTERVAL if cursor.at else None
    end = now - REDELIVERABLE + INTERVAL
    hoped_for = [delivery for delivery in failed if cursor.times(delivery.guid) < ATTEMPTS]
    return [delivery for delivery in hoped_for if delivery.delivered_at <= end and (begin is None or delivery.delivered_at > begin)]


def _due(now: datetime, failed: Sequence[Delivery], tries: Mapping[str, Tries]) -> dict[str, list[Delivery]]:
    """By hook, those that are not given up, and whose time has come."""
    due: dict[str, list[Delivery]] = {}
    for delivery in failed:
        tried = tries.get(delivery.guid)
        if tried is None or (tried.count < ATTEMPTS and tried.due <= now):
            due.setdefault(delivery.hook, []).append(delivery)
    return due


def _is_stuck(hook: str, failed: Sequence[Delivery], cursor: Cursor) -> bool:
    """Whether nothing of what was asked for the last time got through."""
    asked = set(cursor.asked.get(hook, ()))
    return bool(asked) and asked <= {delivery.guid for delivery in failed}
