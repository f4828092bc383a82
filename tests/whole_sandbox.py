"""A deployment as the command line meets it: Azure, GitHub, storage and an app that takes webhooks, all on loopback."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml
from azure.core.exceptions import ResourceExistsError
from azure.storage.queue.aio import QueueClient

from runnerpool import doctor
from runnerpool.config import Config
from runnerpool.ledger import Ledger
from runnerpool.pool_file import load_config
from runnerpool.settings import StorageConnection
from runnerpool.tables import AzureTable
from sandbox.arm import ArmSandbox
from sandbox.azurite import Azurite
from sandbox.github import GitHubSandbox
from sandbox.github_faults import Fault
from tests.azure_sandbox import SUBSCRIPTION, RecordingMachines
from tests.github_fixture import ORG, SECRET, TOKEN, Receiver

POOL: Mapping[str, Any] = {
    "name": "linux",
    "labels": ["self-hosted", "linux"],
    "maximum_pool_size": 4,
    "vm": {"sizes": ["Standard_D4ads_v5"], "zones": ["1", "2"], "os_disk": {"ephemeral": True}},
}


@dataclass
class Whole:
    """`env` are the app's settings; a test changes them before it runs a command."""

    arm: ArmSandbox
    github: GitHubSandbox
    receiver: Receiver
    env: dict[str, str]
    pool_file: Path
    ledger: Ledger

    @property
    def config(self) -> Config:
        return load_config(self.pool_file)

    def write(self, *pools: Mapping[str, Any], azure: Mapping[str, Any] | None = None, **github: Any) -> None:
        """Another pool file."""
        document = {
            "azure": dict(azure or {}),
            "github": {"owner": ORG, **github},
            "pools": [dict(pool) for pool in pools or (POOL,)],
        }
        self.pool_file.write_text(yaml.safe_dump(document))

    def around(self, **wish: Any) -> None:
        """Changes what there is in Azure beside VMs."""
        self.arm.surroundings = self.arm.surroundings.changed(wish)

    def azure_fails(self, operation: str, status: int, code: str) -> None:
        self.arm.faults.add({"kind": "error", "operation": operation, "status": status, "code": code, "message": code})

    def github_answers(self, status: int, path: str, *, method: str = "", message: str = "Not Found") -> None:
        self.github.faults.add(Fault("answer", times=None, status=status, path=path, method=method, message=message))

    async def beat(self, *, age: timedelta = timedelta(0), **body: Any) -> None:
        """As a reconcile pass that ended so long ago leaves it."""
        at = (datetime.now(UTC) - age).isoformat()
        await self.ledger.put_app_row("heartbeat", {"body": json.dumps({"at": at, "seconds": 0.1, **body})})

    async def doctor(self, *, seconds: float = 20.0) -> tuple[int, list[str]]:
        """Exit code and lines."""
        out = io.StringIO()
        code = await doctor.run(self.env, seconds=seconds, out=out)
        return code, out.getvalue().splitlines()


@asynccontextmanager
async def whole(storage: Azurite, folder: Path, **github: Any) -> AsyncIterator[Whole]:
    """With its webhook in place, one delivery that arrived, and an app whose last pass ended a moment ago."""
    arm = ArmSandbox(subscription_id=SUBSCRIPTION, resource_group="hw-rg", machines=RecordingMachines())
    connection = StorageConnection(connection_string=storage.connection_string)
    tables = [AzureTable(storage=connection, name=name) for name in ("runnerpool", "history")]
    async with Receiver() as receiver:
        usual: dict[str, Any] = {"owner": ORG, "repositories": [f"{ORG}/backend"], "tokens": [TOKEN]}
        hub = GitHubSandbox(**{**usual, "webhook_url": receiver.url, "webhook_secret": SECRET, **github})
        try:
            env = {
                "AzureWebJobsStorage": storage.connection_string,
                "POOL_CONFIG": str(folder / "pool-config.yaml"),
                "GITHUB_WEBHOOK_SECRET": SECRET,
                "GITHUB_TOKEN": TOKEN,
                "GITHUB_API_URL": await hub.start(),
                "AZURE_SUBSCRIPTION_ID": SUBSCRIPTION,
                "ARM_ENDPOINT": await arm.start(),
                "RUNNER_STATUS_TOKEN": "t" * 32,
                "RUNNER_AGENT_KEY": "k" * 32,
                "ALERT_WEBHOOK_URL": "https://hooks.example.com/s3cr3t-path",
            }
            for table in tables:
                await table.create_if_missing()
            async with QueueClient.from_connection_string(storage.connection_string, "job-demand") as queue:
                with contextlib.suppress(ResourceExistsError):
                    await queue.create_queue()
            place = Whole(arm, hub, receiver, env, folder / "pool-config.yaml", Ledger(table=tables[0], history=tables[1]))
            place.write()
            await place.beat()
            if hub.deliveries.hooks:
                hub.world.queue(f"{ORG}/backend", ["linux"])
                await hub.deliveries.settled()
            yield place
        finally:
            await hub.stop()
            await arm.stop()
            for table in tables:
                await table.close()
