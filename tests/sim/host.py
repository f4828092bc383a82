"""The Functions host: deliveries become rows and messages, messages and timers become invocations, instances come and go."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from contextvars import copy_context
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from random import Random
from typing import TYPE_CHECKING, Any

from runnerpool.acting import Outside
from runnerpool.app import App
from runnerpool.demand import LEAVING
from runnerpool.errors import Gone
from runnerpool.intake import receive
from runnerpool.labels import SUFFIX_LENGTH
from runnerpool.ledger import Ledger
from runnerpool.planner import Planner
from runnerpool.ports import Delivery, Insert
from runnerpool.provision import Engine, SharedPasses
from runnerpool.reconcile import Reconcile
from runnerpool.settings import Settings
from tests.memory_table import at_once
from tests.sim.azure import ComputePort, NetworkPort, user_data
from tests.sim.deliveries import SECRET_KEY, Sent, payload, signed
from tests.sim.github import GitHubPort, SimJob
from tests.sim.machines import AgentsPort
from tests.sim.people import AlertsPort
from tests.sim.process import CURRENT, INVOCATION, Invocation, Killed, Process
from tests.sim.scenario import PREFIX
from tests.sim.storage import TablePort

if TYPE_CHECKING:
    from tests.sim.world import World

VISIBILITY = 15.0
"""host.json: how long a message whose invocation failed stays hidden."""
HIDDEN = 600.0
"""How long one stays hidden whose instance died."""
MOST_DEQUEUED = 5
AT_ONCE = 24
"""batchSize + newBatchThreshold."""
TIMEOUT = 300.0
"""functionTimeout."""
QUIET = 60.0
"""Seconds without a fact and without a runner's step after which ticks become rare."""
RAREST = 1200.0
"""Seconds between two ticks of a world in which nothing has happened for long."""
RAREST_WAITED = 150.0
"""The same while somebody waits, or a VM is on its way out."""
UNDER_WAY = {*map(str, LEAVING), "booting", "binding"}
ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"


@dataclass(slots=True)
class Message:
    number: int
    body: bytes
    dequeued: int = 0
    began: bool = True  # whether its last attempt lived so long that a call was answered


@dataclass(slots=True)
class Instance:
    """A process with the app in it. `running` are its invocations."""

    process: Process
    app: App
    running: int = 0


