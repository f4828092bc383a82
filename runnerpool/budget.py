"""Token buckets that all processes share through the ledger, so that no burst drives us over a service's limit. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

GOOD_FOR = timedelta(seconds=5)
"""A token that was not spent so long is void. One that is held while another service hangs would be spent on top of all that the
bucket grants meanwhile. What comes between taking and spending it usually takes a second or two."""


@dataclass(frozen=True, slots=True)
class Limit:
    """A bucket of `capacity` tokens that refills by `per_second`. At most capacity + (60 + GOOD_FOR) * per_second are spent in any
    minute, and capacity + GOOD_FOR * per_second at once."""

    capacity: float
    per_second: float


LIMITS: Mapping[str, Limit] = {
    # GitHub's secondary limit: 900 points a minute, 5 a write and 1 a read. 40 + 1.35 * 65 = 127 writes, each with at most one look
    # at what stands in its way, are 766 points; 85 are for questions about jobs, the rest for whole lists.
    "github-writes": Limit(capacity=40, per_second=1.35),
    "github-reads": Limit(capacity=20, per_second=1),
    # ARM's documented bucket for writes is 200, refilled by 10 a second, per identity and region; others share the subscription.
    "arm-writes": Limit(capacity=160, per_second=8),
    "arm-deletes": Limit(capacity=160, per_second=8),
}


@dataclass(frozen=True, slots=True)
class Bucket:
    """What is left, and as of when (by the ledger's clock, not the taker's). `etag` guards the row."""

    tokens: float
    at: datetime
    etag: str = ""


def take(bucket: Bucket | None, limit: Limit, want: int, now: datetime) -> tuple[int, Bucket]:
    """How many of `want` tokens are granted now, and the bucket afterwards. A clock behind the last taker's refills nothing."""
    if bucket is None:
        bucket = Bucket(limit.capacity, now)
    elapsed = max((now - bucket.at).total_seconds(), 0.0)
    tokens = min(limit.capacity, bucket.tokens + elapsed * limit.per_second)
    granted = min(want, int(tokens))
    return granted, replace(bucket, tokens=tokens - granted, at=max(now, bucket.at))
