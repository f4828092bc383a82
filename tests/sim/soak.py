"""Many seeds on all cores: `python -m tests.sim.soak --seeds N --from K`.

Before the last line stands how often each fault was met. That line is `N seeds, V violations, J jobs`; the exit status is 1 when
V is not 0. A seed replays exactly when it is run again on the same version of Python: 3.11 and 3.13 take up equal work in
another order, and some days go differently.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import multiprocessing
import os
import sys
import textwrap
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial

from tests.sim.checks import Violation

LAST_EVENTS = 25
ORACLE = 5
"""Every fifth seed is played once more without faults: which jobs complete then is nearly always the same, and costs as much."""

COLLECT = 10
"""Worlds between two collections of garbage. Each leaves some 14 MB, and every collection looks at all that was imported, too."""
_played = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Result:
    """What one seed's two days brought: the one with faults and, for the oracle, the one without."""

    seed: int
    violations: list[Violation]
    jobs: int
    remainder: int
    cpu: float
    events: list[str]
    happened: Counter[str]


def judge(seed: int, *, oracle: bool = True) -> Result:
    """Plays one seed with its faults and, unless it is spared, once more without: the same jobs must succeed."""
    from tests.sim.world import play

    gc.disable()  # a world makes little garbage of the kind that needs it, and looking for it costs a fifth of the time
    begun = time.process_time()
    try:
        outcome = play(seed)
        violations = list(outcome.violations)
        if oracle and not violations:
            calm = play(seed, families=())
            violations += calm.violations
            if missing := calm.succeeded - calm.excused - outcome.succeeded - outcome.excused:
                violations.append(Violation(10, f"jobs that succeed without faults do not with them: {sorted(missing)[:10]}", 0.0))
        return Result(
            seed,
            violations,
            outcome.jobs,
            outcome.remainder,
            time.process_time() - begun,
            outcome.trace[-LAST_EVENTS:],
            outcome.happened,
        )
    except Exception:
        crash = Violation(0, f"the world itself broke: {traceback.format_exc()[-1500:]}", 0.0)
        return Result(seed, [crash], 0, 0, time.process_time() - begun, [], Counter())
    finally:
        gc.enable()
        if next(_played) % COLLECT == 0:
            gc.collect()


def soak(seeds: Iterable[int], *, cores: int, oracle: int) -> Iterator[Result]:
    """Results in the order in which they come. Every `oracle`-th seed is played without faults, too; 0: none is."""
    one = partial(_judge, oracle)
    with multiprocessing.get_context("spawn").Pool(cores, maxtasksperchild=100) as pool:
        yield from pool.imap_unordered(one, seeds)


def _judge(oracle: int, seed: int) -> Result:
    return judge(seed, oracle=oracle > 0 and seed % oracle == 0)


def met(happened: Counter[str]) -> str:
    """How often each fault was met, the rarest last, and which ones never were."""
    from tests.sim.faults import NAMES

    often = ", ".join(f"{name} {count}" for name, count in happened.most_common())
    never = ", ".join(sorted(NAMES - happened.keys()))
    return textwrap.fill(f"met: {often or 'nothing'}; never: {never or 'none of them'}", 132)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--from", type=int, default=1, dest="first")
    parser.add_argument("--oracle", type=int, default=ORACLE, help="every so-manieth seed is played without faults, too; 0: none")
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    begun = time.monotonic()
    violations = jobs = remainder = 0
    happened = Counter[str]()
    seeds = range(options.first, options.first + options.seeds)
    results = soak(seeds, cores=options.cores, oracle=options.oracle)
    for done, result in enumerate(results, 1):
        jobs += result.jobs
        remainder += result.remainder
        happened += result.happened
        if result.violations:
            violations += 1
            print(f"\nseed {result.seed}:")
            print("\n".join(f"  {violation}" for violation in result.violations))
            print("\n".join(f"    {event}" for event in result.events), flush=True)
        if done % 10 == 0:
            took = time.monotonic() - begun
            left = took / done * (options.seeds - done)
            print(
                f"{done} of {options.seeds} seeds, {violations} violated, {jobs} jobs, {took:.0f} s, {left:.0f} s to go", flush=True
            )
    print(met(happened))
    if remainder:
        print(f"{remainder} VMs were deleted in mid-job where rule 1 leaves it: 204, no word from GitHub, 15 minutes of silence")
    print(f"{options.seeds} seeds, {violations} violations, {jobs} jobs")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
