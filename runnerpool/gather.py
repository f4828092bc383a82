"""What one reconcile pass reads: Azure first, the ledger after it, then GitHub and the agents.

The order matters. A VM that is in Azure's list and has no row in a ledger read later is an orphan for certain, since a row
is written before its VM is asked for. What cannot be read stays None and removes nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TypeVar

from runnerpool.acting import Outside
from runnerpool.errors import Misconfigured, PoolError
from runnerpool.lifecycle import LIST_LAG, Seen, elsewhere
from runnerpool.model import Runner, RunnerState, Snapshot, Target
from runnerpool.ports import AgentStatus, AgentTrouble, Network, Nic, Registration, Vm
from runnerpool.retry import Clock, attempt

log = logging.getLogger(__name__)
S = RunnerState
T = TypeVar("T")

POLLS = 64
"""Agents polled at one time: a dead one holds its place for 5 s, so 300 dead agents delay a pass by 25 s at most."""
LOOKS = 100
"""Direct GETs in one pass; the others wait for the next."""
SUSPICIOUSLY_MANY = 3
"""So many agents do not die within one tick of each other."""
LIST_SHARE = 3
"""Whole GitHub lists take at most a third of the hourly budget."""
HOURLY_CALLS = 5_000
"""GitHub's smallest hourly budget; an App's is larger."""
TICK = timedelta(seconds=30)


@dataclass(slots=True)
class Gathered:
    """Everything read in one pass. `trouble` says, per service, why something is missing; `misconfigured` are those of its
    entries that a person has to mend."""

    place: str = ""  # the subscription and group in which Azure was asked
    vms: dict[str, Vm] | None = None
    nics: list[Nic] | None = None
    pools: dict[str, Snapshot] = field(default_factory=dict)
    registrations: dict[Target, dict[str, Registration]] = field(default_factory=dict)
    list_pages: int = 0
    agents: dict[str, AgentStatus | AgentTrouble] = field(default_factory=dict)
    polled_at: datetime | None = None
    direct: dict[str, Vm | None] = field(default_factory=dict)
    trouble: dict[str, str] = field(default_factory=dict)
    misconfigured: dict[str, Misconfigured] = field(default_factory=dict)

    @property
    def runners(self) -> Mapping[str, Runner]:
        return {name: runner for snapshot in self.pools.values() for name, runner in snapshot.runners.items()}

    def seen(self) -> Seen:
        """The same, as one pool's decision wants it."""
        addresses = None if self.nics is None else {nic.vm: nic.address for nic in self.nics if nic.vm and nic.address}
        return Seen(
            at=self.polled_at,
            since={name: runner.since for name, runner in self.runners.items()},
            vms=self.vms,
            direct=self.direct,
            addresses=addresses,
            agents=self.agents,
            registrations=self.registrations,
        )


