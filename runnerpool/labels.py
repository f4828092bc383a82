"""Which pool serves a job, and whose a runner is. Pure; labels compare as GitHub compares them, without regard to case."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runnerpool.config import PoolConfig

SELF_HOSTED = "self-hosted"

POOL_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?")
"""A pool's name: lower-case letters, digits and inner hyphens. Fit for a VM's name, a tag and a table's partition key."""

SUFFIX_LENGTH = 10
LONGEST_RUNNER_NAME = 64
"""GitHub's and Azure's common limit for `<prefix>-<pool>-<suffix>`."""


def distinct(labels: Iterable[str]) -> frozenset[str]:
    """What tells label sets apart: lower case, without `self-hosted`, which every runner of ours carries."""
    return frozenset(label.lower() for label in labels) - {SELF_HOSTED}


def wants_self_hosted(labels: Iterable[str]) -> bool:
    """Whether a job says that it is not for GitHub's own machines."""
    return any(label.lower() == SELF_HOSTED for label in labels)


def match(labels: Sequence[str], pools: Sequence[PoolConfig]) -> PoolConfig | None:
    """The pool that serves a job with these labels: of those that have them all, the one with the fewest others, then the
    first in the file. A job with `self-hosted` alone matches every pool; one without labels matches none."""
    if not labels:
        return None
    wanted = distinct(labels)
    serving = [pool for pool in pools if wanted <= distinct(pool.labels)]
    return min(serving, key=lambda pool: len(distinct(pool.labels) - wanted), default=None)


def nearest(labels: Sequence[str], pools: Sequence[PoolConfig]) -> tuple[str, tuple[str, ...]]:
    """For a job that no pool serves: the pool that comes nearest, and the job's labels that it lacks, sorted.

    ("", ()) for a job without labels: no pool is nearer to it than another.
    """
    if not labels or not pools:
        return "", ()
    wanted = distinct(labels)

    def distance(pool: PoolConfig) -> tuple[int, int]:
        offered = distinct(pool.labels)
        return len(wanted - offered), len(offered - wanted)

    pool = min(pools, key=distance)
    return pool.name, lacking(labels, pool)


def lacking(labels: Iterable[str], pool: PoolConfig) -> tuple[str, ...]:
    """Which of a job's labels this pool does not have, sorted; () where it could serve the job."""
    return tuple(sorted(distinct(labels) - distinct(pool.labels)))


def pool_of_runner(name: str | None, prefix: str) -> str | None:
    """The pool in a runner's name, `<prefix>-<pool>-<suffix>`; None for a name that is not made like ours.

    The pool need not be in the pool file any more.
    """
    if name is None or len(name) > LONGEST_RUNNER_NAME or not name.startswith(f"{prefix}-"):
        return None
    pool, hyphen, suffix = name.removeprefix(f"{prefix}-").rpartition("-")
    made_like_ours = hyphen and suffix.isascii() and suffix.isalnum() and POOL_NAME.fullmatch(pool)
    return pool if made_like_ours else None
