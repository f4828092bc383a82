"""Small recording stand-ins of the ports, and the engine on top of them.

They behave as the services do where everything goes well; what goes wrong a test lays ready with `fails`.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from runnerpool.acting import Acting, Outside
from runnerpool.acts import act
from runnerpool.config import Config
from runnerpool.errors import Conflict
from runnerpool.ledger import Ledger
from runnerpool.model import Fact, Head, Job, Runner, RunnerState
from runnerpool.ports import (
    AgentPhase,
    AgentStatus,
    AgentTrouble,
    Alert,
    Delivery,
    Insert,
    JitConfig,
    JobReport,
    Nic,
    Registration,
    Removal,
    RunnerPackage,
    Vm,
    VmSpec,
    VmState,
)
from runnerpool.provision import Engine
from runnerpool.reconcile import Reconcile
from runnerpool.rows import fact_to_columns, head_to_columns, job_to_columns, runner_to_columns
from tests.made_rows import MINUTE, clock, config, later, status, suffixes
from tests.memory_table import MemoryTable

# ---------------------------------------------------------------------------------------------- the services


@dataclass
class Recording:
    """Every stand-in counts its calls, and raises what a test laid ready: before the call takes effect, or after."""

    calls: list[tuple[str, Any]] = field(default_factory=list)
    before: dict[str, list[BaseException | None]] = field(default_factory=lambda: defaultdict(list))
    after: dict[str, list[BaseException | None]] = field(default_factory=lambda: defaultdict(list))
    step: Callable[[], None] = lambda: None

    def fails(self, method: str, *errors: BaseException | None, applied: bool = False) -> None:
        """The next calls of `method` raise these; None lets one through. `applied`: after it took effect."""
        (self.after if applied else self.before)[method] += errors

    def slow(self, port: str, time: timedelta) -> None:
        """Each call of the port's method of this name takes so long before it begins."""
        honest = getattr(self, port)

        async def slowly(*given: Any) -> Any:
            await later(seconds=time.total_seconds())
            return await honest(*given)

        setattr(self, port, slowly)

    def count(self, method: str) -> int:
        return sum(called == method for called, _ in self.calls)

    def begin(self, method: str, what: Any = None) -> None:
        self.calls.append((method, what))
        self.step()
        _raise_next(self.before[method])

    def end(self, method: str) -> None:
        self.step()
        _raise_next(self.after[method])


def _raise_next(errors: list[BaseException | None]) -> None:
    error = errors.pop(0) if errors else None
    if error is not None:
        raise error


@dataclass
class Azure(Recording):
    """Compute and network at once."""

    vms: dict[str, Vm] = field(default_factory=dict)
    hidden: set[str] = field(default_factory=set)  # VMs that the list leaves out
    specs: list[VmSpec] = field(default_factory=list)
    boots: Callable[[VmSpec], None] = lambda _spec: None
    nics: dict[str, Nic] = field(default_factory=dict)

    async def create_vm(self, spec: VmSpec) -> None:
        self.begin("create_vm", spec.name)
        self.specs.append(spec)
        if spec.name in self.vms:
            raise Conflict("412")
        self.put(Vm(spec.name, VmState.SUCCEEDED, spec.tags, clock(), spec.size, spec.zone, "running"))
        self.boots(spec)
        self.end("create_vm")

    def put(self, vm: Vm, address: str = "10.0.0.4") -> None:
        self.vms[vm.name] = vm
        self.nics[f"{vm.name}-nic"] = Nic(f"{vm.name}-nic", vm.name, address, vm.tags)

    async def get_vm(self, name: str) -> Vm | None:
        self.begin("get_vm", name)
        return self.vms.get(name)

    async def list_vms(self) -> list[Vm]:
        self.begin("list_vms")
        return [vm for vm in self.vms.values() if vm.name not in self.hidden]

    async def delete_vm(self, name: str) -> None:
        self.begin("delete_vm", name)
        self.vms.pop(name, None)
        self.nics.pop(f"{name}-nic", None)
        self.end("delete_vm")

    async def list_nics(self) -> list[Nic]:
        self.begin("list_nics")
        return list(self.nics.values())

    async def delete_nic(self, name: str) -> None:
        self.begin("delete_nic", name)
        self.nics.pop(name, None)

    async def subnet_prefixes(self) -> list[str]:
        return ["10.0.0.0/24"]


