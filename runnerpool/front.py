"""What the HTTP functions call: settings and pool file are read here, and what is wrong with them becomes an answer.

The webhook's own settings are read apart from the rest, so that a mail server set wrongly loses no delivery; and none of the
SDKs that planning needs is imported on its way.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from runnerpool import intake
from runnerpool.config import Config
from runnerpool.intake import Receipt
from runnerpool.pool_file import ConfigError, load_config
from runnerpool.settings import Settings, SettingsError

WEBHOOK_SETTINGS = ("GITHUB_WEBHOOK_SECRET", "GITHUB_WEBHOOK_SECRET_PREVIOUS", "POOL_CONFIG")


def _now() -> datetime:
    return datetime.now(UTC)


clock: Callable[[], datetime] = _now
"""The present moment; the sandbox sets another one."""


def receive(body: bytes, headers: Mapping[str, str]) -> Receipt:
    """A delivery's answer, row and wake-up. A bad pool file answers 500, so that GitHub lists the delivery as failed."""
    try:
        settings = _settings(WEBHOOK_SETTINGS)
    except SettingsError as error:
        return Receipt(503, {"message": f"the webhook's settings cannot be used: {error}"})
    keys = settings.github_webhook_secrets
    try:
        config = _config(settings.pool_config)
    except ConfigError as error:
        trouble = {"message": f"the pool file cannot be used, nothing was recorded; mend it and redeliver:\n{error}"}
        lower = {name.lower(): value for name, value in headers.items()}
        return intake.refusal(body, lower, keys) or Receipt(500, trouble)
    return intake.receive(body, headers, secrets=keys, config=config, now=clock(), unique=secrets.token_hex(8))


async def runner_status(headers: Mapping[str, str]) -> tuple[int, dict[str, Any]]:
    """Status and JSON of `/runner/status`: 503 with every problem where settings or pool file keep the app from running."""
    try:
        from runnerpool.app import current

        app = current()
    except (ConfigError, SettingsError) as error:
        return _unusable(headers, error)
    return await app.runner_status(headers)


def _unusable(headers: Mapping[str, str], error: Exception) -> tuple[int, dict[str, Any]]:
    """What is wrong is told to those with the token; without one, the log of `reconcile` tells it."""
    from runnerpool.status import authorised

    token = os.environ.get("RUNNER_STATUS_TOKEN", "").strip()
    if not token:
        return 503, {"status": "misconfigured", "message": "set RUNNER_STATUS_TOKEN to read here what is wrong"}
    if not authorised(headers, token):
        return 401, {"message": "send the header Authorization: Bearer <RUNNER_STATUS_TOKEN>"}
    return 503, {"status": "misconfigured", "message": str(error), "problems": str(error).splitlines()}


@cache
def _settings(names: tuple[str, ...]) -> Settings:
    """From these variables alone. What raises is not kept: the next call reads again."""
    return Settings.from_env({name: os.environ[name] for name in names if name in os.environ})


@cache
def _config(path: Path) -> Config:
    return load_config(path)
