"""`doctor` on the webhook: is there one, does it say what we need, did its last deliveries arrive."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from urllib.parse import urlsplit

from runnerpool.doctor_github import CREDENTIAL_PAGE, GitHub
from runnerpool.errors import Gone, Misconfigured
from runnerpool.findings import Check, Finding, fail, ok, warn
from runnerpool.github_errors import Forbidden
from runnerpool.github_setup import EVENT, Attempt, Webhook
from runnerpool.model import Target
from runnerpool.settings import is_loopback
from runnerpool.webhook import INSTALL, PATH, places

RECENT = 30
"""Deliveries looked at, of each webhook."""

MENDS = {
    401: f"the secrets differ, give both the same: {INSTALL}",
    404: f"the address is not the app's: {INSTALL}",
    415: f"its content type has to be json: {INSTALL}",
    503: "the app has no GITHUB_WEBHOOK_SECRET: set it, docs/deploy.md#settings",
}
"""By the status code that the app answered."""


def checks(github: GitHub) -> list[Check]:
    return [Check("webhook", lambda: webhook(github), CREDENTIAL_PAGE)]


async def webhook(github: GitHub) -> Sequence[Finding]:
    found: list[Finding] = []
    ours: list[Webhook] = []
    uncovered: list[Target] = []
    hidden: list[Target] = []
    for target in places(github.settings, github.config):
        try:
            hooks = [hook for hook in await github.setup.webhooks(target) if is_ours(hook)]
        except (Forbidden, Gone) as error:
            hidden.append(target)
            if target != "app:":
                found.append(
                    warn("webhook", f"cannot be looked at: {error}", f"give the credential 'Webhooks: read': {CREDENTIAL_PAGE}")
                )
            continue
        ours += hooks
        uncovered += [] if hooks else [target]
    found += await _app_events(github, ours)
    found += [finding for hook in ours for finding in [judge(hook), *(await _deliveries(github, hook))]]
    if any(hook.path.startswith("/app/") for hook in ours):
        return found  # an App's hook hears of every repository that it is installed on
    return [*found, *_missing(github, uncovered, hidden)]


def _missing(github: GitHub, uncovered: Sequence[Target], hidden: Sequence[Target]) -> list[Finding]:
    if github.config.github.scope == "enterprise" and not github.settings.github_app:
        page = f"https://github.com/enterprises/{github.config.github.owner}/settings/hooks"
        return [warn("webhook", "GitHub offers no API for an enterprise's webhooks", f"look at it at {page}")]
    lacking = [target for target in uncovered if target != "app:"]
    if not lacking and "app:" in uncovered and not hidden:
        lacking = ["app:"]
    return [fail("webhook", f"{target} has none that ends in {PATH}", INSTALL) for target in lacking]


def is_ours(hook: Webhook) -> bool:
    return urlsplit(hook.url).path.rstrip("/").endswith(PATH)


def judge(hook: Webhook) -> Finding:
    """What is wrong with the webhook itself."""
    url = urlsplit(hook.url)
    loopback = is_loopback(url.hostname or "")
    faults = {
        "it is switched off": not hook.active,
        f"it is not subscribed to {EVENT}": not {EVENT, "*"} & {*hook.events},
        f"its content type is {hook.content_type}, not json": hook.content_type != "json",
        "it has no secret": not hook.secret,
        "its address is not https": url.scheme != "https" and not loopback,
        "GitHub does not verify the certificate of its address": not hook.verifies_tls and not loopback,
    }
    wrong = [fault for fault, there in faults.items() if there]
    if wrong:
        return fail("webhook", f"{hook.path} to {hook.url}: {', '.join(wrong)}", INSTALL)
    return ok("webhook", f"{hook.path} sends {EVENT} as json, signed, to {hook.url}")


async def _app_events(github: GitHub, ours: Sequence[Webhook]) -> list[Finding]:
    """An App's events are the App's own, not its hook's."""
    installation = github.settings.github_app_installation_id
    if installation is None or not any(hook.path.startswith("/app/") for hook in ours):
        return []
    grant = await github.setup.app_grant(installation)
    if EVENT in grant.events:
        return []
    told = f"the App is not subscribed to {EVENT}"
    return [fail("webhook", told, f"tick 'Workflow job' under the App's Permissions & events, then accept it at {grant.page}")]


# ---------------------------------------------------------------------------------------------- deliveries


async def _deliveries(github: GitHub, hook: Webhook) -> list[Finding]:
    what = "deliveries"
    try:
        attempts = await github.setup.attempts(hook, RECENT)
    except (Forbidden, Gone, Misconfigured) as error:
        return [warn(what, f"cannot be listed: {error}", f"give the credential 'Webhooks: read': {CREDENTIAL_PAGE}")]
    return [judge_deliveries(hook, attempts, datetime.now(UTC))]


def judge_deliveries(hook: Webhook, attempts: Sequence[Attempt], now: datetime) -> Finding:
    """`attempts` newest first. A newest one that failed is a fault of now; older failures are history."""
    what = f"deliveries of {hook.path}"
    if not attempts:
        told = "GitHub has sent none yet, or none for days"
        return warn(what, told, "queue a job, or press Redeliver on the webhook's page, and look again")
    newest = attempts[0]
    age = f"{max(int((now - newest.delivered_at).total_seconds()), 0):,} s ago"
    failed = [attempt for attempt in attempts if not attempt.ok]
    codes = ", ".join(f"{count} × {code or 'no answer'}" for code, count in Counter(it.status_code for it in failed).items())
    if not newest.ok:
        told = f"the last one, {age}, failed: {newest.status_code or ''} {newest.status}".rstrip()
        return fail(
            what, told, MENDS.get(newest.status_code, "see whether the app runs and can be reached from the Internet: its log")
        )
    if failed:
        told = f"the last one, {age}, arrived; {len(failed)} of the last {len(attempts)} failed ({codes})"
        return warn(what, told, "nothing to do: reconcile has them sent again; the app's log says why they failed")
    return ok(what, f"the last {len(attempts)} arrived, the newest {age}")
