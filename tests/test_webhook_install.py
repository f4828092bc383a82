"""`python -m runnerpool webhook install` on the sandbox's GitHub: what it makes, what it mends, what it leaves alone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from runnerpool import webhook
from runnerpool.config import Config
from runnerpool.settings import Settings, SettingsError
from sandbox.github import AppIdentity
from tests.github_fixture import ORG, OTHER, REPOSITORY, SECRET, TOKEN, Place, Start, places

URL = "https://app.example.com/github/webhook"


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    async with places() as begin:
        yield begin


async def install(place: Place, url: str = URL, *, github: dict[str, Any] | None = None, **env: str) -> int:
    usual = {"GITHUB_WEBHOOK_SECRET": SECRET, "GITHUB_TOKEN": TOKEN, "GITHUB_API_URL": place.base}
    pools = [{"labels": ["linux"], "vm": {"sizes": ["Standard_D4ads_v5"]}}]
    config = Config.model_validate({"azure": {}, "github": {"owner": ORG, **(github or {})}, "pools": pools})
    return await webhook.install(Settings.from_env({**usual, **env}), config, url)


async def test_the_first_time_it_is_created_and_then_signed_deliveries_arrive(start: Start) -> None:
    place = await start(webhook_url="")
    assert await install(place, place.receiver.url) == 0
    (hook,) = place.sandbox.deliveries.hooks
    assert (hook.url, hook.secret, hook.events, hook.active) == (place.receiver.url, SECRET, ("workflow_job",), True)
    assert (hook.content_type, hook.insecure_ssl) == ("json", "0")
    place.queue()
    got = await place.receiver.wait_for(2)
    assert {received.headers["X-GitHub-Event"] for received in got} == {"ping", "workflow_job"}
    assert all(received.headers["X-Hub-Signature-256"] for received in got)


async def test_the_second_time_nothing_changes(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    place = await start(webhook_url=URL)
    before = repr(place.sandbox.deliveries.hooks)
    assert await install(place) == 0
    assert repr(place.sandbox.deliveries.hooks) == before
    assert "was as it should be; its secret was set again" in capsys.readouterr().out


async def test_everything_that_is_wrong_with_it_is_set_right_and_named(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    place = await start(webhook_url=URL, webhook_secret="")
    (hook,) = place.sandbox.deliveries.hooks
    hook.events, hook.active, hook.content_type, hook.insecure_ssl = ("push",), False, "form", "1"
    assert await install(place) == 0
    assert (hook.events, hook.active, hook.content_type, hook.insecure_ssl) == (("workflow_job",), True, "json", "0")
    assert hook.secret == SECRET
    out = capsys.readouterr().out
    assert "changed: active, event workflow_job alone, content type json, certificate verified, signed" in out
    assert SECRET not in out


async def test_another_deployments_webhook_is_left_alone_and_pointed_out(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    place = await start(webhook_url="https://other.example.com/github/webhook")
    assert await install(place) == 0
    assert [hook.url for hook in place.sandbox.deliveries.hooks] == ["https://other.example.com/github/webhook", URL]
    assert "another deployment's, or an old one" in capsys.readouterr().out


async def test_each_repository_of_the_scope_gets_its_own_and_one_that_fails_stops_no_other(
    start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    place = await start(webhook_url="", hook_on="repo")
    names = [name.rpartition("/")[2] for name in (OTHER, REPOSITORY)]
    place.fail("answer", times=None, path=f"/repos/{OTHER}/hooks", status=403, message="Must have admin rights to Repository.")
    assert await install(place, github={"scope": "repo", "repositories": names}) == 1
    assert [hook.repository for hook in place.sandbox.deliveries.hooks] == [REPOSITORY]
    assert "'Webhooks: write'" in capsys.readouterr().out


@pytest.mark.parametrize(("events", "code"), [(("workflow_job",), 0), ((), 1)])
async def test_an_apps_webhook_is_configured_and_its_events_are_for_a_person(
    start: Start, capsys: pytest.CaptureFixture[str], events: tuple[str, ...], code: int
) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    ).decode()
    place = await start(app=AppIdentity(4711, 77, public.decode(), events=events), hook_on="app", webhook_url="")
    app: Any = {"GITHUB_TOKEN": "", "GITHUB_APP_ID": "4711", "GITHUB_APP_INSTALLATION_ID": "77", "GITHUB_APP_PRIVATE_KEY": private}
    assert await install(place, **app) == code
    (hook,) = place.sandbox.deliveries.hooks
    assert (hook.path, hook.url, hook.secret) == ("/app/hook", URL, SECRET)
    assert ("Permissions & events" in capsys.readouterr().out) is bool(code)


async def test_an_enterprise_says_where_to_do_it_by_hand(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    place = await start(webhook_url="")
    assert await install(place, github={"scope": "enterprise", "owner": "octo-corp"}) == 1
    assert "https://github.com/enterprises/octo-corp/settings/hooks" in capsys.readouterr().out


async def test_without_a_secret_nothing_is_made(start: Start) -> None:
    place = await start(webhook_url="")
    with pytest.raises(SettingsError, match="GITHUB_WEBHOOK_SECRET"):
        await install(place, GITHUB_WEBHOOK_SECRET="")
    assert not place.sandbox.deliveries.hooks


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("https://app.example.com", URL),
        ("https://app.example.com/", URL),
        ("https://app.example.com/github/webhook/", URL),
        ("http://127.0.0.1:7071", "http://127.0.0.1:7071/github/webhook"),
        ("http://app.example.com", "https://"),
        ("https://app.example.com/hook", "/github/webhook"),
        ("https://app.example.com/github/webhook?code=1", "not an address"),
        ("https://user:word@app.example.com", "not an address"),
        ("app.example.com", "https://"),
    ],
)
def test_the_address_is_checked_and_completed(given: str, expected: str) -> None:
    try:
        assert webhook.checked_url(given) == expected
    except ValueError as error:
        assert expected in str(error)
