"""What a plan can ask for. Every action carries the reason that people will read. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from runnerpool.capacity import Rung
from runnerpool.model import Basis, Target


@dataclass(frozen=True, slots=True)
class Create:
    """Make a VM. With a target it is for `job_id` and may be registered at birth; without, it is for the warm minimum."""

    rung: Rung
    target: Target | None
    job_id: str | None
    reason: str
    regular: bool = False  # never to become a spot VM


@dataclass(frozen=True, slots=True)
class Bind:
    """Register a ready VM for a target and hand it the JIT config."""

    runner: str
    target: Target
    reason: str


@dataclass(frozen=True, slots=True)
class Retire:
    """Ask GitHub to drop the registration; the first half of a deletion."""

    runner: str
    reason: str


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete the VM: rule 1 is met by `basis`."""

    runner: str
    basis: Basis
    reason: str


@dataclass(frozen=True, slots=True)
class Forget:
    """Drop the row: no VM was asked for, or none is there any more and none can come."""

    runner: str
    reason: str


@dataclass(frozen=True, slots=True)
class Park:
    """Leave the job aside until GitHub, asked now, has said how it stands."""

    job_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Rerun:
    """Ask GitHub to run a job again that was lost to an eviction."""

    job_id: str
    reason: str


Action = Create | Bind | Retire | Delete | Forget | Park | Rerun
