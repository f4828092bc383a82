"""Azure's compute and network in one resource group, which also holds machines of other people."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from runnerpool.errors import Conflict, NoCapacity, RetryLater
from runnerpool.ports import Nic, Vm, VmSpec, VmState
from tests.sim.machines import Machine
from tests.sim.process import Process

if TYPE_CHECKING:
    from tests.sim.world import World

STALE = 60.0
"""Seconds by which a list may be older than it says."""
OMITTED = 60.0
"""Seconds for which a list may leave out a new VM."""
NOTICE = timedelta(seconds=30)
"""What Azure gives a spot VM."""
NIC_HELD = 180.0
"""Seconds for which a failed VM's NIC cannot be deleted."""


@dataclass(slots=True)
class SimVm:
    """`machine` is None for other people's."""

    name: str
    tags: dict[str, str]
    size: str
    zone: str | None
    spot: bool
    created_at: datetime
    made: float
    state: VmState = VmState.CREATING
    machine: Machine | None = None
    omitted: bool = False
    error_code: str = ""
    deletion_accepted: bool = False

    def shown(self) -> Vm:
        power = "running" if self.state is VmState.SUCCEEDED else None
        error = "no room after all" if self.error_code else ""
        return Vm(self.name, self.state, self.tags, self.created_at, self.size, self.zone, power, self.error_code, error)


@dataclass(slots=True)
class SimNic:
    name: str
    vm: str | None
    address: str
    tags: dict[str, str]
    free_at: float = 0.0


@dataclass(slots=True)
class AzureState:
    """The resource group, shared by all processes."""

    world: World
    vms: dict[str, SimVm] = field(default_factory=dict)
    nics: dict[str, SimNic] = field(default_factory=dict)
    lives: list[tuple[float, float]] = field(default_factory=list)  # of VMs that are gone: from which second to which
    _addresses: dict[str, Machine] = field(default_factory=dict)
    _free: list[str] = field(default_factory=list)  # addresses that others had: Azure hands them out again at once
    _shown: tuple[float, list[Vm]] = (0.0, [])
    made: int = 0

    def at(self, address: str) -> Machine | None:
        return self._addresses.get(address)

    def add_foreign(self, name: str, tags: dict[str, str]) -> None:
        """A VM and a NIC of somebody else, and a free NIC with a similar name."""
        self.vms[name] = SimVm(name, tags, "Standard_D2s_v5", None, False, self.world.now(), 0.0, VmState.SUCCEEDED)
        self.nics[f"{name}-nic"] = SimNic(f"{name}-nic", name, f"10.9.0.{len(self.nics)}", tags)
        self.nics[f"{name}x-nic"] = SimNic(f"{name}x-nic", None, f"10.9.1.{len(self.nics)}", tags)

    def create(self, spec: VmSpec) -> None:
        if spec.name in self.vms:
            raise Conflict(f"412: VM {spec.name} exists")
        world, faults = self.world, self.world.faults
        if spec.size == world.scenario.missing_size:
            raise NoCapacity("SkuNotAvailable", "The requested size is not available in the location")
        if refusal := faults.refusal(spec.size, spec.zone, spec.spot):
            raise refusal
        self.made += 1
        tags = dict(spec.tags)
        vm = SimVm(spec.name, tags, spec.size, spec.zone, spec.spot, world.now(), world.loop.time())
        vm.omitted = faults.roll("list omits")
        address = self._free.pop(0) if self._free else f"10.0.{self.made // 250}.{self.made % 250 + 1}"
        world.note(f"Azure accepts VM {spec.name}")
        boot = world.boot_time(tags["runnerpool-pool"])
        if faults.roll("slow boot"):
            boot = faults.span(120, 900)
        encoded: str | None = json.loads(spec.custom_data)["jit"]
        vm.machine = Machine(world, spec.name, address, encoded, boot)
        self.place(vm)
        world.checks.vm_created(vm, encoded)
        if faults.roll("accepted, then failed"):
            world.later(faults.span(5, 90), self._fail, vm)
        else:
            world.later(world.life.uniform(5, 30), self._succeed, vm)
        if faults.roll("evicted at boot"):
            world.later(faults.span(5, boot + 10), self._notify, vm)
        if faults.roll("evicted in mid-job"):
            world.later(boot + faults.span(30, 3600), self._notify, vm)

    def place(self, vm: SimVm) -> None:
        """The VM and its NIC are there."""
        if vm.machine is not None:
            self.vms[vm.name] = vm
            self._addresses[vm.machine.address] = vm.machine
            self.nics[f"{vm.name}-nic"] = SimNic(f"{vm.name}-nic", vm.name, vm.machine.address, vm.tags)

    def _succeed(self, vm: SimVm) -> None:
        if vm.state is VmState.CREATING:
            vm.state = VmState.SUCCEEDED

    def _fail(self, vm: SimVm) -> None:
        if vm.state is VmState.CREATING and vm.machine is not None:
            vm.state, vm.error_code = VmState.FAILED, "AllocationFailed"
            vm.machine.die(ours=False)

    def _notify(self, vm: SimVm) -> None:
        """A spot VM is told 30 s before, and now and then spared all the same. A host that dies says nothing."""
        if vm.machine is None or self.world.faults.healed:
            return
        vm.machine.evicted = True
        if not vm.spot:
            self._evict(vm)
            return
        vm.machine.notice = self.world.now() + NOTICE
        if not self.world.faults.roll("spared"):
            self.world.later(NOTICE.total_seconds(), self._evict, vm)

    def _evict(self, vm: SimVm) -> None:
        """Spot capacity is taken back, or a host dies."""
        if self.vms.get(vm.name) is vm and vm.state is not VmState.DELETING and not self.world.faults.healed:
            self.world.note(f"VM {vm.name} is evicted")
            if vm.machine is not None:
                vm.machine.taken = vm.spot
            self._stop(vm, ours=False)
            self.world.later(self.world.life.uniform(5, 60), self._remove, vm)

    def delete(self, name: str) -> None:
        vm = self.vms.get(name)
        self.world.checks.vm_deleting(name, vm)
        if vm is None:
            return
        vm.deletion_accepted = True
        if vm.state is VmState.DELETING:
            return  # an eviction was quicker
        self.world.note(f"Azure accepts the deletion of {name}")
        self._stop(vm, ours=True)
        if self.world.faults.roll("deletion undone"):
            self.world.later(self.world.life.uniform(15, 300), self._stays, vm)
        else:
            self.world.later(self.world.life.uniform(15, 90), self._remove, vm)

    def _stays(self, vm: SimVm) -> None:
        """The deletion that was accepted fails after all."""
        vm.state, vm.error_code = VmState.FAILED, "OperationPreempted"

    def _stop(self, vm: SimVm, *, ours: bool) -> None:
        vm.state = VmState.DELETING
        if vm.machine is not None and vm.machine.running:
            vm.machine.die(ours=ours)

    def _remove(self, vm: SimVm) -> None:
        if self.vms.get(vm.name) is not vm:
            return
        del self.vms[vm.name]
        self.lives.append((vm.made, self.world.loop.time()))
        nic = self.nics[f"{vm.name}-nic"]
        self._addresses.pop(nic.address, None)
        if self.world.faults.roll("nic left behind"):
            nic.vm, nic.free_at = None, self.world.loop.time() + NIC_HELD
        else:
            del self.nics[nic.name]
            self._free.append(nic.address)

    def delete_nic(self, name: str) -> None:
        nic = self.nics.get(name)
        if nic is None:
            return
        self.world.checks.nic_deleting(nic)
        if self.world.loop.time() < nic.free_at:
            raise RetryLater("NicReservedForAnotherVm: held for 180 seconds", after=None)
        del self.nics[name]

    def listed(self) -> list[Vm]:
        """Seconds stale now and then, and without some of what is new."""
        now = self.world.loop.time()
        if now - self._shown[0] < STALE and self.world.faults.roll("list stale"):
            return self._shown[1]
        self._shown = now, [vm.shown() for vm in self.vms.values() if not (vm.omitted and now - vm.made < OMITTED)]
        return self._shown[1]


