"""Rule 1: a VM is not deleted while its runner runs a job. The one place that says when a VM may be deleted. Pure."""

from __future__ import annotations

from datetime import datetime, timedelta

from runnerpool.model import SKEW, Basis, Runner, RunnerState
from runnerpool.ports import AgentStatus, AgentTrouble

SILENCE = timedelta(minutes=15) + SKEW
"""An agent that has not answered for 15 minutes, by whatever two clocks, is taken for dead once its registration is gone."""

SETTLE = timedelta(seconds=20)
"""GitHub has been seen to answer 204 for a runner that was just given a job. A job worker needs seconds to start, so an
agent's "no worker" proves something only this long after the registration was gone, by whichever worker's clock."""

AgentWord = AgentStatus | AgentTrouble | None
"""What one poll brought; None when the agent was not polled."""


def silent_for(now: datetime, runner: Runner) -> timedelta:
    """For how long this runner's agent has not answered. One that never answered has been silent since Azure took its VM; where
    nobody wrote down when that was, since the last moment at which it can have been."""
    since = runner.silent_since if runner.answered_at else (runner.accepted_at or runner.put_until or runner.created_at)
    return now - since if since else timedelta(0)


def basis(now: datetime, runner: Runner, agent: AgentWord, polled_at: datetime | None, *, unfinished: bool = False) -> Basis | None:
    """Which sentence of rule 1 allows this runner's VM to be deleted now, None when none does.

    `agent` is what a poll at `polled_at` brought. Nothing polled proves nothing. `unfinished`: GitHub has named a job that runs
    there, and knows it still. Then an agent's silence proves nothing either; GitHub, asked, says when that job is over.
    """
    if runner.completed_job is not None:
        return Basis.COMPLETED
    if runner.minted_at is None:
        return None if runner.state is RunnerState.BUSY else Basis.NEVER_MINTED
    if runner.deregistered_at is None or polled_at is None:
        return None
    if isinstance(agent, AgentStatus):
        settled = polled_at >= runner.deregistered_at + SETTLE + SKEW
        return Basis.CLEAR if settled and not agent.worker else None
    if agent is AgentTrouble.SILENT and silent_for(now, runner) >= SILENCE and not unfinished:
        return Basis.SILENT
    return None
