"""The engine with its adapters: what `provision` and `reconcile` run on. Importing this module imports every SDK."""

from __future__ import annotations

import os
import random
import secrets
import socket
import string
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import datetime

from runnerpool.acting import Outside
from runnerpool.agent_client import HttpAgents
from runnerpool.alerts import MailAndWebhook
from runnerpool.arm import azure_credential
from runnerpool.compute import AzureCompute
from runnerpool.config import Config, PoolConfig
from runnerpool.errors import Misconfigured
from runnerpool.github import GitHubApi
from runnerpool.github_client import App as GitHubApp
from runnerpool.github_client import Token
from runnerpool.labels import SUFFIX_LENGTH
from runnerpool.ledger import Ledger
from runnerpool.network import AzureNetwork
from runnerpool.ports import JitConfig, RunnerPackage
from runnerpool.provision import Engine, SharedPasses
from runnerpool.reconcile import Reconcile
from runnerpool.retry import Clock
from runnerpool.settings import Settings
from runnerpool.sweep import TAG
from runnerpool.vm.token import agent_token
from runnerpool.vm.userdata import UserDataTooLarge, render


@dataclass(frozen=True, slots=True)
class Planner:
    """One per process; its connections live as long as it does."""

    github: GitHubApi
    closing: AsyncExitStack
    passes: SharedPasses
    reconciler: Reconcile

    @classmethod
    def open(cls, settings: Settings, config: Config, ledger: Ledger, clock: Clock) -> Planner:
        """Connects nothing yet; the first call of each adapter does."""
        endpoint = settings.arm_endpoint
        credential = azure_credential(endpoint)
        subscription = settings.azure_subscription_id
        azure = config.azure
        compute = AzureCompute(subscription_id=subscription, azure=azure, endpoint=endpoint, credential=credential)
        network = AzureNetwork(subscription_id=subscription, azure=azure, endpoint=endpoint, credential=credential)
        github = GitHubApi(
            api_url=settings.github_api_url, credential=github_credential(settings), hook_targets=config.github.targets
        )
        agents = HttpAgents(keys=settings.runner_agent_keys, subnet_prefixes=network.subnet_prefixes)
        key = settings.runner_agent_keys[0]

        def user_data(pool: PoolConfig, name: str, package: RunnerPackage | None, jit: JitConfig | None) -> str:
            try:
                return render(pool=pool, name=name, agent_token=agent_token(key, name), package=package, jit=jit)
            except (OSError, UserDataTooLarge) as error:
                raise Misconfigured(f"pool {pool.name}: {error}", area="setup") from error

        outside = Outside(
            compute=compute,
            github=github,
            agents=agents,
            user_data=user_data,
            group=config.github.runner_group,
            anchor=config.github.targets[0],
            others=config.github.targets[1:],
            tags={**azure.tags, TAG: azure.name_prefix},
            place=azure.place(subscription),
        )
        closing = AsyncExitStack()
        for close in (compute.close, network.close, agents.aclose):
            closing.push_async_callback(close)
        if credential is not None:
            closing.push_async_callback(credential.close)
        engine = Engine(
            config=config,
            ledger=ledger,
            outside=outside,
            clock=clock,
            worker=f"{socket.gethostname()}-{os.getpid()}-{new_suffix()}"[:80],
            suffix=new_suffix,
            rng=random.Random(),
        )
        reconciler = Reconcile(
            engine=engine, ledger=ledger, outside=outside, network=network, alerts=MailAndWebhook(settings=settings), clock=clock
        )
        return cls(github, closing, SharedPasses(engine), reconciler)

    async def close(self) -> None:
        """Ends the connections to Azure and to the agents; GitHub's end with each pass."""
        await self.closing.aclose()

    async def wake(self, pool: str, *, deadline: datetime) -> None:
        """A wake-up's pass, and one for every other pool whose runner a fact of this one named."""
        async with self.github:
            for other in await self.passes.wake(pool, deadline=deadline):
                await self.passes.wake(other, deadline=deadline)

    async def reconcile(self, *, deadline: datetime) -> None:
        async with self.github:
            await self.reconciler.run(deadline=deadline)


def github_credential(settings: Settings) -> Token | GitHubApp:
    """The App where one is set, else the token."""
    if settings.github_app and settings.github_app_installation_id is not None:
        return GitHubApp(
            app_id=settings.github_app_id,
            installation_id=settings.github_app_installation_id,
            private_key=settings.github_app_private_key,
        )
    return Token(settings.github_token)


def new_suffix() -> str:
    """The last part of a runner's name: never used twice, 36 ** 10 of them."""
    return "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(SUFFIX_LENGTH))