class ComputePort:
    """`ports.Compute` for one process."""

    def __init__(self, process: Process, state: AzureState) -> None:
        self._process = process
        self._state = state

    async def create_vm(self, spec: VmSpec) -> None:
        self._state.world.checks.vm_requested(spec.name)
        await self._process.call("azure", lambda: self._state.create(spec), write=True, what="put")

    async def get_vm(self, name: str) -> Vm | None:
        def effect() -> Vm | None:
            vm = self._state.vms.get(name)
            return vm.shown() if vm else None

        return await self._process.call("azure", effect)

    async def list_vms(self) -> list[Vm]:
        return await self._process.call("azure", self._state.listed, what="list")

    async def delete_vm(self, name: str) -> None:
        await self._process.call("azure", lambda: self._state.delete(name), write=True, what="delete")


class NetworkPort:
    """`ports.Network` for one process."""

    def __init__(self, process: Process, state: AzureState) -> None:
        self._process = process
        self._state = state

    async def list_nics(self) -> list[Nic]:
        def effect() -> list[Nic]:
            return [Nic(nic.name, nic.vm, nic.address, nic.tags) for nic in self._state.nics.values()]

        return await self._process.call("azure", effect, what="list")

    async def delete_nic(self, name: str) -> None:
        await self._process.call("azure", lambda: self._state.delete_nic(name), write=True)

    async def subnet_prefixes(self) -> list[str]:
        return ["10.0.0.0/16"]


def user_data(_pool: Any, name: str, _package: Any, jit: Any) -> str:
    """What stands in for cloud-init's text: all that a machine of this world needs to know."""
    return json.dumps({"name": name, "jit": jit.encoded if jit else None})