@dataclass
class Hub(Recording):
    """GitHub."""

    registered: dict[str, dict[str, Registration]] = field(default_factory=lambda: defaultdict(dict))
    jobs: dict[str, JobReport] = field(default_factory=dict)
    failed: list[Delivery] = field(default_factory=list)
    blind: bool = False  # every DELETE answers 404, as where a permission was lost
    hidden: set[str] = field(default_factory=set)  # repositories that this credential may not see
    closed: dict[str, BaseException] = field(default_factory=dict)  # targets that refuse every registration, and how
    _ids: Any = field(default_factory=lambda: itertools.count(100))

    async def mint_jit_config(self, target: str, name: str, labels: Sequence[str], group: str) -> JitConfig:
        self.begin("mint", name)
        await self._admitted(target)
        if name in self.registered[target]:
            raise Conflict("409")
        made = Registration(next(self._ids), name, online=False, busy=False)
        self.registered[target][name] = made
        self.end("mint")
        return JitConfig(made.runner_id, f"secret of {made.runner_id}")

    async def remove_runner(self, target: str, runner_id: int) -> Removal:
        self.begin("remove", runner_id)
        found = next((one for one in self.registered[target].values() if one.runner_id == runner_id), None)
        if found is None or self.blind:
            return Removal.ABSENT
        if found.busy:
            return Removal.BUSY
        del self.registered[target][found.name]
        self.end("remove")
        return Removal.REMOVED

    async def list_runners(self, target: str) -> list[Registration]:
        self.begin("list", target)
        await asyncio.sleep(0.1)
        return list(self.registered[target].values())

    async def find_runner(self, target: str, name: str) -> Registration | None:
        self.begin("find", name)
        return self.registered[target].get(name)

    async def get_job(self, repository: str, job_id: str) -> JobReport | None:
        self.begin("get_job", job_id)
        return None if repository in self.hidden else self.jobs.get(job_id)

    async def reads_jobs(self, repository: str) -> bool:
        self.begin("reads_jobs", repository)
        return repository not in self.hidden

    async def rerun_job(self, repository: str, job_id: str) -> None:
        self.begin("rerun", job_id)
        self.end("rerun")

    async def runner_package(self, target: str, os: str, arch: str) -> RunnerPackage:
        self.begin("package")
        await self._admitted(target)
        return RunnerPackage("2.330.0", "https://example.com/2.330.0.tar.gz", "00")

    async def _admitted(self, target: str) -> None:
        if target in self.closed:
            await asyncio.sleep(0.1)
            raise self.closed[target]

    async def failed_deliveries(self, since: datetime) -> list[Delivery]:
        self.begin("failed_deliveries")
        return list(self.failed)

    async def redeliver(self, delivery: Delivery) -> None:
        self.begin("redeliver", delivery.guid)

    def calls_left(self) -> int | None:
        return 5_000


@dataclass
class Crew(Recording):
    """The agents. One that a test has said nothing of waits for a binding."""

    words: dict[str, AgentStatus | AgentTrouble] = field(default_factory=dict)
    handed: dict[str, list[JitConfig]] = field(default_factory=lambda: defaultdict(list))

    async def status(self, name: str, address: str) -> AgentStatus | AgentTrouble:
        self.begin("status", name)
        return self.words.get(name, status())

    async def start(self, name: str, address: str, config: JitConfig) -> AgentStatus:
        self.begin("start", name)
        word = self.words.get(name, status())
        held = isinstance(word, AgentStatus) and (word.phase is not AgentPhase.EXITED or word.job_seen)
        if held and isinstance(word, AgentStatus) and word.binding not in (None, config.runner_id):
            raise Conflict("409")
        self.handed[name].append(config)
        listens = self.words[name] = status(AgentPhase.LISTENING, binding=config.runner_id)
        self.end("start")
        return listens


@dataclass
class Mail(Recording):
    sent: list[Alert] = field(default_factory=list)

    async def send(self, alert: Alert) -> None:
        self.begin("send", alert.id)
        self.sent.append(alert)


# ---------------------------------------------------------------------------------------------- all of it


