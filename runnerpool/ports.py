"""The ports: what the rest of the house may ask of Table Storage, Azure, GitHub, the agents and the mail server.

One adapter a service implements each (`tables.py`, `compute.py`, `network.py`, `github.py`, `agent_client.py`, `alerts.py`);
the simulation implements them once more. Every method may raise `RetryLater`, and `Misconfigured` where a permission, a
credential or a setting is at fault; what else it raises stands in its docstring. No port retries by itself: `retry.py` does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Literal, Protocol

# ---------------------------------------------------------------------------------------------- Table Storage

Value = str | int | float | bool | datetime
"""What a column may hold. `None` is not among them: Table Storage has no null, an absent column is how it says so."""


@dataclass(frozen=True, slots=True)
class Entity:
    """One row. `columns` leaves out the two keys and the timestamp. `etag` is empty for a row not yet written. `read_at` is when
    the service answered, by its own clock and in whole seconds, where `Table.get` was told it: the one clock that all share."""

    partition: str
    row: str
    columns: Mapping[str, Value]
    etag: str = ""
    read_at: datetime | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Insert:
    """Fails with Conflict where the row exists."""

    row: str
    columns: Mapping[str, Value]


@dataclass(frozen=True, slots=True)
class Replace:
    """Replaces the whole row; fails with Conflict where its ETag is another one, or the row is gone."""

    row: str
    columns: Mapping[str, Value]
    etag: str


@dataclass(frozen=True, slots=True)
class Upsert:
    """Inserts or replaces, whatever is there."""

    row: str
    columns: Mapping[str, Value]


@dataclass(frozen=True, slots=True)
class Remove:
    """Deletes; fails with Conflict where the row is gone or its ETag is another one. An `etag` of "*" fits any version."""

    row: str
    etag: str


Operation = Insert | Replace | Upsert | Remove


class Table(Protocol):
    """One table of Table Storage. Partition and row keys never hold `/ \\ # ?` or control characters: callers see to it."""

    async def read(self, partition: str, *, prefix: str = "") -> list[Entity]:
        """Every row of the partition whose key begins with `prefix`, by key. Follows continuation tokens to the end."""

    async def get(self, partition: str, row: str) -> Entity | None:
        """One row, or None."""

    async def transact(self, partition: str, operations: Sequence[Operation]) -> list[str]:
        """Applies 1 to 100 operations on distinct rows, all or none; returns the new ETags in order ("" for a Remove).

        Raises Conflict when a condition fails (nothing was applied), RetryLater(uncertain=True) when that is not known.
        """


# ---------------------------------------------------------------------------------------------- Azure


@dataclass(frozen=True, slots=True)
class VmSpec:
    """What `create_vm` sends. `custom_data` is the plain text of the user-data (cloud-config), at most 64 KiB before base64."""

    name: str
    size: str
    zone: str | None
    spot: bool
    image: str
    ephemeral_disk: bool
    disk_gb: int
    admin_username: str
    ssh_public_key: str
    os: Literal["linux", "windows"]
    custom_data: str = field(repr=False)
    tags: Mapping[str, str] = field(default_factory=dict)


class VmState(StrEnum):
    """Azure's provisioningState folded to what decisions need."""

    CREATING = "creating"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    DELETING = "deleting"


@dataclass(frozen=True, slots=True)
class Vm:
    """One VM as Azure tells it. `power` is the instance view's power state without its prefix ("running", "stopped",
    "deallocated"), None where Azure gave none. `error_code` and `error` are the failed provisioning status's, else empty."""

    name: str
    state: VmState
    tags: Mapping[str, str]
    created_at: datetime | None
    size: str = ""
    zone: str | None = None
    power: str | None = None
    error_code: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True)
class Nic:
    """One NIC. `vm` is the name of the VM that it is attached to, None for a free one; `address` its private IPv4 address."""

    name: str
    vm: str | None
    address: str | None
    tags: Mapping[str, str]


class Compute(Protocol):
    async def create_vm(self, spec: VmSpec) -> None:
        """PUT with `If-None-Match: *`; returns when Azure has accepted it, not when the VM runs.

        Raises Conflict (412: a VM of this name exists), NoCapacity, Misconfigured(area="provisioning"|"auth"|"network").
        RetryLater.uncertain tells whether the PUT may have been accepted.
        """

    async def get_vm(self, name: str) -> Vm | None:
        """A direct GET with the instance view; None is Azure's 404."""

    async def list_vms(self) -> list[Vm]:
        """Every VM of the resource group with power states, ours or not. May be seconds stale. All pages, or an error."""

    async def delete_vm(self, name: str) -> None:
        """DELETE with `forceDeletion=true`; returns when Azure has accepted it or knows no such VM."""


class Network(Protocol):
    async def list_nics(self) -> list[Nic]:
        """Every NIC of the resource group, ours or not. All pages, or an error."""

    async def delete_nic(self, name: str) -> None:
        """DELETE; returns when Azure has accepted it or knows no such NIC. Azure holds a failed VM's NIC for 180 s: RetryLater."""

    async def subnet_prefixes(self) -> list[str]:
        """The runner subnet's address ranges in CIDR form. An agent's address must lie in one of them."""


# ---------------------------------------------------------------------------------------------- GitHub


@dataclass(frozen=True, slots=True)
class JitConfig:
    """A fresh registration. `encoded` is a secret that is shown once; it goes to one VM and nowhere else."""

    runner_id: int
    encoded: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Registration:
    """One runner in GitHub's list. `busy` False lags by a minute or more and proves nothing; True is believed."""

    runner_id: int
    name: str
    online: bool
    busy: bool


