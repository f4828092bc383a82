"""The row that every reconcile pass leaves, read: when it ended, and what was wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from runnerpool.ledger import Ledger


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """`trouble` is by service, `failures` by pool."""

    at: datetime
    trouble: Mapping[str, str] = field(default_factory=dict)
    failures: Mapping[str, str] = field(default_factory=dict)


async def read_heartbeat(ledger: Ledger) -> Heartbeat | None:
    """None before the first pass, and where somebody damaged the row: the next pass writes it anew."""
    for entity in await ledger.app_rows("heartbeat"):
        if entity.row == "heartbeat":
            try:
                body = json.loads(str(entity.columns.get("body", "")))
                return Heartbeat(datetime.fromisoformat(body["at"]), body.get("trouble") or {}, body.get("failures") or {})
            except (ValueError, KeyError, TypeError, AttributeError):
                return None
    return None