@dataclass(slots=True)
class Host:
    world: World
    instances: list[Instance] = field(default_factory=list)
    timer: Instance | None = None
    timer_busy: int = 0
    queue: dict[int, Message] = field(default_factory=dict)
    poisoned: list[Message] = field(default_factory=list)
    sent: dict[str, Sent] = field(default_factory=dict)
    wakeups: int = 0
    ticks: int = 0
    _made: int = 0
    _fired_at: float = 0.0

    # ------------------------------------------------------------------------------------------ instances

    def instance(self, kind: str) -> Instance:
        """A fresh process, with a clock of its own that may be two minutes off."""
        world = self.world
        self._made += 1
        skew = timedelta(seconds=round(world.life.uniform(-world.clock_skew, world.clock_skew), 3))
        process = Process(world, f"{kind}-{self._made}", skew)
        rng = Random(f"{world.seed} {process.name}")
        paged = world.scenario.page_rows < 1000
        ledger = Ledger(table=TablePort(process, world.table, paged=paged), history=TablePort(process, world.history, paged=False))
        config = world.scenario.config
        github = GitHubPort(process, world.github)
        outside = Outside(
            compute=ComputePort(process, world.azure),
            github=github,
            agents=AgentsPort(process),
            user_data=user_data,
            group=config.github.runner_group,
            anchor=config.github.targets[0],
            others=config.github.targets[1:],
            place="00000000-0000-0000-0000-000000000000/hw-rg",
            tags={**config.azure.tags, "runnerpool": PREFIX},
        )
        engine = Engine(
            config=config,
            ledger=ledger,
            outside=outside,
            clock=process.clock,
            worker=process.name,
            suffix=lambda: "".join(rng.choices(ALPHABET, k=SUFFIX_LENGTH)),
            rng=rng,
        )
        reconciler = Reconcile(
            engine=engine,
            ledger=ledger,
            outside=outside,
            network=NetworkPort(process, world.azure),
            alerts=AlertsPort(process),
            clock=process.clock,
        )
        app = App(SETTINGS, config)
        app._planner = Planner(
            github=github,  # type: ignore[arg-type]
            closing=AsyncExitStack(),
            passes=SharedPasses(engine),
            reconciler=reconciler,
        )
        app._ledger = ledger
        return Instance(process, app)

    def start(self) -> None:
        self.instances = [self.instance("provision") for _ in range(self.world.scenario.workers)]
        self.world.later(self.world.life.uniform(0, 5), self._tick)

    def deploy(self) -> None:
        """Every instance is replaced at once."""
        self.world.faults.happened["deploy"] += 1
        for instance in [*self.instances, *([self.timer] if self.timer else [])]:
            instance.process.kill()

    def _invoke(self, instance: Instance, work: Coroutine[Any, Any, None], invocation: Invocation) -> asyncio.Task[None]:
        """One invocation, ended by the death of its instance when it takes too long."""
        context = copy_context()
        context.run(CURRENT.set, instance.process)
        context.run(INVOCATION.set, invocation)
        task = self.world.loop.create_task(work, context=context)
        timeout = self.world.loop.call_later(TIMEOUT, instance.process.kill)
        instance.running += 1

        def ended(_task: asyncio.Task[None]) -> None:
            timeout.cancel()
            instance.running -= 1

        task.add_done_callback(ended)
        return task

    # ------------------------------------------------------------------------------------------ the timer

    def _tick(self) -> None:
        world, faults = self.world, self.world.faults
        world.later(world.scenario.tick_every, self._tick)
        if self._dull() or faults.roll("timer skipped"):
            return
        self._fired_at = world.loop.time()
        self.ticks += 1
        late = faults.span(1, 45) if faults.roll("timer late") else 0.0
        overlap = faults.roll("timer doubled")
        world.later(late, self._fire, overlap)
        if overlap:
            world.later(late + faults.span(0, 5), self._fire, True)

    def _dull(self) -> bool:
        """Whether nothing has happened for so long that most ticks may be left out: what a world costs is mostly its quiet hours.
        The longer the quiet lasts, the fewer are left. One seed in fifty gets every tick."""
        world = self.world
        if world.seed % 50 == 0 or world.checks.watching is not None:
            return False
        now = world.loop.time()
        quiet = now - world.checks.changed_at
        if quiet <= QUIET:
            return False
        waited = any(world.github.queued.values()) or any(state in UNDER_WAY for state in world.checks.states.values())
        grown = max((self._fired_at - world.checks.changed_at) / 2, world.scenario.tick_every)
        return now - self._fired_at < min(grown, RAREST_WAITED if waited else RAREST)

    def _fire(self, overlap: bool) -> None:
        """A timer that still runs is not started again, unless two instances hold it for a while."""
        if self.timer_busy and not overlap:
            return
        instance = self.timer
        if instance is None or not instance.process.alive or self.timer_busy:
            instance = self.instance("timer")
        self.timer = instance
        self.timer_busy += 1
        task = self._invoke(instance, instance.app.reconcile(), Invocation())
        task.add_done_callback(self._fired)

    def _fired(self, task: asyncio.Task[None]) -> None:
        self.timer_busy -= 1
        self._outcome("reconcile", task)

    def _outcome(self, what: str, task: asyncio.Task[None]) -> bool:
        """Whether it went well. An error that is no known kind of trouble is a defect."""
        error = None if task.cancelled() else task.exception()
        if error is None:
            return True
        self.world.note(f"{what} ends with {type(error).__name__}: {error}")
        if not isinstance(error, Killed):
            self.world.checks.invocation_failed(what, error)
        return False

    # ------------------------------------------------------------------------------------------ the queue

    def put(self, body: bytes) -> None:
        self.wakeups += 1
        message = self.queue[self.wakeups] = Message(self.wakeups, body)
        if self.world.faults.roll("fails four times"):
            message.dequeued = MOST_DEQUEUED - 1
        self.world.checks.message(body)
        self._show(message, 0.0)

    def _show(self, message: Message, after: float) -> None:
        self.world.later(after + self.world.life.uniform(0.05, 1.0), self._take, message)

    def _take(self, message: Message) -> None:
        if message.number not in self.queue:
            return
        if message.dequeued >= MOST_DEQUEUED:
            del self.queue[message.number]
            self.poisoned.append(message)
            return
        for index, instance in enumerate(self.instances):
            if not instance.process.alive:
                self.instances[index] = self.instance("provision")
        free = [instance for instance in self.instances if instance.running < AT_ONCE]
        if not free or self.world.faults.during("storage down"):  # the queue lies in the same account
            self._show(message, 1.0)
            return
        message.dequeued += 1
        if self.world.faults.roll("hidden for 10 minutes"):
            message.began = False
            self._show(message, HIDDEN)
            return
        instance = self.world.life.choice(free)
        invocation = Invocation()
        task = self._invoke(instance, instance.app.provision(message.body, f"m{message.number}", message.dequeued), invocation)
        task.add_done_callback(lambda done: self._taken(message, done, instance.process, invocation))
        if self.world.faults.roll("message seen twice"):
            self._show(message, self.world.faults.span(0, 30))

    def _taken(self, message: Message, task: asyncio.Task[None], process: Process, invocation: Invocation) -> None:
        """What a dead process returned or raised, nobody has heard."""
        if self._outcome(f"message {message.number}", task) and process.alive:
            self.queue.pop(message.number, None)
            self.poisoned = [poisoned for poisoned in self.poisoned if poisoned is not message]
            return
        killed = not process.alive
        if not killed:
            self.world.checks.taken_back.discard(f"poison:m{message.number}")
        message.began = invocation.answered > 0 or not killed
        self._show(message, HIDDEN if killed else VISIBILITY)

    # ------------------------------------------------------------------------------------------ deliveries

    def deliver(self, job: SimJob, action: str) -> None:
        """GitHub sends a delivery about a job as it stands now."""
        world, faults = self.world, self.world.faults
        sent = Sent(len(self.sent) + 1, signed(payload(job, action, world)), world.now())
        self.sent[sent.guid] = sent
        if faults.roll("delivery lost"):
            return
        late = faults.span(1, 1200) if faults.roll("delivery late") else world.life.uniform(0.05, 2.0)
        world.later(late, self.attempt, sent)
        if faults.roll("delivery doubled"):
            world.later(late + faults.span(0, 900), self.attempt, sent)

    def attempt(self, sent: Sent) -> int:
        """One attempt of GitHub's at one delivery; the answer's status."""
        world = self.world
        status = self._webhook(sent)
        sent.attempts.append((world.now(), 200 <= status < 300))
        return status

    def _webhook(self, sent: Sent) -> int:
        world, faults = self.world, self.world.faults
        if faults.during("front down"):
            return 401  # as where only one side has the new secret: passes go on, and each redelivery fails, too
        if faults.during("storage down") or faults.roll("row refused"):
            return 500
        receipt = receive(
            sent.body,
            sent.headers,
            secrets=(SECRET_KEY,),
            config=world.scenario.config,
            now=world.now() + timedelta(seconds=world.life.uniform(-world.clock_skew, world.clock_skew)),
            unique=f"{world.life.getrandbits(64):016x}",
        )
        world.checks.received(sent, receipt)
        if receipt.row is not None:
            columns = {key: value for key, value in receipt.row.items() if key not in ("PartitionKey", "RowKey")}
            partition, row = receipt.row["PartitionKey"], receipt.row["RowKey"]
            world.checks.changed_at = world.loop.time()
            at_once(world.table.transact(partition, [Insert(row, columns)]))
        if receipt.wakeup is not None:
            if faults.roll("wake-up refused") or faults.roll("front killed between row and wake-up"):
                return 500
            self.put(json.dumps(receipt.wakeup).encode())
        return receipt.status

    def failed(self, since: datetime) -> list[Delivery]:
        """What GitHub lists: deliveries without a good attempt, each by its newest one."""
        found = []
        for sent in self.sent.values():
            if not sent.ok and sent.at >= since and sent.overdue(self.world.now()):
                found.append(Delivery(sent.number, sent.guid, sent.at, False))
        return found[::-1]

    def redeliver(self, delivery: Delivery) -> None:
        sent = self.sent.get(delivery.guid)
        if sent is None:
            raise Gone("GitHub keeps this delivery no longer")
        if not self.world.faults.roll("delivery lost"):
            self.world.later(self.world.life.uniform(0.5, 5), self.attempt, sent)


SETTINGS = Settings.from_env(
    {
        "AzureWebJobsStorage": "UseDevelopmentStorage=true",
        "GITHUB_WEBHOOK_SECRET": SECRET_KEY,
        "RUNNER_STATUS_TOKEN": "s3cr3t-status-token",
        "RUNNER_AGENT_KEY": "s3cr3t-agent-key-0123456789",
        "GITHUB_TOKEN": "s3cr3t-github-token",
        "AZURE_SUBSCRIPTION_ID": "00000000-0000-0000-0000-000000000000",
    }
)
