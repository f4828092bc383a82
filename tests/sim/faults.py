"""What goes wrong in one world, drawn from its seed: how often each thing happens, and the hours in which a service is down."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta
from random import Random

from runnerpool.errors import Misconfigured, NoCapacity, PoolError, RetryLater

HOUR = 3600.0

MOST: dict[str, dict[str, float]] = {
    "webhooks": {
        "delivery lost": 0.3,
        "delivery doubled": 0.3,
        "delivery late": 0.2,
        "row refused": 0.05,
        "wake-up refused": 0.05,
        "front killed between row and wake-up": 0.03,
    },
    "github": {
        "github 5xx": 0.05,
        "github 502, applied": 0.05,
        "github secondary limit": 0.03,
        "github secondary limit, nameless": 0.03,
        "github hangs": 0.01,
        "removed in mid-job": 0.5,
        "list shifts": 0.02,
        "reaped while booting": 0.1,
        "reaped while idle": 0.3,
        "exits without a job": 0.1,
        "slow to assign": 0.1,
        "taken elsewhere": 0.03,
    },
    "azure": {
        "azure 429": 0.05,
        "azure 5xx": 0.05,
        "azure 5xx, applied": 0.05,
        "azure hangs": 0.02,
        "put arrives late": 0.03,
        "no room": 0.1,
        "accepted, then failed": 0.1,
        "slow boot": 0.1,
        "dead agent": 0.05,
        "agent dies": 0.03,
        "agent mute": 0.003,
        "agent's answer lost": 0.05,
        "evicted at boot": 0.05,
        "evicted in mid-job": 0.1,
        "spared": 0.5,
        "delete fails": 0.3,
        "deletion undone": 0.1,
        "list omits": 0.5,
        "list stale": 0.1,
        "list fails half way": 0.03,
        "nic left behind": 0.2,
    },
    "functions": {
        "killed": 0.003,
        "timer skipped": 0.3,
        "timer late": 0.3,
        "timer doubled": 0.2,
        "answer late": 0.01,
        "message seen twice": 0.1,
        "hidden for 10 minutes": 0.05,
        "fails four times": 0.03,
    },
    "storage": {
        "storage throttles": 0.02,
        "storage loses the request": 0.01,
        "storage loses the answer": 0.02,
    },
}
"""The families of faults, and the highest rate that a seed may draw for each fault."""

OUTAGES: dict[str, tuple[str, ...]] = {
    "github": (
        "github down",
        "github silent",
        "credential refused",
        "permission lost",
        "primary limit",
        "version refused",
        "group refuses",
    ),
    "azure": ("azure down", "azure silent", "quota full", "spot gone", "zone full", "keys rotated wrongly"),
    "storage": ("storage down",),
    "functions": ("deploy", "front down"),
}
"""What lasts for a while: up to two windows a day of up to 40 minutes each, half of them where the work is."""
UNNOTICED = {"front down": 4.0}
"""What lasts so many times as long, since nothing else suffers by it: the webhook has another secret than GitHub, say."""
KEEPS_VMS = (
    *("github down", "github silent", "credential refused", "permission lost", "primary limit"),
    *("azure down", "azure silent", "keys rotated wrongly", "storage down", "version refused"),
)
"""The outages in which no idle VM can go: nothing is known of it, nobody can be asked, or nobody deletes it. And the one in
which none gets a job, since GitHub refuses the runner's version: each waiting job has its VMs in vain then, by design."""

FAMILIES = tuple(MOST)
NAMES = frozenset(name for kinds in (*MOST.values(), *OUTAGES.values()) for name in kinds)


@dataclass(frozen=True, slots=True)
class Trouble:
    """What becomes of one call: whether and when it takes effect all the same, and when its caller hears what."""

    error: PoolError | None = None
    applied: bool = False
    applied_after: float = 0.0
    answered_after: float = 0.0
    kills: bool = False


