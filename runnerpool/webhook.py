"""`python -m runnerpool webhook install`: makes the webhook as the app needs it, or makes it so. Repeating it changes nothing
but the secret, which GitHub never shows and which is therefore set again each time."""

from __future__ import annotations

from urllib.parse import urlsplit

from runnerpool.config import Config
from runnerpool.errors import Gone, Misconfigured, PoolError
from runnerpool.github_client import GitHubClient
from runnerpool.github_setup import EVENT, GitHubSetup, Webhook
from runnerpool.model import Target
from runnerpool.planner import github_credential
from runnerpool.settings import Settings, SettingsError, is_loopback

PATH = "/github/webhook"
INSTALL = f"python -m runnerpool webhook install --url https://APP{PATH}"


def places(settings: Settings, config: Config) -> list[Target]:
    """Where a webhook of ours may hang, as `GitHubSetup.webhooks` takes them."""
    listed = [target for target in config.github.targets if not target.startswith("enterprise:")]
    return ["app:", *listed] if settings.github_app else listed


def checked_url(text: str) -> str:
    """The address of the app's webhook, from that address or the app's own. Raises ValueError, saying what is wrong."""
    parts = urlsplit(text.strip())
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(parts.hostname or "")):
        raise ValueError("the address must begin with https://")
    if not parts.hostname or parts.username is not None or parts.query or parts.fragment:
        raise ValueError(f"not an address like https://APP{PATH}")
    path = parts.path.rstrip("/")
    if path not in ("", PATH):
        raise ValueError(f"the app's webhook is at {PATH}, not at {parts.path}")
    return f"{parts.scheme}://{parts.netloc}{PATH}"


async def install(settings: Settings, config: Config, url: str) -> int:
    """Prints what was done; the exit code. Raises SettingsError where a setting is lacking."""
    if not settings.github_webhook_secrets:
        raise SettingsError(("GITHUB_WEBHOOK_SECRET: set it first: the webhook gets it, and the app checks it",))
    if not (settings.github_token or settings.github_app):
        raise SettingsError(("GITHUB_TOKEN: set a token, or the App's settings",))
    if config.github.scope == "enterprise" and not settings.github_app:
        page = f"https://github.com/enterprises/{config.github.owner}/settings/hooks"
        print(f"GitHub offers no API for an enterprise's webhooks: add it at {page}")
        print(f"  Payload URL {url}, Content type application/json, the secret GITHUB_WEBHOOK_SECRET, event 'Workflow jobs' alone")
        return 1
    secret = settings.github_webhook_secrets[0]
    targets = ["app:"] if settings.github_app else places(settings, config)
    failed = False
    async with GitHubClient(api_url=settings.github_api_url, credential=github_credential(settings)) as client:
        setup = GitHubSetup(client)
        for target in targets:
            try:
                print(await _install(setup, target, url, secret))
            except PoolError as error:
                failed = True
                print(f"{_named(target)}: {error}{_hint(error)}")
        if settings.github_app and settings.github_app_installation_id is not None and not failed:
            failed = not await _app_listens(setup, settings.github_app_installation_id)
    return 1 if failed else 0


async def _install(setup: GitHubSetup, target: Target, url: str, secret: str) -> str:
    found = await setup.webhooks(target)
    mine = found if target == "app:" else [hook for hook in found if _same(hook.url, url)]
    others = [hook for hook in found if hook not in mine and urlsplit(hook.url).path.endswith(PATH)]
    if mine or target == "app:":
        before = mine[0] if mine else Webhook(path="/app/hook", url="")
        await setup.set_webhook(target, before, url, secret)
        changes = _changes(before, url)
        told = f"changed: {', '.join(changes)}" if changes else "was as it should be"
        text = f"{_named(target)}: webhook {before.path} {told}; its secret was set again"
    else:
        made = await setup.create_webhook(target, url, secret)
        text = f"{_named(target)}: webhook {made.path} created, to {url}"
    for hook in others:
        text += f"\n{_named(target)}: {hook.path} goes to {hook.url}: another deployment's, or an old one: then delete it"
    return text


def _changes(before: Webhook, url: str) -> list[str]:
    """What was not as it should be, in the words of what it is now."""
    done = {
        f"goes to {url}": not _same(before.url, url),
        "active": not before.active,
        f"event {EVENT} alone": before.events != (EVENT,),
        "content type json": before.content_type != "json",
        "certificate verified": not before.verifies_tls,
        "signed": not before.secret,
    }
    return [change for change, needed in done.items() if needed]


async def _app_listens(setup: GitHubSetup, installation: int) -> bool:
    """GitHub lets nobody set an App's events by its API."""
    grant = await setup.app_grant(installation)
    if EVENT in grant.events:
        print(f"the App is subscribed to {EVENT}; that its webhook is active, only its page can tell")
        return True
    print("the App is not subscribed to workflow_job: tick 'Workflow job' under Permissions & events on the App's page,")
    print(f"  see that 'Active' is ticked under Webhook, and accept the change at {grant.page}")
    return False


def _same(one: str, other: str) -> bool:
    a, b = urlsplit(one), urlsplit(other)
    return (a.scheme, a.netloc.lower(), a.path.rstrip("/")) == (b.scheme, b.netloc.lower(), b.path.rstrip("/"))


def _named(target: Target) -> str:
    return "the App" if target == "app:" else target.partition(":")[2]


def _hint(error: PoolError) -> str:
    if isinstance(error, Gone):
        return " (a webhook is made with 'Webhooks: write', or admin:org_hook, and by an owner)"
    return "" if isinstance(error, Misconfigured) else " (try again)"
