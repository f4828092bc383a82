"""The functions as Azure sees them, and what the HTTP ones answer where secrets, settings or the pool file are wrong."""

from __future__ import annotations

import hashlib
import hmac
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import azure.functions as func
import pytest

import function_app
from runnerpool import front
from sandbox.host import SOURCE
from sandbox.host_app import read_functions, read_host_json
from sandbox.host_invoke import Out

SECRET = "the webhook's secret"
TOKEN = "the diagnostic token"
POOLS = """
azure: {}
github: {owner: octo-org}
pools:
  - name: linux-x64
    labels: [self-hosted, linux, x64]
    vm: {sizes: [Standard_D4ads_v5]}
"""


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    (tmp_path / "pools.yaml").write_text(POOLS)
    monkeypatch.setenv("POOL_CONFIG", str(tmp_path / "pools.yaml"))
    monkeypatch.setenv("GITHUB_WEBHOOK_SECRET", SECRET)
    monkeypatch.setenv("RUNNER_STATUS_TOKEN", TOKEN)
    _forget()
    yield
    _forget()


def _forget() -> None:
    front._settings.cache_clear()
    front._config.cache_clear()


def delivery(labels: list[str] | None = None) -> bytes:
    """A queued job as GitHub tells of it, without what nobody needs."""
    return json.dumps(
        {
            "action": "queued",
            "workflow_job": {
                "id": 4711,
                "run_id": 1,
                "run_attempt": 1,
                "status": "queued",
                "labels": labels or ["self-hosted", "linux", "x64"],
                "created_at": "2025-01-01T00:00:00Z",
                "started_at": "2025-01-01T00:00:00Z",
                "name": "build",
                "workflow_name": "CI",
            },
            "repository": {"full_name": "octo-org/backend", "private": True, "owner": {"login": "octo-org"}, "name": "backend"},
        }
    ).encode()


class Answer:
    """What one call of the webhook left: the response and both outputs."""

    def __init__(self, response: func.HttpResponse, fact: Out, wakeup: Out) -> None:
        self.status = response.status_code
        self.body: Any = json.loads(response.get_body())
        self.fact: Any = json.loads(fact.get() or "null")
        self.wakeup: Any = json.loads(wakeup.get() or "null")


async def send(body: bytes, **changes: str) -> Answer:
    signature = "sha256=" + hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
    headers = {
        "Content-Type": "application/json",
        "X-GitHub-Event": "workflow_job",
        "X-GitHub-Delivery": "d1",
        "X-Hub-Signature-256": signature,
        **changes,
    }
    fact, wakeup = Out(), Out()
    request = func.HttpRequest("POST", "http://host/github/webhook", headers=headers, body=body)
    return Answer(await function_app.webhook(request, fact, wakeup), fact, wakeup)


async def status(headers: Mapping[str, str]) -> tuple[int, Any]:
    request = func.HttpRequest("GET", "http://host/runner/status", headers=headers, body=b"")
    response = await function_app.runner_status(request)
    return response.status_code, json.loads(response.get_body())


# ---------------------------------------------------------------------------------------------- the functions


def test_the_functions_are_bound_to_the_names_that_users_know() -> None:
    functions = {function.name: function for function in read_functions(SOURCE)}
    assert set(functions) == {"webhook", "provision", "reconcile", "runner_status"}
    webhook, status_page = functions["webhook"].trigger, functions["runner_status"].trigger
    assert (webhook["route"], webhook["methods"], webhook["authLevel"]) == ("github/webhook", ["POST"], "ANONYMOUS")
    assert (status_page["route"], status_page["methods"], status_page["authLevel"]) == ("runner/status", ["GET"], "ANONYMOUS")
    assert functions["provision"].trigger["queueName"] == "job-demand"
    assert functions["reconcile"].trigger["schedule"] == "*/30 * * * * *"
    stored = {output["name"]: output for output in functions["webhook"].outputs}
    assert stored["fact"]["tableName"] == "runnerpool"
    assert stored["wakeup"]["queueName"] == "job-demand"
    connections = [stored["fact"], stored["wakeup"], functions["provision"].trigger]
    assert {binding["connection"] for binding in connections} == {"AzureWebJobsStorage"}


