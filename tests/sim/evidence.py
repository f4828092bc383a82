"""Rules 1 and 2 of the invariants: what is known of each VM's runner, by whom, since when; and whether that allows a deletion.

It is gathered where the services answer, not where the code that is judged writes its rows down.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.sim.azure import SimVm
    from tests.sim.github import SimRunner
    from tests.sim.machines import Machine
    from tests.sim.world import World

SILENCE = 900.0
PASS = 120.0
"""Seconds between the moment at which a pass read the ledger and its write, at most: what came meanwhile it cannot know."""


@dataclass(slots=True)
class Evidence:
    """By runner name. Times are those of the world, in seconds."""

    world: World
    mints: dict[str, list[SimRunner]] = field(default_factory=dict)
    completed: set[str] = field(default_factory=set)
    _minted_at: dict[str, float] = field(default_factory=dict)
    _removed_at: dict[str, float] = field(default_factory=dict)
    _absent_at: dict[str, float] = field(default_factory=dict)  # since when no whole list has had it
    _minted_in: dict[str, set[str]] = field(default_factory=dict)  # by target: what was minted there and has not completed
    _spoke_at: dict[str, float] = field(default_factory=dict)
    _unheard_at: dict[str, float] = field(default_factory=dict)  # since when whoever asked it has heard nothing
    _clear_at: dict[str, float] = field(default_factory=dict)
    _running_at: dict[str, float] = field(default_factory=dict)  # when the ledger learned that GitHub says so
    _decided_at: dict[str, float] = field(default_factory=dict)  # when its row became DELETING

    def minted(self, runner: SimRunner) -> None:
        self.mints.setdefault(runner.name, []).append(runner)
        self._minted_at[runner.name] = self.world.loop.time()
        self._absent_at.pop(runner.name, None)
        self._minted_in.setdefault(runner.target, set()).add(runner.name)

    def listed(self, target: str, names: set[str]) -> None:
        minted = self._minted_in.get(target, set())
        minted -= self.completed
        for name in minted & names:
            self._absent_at.pop(name, None)
        for name in minted - names:
            self._absent_at.setdefault(name, self.world.loop.time())

    def deregistered(self, name: str) -> None:
        self._removed_at[name] = self.world.loop.time()

    def spoke(self, name: str) -> None:
        self._spoke_at[name] = self.world.loop.time()
        self._unheard_at.pop(name, None)

    def unheard(self, name: str) -> None:
        """Its agent was asked and gave no answer."""
        self._unheard_at.setdefault(name, self.world.loop.time())

    def clear(self, name: str) -> None:
        """Its agent said that no job worker runs."""
        self._clear_at[name] = self.world.loop.time()

    def running(self, name: str) -> None:
        """The ledger has `in_progress` of a job on this runner."""
        self._running_at.setdefault(name, self.world.loop.time())

    def decided(self, name: str) -> None:
        self._decided_at.setdefault(name, self.world.loop.time())

    # ------------------------------------------------------------------------------------------ what follows

    def lost_for_good(self, machine: Machine) -> bool:
        """What rule 1 knowingly leaves: GitHub answered 204 in mid-job, `in_progress` never came, and the agent has been silent."""
        if machine.runner is None or machine.runner.registered:
            return False
        now = self.world.loop.time()
        decided = self._decided_at.get(machine.name, now)
        untold = self._running_at.get(machine.name, now) > decided - PASS
        return untold and self._silent(machine.name, self.world.azure.vms[machine.name].made)

    def forbids(self, name: str, vm: SimVm) -> str:
        """Why rule 1 forbids this deletion, "" where it does not."""
        mints = self.mints.get(name, [])
        if name in self.completed or not mints:
            return ""
        if any(runner.registered for runner in mints):
            return "it is still registered"
        gone_at = self._gone_at(name)
        if gone_at is None:
            return "GitHub never said that its registration is gone"
        if self._clear_at.get(name, -1.0) >= gone_at or self._silent(name, vm.made):
            return ""
        return "after its registration was gone its agent neither saw no worker nor was silent for 15 minutes"

    def _gone_at(self, name: str) -> float | None:
        """Since when GitHub has said that this runner's last registration is gone."""
        said = [self._absent_at.get(name), self._removed_at.get(name)]
        return min((at for at in said if at is not None and at >= self._minted_at[name]), default=None)

    def _silent(self, name: str, since: float) -> bool:
        """For 15 minutes: one that never spoke since its VM was made, any other since it was first asked in vain."""
        now = self.world.loop.time()
        if name in self._spoke_at:
            since = self._unheard_at.get(name, now)
        return now - since >= SILENCE
