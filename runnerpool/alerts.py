"""Alerts to people: by mail, and as a JSON POST that Teams and Slack understand."""

from __future__ import annotations

import asyncio
import html
import logging
import smtplib
import ssl
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from email.message import EmailMessage
from email.utils import localtime, make_msgid
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from runnerpool.errors import RetryLater
from runnerpool.ports import Alert
from runnerpool.settings import Settings

SECONDS = 10.0
"""For the POST as a whole, and for each answer of the mail server."""

MAIL_SECONDS = 30.0
IMPLICIT_TLS_PORT = 465

log = logging.getLogger(__name__)


class MailAndWebhook:
    """`ports.Alerts` on the channels that the settings name. Each alert is tried on all of them; one suffices."""

    def __init__(self, *, settings: Settings, tls: ssl.SSLContext | None = None) -> None:
        """`tls` replaces the trust in the public authorities, for a mail server that a private one vouches for."""
        self._settings = settings
        self._tls = tls

    async def send(self, alert: Alert) -> None:
        channels: list[Awaitable[None]] = []
        if self._settings.smtp_host and self._settings.alert_to:
            channels.append(self._mail(alert))
        if self._settings.alert_webhook_url:
            channels.append(self._post(alert))
        if not channels:
            log.warning("alert %s (no mail and no webhook is configured): %s: %s", alert.id, alert.title, alert.text)
            return
        results = await asyncio.gather(*channels, return_exceptions=True)
        failures = [result for result in results if result is not None]
        for failure in failures:
            if not isinstance(failure, RetryLater):
                raise failure
        if len(failures) == len(channels):
            raise RetryLater(f"alert {alert.id} did not go out: {'; '.join(map(str, failures))}")
        for failure in failures:
            log.warning("alert %s went out, but not everywhere: %s", alert.id, failure)

    async def _mail(self, alert: Alert) -> None:
        message = mail(alert, sender=self._settings.alert_from, recipients=self._settings.alert_to)
        try:
            async with asyncio.timeout(MAIL_SECONDS):
                refused = await asyncio.to_thread(self._deliver, message)
        except OSError as error:  # smtplib's and ssl's errors and TimeoutError among them
            raise RetryLater(f"mail: {type(error).__name__}: {error}") from error
        if refused:
            log.warning("alert %s: the mail server refused %s", alert.id, ", ".join(sorted(refused)))

    async def greet(self) -> None:
        """Comes as far as sending a mail would, and sends none. Raises RetryLater, saying at what it failed."""
        try:
            async with asyncio.timeout(MAIL_SECONDS):
                await asyncio.to_thread(self._greet)
        except OSError as error:
            raise RetryLater(f"{type(error).__name__}: {error}") from error

    def _greet(self) -> None:
        with self._session() as server:
            server.noop()

    def _deliver(self, message: EmailMessage) -> dict[str, Any]:
        """Returns the recipients that the server refused, if it took at least one."""
        with self._session() as server:
            return server.send_message(message)

    @contextmanager
    def _session(self) -> Iterator[smtplib.SMTP]:
        """Connected, encrypted and logged in, as the settings ask."""
        settings = self._settings
        tls = self._tls or ssl.create_default_context()
        with self._connect(tls) as server:
            if settings.smtp_starttls and settings.smtp_port != IMPLICIT_TLS_PORT:
                server.starttls(context=tls)  # raises where the server offers none: nothing then goes out in the clear
            if settings.smtp_username:
                server.login(settings.smtp_username, settings.smtp_password)
            yield server

    def _connect(self, tls: ssl.SSLContext) -> smtplib.SMTP:
        host, port = self._settings.smtp_host, self._settings.smtp_port
        if port == IMPLICIT_TLS_PORT:
            return smtplib.SMTP_SSL(host, port, timeout=SECONDS, context=tls)
        return smtplib.SMTP(host, port, timeout=SECONDS)

    async def _post(self, alert: Alert) -> None:
        # aiohttp and not httpx, which logs the address of each request: this address is a secret, also in an error's text.
        url, timeout = self._settings.alert_webhook_url, aiohttp.ClientTimeout(total=SECONDS)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.post(url, json=webhook_body(alert, url=url), allow_redirects=False) as response,
            ):
                status = response.status
        except (aiohttp.ClientError, OSError) as error:
            raise RetryLater(f"webhook: {type(error).__name__}") from None
        if not 200 <= status < 300:
            raise RetryLater(f"webhook: answered {status}")


def mail(alert: Alert, *, sender: str, recipients: tuple[str, ...]) -> EmailMessage:
    """A plain text mail. Line ends in the title become spaces: it cannot begin another header."""
    message = EmailMessage()
    message["From"] = sender
    message["To"] = ", ".join(recipients)
    message["Subject"] = " ".join(_printable(f"[runnerpool] {alert.area}: {alert.title}").split())
    message["Date"] = localtime()
    message["Message-ID"] = make_msgid(domain=sender.rpartition("@")[2])
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(f"{_printable(alert.text)}\n\n-- \nrunnerpool, alert {_printable(alert.id)}\n")
    return message


_TEAMS = ("logic.azure.com", "powerplatform.com", "powerautomate.com", "webhook.office.com")
_SLACK = ("hooks.slack.com", "hooks.slack-gov.com")


def webhook_body(alert: Alert, *, url: str) -> dict[str, Any]:
    """What the receiver at `url` shows: `text` for Slack and most others, with the alert's fields for those that read them.

    Teams' workflows take an adaptive card only, and drop anything else without a word. In Slack's text `<!channel>` calls
    everybody, so it goes there escaped.
    """
    host = urlsplit(url).hostname or ""
    title, text = _printable(alert.title), _printable(alert.text)
    heading = f"{alert.area}: {title}"
    if host in _SLACK:
        return {"text": html.escape(f"*{heading}*\n{text}", quote=False)}
    if host.endswith(_TEAMS):
        blocks = [{"text": heading, "weight": "bolder"}, {"text": text}]
        card = {
            "type": "AdaptiveCard",
            "version": "1.4",
            "body": [{"type": "TextBlock", "wrap": True, **block} for block in blocks],
        }
        return {"type": "message", "attachments": [{"contentType": "application/vnd.microsoft.card.adaptive", "content": card}]}
    return {"text": f"{heading}\n{text}", "id": alert.id, "area": alert.area, "title": title, "details": text}


def _printable(text: str) -> str:
    """Without control characters and halves of surrogate pairs, which not every mail server and no JSON receiver takes."""
    return "".join(character if character.isprintable() or character in "\n\t" else " " for character in text)
