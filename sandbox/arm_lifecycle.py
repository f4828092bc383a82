"""The life of a VM after Azure has accepted it: boot, failure, deletion, eviction."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Coroutine
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from sandbox import clock
from sandbox.arm_store import Estate, Operation, VmRecord

log = logging.getLogger(__name__)


class Machines(Protocol):
    """What boots and stops the process behind a VM."""

    async def boot(self, name: str, address: str, user_data: str, *, setup_error: str = "") -> None:
        """Returns once the machine has been started. With a `setup_error` its set-up ends in these words."""

    def warn(self, name: str, at: datetime) -> None:
        """Tells the machine, as Azure's metadata service would, that it is taken away then; an unknown name is fine."""

    async def stop(self, name: str) -> None:
        """Kills the machine; an unknown name is fine."""


@dataclass(frozen=True, slots=True)
class Fate:
    """What goes wrong with one VM. With a `failure` (code and text) Azure fails it; `dead`: nothing runs in it; `setup_error`: its
    set-up ends in these words; `evicted_after` seconds of running Azure takes it away, and says so `notice` seconds ahead."""

    failure: tuple[str, str] = ("", "")
    dead: bool = False
    delay: float = 0.0
    setup_error: str = ""
    evicted_after: float | None = None
    notice: float = 0.0


class Lifecycle:
    """Drives VMs in the background. The delays are real seconds."""

    def __init__(self, *, estate: Estate, machines: Machines, boot_delay: float, delete_delay: float) -> None:
        self._estate = estate
        self._machines = machines
        self.boot_delay = boot_delay
        self.delete_delay = delete_delay
        self._tasks: set[asyncio.Task[None]] = set()

    def boot(self, vm: VmRecord, operation: Operation, fate: Fate) -> None:
        """Boots the VM, as far as it is to come."""
        vm.task = boot = self._start(self._boot(vm, operation, fate))
        if fate.evicted_after is not None:
            self._start(self._evict_later(vm, boot, fate.evicted_after, fate.notice))

    def delete(self, vm: VmRecord, operation: Operation, *, failure: tuple[str, str], keep_nic: bool) -> None:
        """Azure has accepted the deletion: the VM counts no more, though it takes a while to go."""
        vm.state, vm.delete_accepted = "Deleting", True
        vm.doomed.set()
        self._estate.note("delete accepted", vm)
        vm.task = self._start(self._delete(vm, operation, vm.task, failure, keep_nic))

    async def evict(self, vm: VmRecord, notice: float = 0.0) -> None:
        """A spot VM is taken away, with its NIC and its disk, `notice` seconds after it was told; not if it is deleted first."""
        if notice:
            self._machines.warn(vm.name, clock.now() + timedelta(seconds=notice * clock.rate(os.environ)))
            if not await self._outlives(vm, notice):
                return
        vm.doomed.set()
        await self._settle(vm.task)
        await self._machines.stop(vm.name)
        self._estate.remove(vm, "evicted")

    async def _evict_later(self, vm: VmRecord, boot: asyncio.Task[None], seconds: float, notice: float) -> None:
        await self._settle(boot)
        if vm.power == "running" and await self._outlives(vm, seconds):
            await self.evict(vm, notice)

    @staticmethod
    async def _outlives(vm: VmRecord, seconds: float) -> bool:
        """Whether nobody has deleted the VM when so many seconds are over."""
        try:
            await asyncio.wait_for(vm.doomed.wait(), seconds)
        except TimeoutError:
            return True
        return False

    async def settle(self) -> None:
        """Returns when nothing is under way any more."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def close(self) -> None:
        """Ends what is under way, wherever it stands. The machines are their owner's to stop."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _boot(self, vm: VmRecord, operation: Operation, fate: Fate) -> None:
        if not await self._outlives(vm, self.boot_delay + fate.delay):
            self._estate.end(operation, "OperationPreempted", "Operation execution has been preempted by a more recent operation.")
            return
        failure = fate.failure
        if not failure[0] and not fate.dead:
            try:
                await self._machines.boot(vm.name, vm.address, vm.custom_data, setup_error=fate.setup_error)
            except Exception as error:
                log.exception("VM %s did not boot", vm.name)
                failure = ("OSProvisioningClientError", f"OS provisioning failed: {type(error).__name__}")
        self._estate.end(operation, *failure)
        if not vm.doomed.is_set():
            vm.state, vm.power = ("Failed", None) if failure[0] else ("Succeeded", "running")
            vm.code, vm.message = failure
            self._estate.note("failed" if failure[0] else "running", vm, failure[0])

    async def _delete(
        self, vm: VmRecord, operation: Operation, before: asyncio.Task[None] | None, failure: tuple[str, str], keep_nic: bool
    ) -> None:
        await self._settle(before)
        await asyncio.sleep(self.delete_delay)
        if failure[0]:
            vm.state, (vm.code, vm.message) = "Failed", failure
            self._estate.note("delete failed", vm, failure[0])
        else:
            await self._machines.stop(vm.name)
            self._estate.remove(vm, "deleted", keep_nic=keep_nic)
        self._estate.end(operation, *failure)

    @staticmethod
    async def _settle(task: asyncio.Task[None] | None) -> None:
        if task is not None:
            await asyncio.wait([task])

    def _start(self, course: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(course)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a VM's life went wrong", exc_info=task.exception())
