"""How long each phase of a boot may take, and what a pool learns of it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from runnerpool.model import Runner, RunnerState
from runnerpool.watchdog import FLOORS, LATE, LONGEST, LOST, Phase, late, learned, lost, phase
from tests.made_rows import MINUTE, NOW, runner

S = RunnerState
SLOW_BUT_HEALTHY = timedelta(minutes=15)
HERE: dict[Phase, dict[str, Any]] = {
    Phase.RUNNING: {},
    Phase.ANSWERING: {"running_at": NOW},
    Phase.READY: {"running_at": NOW - MINUTE, "answered_at": NOW},
}


def began(which: Phase, ago: timedelta) -> Runner:
    """A runner that came into this phase so long ago."""
    if which is Phase.LISTENING:
        return runner(S.REGISTERED, age=ago, online_at=None)
    moments = {name: at - ago for name, at in HERE[which].items()}
    return runner(S.BOOTING, age=ago, accepted_at=NOW - ago, **moments)


@pytest.mark.parametrize("which", Phase)
def test_each_phase_is_late_past_the_usual_time_and_lost_past_the_hard_one(which: Phase) -> None:
    floor = FLOORS[which]
    found = phase(began(which, MINUTE))
    assert found == (which, NOW - MINUTE)
    for since, is_late, is_lost in (
        (floor.late, False, False),
        (floor.late + MINUTE, True, False),
        (floor.lost, True, False),
        (floor.lost + MINUTE, True, True),
    ):
        row = began(which, since)
        assert late(NOW, row, {}) is is_late
        assert bool(lost(NOW, row, {})) is is_lost
    assert lost(NOW, began(which, timedelta(hours=1)), {}).startswith(floor.failure)


@pytest.mark.parametrize("which", [which for which in Phase if which is not Phase.LISTENING])
def test_a_slow_but_healthy_boot_is_not_given_up(which: Phase) -> None:
    assert not lost(NOW, began(which, SLOW_BUT_HEALTHY), {})


@pytest.mark.parametrize(
    ("usual", "is_late", "is_lost"),
    [(1.0, 8 * MINUTE, 20 * MINUTE), (600.0, LATE * 10 * MINUTE, LOST * 10 * MINUTE), (90_000.0, LONGEST, LONGEST)],
)
def test_what_a_pool_has_learned_moves_the_deadlines_between_their_floor_and_the_longest(
    usual: float, is_late: timedelta, is_lost: timedelta
) -> None:
    known = {"answering": usual}
    assert not late(NOW, began(Phase.ANSWERING, is_late), known)
    assert late(NOW, began(Phase.ANSWERING, is_late + MINUTE), known)
    assert not lost(NOW, began(Phase.ANSWERING, is_lost), known)
    assert lost(NOW, began(Phase.ANSWERING, is_lost + MINUTE), known)


@pytest.mark.parametrize("state", [state for state in RunnerState if state is not S.BOOTING])
def test_who_is_on_no_way_has_no_deadline(state: RunnerState) -> None:
    row = runner(state, age=timedelta(days=1))
    assert not late(NOW, row, {})
    assert not lost(NOW, row, {})


def test_durations_are_learned_slowly_each_as_its_phase_ends_and_never_below_zero() -> None:
    before = runner(S.BOOTING, accepted_at=NOW)
    after = runner(S.BOOTING, accepted_at=NOW, running_at=NOW + MINUTE)
    assert learned({}, before, after) == {"running": 60}
    assert learned({"running": 160.0}, before, after) == {"running": 130}
    known = {"running": 1.0}
    assert learned(known, after, after) is known
    assert learned({}, before, runner(S.BOOTING, accepted_at=NOW, running_at=NOW - MINUTE)) == {"running": 0}
    bound, listens = runner(S.REGISTERED, online_at=None), runner(S.REGISTERED, online_at=NOW)
    assert learned({}, bound, listens) == {"listening": 60}
