"""The sandbox's GitHub against GitHub's own published descriptions, and our webhook against GitHub's published samples.

The descriptions are npm packages (tests/package.json). They are large, so one is read once a session, and only what a test
asks for is resolved.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from jsonschema import Draft202012Validator, FormatChecker

from runnerpool.intake import receive
from runnerpool.pool_file import load_config
from sandbox.github import AppIdentity
from tests.github_fixture import ENTERPRISE, LABELS, ORG, REPOSITORY, SECRET, Client, Place, Start, places, runner_of

OCTOKIT = Path(__file__).parent / "node_modules" / "@octokit"

checker = FormatChecker(formats=())


@checker.checks("date-time", raises=ValueError)
def _is_moment(value: object) -> bool:
    return not isinstance(value, str) or datetime.fromisoformat(value).tzinfo is not None


@checker.checks("uri")
def _is_uri(value: object) -> bool:
    return not isinstance(value, str) or "://" in value


@cache
def published(package: str, path: str) -> Any:
    file = OCTOKIT / package / path
    if not file.exists():
        pytest.fail(f"{file.name} of @octokit/{package} is missing; install it: npm ci --ignore-scripts --prefix tests")
    return json.loads(file.read_bytes())


def inlined(schema: Any, document: Any) -> Any:
    """OpenAPI 3.0 as JSON Schema: `$ref` replaced by what it names, `nullable` by a null type."""
    if isinstance(schema, list):
        return [inlined(item, document) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return inlined(named(schema["$ref"], document), document)
    plain = {key: inlined(value, document) for key, value in schema.items() if key not in ("nullable", "example", "examples")}
    return {"anyOf": [plain, {"type": "null"}]} if schema.get("nullable") is True else plain


def named(reference: str, document: Any) -> Any:
    for step in reference.removeprefix("#/").split("/"):
        document = document[step]
    return document


@cache
def answer_schema(description: str, method: str, path: str, status: int) -> Any:
    """The schema of one answer; the common error's where the description names no such status."""
    document = published("openapi", f"generated/{description}.json")
    answers = document["paths"][path][method.lower()]["responses"]
    answer = answers.get(str(status), {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/basic-error"}}}})
    if "$ref" in answer:
        answer = named(answer["$ref"], document)
    return inlined(answer["content"]["application/json"]["schema"], document) if "content" in answer else None


def closed(schema: Any) -> Any:
    """The same, and no key that GitHub does not describe: the sandbox is to invent nothing."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {key: closed(value) for key, value in schema.items()}
    return {"additionalProperties": False, **strict} if isinstance(schema.get("properties"), dict) else strict


def check(body: Any, schema: Any) -> None:
    errors = Draft202012Validator(schema, format_checker=checker).iter_errors(body)
    assert [f"{error.json_path}: {error.message}" for error in errors] == []


# ---------------------------------------------------------------------------------------------- the API


async def filled(place: Place) -> dict[str, int]:
    """A job in every state, a busy runner, idle ones, and a failed delivery. Returns the ids of all that by name."""
    ids: dict[str, int] = {}
    place.receiver.answers = [202, 500]
    for scope in (f"/orgs/{ORG}", f"/repos/{REPOSITORY}", f"/enterprises/{ENTERPRISE}"):
        await place.client.mint("hw-idle", scope=scope)
    ids["completed"] = place.queue().id
    await (await place.client.mint("hw-done")).run_one_job()
    await place.busy("hw-busy")
    ids["busy"] = runner_of(place.sandbox, "hw-busy").id
    ids["in_progress"] = next(job.id for job in place.sandbox.world.jobs.values() if job.status == "in_progress")
    ids["queued"] = place.queue().id
    ids["waiting"] = place.queue(environment="production").id
    cancelled = place.queue(environment="production")
    place.sandbox.world.cancel(cancelled)
    ids["cancelled"] = cancelled.id
    ids["run"] = place.sandbox.world.jobs[ids["completed"]].run_id
    await place.sandbox.deliveries.settled()
    ids["hook"] = place.sandbox.deliveries.hooks[0].id
    ids["failed"] = next(sent.id for sent in place.sandbox.deliveries.sent if sent.status_code == 500)
    return ids


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    async with places() as begin:
        yield begin


JIT = {"name": "hw-new", "runner_group_id": 1, "labels": LABELS, "work_folder": "_work"}
ORG_PATH, REPO_PATH, ENTERPRISE_PATH = "/orgs/{org}", "/repos/{owner}/{repo}", "/enterprises/{enterprise}"

HOOK = {"name": "web", "config": {"url": "http://127.0.0.1:1/x", "content_type": "json"}, "events": ["workflow_job"]}

ANSWERS = [
    *[
        case
        for scope in (ORG_PATH, REPO_PATH, ENTERPRISE_PATH)
        for case in (
            ("GET", scope + "/actions/runners", None, 200),
            ("GET", scope + "/actions/runners?name=hw-idle", None, 200),
            ("POST", scope + "/actions/runners/generate-jitconfig", JIT, 201),
            ("POST", scope + "/actions/runners/generate-jitconfig", {**JIT, "name": "hw-idle"}, 409),
            ("POST", scope + "/actions/runners/generate-jitconfig", {**JIT, "labels": []}, 422),
            ("GET", scope + "/actions/runners/downloads", None, 200),
        )
    ],
    ("POST", ORG_PATH + "/actions/runners/generate-jitconfig", {**JIT, "runner_group_id": 99}, 404),
    ("GET", ORG_PATH + "/actions/runners/{busy:runner_id}", None, 200),
    ("DELETE", ORG_PATH + "/actions/runners/{busy:runner_id}", None, 422),
    ("GET", ORG_PATH + "/actions/runner-groups", None, 200),
    ("GET", ENTERPRISE_PATH + "/actions/runner-groups", None, 200),
    ("GET", REPO_PATH + "/actions/jobs/{completed:job_id}", None, 200),
    ("GET", REPO_PATH + "/actions/jobs/{in_progress:job_id}", None, 200),
    ("GET", REPO_PATH + "/actions/jobs/{queued:job_id}", None, 200),
    ("GET", REPO_PATH + "/actions/jobs/{waiting:job_id}", None, 200),
    ("GET", REPO_PATH + "/actions/jobs/{cancelled:job_id}", None, 200),
    ("POST", REPO_PATH + "/actions/jobs/{completed:job_id}/rerun", None, 201),
    ("POST", REPO_PATH + "/actions/jobs/{in_progress:job_id}/rerun", None, 403),
    ("GET", REPO_PATH + "/actions/runs/{run:run_id}", None, 200),
    ("GET", REPO_PATH + "/actions/runs/{run:run_id}/jobs", None, 200),
    ("GET", ORG_PATH + "/hooks", None, 200),
    ("GET", REPO_PATH + "/hooks", None, 200),
    ("POST", ORG_PATH + "/hooks", HOOK, 201),
    ("POST", REPO_PATH + "/hooks", HOOK, 201),
    ("POST", ORG_PATH + "/hooks", {"name": "web"}, 422),
    ("PATCH", ORG_PATH + "/hooks/{hook:hook_id}", {"active": False}, 200),
    ("GET", "/orgs/{org}/repos", None, 200),
    ("GET", REPO_PATH + "/actions/runs?per_page=1", None, 200),
    ("GET", ORG_PATH + "/hooks/{hook:hook_id}/deliveries", None, 200),
    ("GET", ORG_PATH + "/hooks/{hook:hook_id}/deliveries?status=failure&per_page=1", None, 200),
    ("GET", ORG_PATH + "/hooks/{hook:hook_id}/deliveries/{failed:delivery_id}", None, 200),
    ("POST", ORG_PATH + "/hooks/{hook:hook_id}/deliveries/{failed:delivery_id}/attempts", None, 202),
    ("GET", "/rate_limit", None, 200),
]


async def test_a_repositorys_webhook_is_as_github_describes_it(start: Start) -> None:
    place = await start(hook_on="repo")
    _, hooks, _ = await place.client.call("GET", f"/repos/{REPOSITORY}/hooks")
    assert len(hooks) == 1
    check(hooks, closed(answer_schema("api.github.com", "GET", "/repos/{owner}/{repo}/hooks", 200)))


@pytest.mark.parametrize(("method", "path", "body", "status"), ANSWERS, ids=lambda value: str(value)[:60])
async def test_every_answer_of_the_sandbox_is_as_github_describes_it(
    start: Start, method: str, path: str, body: Any, status: int
) -> None:
    place = await start()
    ids = await filled(place)
    template = re.sub(r"\{\w+:(\w+)\}", r"{\1}", path.partition("?")[0])
    asked = re.sub(r"\{(\w+):\w+\}", lambda found: str(ids[found[1]]), path)
    asked = asked.replace("{org}", ORG).replace("{enterprise}", ENTERPRISE).replace("{owner}/{repo}", REPOSITORY)
    answered, told, headers = await place.client.call(method, asked, body)
    assert answered == status, told
    assert headers["X-RateLimit-Resource"] == "core"
    description = "ghec" if template.startswith("/enterprises") else "api.github.com"
    if schema := answer_schema(description, method, template, status):
        check(told, closed(schema) if status < 300 else schema)


async def test_what_an_app_asks_for_is_as_github_describes_it(start: Start) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    place = await start(app=AppIdentity(4711, 77, public.decode()), hook_on="app")
    await place.deliver(500)
    delivery = place.sandbox.deliveries.sent[0].id
    client = Client(place.base, place.http, jwt.encode({"iss": "4711"}, key, algorithm="RS256"))
    for method, path, status in (
        ("POST", "/app/installations/77/access_tokens", 201),
        ("GET", "/app", 200),
        ("GET", "/app/installations/77", 200),
        ("GET", "/app/hook/config", 200),
        ("PATCH", "/app/hook/config", 200),
        ("GET", "/app/hook/deliveries", 200),
        ("GET", f"/app/hook/deliveries/{delivery}", 200),
        ("POST", f"/app/hook/deliveries/{delivery}/attempts", 202),
    ):
        body = {"content_type": "json", "url": place.receiver.url} if method == "PATCH" else None
        answered, told, _ = await client.call(method, path, body)
        assert answered == status, told
        template = path.replace("77", "{installation_id}").replace(str(delivery), "{delivery_id}")
        check(told, closed(answer_schema("api.github.com", method, template, status)))


# ---------------------------------------------------------------------------------------------- the webhooks


def webhook_schema(name: str) -> Any:
    document = published("openapi-webhooks", "generated/api.github.com.json")
    return {"$ref": f"#/components/schemas/webhook-{name}", "components": document["components"]}


@pytest.mark.parametrize(
    ("announce", "cancel", "expected"),
    [
        ("waiting", False, ["waiting", "queued", "in_progress", "completed"]),
        ("queued", False, ["queued", "queued", "in_progress", "completed"]),
        ("waiting", True, ["waiting", "completed"]),
    ],
)
async def test_every_delivery_is_as_github_describes_it(start: Start, announce: str, cancel: bool, expected: list[str]) -> None:
    place = await start()
    job = place.queue(environment="production", announce=announce)
    if cancel:
        place.sandbox.world.cancel(job)
    else:
        place.sandbox.world.approve(job)
        await (await place.client.mint("hw-a")).run_one_job()
    await place.client.call("POST", f"{place.sandbox.deliveries.hooks[0].path}/pings")
    await place.receiver.wait_for(len(expected) + 1)
    got = [received for received in place.receiver.got if received.action]
    assert [received.action for received in got] == expected
    for received in got:
        check(received.payload, webhook_schema(f"workflow-job-{received.action.replace('_', '-')}"))
    ping = next(received for received in place.receiver.got if not received.action)
    check(ping.payload, webhook_schema("ping"))
    described = published("openapi-webhooks", "generated/api.github.com.json")["webhooks"]["workflow-job-queued"]["post"]
    sent = {name.lower() for name in got[0].headers}
    assert {parameter["name"].lower() for parameter in described["parameters"]} <= sent


# ---------------------------------------------------------------------------------------------- GitHub's samples


def samples() -> list[Any]:
    """Every `workflow_job` sample of api.github.com and of GHES 3.1 to 3.5; none where the package is missing (see `published`)."""
    found = []
    for place in ("api.github.com", "ghes-31", "ghes-32", "ghes-33", "ghes-34", "ghes-35"):
        file = OCTOKIT / "webhooks-examples" / place / "index.json"
        for event in json.loads(file.read_bytes()) if file.exists() else []:
            if event["name"].startswith("workflow_job"):
                for number, payload in enumerate(event["examples"]):
                    found.append(pytest.param(payload, id=f"{place}-{payload['action']}-{number}"))
    return found


def test_there_are_samples_of_every_action() -> None:
    published("webhooks-examples", "api.github.com/index.json")
    actions = {parameter.values[0]["action"] for parameter in samples()}
    assert actions == {"queued", "waiting", "in_progress", "completed"}


POOL_FILE = """
azure: {{location: westus, resource_group: rg, virtual_network: vn, subnet: sn, network_security_group: nsg, name_prefix: hw}}
github: {{owner: {owner}, allow_public_repositories: true}}
pools:
  - {{name: k8s, labels: [self-hosted, k8s], vm: {{sizes: [Standard_D4as_v5]}}}}
  - {{name: gpu, labels: [self-hosted, gpu, db-app, dc-03], vm: {{sizes: [Standard_NC4as_T4_v3]}}}}
"""


@pytest.mark.parametrize("payload", samples())
def test_the_webhook_understands_githubs_own_samples(payload: Any, tmp_path: Path) -> None:
    file = tmp_path / "pool-config.yaml"
    file.write_text(POOL_FILE.format(owner=payload["repository"]["owner"]["login"]))
    body = json.dumps(payload).encode()
    headers = {
        "Content-Type": "application/json",
        "X-GitHub-Event": "workflow_job",
        "X-GitHub-Delivery": "72d3162e-cc78-11e3-81ab-4c9367dc0958",
        "X-Hub-Signature-256": "sha256=" + hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest(),
    }
    config, now = load_config(file), datetime(2026, 1, 2, tzinfo=UTC)
    receipt = receive(body, headers, secrets=[SECRET], config=config, now=now, unique="1")
    assert receipt.status == 202, receipt.body
    served = payload["workflow_job"]["labels"] != ["ubuntu-latest"]
    assert (receipt.row is not None) == (receipt.wakeup is not None) == served, receipt.body
