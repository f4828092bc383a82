"""Rule 4: whatever carries our tag in Azure or our names at GitHub is backed by a row, or gone after a grace period.

The three findings are pure; `Sweep` acts on them. An orphaned VM is never deleted from here: it is given a row and goes the
way of every failed runner, through rule 1. Only what carries both our prefix and our tag is touched.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from runnerpool.acting import Outside
from runnerpool.budget import GOOD_FOR
from runnerpool.errors import PoolError
from runnerpool.gather import Gathered
from runnerpool.labels import SUFFIX_LENGTH, pool_of_runner
from runnerpool.launch import RUNNER_ID_TAG
from runnerpool.ledger import Ledger
from runnerpool.model import Runner, RunnerState, Target
from runnerpool.ports import Network, Nic, Registration, Removal, Vm, VmState
from runnerpool.retry import Clock

log = logging.getLogger(__name__)

GRACE = timedelta(minutes=10)
"""A VM without a row is left alone for so long: Azure's timestamps and our clocks need not agree."""
AT_ONCE = 20
"""Orphans of one kind dealt with in one pass."""
TAG = "runnerpool"
"""The tag whose value is the deployment's name prefix."""


def our_pool(name: str, prefix: str) -> str | None:
    """The pool of a name that we would have made, exactly; None for one that only looks similar."""
    pool = pool_of_runner(name, prefix)
    return pool if pool is not None and len(name.rpartition("-")[2]) == SUFFIX_LENGTH else None


def orphaned_vms(now: datetime, vms: Mapping[str, Vm], known: Collection[str], prefix: str) -> list[Vm]:
    """VMs of ours without a row, old enough for that to mean something, and not already on their way out."""
    return [
        vm
        for name, vm in vms.items()
        if name not in known
        and vm.tags.get(TAG) == prefix
        and our_pool(name, prefix) is not None
        and vm.state is not VmState.DELETING
        and vm.created_at is not None
        and now - vm.created_at >= GRACE
    ]


def orphaned_nics(nics: Iterable[Nic], vms: Collection[str], known: Collection[str], prefix: str) -> list[Nic]:
    """NICs of ours that no VM holds, and whose VM has neither a row nor a place in Azure's list."""
    found = []
    for nic in nics:
        owner = nic.name.removesuffix("-nic")
        if nic.vm is None and nic.tags.get(TAG) == prefix and our_pool(owner, prefix) and owner not in known and owner not in vms:
            found.append(nic)
    return found


def orphaned_registrations(
    registrations: Mapping[Target, Mapping[str, Registration]],
    vms: Collection[str],
    known: Collection[str],
    pools: Collection[str],
    prefix: str,
) -> list[tuple[Target, Registration]]:
    """Offline, idle registrations under a name that we made for a pool of ours, with neither a row nor a VM."""
    return [
        (target, registration)
        for target, found in registrations.items()
        for name, registration in found.items()
        if not registration.online
        and not registration.busy
        and our_pool(name, prefix) in pools
        and name not in known
        and name not in vms
    ]


def adopted(now: datetime, vm: Vm, pool: str, gathered: Gathered, targets: Sequence[Target]) -> Runner | None:
    """A row for an orphaned VM. Whether it was ever registered is unknown, so it counts as registered: where its name is in a
    target's whole list, there; where every list was read and none has it, its registration is proved gone. None: not known yet."""
    home = next((target for target in targets if vm.name in gathered.registrations.get(target, {})), None)
    unread = any(target not in gathered.registrations for target in targets)
    if home is None and unread:
        return None
    tagged = vm.tags.get(RUNNER_ID_TAG, "")
    return Runner(
        name=vm.name,
        pool=pool,
        state=RunnerState.FAILED,
        since=now,
        created_at=vm.created_at or now,
        reason="found in Azure without a row",
        size=vm.size,
        zone=vm.zone,
        place=gathered.place or None,
        target=home or targets[0],
        minted_at=vm.created_at or now,
        github_id=int(tagged) if tagged.isdigit() else None,
        accepted_at=vm.created_at,
        deregistered_at=now if home is None else None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """Acts on what one pass gathered. A service that fails here is tried again by the next pass, not by this one: each call has
    its token."""

    ledger: Ledger
    outside: Outside
    network: Network
    clock: Clock
    deadline: datetime
    prefix: str
    targets: Sequence[Target]

    async def run(self, gathered: Gathered, pools: Collection[str], known: Collection[str]) -> None:
        """`known` are the names of all rows, also of those that cannot be read, in a ledger read after Azure's list."""
        if gathered.vms is None:
            return
        now = self.clock()
        for vm in orphaned_vms(now, gathered.vms, known, self.prefix)[:AT_ONCE]:
            pool = our_pool(vm.name, self.prefix)
            row = adopted(now, vm, pool, gathered, self.targets) if pool else None
            if row is not None and row.pool not in pools:
                await self.ledger.put_app_row(f"pool:{row.pool}", {"since": now.isoformat()})  # so that the next pass plans it
            if row is not None and await self.ledger.adopt(row):
                log.warning("VM %s has our tag and no row: adopted, to be withdrawn", vm.name)
        nics = orphaned_nics(gathered.nics or [], gathered.vms, known, self.prefix)
        granted, until = await self._tokens("arm-deletes", len(nics))
        for nic in nics[:granted]:
            if self.clock() < until:
                await self._delete_nic(nic)
        found = orphaned_registrations(gathered.registrations, gathered.vms, known, pools, self.prefix)
        granted, until = await self._tokens("github-writes", len(found))
        for target, registration in found[:granted]:
            pool = our_pool(registration.name, self.prefix)
            # GitHub's list is younger than `known`: a runner registered between the two has its row by now.
            if pool and self.clock() < until and not await self.ledger.has_runner(pool, registration.name):
                await self._remove(target, registration)

    async def _tokens(self, scope: str, want: int) -> tuple[int, datetime]:
        """How many calls may be made now, and until when: what is left then waits for the next pass."""
        now = self.clock()
        granted = await self.ledger.take(scope, min(want, AT_ONCE), now) if want else 0
        return granted, min(self.deadline, now + GOOD_FOR)

    async def _delete_nic(self, nic: Nic) -> None:
        try:
            await self.network.delete_nic(nic.name)
            log.warning("NIC %s was left behind by its VM: deleted", nic.name)
        except PoolError as error:
            log.warning("NIC %s was left behind by its VM and could not be deleted: %s", nic.name, error)

    async def _remove(self, target: Target, registration: Registration) -> None:
        try:
            removal = await self.outside.github.remove_runner(target, registration.runner_id)
            log.warning("registration %s at %s had neither VM nor row: %s", registration.name, target, removal)
            if removal is Removal.BUSY:
                log.warning("registration %s runs a job on a VM that is gone; GitHub will notice", registration.name)
        except PoolError as error:
            log.warning("registration %s at %s could not be removed: %s", registration.name, target, error)
