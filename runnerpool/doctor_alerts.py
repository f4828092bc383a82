"""`doctor` on the ways to tell people: the mail server is greeted and left again; nothing is sent to anybody."""

from __future__ import annotations

from collections.abc import Sequence

from runnerpool.alerts import MailAndWebhook
from runnerpool.errors import RetryLater
from runnerpool.findings import Check, Finding, fail, ok, warn
from runnerpool.settings import Settings

PAGE = "docs/deploy.md#alerts"


def checks(settings: Settings) -> list[Check]:
    return [Check("alerts", lambda: alerts(settings), PAGE)]


async def alerts(settings: Settings) -> Sequence[Finding]:
    found: list[Finding] = []
    if settings.smtp_host and settings.alert_to:
        found.append(await _mail(settings))
    if settings.alert_webhook_url:
        found.append(ok("alert webhook", "is set; not tried, since whatever it gets is a message to people"))
    return found or [warn("alerts", "neither mail nor a webhook is set, so nobody is told when something is wrong", PAGE)]


async def _mail(settings: Settings) -> Finding:
    what = "mail server"
    server = f"{settings.smtp_host}:{settings.smtp_port}"
    try:
        await MailAndWebhook(settings=settings).greet()
    except RetryLater as error:
        return fail(what, f"{server}: {error}", f"see SMTP_HOST, SMTP_PORT, SMTP_STARTTLS, SMTP_USERNAME and SMTP_PASSWORD: {PAGE}")
    how = [f"{server} answers"]
    how += ["encrypted"] if settings.smtp_starttls or settings.smtp_port == 465 else ["in the clear"]
    how += ["logged in"] if settings.smtp_username else []
    told = f"{', '.join(how)}; mail goes from {settings.alert_from} to {', '.join(settings.alert_to)}"
    if "in the clear" in how:
        return warn(what, told, "set SMTP_STARTTLS=true")
    return ok(what, told)