@dataclass(slots=True, kw_only=True)
class Gathering:
    """Reads one pass's witnesses, each under the rule of retries until `deadline`."""

    outside: Outside
    network: Network
    clock: Clock
    deadline: datetime
    gathered: Gathered = field(default_factory=Gathered)

    async def azure(self) -> None:
        """Both lists; run it before the ledger is read."""
        vms, nics = await asyncio.gather(
            self._try("azure", self.outside.compute.list_vms), self._try("azure", self.network.list_nics)
        )
        self.gathered.place = self.outside.place
        self.gathered.vms = None if vms is None else {vm.name: vm for vm in vms}
        self.gathered.nics = nics

    async def addresses(self) -> None:
        """The NICs alone, for a look between two ticks."""
        self.gathered.nics = await self._try("azure", self.network.list_nics)

    async def github(self, targets: Sequence[Target], last: datetime | None, pages: int) -> None:
        """Every target's whole list, where their turn has come: see `list_interval`."""
        if last is not None and self.clock() - last < list_interval(pages):
            return

        async def whole(target: Target) -> list[Registration] | None:
            return await self._try("github", lambda: self.outside.github.list_runners(target))

        lists = await asyncio.gather(*map(whole, targets))
        for target, found in zip(targets, lists, strict=True):
            if found is not None:
                self.gathered.registrations[target] = {registration.name: registration for registration in found}
                self.gathered.list_pages += 1 + len(found) // 100

    async def suspects(self) -> None:
        """Asks Azure directly about the VMs that its list should show and does not."""
        if self.gathered.vms is None:
            return
        now = self.clock()
        missing = {name: runner for name, runner in self._within_reach().items() if name not in self.gathered.vms}
        names = [name for name, runner in missing.items() if _looked_for(now, runner)]
        results = await asyncio.gather(*(self._look(name) for name in names[:LOOKS]))
        self.gathered.direct.update({name: vm for name, (read, vm) in zip(names, results, strict=False) if read})

    def _within_reach(self) -> Mapping[str, Runner]:
        """The runners whose VMs are where we look: of the others neither a 404 nor a missing address says anything."""
        place = self.outside.place
        return {name: runner for name, runner in self.gathered.runners.items() if not elsewhere(runner, place)}

    async def _look(self, name: str) -> tuple[bool, Vm | None]:
        answered: list[Vm | None] = []

        async def look() -> bool:
            answered.append(await self.outside.compute.get_vm(name))
            return True

        read = await self._try("azure", look)
        return bool(read), answered[-1] if answered else None

    async def agents(self, only: RunnerState | None = None) -> None:
        """Polls every agent whose address Azure's NICs show, or those of runners in one state. A VM that has no address is
        silent, as far as anybody can tell."""
        if self.gathered.nics is None:
            return
        addresses = {nic.vm: nic.address for nic in self.gathered.nics if nic.vm and nic.address}
        gate = asyncio.Semaphore(POLLS)

        async def poll(name: str) -> None:
            address = addresses.get(name)
            if address is None:
                self.gathered.agents[name] = AgentTrouble.SILENT
                return
            async with gate:
                self.gathered.agents[name] = await self.outside.agents.status(name, address)

        self.gathered.polled_at = self.clock()
        states = POLLED if only is None else {only}
        await asyncio.gather(*(poll(name) for name, runner in self._within_reach().items() if runner.state in states))
        self._doubt_ourselves()

    def _doubt_ourselves(self) -> None:
        """Agents that answered before and are all silent at once: more likely it is our own way into the subnet that is broken.
        Then their silence is no witness, and nobody is retired for it."""
        runners, agents = self.gathered.runners, self.gathered.agents
        known = [name for name in agents if runners[name].answered_at is not None and not runners[name].absent_since]
        if len(known) >= SUSPICIOUSLY_MANY and all(agents[name] is AgentTrouble.SILENT for name in known):
            self.gathered.trouble["agents"] = (
                f"all {len(known)} agents that answered before are silent: is the way into the subnet open?"
            )
            for name in known:
                del agents[name]

    async def _try(self, service: str, call: Callable[[], Awaitable[T]]) -> T | None:
        """The answer, or None with the trouble noted: reading on matters more than this one witness."""
        try:
            return await attempt(call, clock=self.clock, deadline=self.deadline)
        except PoolError as error:
            log.warning("%s: %s", service, error)
            self.gathered.trouble[service] = str(error)
            if isinstance(error, Misconfigured):
                self.gathered.misconfigured[service] = error
            return None


POLLED = frozenset({S.BOOTING, S.READY, S.BINDING, S.REGISTERED, S.BUSY, S.RETIRING, S.FAILED})
"""States in which an agent's word may change something."""


def _looked_for(now: datetime, runner: Runner) -> bool:
    """Whether a VM's absence from the list matters for this row."""
    if runner.state is S.DELETING:
        return runner.delete_accepted_at is not None
    if runner.state in (S.REQUESTED, S.CREATING, S.FINISHED):
        return False
    begun = runner.accepted_at or runner.since
    return now - begun >= LIST_LAG or runner.state in (S.FAILED, S.RETIRING)


def list_interval(pages: int) -> timedelta:
    """How long to wait between whole GitHub lists of so many pages: as often as a third of the budget allows."""
    allowed_per_hour = HOURLY_CALLS / LIST_SHARE
    return max(TICK - timedelta(seconds=5), timedelta(hours=1) * (max(pages, 1) / allowed_per_hour))