class Faults:
    """`healed` turns everything off, for good."""

    def __init__(
        self, seed: str, *, families: Collection[str], day: float, busy: Sequence[float], clock: Callable[[], float]
    ) -> None:
        """`busy` are moments at which jobs come, `clock` tells the seconds of the day."""
        draw = Random(f"{seed} faults")
        self._chance = Random(f"{seed} chance")
        self._clock = clock
        self.healed = False
        self.rates: dict[str, float] = {}
        self.windows: dict[str, list[tuple[float, float]]] = {}
        self.happened = Counter[str]()
        for family, faults in MOST.items():
            for name, most in faults.items():
                rate = 0.0 if draw.random() < 0.45 else most * 10 ** draw.uniform(-1.5, 0)
                self.rates[name] = rate if family in families else 0.0
        for family, kinds in OUTAGES.items():
            for kind in kinds:
                count = draw.choice((0, 0, 0, 1, 2))
                starts = [draw.uniform(0, day) for _ in range(count)]
                if draw.random() < 0.5:
                    starts = [max(draw.choice(busy) + draw.uniform(-600, 900), 0.0) for _ in starts]
                times = UNNOTICED.get(kind, 1.0)
                spans = [(start, min(start + times * draw.uniform(60, 2400), day)) for start in starts]
                self.windows[kind] = spans if family in families else []

    def roll(self, name: str) -> bool:
        """Whether this fault happens now."""
        if self.healed or self._chance.random() >= self.rates[name]:
            return False
        self.happened[name] += 1
        return True

    def during(self, kind: str) -> bool:
        """Whether such an outage lasts right now, when somebody meets it."""
        if self.healed or not self.windows[kind]:
            return False
        now = self._clock()
        if not any(start <= now < end for start, end in self.windows[kind]):
            return False
        self.happened[kind] += 1
        return True

    def tied(self, start: float, end: float) -> float:
        """For how many of these seconds an outage kept VMs from going, or from being of use."""
        spans = sorted(span for kind in KEEPS_VMS for span in self.windows[kind])
        seconds = 0.0
        for span in spans:
            begin, over = max(span[0], start), min(span[1], end)
            if begin < over:
                seconds += over - begin
                start = over  # where two overlap, the time counts once
        return seconds

    def span(self, low: float, high: float) -> float:
        return self._chance.uniform(low, high)

    def trouble(self, service: str, *, write: bool, what: str) -> Trouble | None:
        """What goes wrong with this call on its way, None when nothing does. What a service means to answer is its own affair."""
        if self.healed:
            return None
        if self.roll("killed"):
            return Trouble(kills=True, applied=self._chance.random() < 0.5)
        match service:
            case "storage":
                return self._storage(write)
            case "azure":
                return self._azure(write, what)
            case "github":
                return self._github(write)
            case "agent":
                return self._agent(write)
            case _:
                return None

    def _storage(self, write: bool) -> Trouble | None:
        if self.during("storage down") and self._chance.random() < 0.9:
            return Trouble(RetryLater("storage answers 503"), answered_after=0.1)
        if self.roll("storage throttles"):
            return Trouble(RetryLater("storage answers 503", after=timedelta(seconds=1)))
        if self.roll("storage loses the request"):
            return Trouble(RetryLater("storage does not answer", uncertain=write), answered_after=self.span(1, 20))
        if write and self.roll("storage loses the answer"):
            late = self.span(0, 10) if self._chance.random() < 0.5 else 0.0  # its caller may have read again before it lands
            lost = RetryLater("storage does not answer", uncertain=True)
            return Trouble(lost, applied=True, applied_after=late, answered_after=self.span(1, 20))
        return None

    def _azure(self, write: bool, what: str) -> Trouble | None:
        if self.during("azure down"):
            return Trouble(RetryLater("ARM answers 503", uncertain=write), answered_after=0.2)
        if self.during("azure silent"):
            return self._silence("ARM", write)
        if self.roll("azure 429"):
            return Trouble(RetryLater("ARM throttles", after=timedelta(seconds=self.span(1, 40))))
        if self.roll("azure 5xx"):
            return Trouble(RetryLater("ARM answers 500", uncertain=write))
        if self.roll("azure hangs"):
            return Trouble(RetryLater("ARM does not answer", uncertain=write), answered_after=30.0)
        if write and self.roll("azure 5xx, applied"):
            return Trouble(RetryLater("ARM answers 500", uncertain=True), applied=True)
        if what == "put" and self.roll("put arrives late"):
            late = self.span(20, 300)
            return Trouble(RetryLater("ARM does not answer", uncertain=True), applied=True, applied_after=late, answered_after=30.0)
        if what == "delete" and self.roll("delete fails"):
            return Trouble(RetryLater("ARM answers 409: another operation is under way"))
        if what == "list" and self.roll("list fails half way"):
            return Trouble(RetryLater("ARM answers 500 to the second page"), answered_after=3.0)
        return None

    def _github(self, write: bool) -> Trouble | None:
        if self.during("github down"):
            return Trouble(RetryLater("GitHub answers 503", uncertain=write), answered_after=0.3)
        if self.during("github silent"):
            return self._silence("GitHub", write)
        if self.during("credential refused"):
            return Trouble(Misconfigured("GitHub answers 401", area="auth", everywhere=True))
        if self.during("primary limit"):
            return Trouble(RetryLater("the hourly budget is used up", after=timedelta(minutes=20)))
        if self.roll("github secondary limit"):
            return Trouble(RetryLater("a secondary limit", after=timedelta(seconds=self.span(5, 90))))
        if self.roll("github secondary limit, nameless"):
            return Trouble(RetryLater("a secondary limit", after=timedelta(seconds=60)))
        if self.roll("github 5xx"):
            return Trouble(RetryLater("GitHub answers 502", uncertain=write))
        if write and self.roll("github 502, applied"):
            return Trouble(RetryLater("GitHub answers 502", uncertain=True), applied=True)
        if self.roll("github hangs"):
            return Trouble(RetryLater("GitHub does not answer", uncertain=write), applied=write, answered_after=30.0)
        return None

    def _silence(self, service: str, write: bool) -> Trouble:
        """Every call hangs; half of the writes take effect all the same."""
        error = RetryLater(f"{service} does not answer", uncertain=write)
        return Trouble(error, applied=write and self._chance.random() < 0.5, answered_after=30.0)

    def _agent(self, write: bool) -> Trouble | None:
        if self.roll("agent's answer lost"):
            return Trouble(RetryLater("the agent does not answer", uncertain=True), applied=write, answered_after=5.0)
        return None

    def refusal(self, size: str, zone: str | None, spot: bool) -> NoCapacity | None:
        """Why Azure has no room for this offer now, None when it has."""
        if self.during("quota full"):
            return NoCapacity("OperationNotAllowed", "exceeding approved Total Regional Cores quota")
        if spot and self.during("spot gone"):
            return NoCapacity("SkuNotAvailable", "The requested VM size is currently not available as spot")
        if zone == "1" and self.during("zone full"):
            return NoCapacity("ZonalAllocationFailed", "no sufficient capacity in the zone")
        if self.roll("no room"):
            return self._chance.choice(REFUSALS)
        return None


REFUSALS = (
    NoCapacity("AllocationFailed", "no sufficient capacity for the requested VM size in this region"),
    NoCapacity("ZonalAllocationFailed", "no sufficient capacity in the zone"),
    NoCapacity("OverconstrainedZonalAllocationRequest", "the constraints cannot be met in the zone"),
    NoCapacity("QuotaExceeded", "exceeding approved standardDadsv5Family Cores quota"),
    NoCapacity("OperationNotAllowed", "exceeding approved Total Regional Cores quota"),
    NoCapacity("SpotQuota", "exceeding approved LowPriorityCores quota"),
)