def test_host_json_says_what_the_design_says() -> None:
    settings = read_host_json(SOURCE)
    queues = settings.queues
    assert (settings.route_prefix, settings.function_timeout) == ("", 300.0)
    assert (queues.max_polling_interval, queues.visibility_timeout, queues.base64) == (1.0, 15.0, True)
    assert (queues.batch_size, queues.new_batch_threshold, queues.max_dequeue_count) == (16, 8, 5)


def test_nothing_slow_is_imported_for_a_delivery() -> None:
    code = (
        "import sys, json, os\n"
        "import azure.functions as func, function_app\n"
        "from runnerpool import front\n"
        f"print(front.receive({delivery()!r}, {{}}).status)\n"
        "slow = ('azure.mgmt', 'azure.data', 'azure.identity', 'azure.core', 'githubkit', 'httpx', 'aiohttp')\n"
        "print([name for name in sys.modules if name.startswith(slow)])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=SOURCE, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines() == ["401", "[]"]


# ---------------------------------------------------------------------------------------------- the webhook


async def test_an_accepted_delivery_leaves_a_row_and_a_wake_up() -> None:
    answer = await send(delivery())
    assert (answer.status, answer.body["pool"], answer.body["job"]) == (202, "linux-x64", "4711")
    assert answer.fact["PartitionKey"] == "linux-x64"
    assert answer.wakeup == {"pool": "linux-x64", "job": "4711", "delivery": "d1"}


async def test_the_same_delivery_twice_makes_two_rows() -> None:
    first, second = await send(delivery()), await send(delivery())
    assert first.fact["RowKey"] != second.fact["RowKey"]


async def test_a_refused_delivery_leaves_nothing() -> None:
    answer = await send(delivery(), **{"X-Hub-Signature-256": "sha256=00"})
    assert (answer.status, answer.fact, answer.wakeup) == (401, None, None)


async def test_a_bad_pool_file_answers_500_to_what_is_signed_and_works_once_it_is_mended(tmp_path: Path) -> None:
    (tmp_path / "pools.yaml").write_text("azure: {}\npools: 7\n")
    answer = await send(delivery())
    assert (answer.status, answer.fact) == (500, None)
    assert "pools.yaml" in answer.body["message"]
    assert (await send(delivery(), **{"X-Hub-Signature-256": "sha256=00"})).status == 401
    (tmp_path / "pools.yaml").write_text(POOLS)
    assert (await send(delivery())).status == 202


async def test_without_a_secret_every_delivery_is_answered_503(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("GITHUB_WEBHOOK_SECRET")
    assert (await send(delivery())).status == 503
    (tmp_path / "pools.yaml").write_text("")
    assert (await send(delivery())).status == 503
    monkeypatch.setenv("GITHUB_WEBHOOK_SECRET_PREVIOUS", SECRET)
    assert (await send(delivery())).status == 503


async def test_a_setting_that_the_webhook_does_not_need_loses_no_delivery(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMTP_PORT", "none")
    assert (await send(delivery())).status == 202


# ---------------------------------------------------------------------------------------------- /runner/status


async def test_status_tells_what_is_wrong_to_those_who_have_the_token(tmp_path: Path) -> None:
    (tmp_path / "pools.yaml").write_text("azure: {}\npools: 7\n")
    code, body = await status({"Authorization": f"Bearer {TOKEN}"})
    assert code == 503
    assert "pools.yaml" in body["message"]
    assert (await status({}))[0] == 401
    assert (await status({"Authorization": "Bearer wrong"}))[0] == 401


async def test_status_without_any_token_set_keeps_what_is_wrong_to_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RUNNER_STATUS_TOKEN")
    (tmp_path / "pools.yaml").write_text("azure: {}\npools: 7\n")
    code, body = await status({})
    assert code == 503
    assert "pools.yaml" not in json.dumps(body)
