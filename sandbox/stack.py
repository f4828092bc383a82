"""Everything that the app talks to, on loopback: Azurite, the sandbox's Azure with its VMs, the sandbox's GitHub."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path

from runnerpool.config import Config
from runnerpool.pool_file import load_config
from sandbox.arm import ArmSandbox
from sandbox.azurite import Azurite
from sandbox.github import GitHubSandbox
from sandbox.vms import Machines

SUBSCRIPTION = "00000000-0000-4000-8000-000000000001"

NOT_OURS = (
    "AzureWebJobsStorage__accountName",
    "AZURE_TENANT_ID",
    "AZURE_CLIENT_ID",
    "AZURE_CLIENT_SECRET",
    "GITHUB_APP_ID",
    "GITHUB_APP_PRIVATE_KEY",
    "GITHUB_APP_INSTALLATION_ID",
    "GITHUB_WEBHOOK_SECRET_PREVIOUS",
    "RUNNER_AGENT_KEY_PREVIOUS",
    "SMTP_HOST",
    "SMTP_USERNAME",
    "SMTP_PASSWORD",
    "ALERT_FROM",
    "ALERT_TO",
    "ALERT_WEBHOOK_URL",
)
"""Settings that the sandbox needs unset, whatever the environment that it was started from holds."""


class Stack:
    """Starts in order, stops in reverse. `folder` takes the VMs' disks; `boot_seconds` pass before a VM's agent answers.
    `storage` is an Azurite of the caller's choice, which is started and stopped here; `lost_after` as for `GitHubSandbox`;
    `seed` is that of every chance that this Azure and this GitHub take.

    The organisation's repositories are `config.github.owner`/backend and /website.
    """

    def __init__(
        self,
        *,
        folder: Path,
        pool_file: Path,
        boot_seconds: float = 0.0,
        storage: Azurite | None = None,
        lost_after: float = 600.0,
        seed: int = 0,
    ) -> None:
        self.pool_file = pool_file
        self.config: Config = load_config(pool_file)
        self.repositories = [f"{self.config.github.owner}/{name}" for name in ("backend", "website")]
        self.status_token = secrets.token_hex(16)
        self.github_url = ""
        self.arm_url = ""
        self.machines = Machines(root=folder / "vms")
        self.machines.setup_seconds = boot_seconds / 3
        azure = self.config.azure
        self.arm = ArmSandbox(
            subscription_id=SUBSCRIPTION,
            resource_group=azure.resource_group,
            machines=self.machines,
            location=azure.location,
            virtual_network=azure.virtual_network,
            subnet=azure.subnet,
            network_security_group=azure.network_security_group,
            boot_delay=boot_seconds * 2 / 3,
            delete_delay=0.5,
            seed=seed,
        )
        self._github_token = secrets.token_hex(16)
        self._webhook_secret = secrets.token_hex(16)
        self._agent_key = secrets.token_hex(32)
        self.github = GitHubSandbox(
            owner=self.config.github.owner,
            repositories=self.repositories,
            tokens=[self._github_token],
            hook_on="repo" if self.config.github.scope == "repo" else "org",
            lost_after=lost_after,
            seed=seed,
        )
        self._azurite = storage or Azurite()
        self._running = AsyncExitStack()

    async def start(self) -> None:
        """Raises RuntimeError or OSError when a part cannot be started; the parts that run by then are stopped."""
        async with AsyncExitStack() as started:
            started.push_async_callback(self._azurite.stop)
            await self._azurite.start()
            started.push_async_callback(self.machines.stop_all)
            started.push_async_callback(self.arm.stop)
            self.arm_url = await self.arm.start()
            started.push_async_callback(self.github.stop)
            self.github_url = await self.github.start()
            self._running = started.pop_all()

    async def stop(self) -> None:
        await self._running.aclose()

    async def __aenter__(self) -> Stack:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def deliver_to(self, app_url: str) -> None:
        """From here on GitHub sends its deliveries to the app at this address."""
        self.github.set_webhook(f"{app_url}/github/webhook", self._webhook_secret)

    @property
    def settings(self) -> Mapping[str, str]:
        """The app's settings, as local.settings.json or the environment give them to it."""
        return {
            "FUNCTIONS_WORKER_RUNTIME": "python",
            "AzureWebJobsStorage": self._azurite.connection_string,
            "POOL_CONFIG": str(self.pool_file.resolve()),
            "GITHUB_WEBHOOK_SECRET": self._webhook_secret,
            "GITHUB_TOKEN": self._github_token,
            "GITHUB_API_URL": self.github_url,
            "AZURE_SUBSCRIPTION_ID": SUBSCRIPTION,
            "ARM_ENDPOINT": self.arm_url,
            "RUNNER_STATUS_TOKEN": self.status_token,
            "RUNNER_AGENT_KEY": self._agent_key,
            "NO_PROXY": "localhost,127.0.0.1",
        }

    @property
    def environment(self) -> dict[str, str]:
        """The same for a host that we start: what else the app would read from our own environment counts as unset."""
        return {**dict.fromkeys(NOT_OURS, ""), **self.settings}


def write_local_settings(file: Path, stack: Stack) -> None:
    """Raises FileExistsError where the file holds settings that no sandbox wrote."""
    if file.exists() and "http://127.0.0.1:" not in json.loads(file.read_text()).get("Values", {}).get("ARM_ENDPOINT", ""):
        raise FileExistsError(f"{file.name} holds other settings than the sandbox's: move it away first")
    file.write_text(json.dumps({"IsEncrypted": False, "Values": dict(stack.settings)}, indent=2) + "\n")
