"""What one seed's day looks like apart from the faults: pools, repositories, and every job with the moment it is queued."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from random import Random
from typing import Any

from runnerpool.config import Config, PoolConfig

MINUTE, HOUR = 60.0, 3600.0
PREFIX = "hw"
OWNER = "octo-org"
JOBS = 200
"""What most days have. One in twenty has a fifth more, one in twenty twice as many, one in twenty a matrix of 256 beside."""

SHAPES: tuple[tuple[str, list[str]], ...] = (
    ("linux-x64", ["self-hosted", "linux", "x64"]),
    ("linux-x64-large", ["self-hosted", "linux", "x64", "large"]),
    ("gpu", ["gpu", "linux"]),
    ("linux-arm64", ["self-hosted", "Linux", "ARM64"]),
)


@dataclass(frozen=True, slots=True)
class JobPlan:
    """One job as its workflow means it: when it is queued, for how long it runs, what people do to it. Seconds."""

    job_id: str
    at: float
    repository: str
    labels: tuple[str, ...]
    seconds: float
    run_id: str = ""
    attempt: int = 1
    approved_after: float | None = None  # it first waits for an approval; < 0: that never comes
    cancelled_after: float | None = None  # somebody cancels it, whether it runs or not


@dataclass(frozen=True, slots=True)
class Scenario:
    """`boot` is by pool: seconds from the accepted PUT to a listening agent. `missing_size` is offered to this subscription
    nowhere, `refused_repository` is the one that a runner group may stop admitting."""

    config: Config
    jobs: tuple[JobPlan, ...]
    day: float
    workers: int
    boot: dict[str, float]
    missing_size: str
    refused_repository: str
    reap_idle_after: float
    tick_every: float
    page_rows: int


def draw(seed: str, *, day: float, jobs: int = JOBS) -> Scenario:
    """The same for the same seed, whatever faults it meets, on a day that usually has so many jobs."""
    rng = Random(f"{seed} scenario")
    scope = rng.choice(("org", "org", "repo", "enterprise"))
    names = ["api", "web", "tools"][: rng.randint(1, 3)]
    github: dict[str, Any] = {"scope": scope, "owner": OWNER}
    if scope == "repo" or rng.random() < 0.3:
        github["repositories"] = [f"{OWNER}/{name}" for name in names] if scope == "enterprise" else names
    shapes = [SHAPES[0], *rng.sample(SHAPES[1:], rng.choice((0, 0, 0, 1, 1, 2)))]
    pools = [_pool(rng, name, labels) for name, labels in shapes]
    document = {"azure": {"name_prefix": PREFIX, "tags": {"team": "ci"}}, "github": github, "pools": pools}
    config = Config.model_validate(document)
    repositories = [f"{OWNER}/{name}" for name in names]
    return Scenario(
        config=config,
        jobs=tuple(_bearable(_jobs(rng, [pool["labels"] for pool in pools], repositories, day, jobs), pools, day)),
        day=day,
        workers=rng.randint(2, 10),
        boot={pool["name"]: _boot(rng, pool["maximum_pool_size"]) for pool in pools},
        missing_size=rng.choice(("", "", "Standard_D4ads_v5")),
        refused_repository=rng.choice(repositories),
        reap_idle_after=rng.uniform(3, 12) * MINUTE,
        tick_every=30.0,
        page_rows=rng.choice((1000,) * 8 + (40, 8)),
    )


def _boot(rng: Random, maximum: int) -> float:
    """Small pools boot quickly, so that they can serve the day's jobs within a day."""
    usual = rng.choice((rng.uniform(35, 90), rng.uniform(60, 160), rng.uniform(150, 300)))
    return usual if maximum > 6 else min(usual, 60.0)


def _pool(rng: Random, name: str, labels: list[str]) -> dict[str, Any]:
    maximum = rng.choice((3, 6, 10, 20, 60))
    warm = min(rng.choice((0, 0, 1, 2, 3)), maximum)
    pool: dict[str, Any] = {
        "name": name,
        "labels": labels,
        "minimum_warm_vms": warm,
        "maximum_pool_size": maximum,
        "scale_up_trigger_threshold": rng.choice((1, 1, 1, 3)),
        "idle_timeout": f"{rng.choice((1, 5, 10, 20))}m",
        "keep_registered": rng.random() < 0.25,
        "rerun_evicted": rng.random() < 0.4,
        "vm": {
            "sizes": rng.choice((["Standard_D4as_v5"], ["Standard_D4ads_v5", "Standard_D4as_v5"])),
            "zones": rng.choice(([], ["1"], ["1", "2", "3"])),
            "priority": rng.choice(("regular", "regular", "spot", "spot-then-regular")),
        },
    }
    if rng.random() < 0.25:
        low, high = sorted((rng.randint(0, 23), rng.randint(0, 23)))
        window = {"cron": f"* {low}-{high} * * *", "minimum_warm_vms": min(rng.randint(0, 5), maximum)}
        pool["warm_schedule"] = [window]
    return pool


