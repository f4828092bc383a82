"""What the sandbox's Azure holds: VMs, NICs, asynchronous operations, and a log of what existed when. In memory."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from sandbox import clock

SUBNET = IPv4Network("127.64.0.0/10")
"""Loopback addresses, so that each VM can have its own on one machine."""

POOL_TAG = "runnerpool-pool"


@dataclass(slots=True)
class Operation:
    """One accepted change and how it went."""

    id: str
    started_at: datetime
    status: str = "InProgress"  # InProgress | Succeeded | Failed
    ended_at: datetime | None = None
    code: str = ""
    message: str = ""


@dataclass(slots=True)
class NicRecord:
    name: str
    address: str
    tags: dict[str, str]
    security_group: str
    subnet: str
    vm: str | None


@dataclass(slots=True)
class VmRecord:
    """`body` is the request's JSON without its secrets; `custom_data` is the decoded text."""

    name: str
    body: dict[str, Any]
    custom_data: str = field(repr=False)
    size: str
    cores: int
    zone: str | None
    spot: bool
    nic: str
    address: str
    created_at: datetime
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    state: str = "Creating"  # Creating | Succeeded | Failed | Deleting
    power: str | None = None
    code: str = ""
    message: str = ""
    delete_accepted: bool = False
    hidden_until: float = 0.0  # on the event loop's clock
    doomed: asyncio.Event = field(default_factory=asyncio.Event)  # deleted, or gone: a boot still to come is off
    task: asyncio.Task[None] | None = None  # the newest of its life, ended or not
    deletion: Operation | None = None

    @property
    def tags(self) -> dict[str, str]:
        return dict(self.body.get("tags") or {})

    @property
    def pool(self) -> str:
        return self.tags.get(POOL_TAG, "")

    @property
    def facts(self) -> dict[str, str]:
        """What faults may match on."""
        spot = "true" if self.spot else "false"
        return {"name": self.name, "size": self.size, "zone": self.zone or "", "pool": self.pool, "spot": spot}


class Estate:
    """Every VM, NIC and operation. Names are compared without case, as ARM does."""

    def __init__(self) -> None:
        self.vms: dict[str, VmRecord] = {}
        self.nics: dict[str, NicRecord] = {}
        self.operations: dict[str, Operation] = {}
        self.log: list[dict[str, str]] = []
        self.peaks: Counter[str] = Counter()
        # A random start: two sandboxes on one machine must not boot two VMs on one address.
        self._next_address = random.randrange(4, SUBNET.num_addresses // 2)

    def new_address(self) -> str:
        """An address that this sandbox has not given before, never one that looks like a network's or a broadcast's."""
        while True:
            address = IPv4Address(int(SUBNET.network_address) + self._next_address)
            self._next_address += 1
            if 0 < int(address) & 0xFF < 0xFF:
                return str(address)

    def add(self, vm: VmRecord, nic: NicRecord) -> None:
        self.vms[vm.name.lower()] = vm
        self.nics[nic.name.lower()] = nic
        self.note("accepted", vm, "spot" if vm.spot else "")
        counted = sum(other.pool == vm.pool and not other.delete_accepted for other in self.vms.values())
        self.peaks[vm.pool] = max(self.peaks[vm.pool], counted)

    def remove(self, vm: VmRecord, event: str, *, keep_nic: bool = False) -> None:
        """The VM is gone, with its disk, and with its NIC unless that is to stay behind."""
        self.vms.pop(vm.name.lower(), None)
        nic = self.nics.get(vm.nic.lower())
        if nic is not None and keep_nic:
            nic.vm = None
        else:
            self.nics.pop(vm.nic.lower(), None)
        self.note(event, vm)

    def begin(self) -> Operation:
        operation = Operation(str(uuid.uuid4()), clock.now())
        self.operations[operation.id] = operation
        return operation

    @staticmethod
    def end(operation: Operation, code: str = "", message: str = "") -> None:
        """Succeeded, or Failed with a code."""
        operation.status = "Failed" if code else "Succeeded"
        operation.ended_at, operation.code, operation.message = clock.now(), code, message

    def note(self, event: str, vm: VmRecord, detail: str = "") -> None:
        entry = {"at": clock.now().isoformat(), "event": event, "vm": vm.name, "pool": vm.pool}
        self.log.append(entry | ({"detail": detail} if detail else {}))

    def as_json(self) -> Mapping[str, Any]:
        """For `GET /_admin/state`."""
        return {
            "now": clock.now().isoformat(),
            "vms": [
                {
                    **vm.facts,
                    "state": vm.state,
                    "power": vm.power,
                    "address": vm.address,
                    "tags": vm.tags,
                    "created_at": vm.created_at.isoformat(),
                    "delete_accepted": vm.delete_accepted,
                    "code": vm.code,
                }
                for vm in self.vms.values()
            ],
            "nics": [{"name": nic.name, "vm": nic.vm, "address": nic.address, "tags": nic.tags} for nic in self.nics.values()],
            "log": self.log,
            "peaks": dict(self.peaks),
        }
