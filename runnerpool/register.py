"""The act of binding: a JIT config is minted for a ready VM and handed to its agent, once."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from runnerpool.acting import Acting
from runnerpool.capacity import TROUBLE_REST, resting_targets
from runnerpool.errors import Conflict, Misconfigured, RetryLater
from runnerpool.model import Runner, RunnerState, Target
from runnerpool.ports import AgentPhase, AgentStatus, JitConfig, Registration, Removal
from runnerpool.retry import Clock

S = RunnerState

HELD = (AgentPhase.STARTING, AgentPhase.LISTENING, AgentPhase.BUSY)
"""Phases in which an agent's binding is in use."""


async def mint(acting: Acting, runner: Runner, token: datetime, left: Registration | None = None) -> JitConfig:
    """Registers the runner under its name, for a token that the caller has taken. A registration that an earlier attempt left
    behind goes first: its JIT config is lost, since whatever holds it was looked at before. `left` is it, where it is known.

    Raises RetryLater where that registration is busy, what `GitHub.mint_jit_config` raises, and Misconfigured without asking where
    another act was refused at this target meanwhile.
    """
    target = target_of(runner)
    if (rest := resting_targets(acting.head.rests, acting.clock()).get(target)) is not None:
        raise Misconfigured(rest.code, area="auth")
    await acting.spend("github-writes", token)
    github = acting.outside.github
    labels = acting.pool.registration_labels
    if left is not None:
        _gone(left, await github.remove_runner(target, left.runner_id))  # for the caller's token
        await acting.token("github-writes")
    try:
        return await github.mint_jit_config(target, runner.name, labels, acting.outside.group)
    except Conflict:
        found = await acting.call(lambda: github.find_runner(target, runner.name))
    if found is not None:
        _gone(found, await acting.write_github(lambda: github.remove_runner(target, found.runner_id)))
    await acting.token("github-writes")
    return await github.mint_jit_config(target, runner.name, labels, acting.outside.group)


def _gone(registration: Registration, removal: Removal) -> None:
    if removal is Removal.BUSY:
        raise RetryLater(f"GitHub runner {registration.runner_id} of this name is busy", after=timedelta(seconds=30))


def target_of(runner: Runner) -> Target:
    """The runner's target; a registration without one is a defect of ours."""
    if runner.target is None:
        raise AssertionError(f"runner {runner.name} has no target to be registered at")
    return runner.target


async def bind(acting: Acting, runner: Runner) -> None:
    """From the claimed intent to a runner that was handed its JIT config. What the agent already holds is adopted."""
    if runner.address is None:
        raise RetryLater("Azure has not shown its address yet", after=timedelta(seconds=10))
    status = await acting.outside.agents.status(runner.name, runner.address)
    if not isinstance(status, AgentStatus):
        raise RetryLater(f"its agent gave no status ({status})", after=timedelta(seconds=10))
    if await _settled(acting, runner, status):
        return
    token = await acting.token("github-writes")
    now = acting.clock()
    claimed = await acting.revise(
        runner, lambda row: replace(row, minted_at=row.minted_at or now, attempts=row.attempts + 1, online_at=None)
    )
    if claimed is None:
        return
    try:
        config = await mint(acting, claimed, token)
    except Misconfigured as error:
        # Refused for certain. The VM is as good as before, and the pool's head says what is wrong. Where only one repository
        # refuses, the VM is for another one at once.
        unminted, reason, target = runner.minted_at, str(error)[:500], target_of(runner)
        await acting.rest_refused(target, error)
        alone = target in resting_targets(acting.head.rests, acting.clock())
        await acting.revise(
            claimed,
            lambda row: row.move(
                S.READY,
                now,
                reason,
                minted_at=unminted,
                target=row.target if unminted else None,
                not_before=None if alone else now + TROUBLE_REST,
            ),
        )
        return
    named = await acting.revise(claimed, lambda row: replace(row, github_id=config.runner_id))
    if named is None:
        return  # somebody took the row over: this config goes nowhere, and the sweep removes its registration
    await _hand_over(acting, named, runner.address, config)


async def _settled(acting: Acting, runner: Runner, status: AgentStatus) -> bool:
    """Whether the agent already holds what an earlier attempt handed to it, or had a job."""
    if status.worker or status.job_seen:
        await _move(acting, runner, S.BUSY, "its agent saw a job", busy=True)
        return True
    if status.phase in HELD and status.binding is not None and status.binding == runner.github_id:
        await _move(acting, runner, S.REGISTERED, "its agent held the binding already")
        return True
    if status.phase in HELD:
        await acting.fail(runner, f"its agent holds the GitHub runner {status.binding}, its row knows {runner.github_id}")
        return True
    return False


async def _hand_over(acting: Acting, runner: Runner, address: str, config: JitConfig) -> None:
    try:
        await acting.call(lambda: acting.outside.agents.start(runner.name, address, config))
    except Conflict as error:
        await acting.fail(runner, f"its agent refused the binding: {error}")
        return
    await _move(acting, runner, S.REGISTERED, f"bound to {runner.target}")


async def _move(acting: Acting, runner: Runner, state: RunnerState, reason: str, *, busy: bool = False) -> None:
    clock: Clock = acting.clock
    now = clock()

    def moved(row: Runner) -> Runner | None:
        if row.state is not S.BINDING:
            return None  # a fact was quicker
        return row.move(state, now, reason, ready_at=row.ready_at or now, busy_at=now if busy else None)

    await acting.ledger.revise_runner(runner, moved)
