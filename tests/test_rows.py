from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnerpool import rows
from runnerpool.model import Fact, Head, Rest, Runner, RunnerState
from runnerpool.ports import Entity, Value
from tests.sample_rows import FACT, HEAD, JOB, NOW, RUNNER, SMALL_FACT, SMALL_JOB, SMALL_RUNNER

ToColumns = Callable[[Any], Mapping[str, Value]]
FromColumns = Callable[[Mapping[str, Value], str], Any]

JOBS = (rows.job_to_columns, rows.job_from_columns)
RUNNERS = (rows.runner_to_columns, rows.runner_from_columns)
HEADS = (rows.head_to_columns, rows.head_from_columns)

times = st.datetimes(min_value=datetime(2000, 1, 1), timezones=st.just(UTC) | st.just(timezone(timedelta(hours=-7))))  # noqa: DTZ001
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=50)


# ---------------------------------------------------------------------------------------------- there and back


@pytest.mark.parametrize(
    ("codec", "thing"),
    [(JOBS, JOB), (JOBS, SMALL_JOB), (RUNNERS, RUNNER), (RUNNERS, SMALL_RUNNER), (HEADS, HEAD), (HEADS, Head(pool="p"))],
)
def test_a_row_comes_back_as_it_went_in_with_the_etag_of_its_row(codec: tuple[ToColumns, FromColumns], thing: Any) -> None:
    back = codec[1](codec[0](thing), "etag")
    assert back == thing
    assert back.etag == "etag"


@pytest.mark.parametrize("fact", [FACT, SMALL_FACT])
def test_a_fact_comes_back_as_it_went_in(fact: Fact) -> None:
    assert rows.fact_from_columns(rows.fact_to_columns(fact)) == fact


@given(st.builds(Fact, created_at=times, received_at=times, labels=st.lists(texts).map(tuple), job_name=texts))
def test_any_fact_comes_back_as_it_went_in(fact: Fact) -> None:
    assert rows.fact_from_columns(rows.fact_to_columns(fact)) == fact


@given(
    st.builds(
        Runner, since=times, created_at=times, github_id=st.none() | st.integers(0, 2**63 - 1), reason=texts, etag=st.just("")
    )
)
def test_any_runner_comes_back_as_it_went_in(runner: Runner) -> None:
    assert rows.runner_from_columns(rows.runner_to_columns(runner), "") == runner


@given(
    st.builds(
        Head, rests=st.dictionaries(texts, st.builds(Rest, until=times, code=texts)), boot_seconds=st.none() | st.floats(0, 1e6)
    )
)
def test_any_head_comes_back_as_it_went_in(head: Head) -> None:
    assert rows.head_from_columns(rows.head_to_columns(head), "") == head


# ---------------------------------------------------------------------------------------------- what lies in the table


@pytest.mark.parametrize(("codec", "thing"), [(JOBS, JOB), (RUNNERS, RUNNER), (HEADS, HEAD)])
def test_every_field_but_the_etag_has_its_column(codec: tuple[ToColumns, FromColumns], thing: Any) -> None:
    assert set(codec[0](thing)) == {field.name for field in fields(thing)} - {"etag"}


def test_a_person_can_read_a_runners_columns() -> None:
    assert rows.runner_to_columns(SMALL_RUNNER) == {
        "name": "hw-linux-x64-1",
        "pool": "linux-x64",
        "state": "requested",
        "since": "2026-11-23T18:00:00.123456+00:00",
        "created_at": "2026-11-23T18:00:00.123456+00:00",
        "reason": "",
        "size": "",
        "spot": False,
        "refused": 0,
        "attempts": 0,
    }


def test_columns_are_of_plain_types() -> None:
    values = [*rows.job_to_columns(JOB).values(), *rows.runner_to_columns(RUNNER).values(), *rows.head_to_columns(HEAD).values()]
    assert {type(value) for value in values} == {str, int, float, bool}


def test_labels_and_rests_are_json_text() -> None:
    assert rows.job_to_columns(JOB)["labels"] == '["linux","x64"]'
    assert json.loads(str(rows.head_to_columns(HEAD)["rests"]))["spot"] == {
        "until": "2026-11-23T18:00:00.123456+00:00",
        "code": "Überlast",
    }


