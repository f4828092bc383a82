"""Token buckets that all processes share."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnerpool.budget import GOOD_FOR, LIMITS, Bucket, Limit, take
from tests.made_rows import MINUTE, NOW

LIMIT = Limit(capacity=10, per_second=0.5)


@pytest.mark.parametrize(
    ("bucket", "want", "granted", "left"),
    [
        (None, 3, 3, 7),
        (None, 99, 10, 0),
        (Bucket(0, NOW), 3, 0, 0),
        (Bucket(0.9, NOW), 1, 0, 0.9),
        (Bucket(0, NOW - timedelta(seconds=5)), 3, 2, 0.5),
        (Bucket(4, NOW - timedelta(hours=1)), 3, 3, 7),  # never fuller than full
        (Bucket(4, NOW + MINUTE), 3, 3, 1),  # taken by a worker whose clock is ahead
    ],
)
def test_what_is_granted_and_what_is_left(bucket: Bucket | None, want: int, granted: int, left: float) -> None:
    given_tokens, after = take(bucket, LIMIT, want, NOW)
    assert (given_tokens, after.tokens) == (granted, left)


def test_a_clock_that_is_behind_does_not_turn_the_buckets_back() -> None:
    _, after = take(Bucket(0, NOW + MINUTE), LIMIT, 1, NOW)
    assert after.at == NOW + MINUTE


@given(st.lists(st.tuples(st.floats(0, 60), st.integers(1, 20)), max_size=40))
def test_no_minute_sees_more_than_the_capacity_and_a_minutes_refill(wants: list[tuple[float, int]]) -> None:
    bucket, total, now = None, 0, NOW
    for pause, want in wants:
        now += timedelta(seconds=pause)
        if now - NOW > MINUTE:
            break
        granted, bucket = take(bucket, LIMIT, want, now)
        total += granted
    assert total <= LIMIT.capacity + 60 * LIMIT.per_second


def spent(name: str, seconds: float) -> float:
    """The most that may be spent in that time: what was granted in it, and what was still good when it began."""
    return LIMITS[name].capacity + (seconds + GOOD_FOR.total_seconds()) * LIMITS[name].per_second


def test_githubs_secondary_limit_leaves_room_for_whole_lists() -> None:
    """900 points a minute, of which a write costs 5, and a look at what stands in its way 1, and a question about a job 1."""
    assert (5 + 1) * spent("github-writes", 60) + spent("github-reads", 60) <= 860


@pytest.mark.parametrize("name", ["arm-writes", "arm-deletes"])
@pytest.mark.parametrize("seconds", [0, 1, 10, 60, 3600])
def test_arms_bucket_of_200_that_refills_by_10_a_second_never_runs_empty(name: str, seconds: float) -> None:
    assert spent(name, seconds) <= 200 + 10 * seconds
