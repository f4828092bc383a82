"""The sandbox's GitHub delivers webhooks, refuses, miscarries and counts as the real one does; and its controls."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import AsyncIterator
from typing import Any

import pytest

from sandbox.github_faults import Fault
from tests.github_fixture import LABELS, ORG, REPOSITORY, SECRET, Client, Start, places

JITCONFIG = f"/orgs/{ORG}/actions/runners/generate-jitconfig"
RUNNERS = f"/orgs/{ORG}/actions/runners"


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    async with places() as begin:
        yield begin


# ---------------------------------------------------------------------------------------------- deliveries


async def test_deliveries_are_signed_and_say_where_they_come_from(start: Start) -> None:
    place = await start()
    place.queue()
    received = (await place.receiver.wait_for(1))[0]
    expected = "sha256=" + hmac.new(SECRET.encode(), received.body, hashlib.sha256).hexdigest()
    assert received.headers["X-Hub-Signature-256"] == expected
    assert received.headers["X-GitHub-Event"] == "workflow_job"
    assert received.headers["X-GitHub-Hook-Installation-Target-Type"] == "organization"


@pytest.mark.parametrize(
    ("hook_on", "hook", "target"),
    [("org", f"/orgs/{ORG}/hooks/501", "organization"), ("repo", f"/repos/{REPOSITORY}/hooks/501", "repository")],
)
async def test_a_delivery_that_is_not_answered_2xx_is_listed_as_failed_and_can_be_sent_again(
    start: Start, hook_on: str, hook: str, target: str
) -> None:
    place = await start(hook_on=hook_on)
    place.receiver.answers = [500]
    place.queue()
    await place.receiver.wait_for(1)
    await place.sandbox.deliveries.settled()
    _, failed, _ = await place.client.call("GET", f"{hook}/deliveries?status=failure")
    assert [(item["status_code"], item["redelivery"]) for item in failed] == [(500, False)]
    status, _, _ = await place.client.call("POST", f"{hook}/deliveries/{failed[0]['id']}/attempts")
    assert status == 202
    first, second = await place.receiver.wait_for(2)
    assert second.body == first.body
    assert second.headers["X-GitHub-Delivery"] == first.headers["X-GitHub-Delivery"] == failed[0]["guid"]
    assert second.headers["X-GitHub-Hook-Installation-Target-Type"] == target
    await place.sandbox.deliveries.settled()
    _, listed, _ = await place.client.call("GET", f"{hook}/deliveries")
    assert [(item["status_code"], item["redelivery"]) for item in listed] == [(202, True), (500, False)]


async def test_a_delivery_that_does_not_get_through_is_listed_as_failed_and_can_be_sent_again(start: Start) -> None:
    place = await start()
    place.sandbox.faults.add(Fault("fail"))
    place.queue()
    _, failed, _ = await place.client.call("GET", f"/orgs/{ORG}/hooks/501/deliveries?status=failure")
    assert [(item["status_code"], item["redelivery"]) for item in failed] == [(502, False)]
    assert place.receiver.got == []
    await place.client.call("POST", f"/orgs/{ORG}/hooks/501/deliveries/{failed[0]['id']}/attempts")
    assert [received.headers["X-GitHub-Delivery"] for received in await place.receiver.wait_for(1)] == [failed[0]["guid"]]


async def test_a_delivery_that_gets_no_answer_in_time_has_failed(start: Start) -> None:
    place = await start(delivery_timeout=0.05)
    place.receiver.hold = True
    place.queue()
    await place.receiver.wait_for(1)
    await place.sandbox.deliveries.settled()
    assert [(sent.status_code, sent.status) for sent in place.sandbox.deliveries.sent] == [(504, "timed out")]


async def test_a_delivery_to_nobody_has_failed(start: Start) -> None:
    place = await start(webhook_url="http://127.0.0.1:1/github/webhook")
    place.queue()
    await place.sandbox.deliveries.settled()
    assert [sent.status_code for sent in place.sandbox.deliveries.sent] == [502]


async def test_deliveries_about_one_job_keep_their_order_and_those_about_others_do_not_wait(start: Start) -> None:
    place = await start()
    place.receiver.hold = True
    jobs = [place.queue() for _ in range(3)]
    for job in jobs:
        place.sandbox.world.cancel(job)
    await place.receiver.wait_for(3)
    assert place.receiver.actions == ["queued"] * 3
    place.receiver.release.set()
    await place.receiver.wait_for(6)
    assert place.receiver.actions[3:] == ["completed"] * 3


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (Fault("drop", action="queued"), ["in_progress", "completed"]),
        (Fault("double", action="in_progress"), ["queued", "in_progress", "in_progress", "completed"]),
        (Fault("reorder", action="in_progress"), ["queued", "completed", "in_progress"]),
        (Fault("late", action="queued", seconds=1.0), ["in_progress", "completed", "queued"]),
    ],
)
async def test_deliveries_go_astray_as_asked(start: Start, fault: Fault, expected: list[str]) -> None:
    place = await start()
    place.sandbox.faults.add(fault)
    place.queue()
    await (await place.client.mint("hw-a")).run_one_job()
    await place.receiver.wait_for(len(expected))
    await place.sandbox.deliveries.settled()
    assert place.receiver.actions == expected
    doubles = [received.headers["X-GitHub-Delivery"] for received in place.receiver.got]
    assert len(set(doubles)) == len(set(expected))


async def test_the_list_of_deliveries_is_read_with_a_cursor_newest_first(start: Start) -> None:
    place = await start()
    place.sandbox.world.queue(REPOSITORY, LABELS, count=5)
    await place.receiver.wait_for(5)
    await place.sandbox.deliveries.settled()
    path, seen = f"/orgs/{ORG}/hooks/501/deliveries?per_page=2", []
    while path:
        _, page, headers = await place.client.call("GET", path)
        seen += [(item["delivered_at"], item["id"]) for item in page]
        path = headers.get("Link", "").partition(">")[0].removeprefix("<" + place.client.base)
    assert len({number for _, number in seen}) == 5
    assert [at for at, _ in seen] == sorted((at for at, _ in seen), reverse=True)


# ---------------------------------------------------------------------------------------------- refusals, faults, counts


async def test_only_known_tokens_are_answered(start: Start) -> None:
    place = await start()
    status, told, _ = await Client(place.client.base, place.client.http, "another").call("GET", RUNNERS)
    assert (status, told["message"]) == (401, "Bad credentials")


@pytest.mark.parametrize("path", ["/orgs/other/actions/runners", "/repos/octo-org/none/actions/runners", "/nonsense"])
async def test_what_is_not_there_is_404(start: Start, path: str) -> None:
    place = await start()
    status, told, _ = await place.client.call("GET", path)
    assert (status, told["message"]) == (404, "Not Found")


async def test_calls_and_points_are_counted_and_too_many_points_meet_the_secondary_limit(start: Start) -> None:
    place = await start(points_per_minute=11)
    await place.client.mint("hw-a")
    await place.client.mint("hw-b")
    assert (await place.client.call("GET", RUNNERS))[0] == 200
    status, told, headers = await place.client.call("GET", RUNNERS)
    assert (status, headers["Retry-After"]) == (403, "60")
    assert "secondary rate limit" in told["message"]
    _, counted, _ = await place.client.call("GET", "/_admin/calls")
    assert counted["by_endpoint"] == {
        "POST /orgs/{org}/actions/runners/generate-jitconfig": 2,
        "GET /orgs/{org}/actions/runners": 2,
    }
    assert counted["points"] == {"last_minute": 12, "highest_minute": 12, "limit": 11}


async def test_the_hourly_limit_is_told_and_kept(start: Start) -> None:
    place = await start(hourly_limit=2)
    _, _, headers = await place.client.call("GET", RUNNERS)
    assert (headers["X-RateLimit-Remaining"], headers["X-RateLimit-Used"]) == ("1", "1")
    await place.client.call("GET", RUNNERS)
    status, told, headers = await place.client.call("GET", RUNNERS)
    assert (status, headers["X-RateLimit-Remaining"]) == (403, "0")
    assert told["message"].startswith("API rate limit exceeded")


async def test_a_call_may_take_effect_although_it_is_answered_502(start: Start) -> None:
    place = await start()
    await place.client.call("POST", "/_admin/faults", {"kind": "answer", "status": 502, "applied": True, "path": "jitconfig"})
    body = {"name": "hw-a", "labels": LABELS, "runner_group_id": 1}
    assert (await place.client.call("POST", JITCONFIG, body))[0] == 502
    assert (await place.client.call("POST", JITCONFIG, body))[0] == 409


async def test_a_runner_may_be_removed_in_mid_job_and_its_job_goes_on(start: Start) -> None:
    place = await start()
    place.sandbox.faults.add(Fault("removed_although_busy"))
    job = place.queue()
    program = await place.client.mint("hw-a")
    await program.connect()
    await program.poll()
    assert (await place.client.call("DELETE", f"{RUNNERS}/{program.config['runner_id']}"))[0] == 204
    assert job.status == "in_progress"
    _, state, _ = await place.client.call("GET", "/_admin/state?parts=jobs")
    assert state["jobs"][0]["deregistered_at"] is not None
    assert await program.finish(str(job.id)) == 200
    assert job.conclusion == "success"


async def test_busy_lags_as_long_as_asked(start: Start) -> None:
    place = await start()
    place.sandbox.faults.add(Fault("busy_lag", times=None, seconds=60))
    place.queue()
    program = await place.client.mint("hw-a")
    await program.connect()
    await program.poll()
    _, told, _ = await place.client.call("GET", RUNNERS)
    assert [runner["busy"] for runner in told["runners"]] == [False]
    await place.client.call("DELETE", "/_admin/faults")
    _, told, _ = await place.client.call("GET", RUNNERS)
    assert [runner["busy"] for runner in told["runners"]] == [True]


async def test_an_idle_registration_may_be_reaped(start: Start) -> None:
    place = await start()
    place.sandbox.faults.add(Fault("reap", seconds=0.05, path="hw-a"))
    _, poll = await place.polling("hw-a")
    assert (await poll)[0] == 404
    _, other = await place.polling("hw-b")
    assert (await place.client.call("POST", "/_admin/runners/hw-b/reap"))[0] == 202
    assert (await other)[0] == 404


# ---------------------------------------------------------------------------------------------- the controls


async def test_the_controls_queue_jobs_redeliver_and_tell_what_happened(start: Start) -> None:
    place = await start(webhook_url="")
    await place.client.call("POST", "/_admin/webhook", {"url": place.receiver.url, "secret": SECRET})
    wanted = {"repository": REPOSITORY, "labels": LABELS, "count": 2, "seconds": 0.5, "conclusion": "failure"}
    status, told, _ = await place.client.call("POST", "/_admin/jobs", wanted)
    assert status == 201
    done = int(await (await place.client.mint("hw-a")).run_one_job())
    assert done == told["ids"][0]
    await place.receiver.wait_for(4)
    await place.client.call("POST", "/_admin/redeliver", {"job": done, "action": "queued"})
    await place.receiver.wait_for(5)
    await place.sandbox.deliveries.settled()
    _, state, _ = await place.client.call("GET", "/_admin/state")
    jobs = {job["id"]: job for job in state["jobs"]}
    assert [entry["action"] for entry in jobs[done]["timeline"]] == ["queued", "in_progress", "completed"]
    assert (jobs[done]["runner_name"], jobs[done]["conclusion"], jobs[told["ids"][1]]["status"]) == ("hw-a", "failure", "queued")
    assert [delivery["status_code"] for delivery in state["deliveries"]] == [202] * 5
    assert [delivery["redelivery"] for delivery in state["deliveries"]] == [False] * 4 + [True]
    _, state, _ = await place.client.call("GET", "/_admin/state?parts=runners")
    assert state == {"registrations": 1, "runners": []}


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/_admin/jobs", {"repository": "octo-org/none", "labels": []}, 404),
        ("/_admin/jobs/1/cancel", None, 404),
        ("/_admin/faults", {"kind": "nonsense"}, 400),
        ("/_admin/faults", {"kind": "drop", "colour": "red"}, 400),
        ("/_admin/redeliver", {"guid": "none"}, 404),
    ],
)
async def test_a_control_that_makes_no_sense_is_refused_with_its_reason(start: Start, path: str, body: Any, status: int) -> None:
    place = await start()
    answered, told, _ = await place.client.call("POST", path, body)
    assert answered == status
    assert told["message"]
