"""`python -m runnerpool doctor`: everything that a deployment can get wrong, looked at live, and nothing changed by it.

The checks run side by side, each for a limited time; their findings are printed in a fixed order, one a line: what was
checked, what was found, and where that is not well, the command or the page that mends it.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import TextIO

from runnerpool.check import findings as pool_file_warnings
from runnerpool.config import Config
from runnerpool.errors import Misconfigured, PoolError, RetryLater
from runnerpool.findings import Check, Finding, Level, fail, ok, warn
from runnerpool.pool_file import ConfigError, read_pool_file, spell
from runnerpool.settings import Settings, SettingsError

CHECK_SECONDS = 45.0
"""For one check; a service that has not answered by then does not answer."""

SETTINGS_PAGE = "docs/deploy.md#settings"


async def look(check: Check, *, seconds: float = CHECK_SECONDS) -> Sequence[Finding]:
    """The findings of one check, whatever happens in it."""
    try:
        async with asyncio.timeout(seconds):
            return await check.run()
    except TimeoutError:
        return [fail(check.what, f"no answer within {seconds:g} s", "try again; if it stays so, look at the network in between")]
    except RetryLater as error:
        return [fail(check.what, str(error), "try again in a minute; if it stays so, look at the network in between")]
    except PoolError as error:
        return [fail(check.what, str(error), check.mend)]
    except Exception as error:  # a defect of the check's own is told, and stops no other
        return [fail(check.what, f"the check itself failed: {type(error).__name__}: {error}"[:500], check.mend)]


async def run(env: Mapping[str, str], *, seconds: float = CHECK_SECONDS, out: TextIO | None = None) -> int:
    """Prints every finding; the exit code."""
    out = out or sys.stdout
    colours = out.isatty()
    settings, found = read_settings(env)
    config, of_file = read_config(settings)
    found = [*found, *of_file]
    for finding in found:
        print(_coloured(finding) if colours else finding, file=out, flush=True)
    async with AsyncExitStack() as closing:
        running = [asyncio.create_task(look(check, seconds=seconds)) for check in checks(settings, config, closing)]
        for task in running:
            for finding in await task:
                print(_coloured(finding) if colours else finding, file=out, flush=True)
                found.append(finding)
    failures, warnings = (sum(finding.level is level for finding in found) for level in (Level.FAIL, Level.WARN))
    print(f"{len(found)} findings: {failures} to mend, {warnings} to know about", file=out, flush=True)
    return 1 if failures else 0


def _coloured(finding: Finding) -> str:
    colour = {Level.OK: 32, Level.WARN: 33, Level.FAIL: 31}[finding.level]
    return str(finding).replace(f"{finding.level:<4}", f"\x1b[{colour}m{finding.level:<4}\x1b[0m", 1)


# ---------------------------------------------------------------------------------------------- settings and pool file


def read_settings(env: Mapping[str, str]) -> tuple[Settings, list[Finding]]:
    """The settings, without those that are set wrongly, so that the others can still be used."""
    problems: list[str] = []
    rest = dict(env)
    while True:
        try:
            settings = Settings.from_env(rest)
            break
        except SettingsError as error:
            problems += [problem for problem in error.problems if problem not in problems]
            named = {name for problem in error.problems for name in re.findall(r"\b[A-Z]\w*_?\w+\b", problem.partition(":")[0])}
            rest = {name: value for name, value in rest.items() if name not in named and name.partition("__")[0] not in named}
            if not named & env.keys():
                settings = Settings()
                break
    found = [fail("settings", problem, SETTINGS_PAGE) for problem in problems]
    found += [fail("settings", lack, SETTINGS_PAGE) for lack in settings.lacking]
    if not settings.github_webhook_secrets:
        lack = "GITHUB_WEBHOOK_SECRET: set the webhook's secret, as `openssl rand -hex 32` makes one"
        found.append(fail("settings", lack, SETTINGS_PAGE))
    if not settings.runner_status_token:
        lack = "RUNNER_STATUS_TOKEN: not set, so /runner/status answers nobody"
        found.append(warn("settings", lack, "set it to what `openssl rand -hex 32` makes"))
    return settings, found or [ok("settings", "complete")]


def read_config(settings: Settings) -> tuple[Config | None, list[Finding]]:
    try:
        file = read_pool_file(settings.pool_config)
    except ConfigError as error:
        mend = f"edit it, then python -m runnerpool check {settings.pool_config}"
        return None, [fail("pool file", str(problem), mend) for problem in error.problems]
    pools = file.config.pools
    names = ", ".join(f"{pool.name} (up to {pool.maximum_pool_size})" for pool in pools)
    found = [ok("pool file", f"{len(pools)} {'pool' if len(pools) == 1 else 'pools'}: {names}")]
    for warning in pool_file_warnings(file.config):
        where = f"{file.file}:{file.line(warning.loc)}"
        found.append(warn("pool file", f"{spell(warning.loc)}: {warning.message}", f"edit {where}"))
    return file.config, found


# ---------------------------------------------------------------------------------------------- all of them


def checks(settings: Settings, config: Config | None, closing: AsyncExitStack) -> list[Check]:
    """In the order in which they are printed. `closing` is given what has to be closed. The SDKs are imported here."""
    from runnerpool import doctor_alerts, doctor_storage

    found: list[Check] = []
    if config is None:
        found.append(_left_out("Azure and GitHub", "not looked at, since the pool file cannot be read"))
    else:
        found += _azure(settings, config, closing) + _github(settings, config, closing)
    if settings.storage is not None:
        found += doctor_storage.checks(settings, config, closing)
    return [*found, *doctor_alerts.checks(settings)]


def _azure(settings: Settings, config: Config, closing: AsyncExitStack) -> list[Check]:
    if not settings.azure_subscription_id:
        return [_left_out("Azure", "not looked at without AZURE_SUBSCRIPTION_ID")]
    from runnerpool import doctor_azure, doctor_compute, doctor_network

    try:
        azure = doctor_azure.Azure.open(settings, config, closing)
    except Misconfigured as error:
        told = fail("Azure", str(error), SETTINGS_PAGE)
        return [replace(_left_out("Azure", ""), run=lambda: _these(told))]
    return [*doctor_azure.checks(azure), *doctor_network.checks(azure), *doctor_compute.checks(azure)]


def _github(settings: Settings, config: Config, closing: AsyncExitStack) -> list[Check]:
    if not (settings.github_token or settings.github_app):
        return [_left_out("GitHub", "not looked at without GITHUB_TOKEN or the App's settings")]
    from runnerpool import doctor_github, doctor_webhook

    github = doctor_github.GitHub.open(settings, config)
    closing.push_async_exit(github.client)
    return [*doctor_github.checks(github), *doctor_webhook.checks(github)]


def _left_out(what: str, text: str) -> Check:
    return Check(what, lambda: _these(warn(what, text, "mend that first")), "")


async def _these(*findings: Finding) -> Sequence[Finding]:
    return findings
