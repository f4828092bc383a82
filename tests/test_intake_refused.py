"""What the intake refuses, in which order, and that nothing whatever makes it raise."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnerpool.intake import LARGEST_BODY, Receipt, receive
from tests.signed_deliveries import NOW, SECRET, config, deliver, fact_of, headers, payload, sign


def refused(receipt: Receipt) -> tuple[int, str]:
    assert receipt.row is None and receipt.wakeup is None
    return receipt.status, receipt.body["message"]


@pytest.mark.parametrize("secrets", [(), ("",), ("", "")])
def test_without_a_secret_nothing_is_believed(secrets: tuple[str, ...]) -> None:
    body = json.dumps(payload()).encode()
    status, message = refused(deliver(body, secrets=secrets, X_Hub_Signature_256=sign(body, "")))
    assert status == 503 and "GITHUB_WEBHOOK_SECRET" in message


def test_an_empty_secret_beside_a_real_one_verifies_nothing() -> None:
    body = json.dumps(payload()).encode()
    assert refused(deliver(body, secrets=(SECRET, ""), X_Hub_Signature_256=sign(body, "")))[0] == 401


@pytest.mark.parametrize("secrets", [(SECRET, "older"), ("newer", SECRET), (SECRET, "")])
def test_each_of_two_secrets_verifies(secrets: tuple[str, ...]) -> None:
    assert deliver(payload(), secrets=secrets).wakeup is not None


@pytest.mark.parametrize(
    "signature",
    [None, "", "sha256=", "sha256=" + "0" * 64, "sha1=" + "0" * 40, "sha256=é", sign(b"another body"), sign(b"", "other secret")],
)
def test_a_missing_or_wrong_signature_is_refused(signature: str | None) -> None:
    assert refused(deliver(payload(), X_Hub_Signature_256=signature))[0] == 401


def test_the_signature_is_over_the_raw_bytes() -> None:
    body = json.dumps(payload(), indent=2).encode()
    assert deliver(body).wakeup is not None
    assert refused(deliver(body + b" ", X_Hub_Signature_256=sign(body)))[0] == 401


def test_a_body_over_25_mib_is_refused_before_its_signature_is_computed() -> None:
    body = b" " * (LARGEST_BODY + 1)
    assert receive(body, {}, secrets=[SECRET], config=config(), now=NOW, unique="u").status == 413
    assert receive(body[1:], {}, secrets=[SECRET], config=config(), now=NOW, unique="u").status == 401


@pytest.mark.parametrize("content_type", [None, "", "application/x-www-form-urlencoded", "text/plain", "application/jsonx"])
def test_what_is_not_json_by_content_type_is_refused(content_type: str | None) -> None:
    status, message = refused(deliver(payload(), Content_Type=content_type))
    assert status == 415 and "application/json" in message


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "Application/JSON", "application/json ;x=y"])
def test_parameters_and_case_of_the_content_type_do_not_count(content_type: str) -> None:
    assert deliver(payload(), Content_Type=content_type).wakeup is not None


@pytest.mark.parametrize(
    "body", [b"", b"{", b"payload=%7B%7D", b"\xff\xfe{}", b"[" * 200_000, b"[]", b'"x"', b"null", b"1" * 5_000]
)
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    status, message = refused(deliver(body))
    assert status == 400 and message.startswith("the body is not")


@pytest.mark.parametrize(
    ("change", "lacking"),
    [
        ({"id": ...}, "workflow_job.id"),
        ({"id": 0}, "workflow_job.id"),
        ({"id": True}, "workflow_job.id"),
        ({"id": "12/34"}, "workflow_job.id"),
        ({"labels": ...}, "workflow_job.labels"),
        ({"labels": "linux"}, "workflow_job.labels"),
        ({"labels": ["linux", 1]}, "workflow_job.labels"),
        ({"labels": ["x" * 4_001]}, "workflow_job.labels"),
        ({"created_at": ..., "started_at": None}, "workflow_job.created_at"),
        ({"id": ..., "labels": ...}, "workflow_job.id, workflow_job.labels"),
    ],
)
def test_a_needed_field_that_is_lacking_is_named(change: dict[str, Any], lacking: str) -> None:
    assert refused(deliver(payload(**change))) == (400, f"missing or not as expected: {lacking}")


@pytest.mark.parametrize("full_name", [None, "", "web", "a/b/c", "a b/c", "a/../c", "a/..", "../b", "a/b#"])
def test_a_repository_must_be_named_by_owner_and_name(full_name: str | None) -> None:
    assert refused(deliver(payload(repository={"full_name": full_name}))) == (
        400,
        "missing or not as expected: repository.full_name",
    )


def test_everything_lacking_is_named_at_once() -> None:
    status, message = refused(deliver({}))
    assert status == 400
    for name in ("action", "workflow_job.id", "repository.full_name"):
        assert name in message


def test_a_delivery_without_an_event_is_refused() -> None:
    assert refused(deliver(payload(), X_GitHub_Event=None)) == (400, "missing or not as expected: header X-GitHub-Event")


def test_the_checks_come_in_a_fixed_order() -> None:
    """Each delivery has every fault that is checked later: only the first one shows."""
    huge, bad = b"[" * (LARGEST_BODY + 1), b"["
    assert deliver(huge, secrets=(), X_Hub_Signature_256=None, Content_Type="text/plain").status == 503
    assert deliver(huge, X_Hub_Signature_256=None, Content_Type="text/plain").status == 413
    assert deliver(bad, X_Hub_Signature_256=None, Content_Type="text/plain").status == 401
    assert deliver(bad, Content_Type="text/plain").status == 415
    assert deliver(bad).status == 400
    assert deliver(bad, X_GitHub_Event="ping").status == 400


# ---------------------------------------------------------------------------------------------- robustness


def test_header_names_are_matched_without_regard_to_case() -> None:
    body = json.dumps(payload()).encode()
    for change in (str.lower, str.upper):
        given_headers = {change(name): value for name, value in headers(body).items()}
        assert receive(body, given_headers, secrets=[SECRET], config=config(), now=NOW, unique="u").wakeup is not None


def test_long_and_broken_texts_still_fit_a_row() -> None:
    wild = payload(name="\ud800" + "x" * 100_000, workflow_name="é" * 100_000, labels=["self-hosted", "\udfff"])
    receipt = deliver(wild, X_GitHub_Delivery="d" * 100_000)
    assert receipt.row is not None
    assert json.dumps(receipt.row, ensure_ascii=False).encode()  # no half of a surrogate pair is left
    assert all(len(value) < 32_000 for value in receipt.row.values())


def test_the_answer_names_no_secret() -> None:
    for receipt in (deliver(payload()), deliver(payload(), X_Hub_Signature_256="sha256=x"), deliver(b"[")):
        assert SECRET not in json.dumps([receipt.body, receipt.row, receipt.wakeup])


KEY = re.compile(r"[^/\\#?\x00-\x1f\x7f-\x9f]+")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
NAMES = st.sampled_from(["Content-Type", "X-GitHub-Event", "x-hub-signature-256", "X-GitHub-Delivery", "content-type"]) | st.text(
    max_size=10
)


@given(st.binary(max_size=300), st.dictionaries(NAMES, st.text(max_size=80), max_size=6), st.lists(st.text(max_size=5), max_size=2))
def test_no_bytes_and_headers_whatever_raise_or_get_a_row_without_a_signature(
    body: bytes, given_headers: dict[str, str], secrets: list[str]
) -> None:
    receipt = receive(body, given_headers, secrets=secrets, config=config(), now=NOW, unique="u")
    assert receipt.row is None and receipt.wakeup is None
    assert receipt.status == (401 if any(secrets) else 503)


@given(JSON, st.text(max_size=20))
def test_no_signed_json_whatever_raises(content: object, event: str) -> None:
    assert deliver(content, X_GitHub_Event=event).status in (200, 202, 400)
    assert deliver(content).status in (202, 400)


@given(
    st.sampled_from(["queued", "waiting", "in_progress", "completed"]),
    st.dictionaries(st.sampled_from(list(payload()["workflow_job"])), JSON | st.sampled_from(["hw-gpu-a", "hw-a b-c", "7"])),
    st.dictionaries(st.sampled_from(["full_name", "private", "visibility"]), JSON),
)
def test_no_field_whatever_raises_or_makes_an_unfit_row(action: str, job: dict[str, Any], repository: dict[str, Any]) -> None:
    receipt = deliver(payload(action, repository=repository, **job))
    assert receipt.status in (202, 400)
    json.dumps([receipt.body, receipt.wakeup]).encode()
    if receipt.row is not None:
        assert KEY.fullmatch(receipt.row["PartitionKey"]) and KEY.fullmatch(receipt.row["RowKey"])
        assert fact_of(receipt).job_id.isdigit()
