"""Alerts through real sockets: an SMTP server and an HTTP server on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from email import message_from_bytes, policy
from email.message import EmailMessage
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from runnerpool import alerts
from runnerpool.alerts import MailAndWebhook, mail, webhook_body
from runnerpool.errors import RetryLater
from runnerpool.ports import Alert
from runnerpool.settings import Settings

ALERT = Alert(
    id="setup:linux-x64", area="setup", title="no runner group Default", text="Pool linux-x64 gets no runners.\nCreate it."
)
SECRET_PATH = "/services/T000/B000/secret-of-the-webhook"


@dataclass
class MailServer:
    """Keeps what it is sent. `refused` are recipients that it does not take."""

    settings: Settings = field(default_factory=Settings)
    refused: tuple[str, ...] = ()
    mails: list[tuple[list[str], EmailMessage]] = field(default_factory=list)

    async def handle_RCPT(self, _server: SMTP, _session: Session, envelope: Envelope, address: str, _options: list[str]) -> str:
        if address in self.refused:
            return "550 no such user"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:
        assert isinstance(envelope.content, bytes)
        message = message_from_bytes(envelope.content, EmailMessage, policy=policy.default)
        self.mails.append(([str(address) for address in envelope.rcpt_tos], message))
        return "250 OK"


@contextlib.asynccontextmanager
async def mail_server(*, implicit_tls: ssl.SSLContext | None = None, **options: Any) -> AsyncIterator[MailServer]:
    handler = MailServer()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: SMTP(handler, hostname="localhost", loop=loop, **options), "127.0.0.1", 0, ssl=implicit_tls
    )
    handler.settings = Settings(
        smtp_host="127.0.0.1",
        smtp_port=server.sockets[0].getsockname()[1],
        smtp_starttls=False,
        alert_from="runners@example.org",
        alert_to=("ops@example.org", "ci@example.org"),
    )
    async with server:
        yield handler


@dataclass
class Receiver:
    """Keeps the JSON that is posted to it, and answers `status`."""

    url: str = ""
    status: int = 200
    bodies: list[dict[str, Any]] = field(default_factory=list)

    async def handle(self, request: web.Request) -> web.Response:
        self.bodies.append(await request.json())
        return web.Response(status=self.status, headers={"Location": "/elsewhere"})


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    app = web.Application()
    app.router.add_route("*", "/{anything:.*}", receiver.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}{SECRET_PATH}"
    yield receiver
    await runner.cleanup()


async def closed_port() -> int:
    server = await asyncio.start_server(lambda _reader, _writer: None, "127.0.0.1", 0)
    async with server:
        port: int = server.sockets[0].getsockname()[1]
    return port


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for 127.0.0.1 that signs itself, with its key, in one PEM file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "server.pem"
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    path.write_bytes(made.public_bytes(encoding) + key.private_bytes(encoding, form, serialization.NoEncryption()))
    return path


def server_tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


def login(_server: SMTP, _session: Session, _envelope: Envelope, _mechanism: str, data: LoginPassword) -> AuthResult:
    return AuthResult(success=data == LoginPassword(b"runners", b"mail-password"), handled=False)


# ---------------------------------------------------------------------------------------------- mail


async def test_a_mail_reaches_every_recipient_as_plain_text() -> None:
    async with mail_server() as server:
        await MailAndWebhook(settings=server.settings).send(ALERT)
    ((recipients, message),) = server.mails
    assert recipients == ["ops@example.org", "ci@example.org"]
    assert message["From"] == "runners@example.org"
    assert message["To"] == "ops@example.org, ci@example.org"
    assert message["Subject"] == "[runnerpool] setup: no runner group Default"
    assert message["Auto-Submitted"] == "auto-generated"
    assert message["Message-ID"].endswith("@example.org>")
    assert message["Date"]
    assert message.get_content().replace("\r\n", "\n").startswith("Pool linux-x64 gets no runners.\nCreate it.\n\n-- \n")


async def test_starttls_and_a_login_where_the_settings_ask_for_them(certificate: Path) -> None:
    tls = server_tls(certificate)
    async with mail_server(tls_context=tls, require_starttls=True, authenticator=login, auth_required=True) as server:
        settings = replace(server.settings, smtp_starttls=True, smtp_username="runners", smtp_password="mail-password")
        await MailAndWebhook(settings=settings, tls=ssl.create_default_context(cafile=certificate)).send(ALERT)
    assert len(server.mails) == 1


async def test_a_port_that_speaks_tls_from_the_start(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with mail_server(implicit_tls=server_tls(certificate)) as server:
        monkeypatch.setattr(alerts, "IMPLICIT_TLS_PORT", server.settings.smtp_port)
        trust = ssl.create_default_context(cafile=certificate)
        await MailAndWebhook(settings=replace(server.settings, smtp_starttls=True), tls=trust).send(ALERT)
    assert len(server.mails) == 1


async def test_a_mail_server_that_nobody_vouches_for_gets_neither_mail_nor_password(certificate: Path) -> None:
    async with mail_server(tls_context=server_tls(certificate)) as server:
        with pytest.raises(RetryLater, match="CERTIFICATE_VERIFY_FAILED"):
            await MailAndWebhook(settings=replace(server.settings, smtp_starttls=True)).send(ALERT)
    assert server.mails == []


async def test_nothing_goes_out_in_the_clear_where_starttls_is_asked_for_and_not_offered() -> None:
    async with mail_server() as server:
        with pytest.raises(RetryLater, match="STARTTLS"):
            await MailAndWebhook(settings=replace(server.settings, smtp_starttls=True)).send(ALERT)
    assert server.mails == []


async def test_a_refused_login_is_reported_without_the_password(certificate: Path) -> None:
    async with mail_server(tls_context=server_tls(certificate), authenticator=login) as server:
        settings = replace(server.settings, smtp_starttls=True, smtp_username="runners", smtp_password="wrong-password")
        with pytest.raises(RetryLater, match="SMTPAuthenticationError") as caught:
            await MailAndWebhook(settings=settings, tls=ssl.create_default_context(cafile=certificate)).send(ALERT)
    assert "wrong-password" not in str(caught.value)


async def test_one_recipient_that_the_server_refuses_is_logged_and_the_others_get_their_mail(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with mail_server() as server:
        server.refused = ("ops@example.org",)
        await MailAndWebhook(settings=server.settings).send(ALERT)
    assert [recipients for recipients, _ in server.mails] == [["ci@example.org"]]
    assert "refused ops@example.org" in caplog.text


@pytest.mark.parametrize("end", ["\r\n", "\n", "\r", "\u2028", "\x0b", "\x00"])
async def test_a_title_cannot_begin_another_header(end: str) -> None:
    evil = replace(ALERT, title=f"job{end}Bcc: victim@example.net{end}{end}<script>")
    async with mail_server() as server:
        await MailAndWebhook(settings=server.settings).send(evil)
    ((recipients, message),) = server.mails
    assert recipients == ["ops@example.org", "ci@example.org"]
    assert message["Bcc"] is None
    assert message["Subject"] == "[runnerpool] setup: job Bcc: victim@example.net <script>"


async def test_any_text_can_be_mailed() -> None:
    odd = replace(ALERT, title="名前 🚀 \ud83d " + "long " * 100, text=".\n..\nhere\n\x1b[31m\x00 Ü \udc00\n" + "x" * 5_000)
    async with mail_server() as server:
        await MailAndWebhook(settings=server.settings).send(odd)
    ((_, message),) = server.mails
    assert message["Subject"].startswith("[runnerpool] setup: 名前 🚀 long long")
    assert message.get_content().replace("\r\n", "\n").startswith(".\n..\nhere\n [31m  Ü  \nxxx")


def test_a_mail_is_one_plain_text_part() -> None:
    assert mail(ALERT, sender="a@example.org", recipients=("b@example.org",)).get_content_type() == "text/plain"


# ---------------------------------------------------------------------------------------------- webhook


async def test_a_webhook_gets_the_text_and_the_fields(receiver: Receiver) -> None:
    await MailAndWebhook(settings=Settings(alert_webhook_url=receiver.url)).send(ALERT)
    assert receiver.bodies == [
        {
            "text": "setup: no runner group Default\nPool linux-x64 gets no runners.\nCreate it.",
            "id": "setup:linux-x64",
            "area": "setup",
            "title": "no runner group Default",
            "details": "Pool linux-x64 gets no runners.\nCreate it.",
        }
    ]


@pytest.mark.parametrize("status", [301, 307, 400, 404, 429, 500])
async def test_an_answer_other_than_2xx_means_not_sent_and_a_redirect_is_not_followed(receiver: Receiver, status: int) -> None:
    receiver.status = status
    with pytest.raises(RetryLater, match=f"webhook: answered {status}"):
        await MailAndWebhook(settings=Settings(alert_webhook_url=receiver.url)).send(ALERT)
    assert len(receiver.bodies) == 1


def test_slack_gets_text_alone_that_cannot_call_the_whole_channel() -> None:
    body = webhook_body(replace(ALERT, text="job <!channel> & co"), url=f"https://hooks.slack.com{SECRET_PATH}")
    assert body == {"text": "*setup: no runner group Default*\njob &lt;!channel&gt; &amp; co"}


@pytest.mark.parametrize(
    "url",
    [
        "https://prod-12.westeurope.logic.azure.com:443/workflows/0/triggers/manual/paths/invoke?sig=x",
        "https://0.1.environment.api.powerplatform.com/powerautomate/automations/direct/workflows/0",
        "https://contoso.webhook.office.com/webhookb2/0",
    ],
)
def test_teams_gets_an_adaptive_card(url: str) -> None:
    body = webhook_body(ALERT, url=url)
    (attachment,) = body["attachments"]
    assert body["type"] == "message"
    assert attachment["contentType"] == "application/vnd.microsoft.card.adaptive"
    assert attachment["content"]["type"] == "AdaptiveCard"
    assert [block["text"] for block in attachment["content"]["body"]] == ["setup: no runner group Default", ALERT.text]


# ---------------------------------------------------------------------------------------------- both, one, none


async def test_an_alert_goes_out_on_every_channel(receiver: Receiver) -> None:
    async with mail_server() as server:
        await MailAndWebhook(settings=replace(server.settings, alert_webhook_url=receiver.url)).send(ALERT)
    assert (len(server.mails), len(receiver.bodies)) == (1, 1)


@pytest.mark.parametrize("broken", ["mail", "webhook"])
async def test_one_channel_that_works_suffices_and_the_other_is_logged(
    receiver: Receiver, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with mail_server() as server:
        settings = replace(server.settings, alert_webhook_url=receiver.url)
        if broken == "mail":
            settings = replace(settings, smtp_port=await closed_port())
        else:
            receiver.status = 500
        await MailAndWebhook(settings=settings).send(ALERT)
    assert (len(server.mails), len(receiver.bodies)) == ((0, 1) if broken == "mail" else (1, 1))
    assert f"not everywhere: {broken}: " in caplog.text


async def test_an_alert_that_went_out_nowhere_is_for_later_and_the_webhooks_address_stays_secret(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    port = await closed_port()
    settings = Settings(
        smtp_host="127.0.0.1",
        smtp_port=port,
        alert_from="a@example.org",
        alert_to=("b@example.org",),
        alert_webhook_url=f"http://127.0.0.1:{port}{SECRET_PATH}",
    )
    with pytest.raises(RetryLater, match=r"mail: ConnectionRefusedError: .*; webhook: ClientConnectorError") as caught:
        await MailAndWebhook(settings=settings).send(ALERT)
    assert "secret-of-the-webhook" not in f"{caught.value}{caplog.text}"


async def test_servers_that_never_answer_cost_no_more_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alerts, "SECONDS", 0.2)
    released = asyncio.Event()

    async def hang(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await released.wait()
        writer.close()

    async with await asyncio.start_server(hang, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        settings = Settings(
            smtp_host="127.0.0.1",
            smtp_port=port,
            alert_from="a@example.org",
            alert_to=("b@example.org",),
            alert_webhook_url=f"http://127.0.0.1:{port}{SECRET_PATH}",
        )
        async with asyncio.timeout(30):
            with pytest.raises(RetryLater, match=r"mail: .*; webhook: "):
                await MailAndWebhook(settings=settings).send(ALERT)
        released.set()


async def test_without_any_channel_the_alert_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    await MailAndWebhook(settings=Settings()).send(ALERT)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "no runner group Default" in record.getMessage()
    assert "Create it." in record.getMessage()