@dataclass
class Scene:
    """A ledger in memory, the services, and the engine on top of them."""

    config: Config = field(default_factory=config)
    azure: Azure = field(default_factory=Azure)
    hub: Hub = field(default_factory=Hub)
    crew: Crew = field(default_factory=Crew)
    mail: Mail = field(default_factory=Mail)
    table: MemoryTable = field(default_factory=MemoryTable)
    history: MemoryTable = field(default_factory=MemoryTable)

    def __post_init__(self) -> None:
        self.azure.boots = self.boot
        self.ledger = Ledger(table=self.table, history=self.history)
        self.outside = Outside(
            compute=self.azure,
            github=self.hub,
            agents=self.crew,
            user_data=lambda _pool, name, _package, jit: f"{name} {jit.encoded if jit else 'unregistered'}",
            group="Default",
            anchor=self.config.github.targets[0],
            others=self.config.github.targets[1:],
            tags={"runnerpool": "hw"},
        )
        self.suffix = suffixes()

    def engine(self, worker: str = "worker") -> Engine:
        return Engine(config=self.config, ledger=self.ledger, outside=self.outside, clock=clock, worker=worker, suffix=self.suffix)

    async def reconcile(self) -> None:
        """One pass of the timer."""
        reconciler = Reconcile(
            engine=self.engine("timer"),
            ledger=self.ledger,
            outside=self.outside,
            network=self.azure,
            alerts=self.mail,
            clock=clock,
        )
        await reconciler.run(deadline=clock() + timedelta(seconds=90))

    async def passes(self, period: timedelta) -> None:
        """The timer's passes of so long a time."""
        end = clock() + period
        while clock() < end:
            await self.reconcile()
            await asyncio.sleep(30)  # of virtual time

    async def wake(self, name: str = "linux", worker: str = "worker") -> set[str]:
        """One wake-up."""
        return await self.engine(worker).run(name, deadline=clock() + 4 * MINUTE)

    def acting(self, head: Head | None = None, *, time: timedelta = 4 * MINUTE) -> Acting:
        return Acting(
            ledger=self.ledger,
            outside=self.outside,
            clock=clock,
            deadline=clock() + time,
            worker="worker",
            pool=self.config.pools[0],
            head=head or Head("linux"),
        )

    def boot(self, spec: VmSpec) -> None:
        """At once: the agent is there, and a runner that was given its JIT config at birth listens."""
        _name, _, secret = spec.custom_data.partition(" secret of ")
        self.crew.words[spec.name] = status(AgentPhase.LISTENING, binding=int(secret)) if secret else status()

    async def hold(self, *rows: Job | Runner | Fact | Head) -> None:
        """Puts these rows into their pool's partition; VMs, NICs and registrations of runners as their states imply."""
        for number, row in enumerate(rows):
            key, columns = _row(row, number)
            await self.table.transact(row.pool, [Insert(key, columns)])
            if isinstance(row, Runner) and row.accepted_at is not None and row.delete_accepted_at is None:
                tags = {"runnerpool": "hw"}
                self.azure.put(Vm(row.name, VmState.SUCCEEDED, tags, row.accepted_at, row.size, row.zone, "running"))
            if isinstance(row, Runner) and row.github_id is not None and row.target and row.deregistered_at is None:
                busy = row.state is RunnerState.BUSY
                self.hub.registered[row.target][row.name] = Registration(row.github_id, row.name, online=True, busy=busy)

    async def at_rest(self, *rows: Job | Runner | Fact) -> None:
        """As `hold`; each agent says what its runner's state implies."""
        await self.hold(*rows)
        phases = {RunnerState.READY: AgentPhase.WAITING, RunnerState.REGISTERED: AgentPhase.LISTENING}
        for row in rows:
            if isinstance(row, Runner) and row.state in phases:
                self.crew.words[row.name] = status(phases[row.state], binding=row.github_id)
            elif isinstance(row, Runner) and row.state is RunnerState.BUSY:
                self.crew.words[row.name] = status(AgentPhase.BUSY, binding=row.github_id, worker=True)

    async def act(self, *rows: Runner, head: Head | None = None, time: timedelta = 4 * MINUTE) -> dict[str, Runner]:
        """Holds these rows, does what they ask for, and gives them as they are afterwards."""
        await self.hold(*rows)
        held = await self.runners()
        await act(self.acting(head, time=time), [held[row.name] for row in rows], [])
        return await self.runners()

    async def heartbeat(self) -> dict[str, Any]:
        (entity,) = await self.ledger.app_rows("heartbeat")
        return dict(json.loads(str(entity.columns["body"])))

    async def runners(self, name: str = "linux") -> dict[str, Runner]:
        return dict((await self.ledger.read_pool(name)).runners)

    async def only(self) -> Runner:
        (one,) = (await self.runners()).values()
        return one

    async def jobs(self) -> dict[str, Job]:
        return dict((await self.ledger.read_pool("linux")).jobs)

    def rows(self, *, without: str = "\0") -> list[tuple[str, str, Mapping[str, object]]]:
        """Everything in the ledger but the rows whose keys begin with `without`."""
        return [(e.partition, e.row, e.columns) for e in self.table.everything() if not e.row.startswith(without)]


def _row(row: Job | Runner | Fact | Head, number: int) -> tuple[str, Mapping[str, Any]]:
    match row:
        case Job():
            return f"job:{row.job_id}", job_to_columns(row)
        case Runner():
            return f"runner:{row.name}", runner_to_columns(row)
        case Fact():
            return f"fact:{row.job_id}:{number}", fact_to_columns(row)
        case Head():
            return "pool", head_to_columns(row)
