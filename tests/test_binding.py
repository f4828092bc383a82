"""What binding a ready VM leaves in the row and at its agent, when all goes well and when anything does not."""

from __future__ import annotations

from typing import Any

import pytest

from runnerpool.acts import act
from runnerpool.budget import LIMITS
from runnerpool.errors import Conflict, Gone, Misconfigured, PoolError, RetryLater
from runnerpool.model import RunnerState
from runnerpool.ports import AgentPhase, AgentTrouble, Registration
from tests.made_rows import MINUTE, NOW, ORG, claimed, clock, status, virtual
from tests.stand_ins import Scene

S = RunnerState
NAME = "hw-linux-aaaaaaaaaa"


READY = {"target": ORG, "address": "10.0.0.4"}


@virtual
async def test_a_ready_vm_is_registered_and_handed_its_jit_config_once() -> None:
    scene = Scene()
    row = (await scene.act(claimed(S.BINDING, **READY)))[NAME]
    assert (row.state, row.github_id, row.minted_at, row.online_at) == (S.REGISTERED, 100, NOW, None)
    assert [config.runner_id for config in scene.crew.handed[NAME]] == [100]


@pytest.mark.parametrize(
    ("word", "state", "minted"),
    [
        (status(AgentPhase.LISTENING, binding=7), S.REGISTERED, False),  # an earlier attempt had handed it over
        (status(AgentPhase.STARTING, binding=7), S.REGISTERED, False),
        (status(AgentPhase.LISTENING, binding=8), S.FAILED, False),  # nobody knows whose
        (status(AgentPhase.BUSY, binding=7, worker=True), S.BUSY, False),
        (status(AgentPhase.EXITED, binding=7, job_seen=True), S.BUSY, False),
        (status(AgentPhase.EXITED), S.REGISTERED, True),  # its last runner left without a job
        (AgentTrouble.SILENT, S.BINDING, False),
        (AgentTrouble.REFUSED, S.BINDING, False),
    ],
)
@virtual
async def test_before_anything_is_minted_the_agent_is_looked_at(word: Any, state: RunnerState, minted: bool) -> None:
    scene = Scene()
    scene.crew.words[NAME] = word
    row = (await scene.act(claimed(S.BINDING, **READY, github_id=7, minted_at=NOW - MINUTE)))[NAME]
    assert row.state is state
    assert bool(scene.hub.count("mint")) is minted
    assert bool(scene.crew.handed[NAME]) is minted


@virtual
async def test_a_name_that_is_registered_already_is_registered_anew_since_its_jit_config_is_lost() -> None:
    scene = Scene()
    scene.hub.registered[ORG][NAME] = Registration(55, NAME, online=False, busy=False)
    row = (await scene.act(claimed(S.BINDING, **READY)))[NAME]
    assert (row.state, row.github_id) == (S.REGISTERED, 100)
    assert scene.hub.count("remove") == 1
    (bucket,) = await scene.ledger.app_rows("budget:github-writes")
    assert bucket.columns["tokens"] == LIMITS["github-writes"].capacity - 3, "a mint, a removal and a mint: three writes to GitHub"


@pytest.mark.parametrize(
    ("service", "method", "error", "state"),
    [
        ("hub", "mint", RetryLater("502", uncertain=True), S.BINDING),
        ("hub", "mint", RetryLater("429", after=MINUTE), S.BINDING),
        ("hub", "mint", Misconfigured("no such group", area="setup"), S.READY),
        ("hub", "mint", Gone("404"), S.BINDING),
        ("crew", "start", Conflict("409"), S.FAILED),
    ],
)
@virtual
async def test_what_a_row_says_after_a_call_of_its_binding_failed(
    service: str, method: str, error: PoolError, state: RunnerState
) -> None:
    scene = Scene()
    getattr(scene, service).fails(method, error)
    row = (await scene.act(claimed(S.BINDING, **READY)))[NAME]
    assert row.state is state
    assert row.claimed_by is None
    assert (row.minted_at is None) is (state is S.READY)  # refused for certain: as good as before
    assert str(error) in row.reason
    if state is not S.FAILED:
        assert row.not_before is not None


@virtual
async def test_a_fact_that_comes_while_a_vm_is_bound_is_not_overwritten() -> None:
    scene = Scene()

    await scene.hold(claimed(S.BINDING, **READY))
    acting = scene.acting()
    held = (await scene.runners())[NAME]
    moved = await scene.ledger.revise_runner(held, lambda row: row.move(S.BUSY, clock(), "runs job 1", busy_job="1"))
    await act(acting, [held], [])
    assert (await scene.only()) == moved
