"""A world of a few VMs, registrations and jobs, as they really are, for the state machine of plans: it moves by single steps,
and each worker's act can stop, be overtaken or die between any two of its own.

What acts write is written down once more here, from the architecture's text: the production acts have tests of their own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, TypeVar

from runnerpool.capacity import Rung, rest_after
from runnerpool.decide import rest_pool
from runnerpool.ledger import Ledger
from runnerpool.lifecycle import Seen
from runnerpool.model import Basis, Runner, RunnerState
from runnerpool.ports import AgentPhase, AgentStatus, AgentTrouble, Registration, Vm, VmState
from tests.memory_table import MemoryTable, at_once

S = RunnerState
P = AgentPhase
T = TypeVar("T")

PUT_LASTS = timedelta(minutes=10)
"""How long after a PUT left us it can still bring a VM."""
HORIZON = timedelta(minutes=12)
"""What a row says before a PUT: two minutes of attempts, and then `PUT_LASTS`."""
PAUSE = timedelta(seconds=10)
HELD = (P.STARTING, P.LISTENING, P.BUSY)


def _looked_for(row: Runner) -> bool:
    """Whether Azure is asked directly about a VM that its list leaves out."""
    if row.state is S.DELETING:
        return row.delete_accepted_at is not None
    return row.state not in (S.REQUESTED, S.CREATING, S.FINISHED)


@dataclass
class Box:
    """One VM. `binding` is the GitHub runner id of its JIT config, `job` what runs on it right now."""

    name: str
    made_by: Runner
    binding: int | None
    state: VmState = VmState.CREATING
    power: str | None = None
    error_code: str = ""
    phase: AgentPhase | None = None  # None: its agent does not answer yet
    mute: bool = False
    job: str | None = None
    job_seen: bool = False
    notice: datetime | None = None

    def step(self, registrations: dict[str, Entry]) -> None:
        """What comes next on a VM if nothing goes wrong."""
        mine = registrations.get(self.name)
        if self.state is VmState.CREATING:
            self.state, self.power = VmState.SUCCEEDED, "running"
        elif self.phase is None:
            self.phase = P.SETUP
        elif self.phase is P.SETUP:
            self.phase = P.WAITING if self.binding is None else P.STARTING
        elif self.phase in (P.STARTING, P.LISTENING) and (mine is None or mine.runner_id != self.binding):
            self.phase = P.EXITED  # GitHub does not know its registration any more
        elif self.phase is P.STARTING and mine is not None:
            self.phase, mine.online = P.LISTENING, True

    def told(self) -> AgentStatus | AgentTrouble:
        if self.mute or self.phase is None or self.power != "running":
            return AgentTrouble.SILENT
        return AgentStatus(self.phase, self.job is not None, self.job_seen, self.binding, eviction_at=self.notice)

    def vm(self) -> Vm:
        return Vm(self.name, self.state, {}, None, power=self.power, error_code=self.error_code)


@dataclass
class Entry:
    """One registration at GitHub. `job` is what GitHub has given to it."""

    runner_id: int
    target: str
    online: bool = False
    job: str | None = None


@dataclass
class SmallWorld:
    """Azure and GitHub, the ledger in between, and what each worker does there. `born`, `minted`, … is evidence for rule 1,
    kept apart from the rows."""

    now: datetime
    table: MemoryTable = field(default_factory=MemoryTable)
    boxes: dict[str, Box] = field(default_factory=dict)
    in_flight: list[tuple[datetime, Box]] = field(default_factory=list)  # until when a PUT that nobody saw answered may arrive
    entries: dict[str, Entry] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)  # VMs whose deletion Azure has accepted
    minted: set[str] = field(default_factory=set)  # names for which a JIT config was ever minted
    proved_gone: dict[str, datetime] = field(default_factory=dict)
    killed: list[str] = field(default_factory=list)  # VMs deleted while a job ran, beyond what rule 1 leaves
    shape: str = ""  # what the pool file makes VMs from
    ids: int = 100

    def __post_init__(self) -> None:
        self.ledger = Ledger(table=self.table, history=MemoryTable())

    def counting(self) -> int:
        """VMs that Azure has, or may yet make, and whose deletion it has not accepted."""
        coming = {box.name for until, box in self.in_flight if until > self.now}
        return len((set(self.boxes) | coming) - self.deleted)

    def look(self, runners: dict[str, Runner], targets: Collection[str], hidden: Collection[str], *, lagging: bool) -> Seen:
        """What reconcile reads. `hidden` VMs are left out of Azure's list; `lagging`: GitHub has not noticed who is busy."""
        vms = {name: box.vm() for name, box in self.boxes.items() if name not in hidden}
        direct = {name: box.vm() if (box := self.boxes.get(name)) else None for name in runners if name not in vms}
        polled = [name for name, row in runners.items() if row.state not in (S.REQUESTED, S.CREATING, S.FINISHED, S.DELETING)]
        lists = {
            target: {
                name: Registration(entry.runner_id, name, entry.online, entry.job is not None and not lagging)
                for name, entry in self.entries.items()
                if entry.target == target
            }
            for target in targets
        }
        return Seen(
            at=self.now,
            since={name: row.since for name, row in runners.items()},
            vms=vms,
            direct={name: vm for name, vm in direct.items() if _looked_for(runners[name])},
            addresses=dict.fromkeys(self.boxes, "10.0.0.4"),
            agents={name: self.boxes[name].told() if name in self.boxes else AgentTrouble.SILENT for name in polled},
            registrations=lists,
        )

    # ------------------------------------------------------------------------------------------ acts

    def act(self, row: Runner, fate: str) -> Iterator[None]:
        """The act that this claimed row asks for, in steps."""
        match row.state:
            case S.REQUESTED | S.CREATING:
                return self._create(row, fate)
            case S.BINDING:
                return self._bind(row, fate)
            case S.RETIRING:
                return self._retire(row, fate)
            case _:
                return self._delete(row, fate)

    def _revise(self, row: Runner | None, **changes: Any) -> Runner | None:
        """Under the claim: None once another worker has it."""
        worker = row.claimed_by if row else None

        def mine(current: Runner) -> Runner | None:
            return replace(current, **changes) if current.claimed_by == worker else None

        return at_once(self.ledger.revise_runner(row, mine)) if row else None

    def _move(self, row: Runner, only: Collection[RunnerState], state: RunnerState, reason: str, **changes: Any) -> None:
        """Whoever has the claim: what happened, happened; but a fact that was quicker stands."""
        now = self.now
        at_once(
            self.ledger.revise_runner(
                row, lambda current: current.move(state, now, reason, **changes) if current.state in only else None
            )
        )

    def _put_off(self, row: Runner, reason: str) -> None:
        self._revise(
            row, claimed_by=None, claimed_until=None, not_before=self.now + PAUSE, attempts=row.attempts + 1, reason=reason
        )

    def _create(self, row: Runner, fate: str) -> Iterator[None]:
        if row.state is S.CREATING and row.name in self.boxes:
            self._adopt(row)
            return
        yield
        born = row.target is not None and (row.minted_at is not None or fate != "unborn")
        begun = {"claimed_by": row.claimed_by, "claimed_until": row.claimed_until, "attempts": row.attempts + 1}
        minted = row.minted_at or (self.now if born else None)
        claimed = self._begin(row, minted_at=minted, target=row.target if born else None, **begun)
        yield
        if claimed is not None and born:
            runner_id = self._mint(claimed)
            if runner_id is None:
                self._put_off(claimed, "its registration is busy")
                return
            yield
            claimed = self._revise(claimed, github_id=runner_id)
        yield
        claimed = self._revise(claimed, put_until=self.now + HORIZON, shape=self.shape)
        yield
        if claimed is None or claimed.put_until is None or self.now > claimed.put_until - PUT_LASTS:
            return
        if claimed.name in self.boxes:
            self._adopt(claimed)
            return
        sure = claimed.attempts <= 1
        if fate == "refused":
            key, rest = rest_after(Rung(claimed.size, claimed.zone, claimed.spot), "AllocationFailed", "", self.now)
            at_once(self.ledger.revise_head(claimed.pool, lambda head: rest_pool(head, key, rest, self.now)))
            self._move(claimed, [S.CREATING], S.FAILED, "no offer is left", put_until=None if sure else claimed.put_until)
            return
        box = Box(claimed.name, claimed, claimed.github_id)
        if fate == "unanswered":
            self.in_flight.append((self.now + PUT_LASTS, box))
            yield
            self._put_off(claimed, "Azure gave no answer")
            return
        self.boxes[claimed.name] = box
        yield
        horizon = None if sure else claimed.put_until
        self._move(claimed, [S.CREATING], S.BOOTING, "Azure accepted it", accepted_at=self.now, put_until=horizon)

    def _begin(self, row: Runner, **changes: Any) -> Runner | None:
        def begun(current: Runner) -> Runner | None:
            if current.claimed_by != row.claimed_by or current.state not in (S.REQUESTED, S.CREATING):
                return None
            return current.move(S.CREATING, self.now, current.reason, **changes)

        return at_once(self.ledger.revise_runner(row, begun))

    def _adopt(self, row: Runner) -> None:
        if self.boxes[row.name].binding != row.github_id:
            self._move(row, [S.CREATING], S.FAILED, "its VM carries another GitHub runner id")
        else:
            self._move(row, [S.CREATING], S.BOOTING, "Azure has it", accepted_at=self.now)

    def _mint(self, row: Runner) -> int | None:
        """A registration in the place of the one that an earlier attempt left; None where that is busy."""
        entry = self.entries.get(row.name)
        if entry is not None and entry.job is not None:
            return None
        assert row.target is not None
        self.ids += 1
        self.entries[row.name] = Entry(self.ids, row.target)
        self.minted.add(row.name)
        return self.ids

    def _bind(self, row: Runner, fate: str) -> Iterator[None]:
        box = self.boxes.get(row.name)
        if box is None or isinstance(box.told(), AgentTrouble):
            self._put_off(row, "its agent gave no status")
            return
        yield
        if box.job_seen:
            self._move(row, [S.BINDING], S.BUSY, "its agent saw a job", busy_at=self.now)
            return
        if box.phase in HELD:
            known = box.binding == row.github_id
            reason = "its agent held the binding already" if known else "its agent holds another binding"
            self._move(row, [S.BINDING], S.REGISTERED if known else S.FAILED, reason)
            return
        claimed = self._revise(row, minted_at=row.minted_at or self.now, online_at=None, attempts=row.attempts + 1)
        yield
        runner_id = self._mint(claimed) if claimed else None
        if claimed is None or runner_id is None:
            return
        yield
        claimed = self._revise(claimed, github_id=runner_id)
        yield
        if claimed is None or self.boxes.get(row.name) is not box or box.phase in HELD or box.job_seen:
            return
        box.binding, box.phase = runner_id, P.STARTING
        yield
        if fate != "unanswered":
            self._move(claimed, [S.BINDING], S.REGISTERED, "bound", ready_at=claimed.ready_at or self.now)

    def _retire(self, row: Runner, fate: str) -> Iterator[None]:
        entry = self.entries.get(row.name)
        if fate == "refused":
            self._put_off(row, "GitHub gave no answer")
            return
        if entry is not None and entry.job is not None and fate != "in mid-job":
            if row.absent_since is None:
                self._move(row, [S.RETIRING], S.BUSY, "GitHub says that it is busy")
            else:
                self._put_off(row, "GitHub has not noticed yet")
            return
        self.entries.pop(row.name, None)
        yield
        self.proved_gone.setdefault(row.name, self.now)
        settled: dict[str, Any] = {"claimed_by": None, "claimed_until": None, "not_before": None}
        self._move(row, [S.RETIRING], S.RETIRING, "", deregistered_at=row.deregistered_at or self.now, **settled)

    def _delete(self, row: Runner, fate: str) -> Iterator[None]:
        if fate == "refused":
            self._put_off(row, "Azure gave no answer")
            return
        box = self.boxes.get(row.name)
        if box is not None:
            # What rule 1 leaves: a DELETE answered 204 in mid-job, no word of the job, and an agent silent for 15 minutes.
            if box.job is not None and (row.basis is not Basis.SILENT or row.busy_job is not None):
                self.killed.append(row.name)
            self.deleted.add(row.name)
            if fate != "unanswered":  # else accepted, and not carried out
                del self.boxes[row.name]
        yield
        free: dict[str, Any] = {"claimed_by": None, "claimed_until": None}
        if row.put_until is not None and self.now < row.put_until:
            self._move(row, [S.DELETING], S.DELETING, "", not_before=row.put_until, **free)
        else:
            accepted = {"delete_accepted_at": row.delete_accepted_at or self.now, "not_before": self.now + timedelta(minutes=5)}
            self._move(row, [S.DELETING], S.DELETING, "", **accepted, **free)