def test_a_facts_body_is_json_without_what_is_not_known() -> None:
    columns = rows.fact_to_columns(SMALL_FACT)
    assert list(columns) == ["body"]
    assert json.loads(columns["body"]) == {
        "job_id": "2",
        "action": "queued",
        "status": "queued",
        "pool": "linux-x64",
        "repository": "o/r",
        "target": "org:o",
        "labels": [],
        "created_at": "2026-11-23T18:00:00.123456+00:00",
        "received_at": "2026-11-23T18:00:00.123456+00:00",
        "delivery": "d",
        "run_id": "",
        "run_attempt": 1,
        "workflow": "",
        "job_name": "",
        "demand": True,
    }


@given(times, times)
def test_times_as_text_are_in_the_order_of_time(a: datetime, b: datetime) -> None:
    first, second = (str(rows.runner_to_columns(replace(SMALL_RUNNER, since=moment))["since"]) for moment in (a, b))
    assert (first < second) == (a < b)


def test_half_a_surrogate_pair_is_replaced_so_that_the_row_can_be_sent() -> None:
    columns = rows.fact_to_columns(replace(SMALL_FACT, job_name="evil \ud83d name", labels=("\udc00",)))
    columns["body"].encode("utf-8")
    assert rows.fact_from_columns(columns).job_name == "evil ? name"


def test_an_endless_text_is_cut() -> None:
    columns = rows.runner_to_columns(replace(SMALL_RUNNER, reason="x" * 100_000))
    assert columns["reason"] == "x" * rows.LONGEST_TEXT


def test_row_keys_are_the_designs() -> None:
    assert rows.fact_key("12", "d-1") == "fact:12:d-1"
    assert rows.job_key("12") == "job:12"
    assert rows.runner_key("hw-a-1") == "runner:hw-a-1"
    assert rows.HEAD_KEY == "pool"


# ---------------------------------------------------------------------------------------------- rolling upgrades


def test_an_unknown_column_is_ignored() -> None:
    columns = {**rows.job_to_columns(JOB), "invented_later": "x"}
    assert rows.job_from_columns(columns, "") == JOB
    body = {**json.loads(rows.fact_to_columns(FACT)["body"]), "invented_later": {"deep": [1]}}
    assert rows.fact_from_columns({"body": json.dumps(body), "nearest_pool": "x"}) == FACT


def test_a_missing_column_takes_the_default() -> None:
    columns = {name: value for name, value in rows.runner_to_columns(RUNNER).items() if name not in ("attempts", "basis", "spot")}
    assert rows.runner_from_columns(columns, "") == replace(RUNNER, attempts=0, basis=None, spot=False)


def test_a_native_time_reads_like_its_text() -> None:
    assert rows.runner_from_columns({**rows.runner_to_columns(RUNNER), "since": NOW}, "") == RUNNER


# ---------------------------------------------------------------------------------------------- what cannot be read

BROKEN: list[tuple[dict[str, Value], str]] = [
    ({"state": "flying"}, "state: 'flying' is not a valid RunnerState"),
    ({"since": "yesterday"}, "since: Invalid isoformat string: 'yesterday'"),
    ({"since": "2026-11-23T18:00:00"}, "since: 2026-11-23T18:00:00 has no offset from UTC"),
    ({"since": 5}, "since: 5 is not text"),
    ({"attempts": "3"}, "attempts: '3' is not a whole number"),
    ({"attempts": True}, "attempts: True is not a whole number"),
    ({"attempts": 1.5}, "attempts: 1.5 is not a whole number"),
    ({"spot": "false"}, "spot: 'false' is not true or false"),
    ({"reason": 7}, "reason: 7 is not text"),
    ({"name": "hw-linux-x64-other"}, "it describes 'hw-linux-x64-other'"),
    ({"reason": 7, "spot": 1}, "reason: 7 is not text; spot: 1 is not true or false"),
]


def entity(row: str, columns: Mapping[str, Value]) -> Entity:
    return Entity("linux-x64", row, columns, f"etag of {row}")


