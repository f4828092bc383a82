"""What the commands that read the ledger share: the settings of a file, and the ledger as it is, with nothing made in it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, MutableMapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from runnerpool.app import open_storage
from runnerpool.config import Config
from runnerpool.ledger import Ledger
from runnerpool.pool_file import load_config
from runnerpool.settings import Settings, SettingsError

LOCAL_SETTINGS = Path("local.settings.json")


def load_settings(env: MutableMapping[str, str], file: Path | None) -> None:
    """Adds the `Values` of a settings file to the environment, which goes first where it holds a name already, as Core
    Tools have it. Without `file`: local.settings.json of the present folder, if there is one. Raises SettingsError."""
    path = file or LOCAL_SETTINGS
    if file is None and not path.is_file():
        return
    try:
        values = json.loads(path.read_text()).get("Values", {})
        for name, value in values.items():
            env.setdefault(name, str(value))
    except (OSError, ValueError, AttributeError) as error:
        raise SettingsError((f"{path}: cannot be read as a settings file: {error}",)) from error


@dataclass(frozen=True, slots=True)
class Deployment:
    """A deployment's ledger and its pool file."""

    config: Config
    ledger: Ledger

    async def pools(self) -> list[str]:
        """Every pool of the file, then every one that was ever planned and has left it."""
        configured = [pool.name for pool in self.config.pools]
        recorded = [entity.row.removeprefix("pool:") for entity in await self.ledger.app_rows("pool:")]
        return [*configured, *(name for name in recorded if name not in configured)]


@asynccontextmanager
async def deployment(env: Mapping[str, str]) -> AsyncIterator[Deployment]:
    """Raises SettingsError or ConfigError."""
    settings = Settings.from_env(env)
    config = load_config(settings.pool_config)
    storage = open_storage(settings)
    try:
        yield Deployment(config, Ledger(table=storage.table, history=storage.history))
    finally:
        await storage.close()


def columns(rows: Sequence[Sequence[object]]) -> list[str]:
    """Rows as lines, each column as wide as its widest cell; numbers to the right."""
    widths = [max(len(str(row[column])) for row in rows) for column in range(len(rows[0]))]

    def cell(value: object, width: int) -> str:
        return str(value).rjust(width) if isinstance(value, int) else str(value).ljust(width)

    return ["  ".join(cell(value, width) for value, width in zip(row, widths, strict=True)).rstrip() for row in rows]