def warm_wanted(pool: PoolConfig, moment: datetime) -> int:
    """How many idle VMs this pool is to keep at that moment, read off the window's two hours, as `_pool` writes them."""
    for window in pool.warm_schedule:
        low, high = window.cron.split()[1].split("-")
        if int(low) <= moment.hour <= int(high):
            return window.minimum_warm_vms
    return pool.minimum_warm_vms


def _jobs(rng: Random, label_sets: list[list[str]], repositories: list[str], day: float, usual: int) -> list[JobPlan]:
    """A few busy times, bursts of seconds, strays, quiet hours between, and now and then a matrix of 256 in one second.

    What a world costs is mostly its busy minutes, so a day has few of them, and they are busy indeed.
    """
    count = round(usual * rng.choice((1.0,) * 18 + (1.2, 2.0)))
    typical = rng.choice((30.0, 60.0, 120.0, 120.0, 300.0, 900.0))
    plans: list[JobPlan] = []
    last = day - 30 * MINUTE
    matrices = int(rng.random() < 0.05)
    bursts = [(rng.uniform(0, last), rng.randint(2, 40)) for _ in range(rng.randint(0, 2))]
    moments = [at + rng.uniform(0, 20) for at, size in bursts for _ in range(size)]
    moments += [rng.uniform(0, last) for _ in range(rng.randint(0, 4))]
    shifts = [(rng.uniform(0, last - HOUR), rng.uniform(1, 12) * MINUTE) for _ in range(rng.randint(1, 2))]
    for _ in range(max(count - len(moments), 10)):
        begin, length = rng.choice(shifts)
        moments.append(begin + rng.uniform(0, length))
    for at in moments:
        plans.append(_job(rng, len(plans), at, rng.choice(label_sets), rng.choice(repositories), typical))
    for _ in range(matrices):
        at, labels, repository = rng.uniform(0, last / 2), rng.choice(label_sets), rng.choice(repositories)
        matrix = [_job(rng, len(plans) + n, at + n / 256, labels, repository, min(typical, 120.0)) for n in range(256)]
        plans += [replace(plan, run_id=matrix[0].run_id) for plan in matrix]
    again = [plan for plan in plans if rng.random() < 0.03]
    plans += [
        replace(plan, job_id=str(90_000 + n), at=min(plan.at + rng.uniform(600, 5000), last), attempt=2)
        for n, plan in enumerate(again)
    ]
    return sorted(plans, key=lambda plan: plan.at)


def _bearable(plans: list[JobPlan], pools: list[dict[str, Any]], day: float) -> list[JobPlan]:
    """The same jobs, shorter where the smallest pool could not serve all of them in an eighth of the day."""
    fewest = min(pool["maximum_pool_size"] for pool in pools)
    room = fewest * day / 8 - len(plans) * 60.0
    total = sum(plan.seconds for plan in plans)
    factor = min(1.0, max(room, 0.0) / total)
    return [replace(plan, seconds=max(plan.seconds * factor, 5.0)) for plan in plans]


def work(scenario: Scenario) -> float:
    """Seconds that all jobs of the day take one after the other, as many at a time as the smallest pool allows."""
    fewest = min(pool.maximum_pool_size for pool in scenario.config.pools)
    each = max(scenario.boot.values()) * 1.3 + MINUTE  # from one VM's end to the next one's readiness
    return sum(plan.seconds + each for plan in scenario.jobs) / fewest


def _job(rng: Random, number: int, at: float, labels: list[str], repository: str, typical: float) -> JobPlan:
    wanted = list(labels)
    if rng.random() < 0.1:
        wanted = [label.upper() if label != "self-hosted" else label for label in wanted]
    if rng.random() < 0.05 and len(wanted) > 2:
        wanted = wanted[:-1]
    approval = rng.random()
    return JobPlan(
        job_id=str(50_000 + number),
        at=at,
        repository=repository,
        run_id=str(1_050_000 + number),
        labels=tuple(wanted),
        seconds=min(rng.expovariate(1 / typical) + 5.0, 3 * HOUR),
        approved_after=-1.0 if approval < 0.01 else rng.uniform(30, 3 * HOUR) if approval < 0.04 else None,
        cancelled_after=rng.choice((5.0, 40.0, 200.0, 1500.0)) if rng.random() < 0.06 else None,
    )
