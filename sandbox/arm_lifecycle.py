"""The life of a VM after Azure has accepted it: boot, failure, deletion, eviction."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Protocol

from sandbox.arm_store import Estate, Operation, VmRecord

log = logging.getLogger(__name__)


class Machines(Protocol):
    """What boots and stops the process behind a VM."""

    async def boot(self, name: str, address: str, user_data: str) -> None:
        """Returns once the machine has been started."""

    async def stop(self, name: str) -> None:
        """Kills the machine; an unknown name is fine."""


class Lifecycle:
    """Drives VMs in the background. The delays are real seconds."""

    def __init__(self, *, estate: Estate, machines: Machines, boot_delay: float, delete_delay: float) -> None:
        self._estate = estate
        self._machines = machines
        self.boot_delay = boot_delay
        self.delete_delay = delete_delay
        self._tasks: set[asyncio.Task[None]] = set()

    def boot(self, vm: VmRecord, operation: Operation, *, failure: tuple[str, str], dead: bool, extra_delay: float) -> None:
        """Boots the VM, or, with a `failure` (code and text), fails it. `dead`: nothing runs in it."""
        vm.task = self._start(self._boot(vm, operation, failure, dead, self.boot_delay + extra_delay))

    def delete(self, vm: VmRecord, operation: Operation, *, failure: tuple[str, str], keep_nic: bool) -> None:
        """Azure has accepted the deletion: the VM counts no more, though it takes a while to go."""
        vm.state, vm.delete_accepted = "Deleting", True
        vm.doomed.set()
        self._estate.note("delete accepted", vm)
        vm.task = self._start(self._delete(vm, operation, vm.task, failure, keep_nic))

    async def evict(self, vm: VmRecord) -> None:
        """A spot VM is taken away, with its NIC and its disk."""
        vm.doomed.set()
        await self._settle(vm.task)
        await self._machines.stop(vm.name)
        self._estate.remove(vm, "evicted")

    async def settle(self) -> None:
        """Returns when nothing is under way any more."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def close(self) -> None:
        """Ends what is under way, wherever it stands. The machines are their owner's to stop."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _boot(self, vm: VmRecord, operation: Operation, failure: tuple[str, str], dead: bool, delay: float) -> None:
        try:
            await asyncio.wait_for(vm.doomed.wait(), delay)
            self._estate.end(operation, "OperationPreempted", "Operation execution has been preempted by a more recent operation.")
            return
        except TimeoutError:  # nobody deleted it meanwhile: the usual course
            pass
        if not failure[0] and not dead:
            try:
                await self._machines.boot(vm.name, vm.address, vm.custom_data)
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
