"""The acts of withdrawing: a registration is removed at GitHub, a VM is deleted in Azure."""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import datetime, timedelta

from runnerpool.acting import Acting
from runnerpool.errors import PoolError, RetryLater
from runnerpool.lifecycle import NOTICE
from runnerpool.model import Runner, RunnerState
from runnerpool.ports import AgentStatus, Removal, VmState
from runnerpool.register import target_of

log = logging.getLogger(__name__)
S = RunnerState

DELETE_AGAIN = timedelta(minutes=5)
"""A deletion usually takes Azure a minute or two; one that it accepted and could not finish leaves the VM where it is."""
LAST_LOOK = timedelta(seconds=30)
"""How long Azure is asked, again and again, whether a spot VM was taken away. Then the VM is deleted all the same."""


async def retire(acting: Acting, runner: Runner) -> None:
    """Asks GitHub to remove the registration. 204 ends it, 422 means busy, 404 counts only beside the whole list.

    What follows 204 is rule 1's second half: the next reconcile asks the agent for a job worker.
    """
    removal = await _remove(acting, runner)
    now = acting.clock()
    if removal is Removal.BUSY and runner.absent_since is None:
        await acting.ledger.revise_runner(runner, lambda row: _busy(row, acting))
        return
    if removal is Removal.BUSY:
        raise RetryLater("its VM is gone, and GitHub has not noticed yet", after=timedelta(minutes=2))

    def gone(row: Runner) -> Runner | None:
        if row.state is not S.RETIRING:
            return None
        return replace(row, deregistered_at=row.deregistered_at or now, claimed_by=None, claimed_until=None, not_before=None)

    await acting.ledger.revise_runner(runner, gone)


async def _remove(acting: Acting, runner: Runner) -> Removal:
    """REMOVED when the registration is proved gone, BUSY when GitHub refuses."""
    if runner.minted_at is None:
        return Removal.REMOVED  # there never was one
    github, target = acting.outside.github, target_of(runner)
    if runner.github_id is not None:
        known = runner.github_id
        removal = await acting.write_github(lambda: github.remove_runner(target, known))
        if removal is not Removal.ABSENT:
            return removal
    listed = (await acting.runner_list(target)).get(runner.name)
    if listed is None or listed.runner_id == runner.github_id:
        if listed is None:
            return Removal.REMOVED  # confirmed: the whole list, read in this pass, does not have the name
        raise RetryLater("GitHub answers 404 for its registration and still lists it", after=timedelta(seconds=30))
    removal = await acting.write_github(lambda: github.remove_runner(target, listed.runner_id))
    if removal is Removal.ABSENT:
        raise RetryLater("GitHub answers 404 for a registration that it lists", after=timedelta(seconds=30))
    return removal


def _busy(row: Runner, acting: Acting) -> Runner | None:
    if row.state is not S.RETIRING:
        return None
    now = acting.clock()
    return row.move(S.BUSY, now, "GitHub says that it is busy", busy_at=row.busy_at or now)


async def delete(acting: Acting, runner: Runner) -> None:
    """Deletes the VM by name. Rule 1 was met when the row became DELETING, and that state has no way back."""
    token = await acting.token("arm-deletes")
    looked = await _last_look(acting, runner)
    if looked is None:
        return
    await acting.paid("arm-deletes", lambda: acting.outside.compute.delete_vm(runner.name), prepaid=token)
    now = acting.clock()

    def accepted(row: Runner) -> Runner:
        row = replace(row, claimed_by=None, claimed_until=None)
        if row.put_until is not None and now < row.put_until:
            # Azure answers the same where it knows no such VM: one that a late PUT may still bring counts on.
            return replace(row, not_before=row.put_until)
        return replace(row, delete_accepted_at=row.delete_accepted_at or now, not_before=now + DELETE_AGAIN)

    await acting.ledger.revise_runner(looked, accepted)


async def _last_look(acting: Acting, runner: Runner) -> Runner | None:
    """The row once it says whether Azure took a spot VM whose job has ended; None where another worker has the row by now.

    Written before the first DELETE leaves: from then on it is our doing where the VM is gone, whatever becomes of the answer.
    """
    if not runner.spot or runner.completed_job is None or runner.eviction_at is not None or runner.looked_at is not None:
        return runner
    eviction_at, now = await _eviction(acting, runner), acting.clock()
    return await acting.revise(runner, lambda row: replace(row, looked_at=now, eviction_at=row.eviction_at or eviction_at))


async def _eviction(acting: Acting, runner: Runner) -> datetime | None:
    """When Azure takes a spot VM away, or took it, whose job has ended; None where nothing shows that.

    A runner may report its job as failed within the 30 s of notice, before any poll has read the notice. This is the last
    moment to tell that from an ordinary failure: the agent has read it, or the VM is on its way out before we asked for that.
    """
    now = acting.clock()
    if runner.address is not None:
        word = await acting.outside.agents.status(runner.name, runner.address)
        if isinstance(word, AgentStatus):
            return word.eviction_at and min(word.eviction_at, now + NOTICE)
    try:
        vm = await acting.call(lambda: acting.outside.compute.get_vm(runner.name), within=LAST_LOOK)
    except PoolError as error:
        log.warning("runner %s: whether its spot VM was taken away cannot be read: %s", runner.name, error)
        return None
    return now if vm is None or vm.state is VmState.DELETING else None