@pytest.mark.parametrize(("damage", "why"), BROKEN)
def test_a_damaged_row_is_named_and_does_not_stop_the_others(damage: dict[str, Value], why: str) -> None:
    damaged = {**rows.runner_to_columns(SMALL_RUNNER), **damage}
    snapshot, unreadable = rows.snapshot(
        [
            entity("pool", rows.head_to_columns(HEAD)),
            entity("job:12345678901", rows.job_to_columns(JOB)),
            entity("runner:hw-linux-x64-1", damaged),
            entity("runner:hw-linux-x64-abc123", rows.runner_to_columns(RUNNER)),
        ],
        "linux-x64",
    )
    assert unreadable == [rows.Unreadable("runner:hw-linux-x64-1", why)]
    assert str(unreadable[0]) == f"row runner:hw-linux-x64-1 cannot be read: {why}"
    assert snapshot.runners == {RUNNER.name: RUNNER}
    assert snapshot.jobs == {JOB.job_id: JOB}
    assert snapshot.head == HEAD


@pytest.mark.parametrize(
    ("columns", "why"),
    [
        ({}, "None is not text"),
        ({"body": "{"}, "Expecting property name"),
        ({"body": "[]"}, "[] is not an object"),
        ({"body": '{"job_id": 1}'}, "job_id: 1 is not text; action: missing; created_at: missing; "),
        ({"body": rows.fact_to_columns(FACT)["body"].replace('["self-hosted"', '[7,"self-hosted"')}, "labels: 7 is not text"),
    ],
)
def test_a_damaged_fact_is_named(columns: dict[str, Value], why: str) -> None:
    snapshot, unreadable = rows.snapshot([entity("fact:1:x", columns), entity("fact:2:d", rows.fact_to_columns(SMALL_FACT))], "p")
    assert [problem.row for problem in unreadable] == ["fact:1:x"]
    assert unreadable[0].why.startswith(why)
    assert snapshot.facts == {"fact:2:d": SMALL_FACT}


def test_a_row_without_a_needed_column_is_unreadable() -> None:
    columns = {name: value for name, value in rows.job_to_columns(SMALL_JOB).items() if name != "target"}
    _, unreadable = rows.snapshot([entity("job:2", columns)], "p")
    assert unreadable == [rows.Unreadable("job:2", "target: missing")]


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        ({"rests": "{"}, replace(HEAD, rests={})),
        ({"rests": '{"spot":{"until":"never","code":"x"}}'}, replace(HEAD, rests={})),
        ({"boot_seconds": "slow"}, replace(HEAD, boot_seconds=None)),
        ({"pool": "another"}, HEAD),
    ],
)
def test_a_damaged_head_keeps_what_can_be_read(damage: dict[str, Value], expected: Head) -> None:
    snapshot, unreadable = rows.snapshot([entity("pool", {**rows.head_to_columns(HEAD), **damage})], "linux-x64")
    assert snapshot.head == expected
    assert snapshot.head.etag == "etag of pool"
    assert [problem.row for problem in unreadable] == ([] if "pool" in damage else ["pool"])


def test_a_pool_without_a_head_has_an_empty_one_to_insert() -> None:
    snapshot, unreadable = rows.snapshot([], "linux-x64")
    assert snapshot.head == Head(pool="linux-x64")
    assert snapshot.head.etag == ""
    assert unreadable == []


def test_rows_of_another_kind_are_left_out() -> None:
    snapshot, unreadable = rows.snapshot([entity("note:1", {"text": "hi"}), entity("jobs", {}), entity("pools", {})], "p")
    assert (snapshot.jobs, snapshot.runners, snapshot.facts, unreadable) == ({}, {}, {}, [])


def test_a_row_of_an_unknown_state_is_unreadable_rather_than_guessed() -> None:
    columns = {**rows.runner_to_columns(replace(SMALL_RUNNER, state=RunnerState.BUSY)), "state": "paused"}
    with pytest.raises(ValueError, match="paused"):
        rows.runner_from_columns(columns, "")


def test_reading_rows_imports_no_service() -> None:
    program = (
        "import sys, runnerpool.rows; print([m for m in sys.modules if m.partition('.')[0] in ('azure', 'aiohttp', 'pydantic')])"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip() == "[]"
