"""Which failed deliveries are asked for again, and what is remembered of them."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest

from runnerpool.decide import GAVE_UP
from runnerpool.ports import Delivery
from runnerpool.redelivery import (
    ATTEMPTS,
    INTERVAL,
    NOTICED,
    PORTION,
    PROBES,
    RARELY,
    REDELIVERABLE,
    SOON,
    WATCHED,
    Cursor,
    Tries,
    after,
    alerts,
    choose,
    lapsing,
    pause,
    read,
)
from tests.made_rows import MINUTE, NOW

EPOCH = datetime.fromtimestamp(0, UTC)


def some(hook: str, count: int, *, at: datetime = NOW) -> list[Delivery]:
    """Newest first, as they are listed."""
    return [Delivery(n, f"{hook}{n}", at - n * timedelta(seconds=1), ok=False, hook=hook) for n in range(count)]


def tried(count: int, *, due: timedelta = timedelta()) -> Tries:
    return Tries(count, NOW + due)


def guids(deliveries: Sequence[Delivery]) -> list[str]:
    return [delivery.guid for delivery in deliveries]


# ---------------------------------------------------------------------------------------------- what is asked for


def test_two_hooks_take_turns_so_that_neither_keeps_the_others_deliveries_waiting() -> None:
    dead, ours = some("dead", 500), some("ours", 3, at=NOW - timedelta(days=1))
    chosen = choose(NOW, [*dead, *ours], Cursor())
    assert len(chosen) == PORTION
    assert {"ours0", "ours1", "ours2"} <= set(guids(chosen)[:6])


def test_of_a_hook_of_which_nothing_got_through_a_few_are_asked_for_and_of_another_one_as_many_as_ever() -> None:
    dead, ours = some("dead", 500), some("ours", 100)
    chosen = choose(NOW, [*dead, *ours], Cursor(asked={"dead": ["dead1", "dead2"], "ours": ["ours3", "got through"]}))
    assert [sum(delivery.hook == hook for delivery in chosen) for hook in ("dead", "ours")] == [PROBES, PORTION - PROBES]


def test_what_was_asked_for_least_comes_first_and_of_that_the_newest() -> None:
    tries = {"h0": tried(2), "h1": tried(1), "h3": tried(ATTEMPTS), "h5": tried(6, due=MINUTE)}
    assert guids(choose(NOW, some("h", 6), Cursor(tries=tries))) == ["h2", "h4", "h1", "h0"]


def test_what_fails_again_and_again_is_asked_for_later_each_time_and_as_long_as_github_may_queue_its_job() -> None:
    """Given up after half an hour, as it once was, its job waits for somebody who never comes: nobody else knows of it."""
    failed, cursor, now, asked = some("h", 1), Cursor(), NOW, list[datetime]()
    while now - NOW < REDELIVERABLE:
        chosen = choose(now, failed, cursor)
        asked += [now] * len(chosen)
        cursor = after(now, failed, read(cursor.document()), chosen)
        now += INTERVAL
    waits = [later - earlier for earlier, later in pairwise(asked)]
    assert waits[: SOON + 2] == [INTERVAL] * (SOON - 1) + [2 * INTERVAL, 4 * INTERVAL, RARELY]
    assert max(waits) == RARELY == pause(ATTEMPTS)
    assert len(asked) == ATTEMPTS
    assert GAVE_UP <= asked[-1] - asked[0] < GAVE_UP + RARELY


# ---------------------------------------------------------------------------------------------- what is remembered


@pytest.mark.parametrize(
    ("count", "asked", "before", "again"),
    [
        (10, 10, {}, False),
        (40, 25, {}, True),
        (40, 0, {}, True),  # no tokens
        (40, 5, {"h": ["h1"]}, False),  # nothing gets through: it can wait
        (40, 25, {"h": ["h1", "got through"]}, True),
    ],
)
def test_the_next_pass_looks_again_where_more_is_due_and_gets_through(
    count: int, asked: int, before: dict[str, list[str]], again: bool
) -> None:
    failed = some("h", count)
    cursor = after(NOW, failed, Cursor(asked=before), failed[:asked])
    assert (cursor.again, cursor.at) == (again, NOW)
    assert cursor.is_due(NOW + timedelta(seconds=30)) == again
    assert cursor.is_due(NOW + INTERVAL)


def test_beyond_what_can_be_watched_those_that_were_given_up_are_forgotten_first_and_no_other_waits_for_them() -> None:
    failed = some("h", 2 * WATCHED)
    tries = {one.guid: tried(ATTEMPTS) for one in failed[1 : WATCHED + 1]}
    cursor = after(NOW, failed, Cursor(tries=tries), failed[:1])
    assert len(cursor.tries) == WATCHED
    assert cursor.times("h0") == 1
    assert f"h{WATCHED}" not in cursor.tries


@pytest.mark.parametrize(
    ("age", "looked", "named"),
    [
        (REDELIVERABLE - 10 * MINUTE, None, False),
        (REDELIVERABLE - 4 * MINUTE, None, True),
        (REDELIVERABLE - 4 * MINUTE, INTERVAL, True),
        (REDELIVERABLE - 4 * MINUTE, timedelta(seconds=30), False),  # by the last look already
    ],
)
def test_what_leaves_githubs_list_undelivered_is_named_once(age: timedelta, looked: timedelta | None, named: bool) -> None:
    failed = some("h", 1, at=NOW - age)
    cursor = Cursor(at=NOW - looked if looked else None)
    assert guids(lapsing(NOW, failed, cursor)) == ["h0"] * named
    assert not lapsing(NOW, failed, replace(cursor, tries={"h0": tried(ATTEMPTS)}))


# ---------------------------------------------------------------------------------------------- what a person hears


def looks(count: int, failed: Callable[[int], list[Delivery]]) -> list[tuple[Cursor, list[str]]]:
    """The memory and the alerts' ids after each of so many looks."""
    cursor, now, seen = Cursor(), NOW, list[tuple[Cursor, list[str]]]()
    for look in range(count):
        listed = failed(look)
        cursor = after(now, listed, read(cursor.document()), choose(now, listed, cursor))
        seen.append((cursor, [alert.id for alert in alerts(now, cursor)]))
        now += INTERVAL
    return seen