class Removal(StrEnum):
    """GitHub's answer to the removal of a runner. ABSENT (404) is proof only beside a whole list without that name."""

    REMOVED = "removed"
    BUSY = "busy"
    ABSENT = "absent"


@dataclass(frozen=True, slots=True)
class JobReport:
    """What the API says of one job now. `status` is GitHub's: queued, waiting, in_progress, completed (or pending, requested)."""

    job_id: str
    status: str
    conclusion: str | None
    runner_name: str | None
    runner_id: int | None
    started_at: datetime | None
    completed_at: datetime | None


@dataclass(frozen=True, slots=True)
class RunnerPackage:
    """A runner release that GitHub's downloads endpoint offers for one OS and architecture."""

    version: str
    url: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Delivery:
    """One webhook delivery in GitHub's list: `id` is what a redelivery asks for, `guid` what all its attempts share. `hook` tells
    apart the webhooks that seem to be ours, of which one may belong to a deployment that is gone."""

    id: int
    guid: str
    delivered_at: datetime
    ok: bool
    hook: str = ""


class GitHub(Protocol):
    """`target` is where a registration lives: `org:NAME`, `repo:OWNER/NAME` or `enterprise:SLUG` (`model.Target`)."""

    async def mint_jit_config(self, target: str, name: str, labels: Sequence[str], group: str) -> JitConfig:
        """Registers a just-in-time runner in the runner group named `group`. Not idempotent.

        Raises Conflict (409: the name is registered already), Misconfigured(area="setup"|"auth").
        """

    async def remove_runner(self, target: str, runner_id: int) -> Removal:
        """DELETE of one registration."""

    async def list_runners(self, target: str) -> list[Registration]:
        """The scope's whole list, all pages or an error: half a list is never returned."""

    async def find_runner(self, target: str, name: str) -> Registration | None:
        """The registration of that name, asked for by name."""

    async def get_job(self, repository: str, job_id: str) -> JobReport | None:
        """One job, None for a 404 (deleted, or a lost permission)."""

    async def reads_jobs(self, repository: str) -> bool:
        """Whether this credential may read the jobs of the repository at all: a 404 about one of them is proof only then."""

    async def rerun_job(self, repository: str, job_id: str) -> None:
        """Runs one job again, and what depends on it, as new jobs of the run's next attempt.

        Raises RetryLater as long as another job of the run is running, Gone for a job that GitHub no longer has.
        """

    async def runner_package(self, target: str, os: str, arch: str) -> RunnerPackage:
        """The release that GitHub's downloads endpoint names for `os` (linux, win) and `arch` (x64, arm64)."""

    async def failed_deliveries(self, since: datetime) -> list[Delivery]:
        """Deliveries to our hook(s) not older than `since` of which no attempt got a 2xx answer, newest attempt first.

        Empty where no hook of ours can be found for lack of permission: that is a finding for `doctor`, not an error. RetryLater
        also while a long list is being read: each look reads some pages of it, and half a list is never returned.
        """

    async def redeliver(self, delivery: Delivery) -> None:
        """Asks GitHub to send this delivery again."""

    def calls_left(self) -> int | None:
        """`x-ratelimit-remaining` of the newest answer, None before the first. Makes no call."""


# ---------------------------------------------------------------------------------------------- the agents


class AgentPhase(StrEnum):
    """What the agent on a VM says it is doing."""

    SETUP = "setup"  # the bootstrap still runs
    WAITING = "waiting"  # no binding; POST /runner/start is welcome
    STARTING = "starting"  # a JIT config was handed over, the runner is not listening yet
    LISTENING = "listening"  # the runner waits for a job
    BUSY = "busy"  # a job was started on it
    EXITED = "exited"  # the runner program ended


@dataclass(frozen=True, slots=True)
class AgentStatus:
    """One answer of `/runner/status` on a VM. `worker`: a job worker process runs right now. `job_seen`: any sign that a job
    ever ran here (hook, worker process, worker log). `binding` is the GitHub runner id of the JIT config in use, None
    before any. `log` is the tail of the setup log."""

    phase: AgentPhase
    worker: bool
    job_seen: bool
    binding: int | None
    exit_code: int | None = None
    runner_version: str = ""
    eviction_at: datetime | None = None
    log: Sequence[str] = ()


class AgentTrouble(StrEnum):
    """Why an agent gave no status. Neither is its death: REFUSED is a 401 (a key rotated wrongly), SILENT anything else."""

    SILENT = "silent"
    REFUSED = "refused"


class Agents(Protocol):
    async def status(self, name: str, address: str) -> AgentStatus | AgentTrouble:
        """Polls one agent, 5 s at most. Never raises: what goes wrong is the answer."""

    async def start(self, name: str, address: str, config: JitConfig) -> AgentStatus:
        """Hands the JIT config over; repeating it for the same runner id changes nothing.

        Raises Conflict (409: the agent holds another binding), RetryLater(uncertain=True) when it gave no answer.
        """


# ---------------------------------------------------------------------------------------------- people


@dataclass(frozen=True, slots=True)
class Alert:
    """One thing that a person should know. `id` names the condition, so that it is told once; `area` is one of
    provisioning, setup, network, auth, safety."""

    id: str
    area: str
    title: str
    text: str


class Alerts(Protocol):
    async def send(self, alert: Alert) -> None:
        """By mail and, where set, as a JSON POST. RetryLater when neither went out; with no channel configured it is logged."""