@pytest.mark.parametrize(
    ("failed", "told_at"),
    [
        (lambda _look: some("/orgs/octo-org/hooks/1", 100), range(4, 40)),  # a wrong secret: from the quarter of an hour on
        (lambda look: some("/orgs/octo-org/hooks/1", 100)[: max(100 - 25 * look, 0)], range(0)),  # all get through
        (lambda look: some("/orgs/octo-org/hooks/1", 100 if look < 10 else 0), range(4, 10)),  # and it is mended
        # one is refused for what it is, while others fail once and get through then: that is not over with each of them
        (lambda look: [Delivery(9, f"new{look}", NOW, ok=False, hook="x"), *some("x", 1)], range(9, 40)),
        (lambda _look: [], range(0)),
    ],
)
def test_a_person_hears_of_a_webhook_of_which_something_fails_whenever_it_is_sent(
    failed: Callable[[int], list[Delivery]], told_at: range
) -> None:
    assert [look for look, (_, told) in enumerate(looks(40, failed)) if told] == list(told_at)


def test_the_alert_names_the_webhook_and_the_way_out() -> None:
    (alert,) = alerts(NOW, Cursor(failing={"/orgs/octo-org/hooks/1": NOW - NOTICED, "/app/hook": NOW - NOTICED + MINUTE}))
    assert (alert.id, alert.area) == ("webhook--orgs-octo-org-hooks-1", "setup")
    assert alert.title == "deliveries of /orgs/octo-org/hooks/1 fail again and again"
    assert "every 30 minutes" in alert.text
    assert "runnerpool doctor" in alert.text


# ---------------------------------------------------------------------------------------------- in the row


def test_what_is_written_is_read_as_it_was() -> None:
    cursor = Cursor(at=NOW, again=True, tries={"a": tried(2, due=7 * MINUTE)}, asked={"h": ["a"]}, failing={"h": NOW})
    assert read(cursor.document()) == cursor


@pytest.mark.parametrize(
    ("document", "cursor"),
    [
        ({}, Cursor()),
        ({"at": None, "tries": {"a": 5}}, Cursor()),  # as older versions wrote it: they gave up after five
        ({"at": NOW.isoformat(), "since": NOW.isoformat(), "tries": {"a": [5, 0]}}, Cursor(at=NOW, tries={"a": Tries(5, EPOCH)})),
        ({"at": "yesterday", "tries": [], "asked": {"h": 1}, "again": "no"}, Cursor()),
        ({"tries": {"a": [1], "b": [1, 10**15], "c": ["1", 0], "d": None}, "failing": {"h": 1}}, Cursor()),
        (["damaged"], Cursor()),
    ],
)
def test_an_older_or_damaged_row_is_read_as_far_as_it_goes(document: Any, cursor: Cursor) -> None:
    assert read(document) == cursor


def test_the_counts_of_as_many_as_are_watched_fit_into_their_column() -> None:
    """32 Ki characters, which the heartbeat's other parts want some of."""
    tries = {str(uuid.UUID(int=n)): tried(ATTEMPTS) for n in range(WATCHED)}
    assert len(json.dumps(Cursor(tries=tries).document())) < 20_000
