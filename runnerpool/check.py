"""What is allowed in the pool file and will most likely disappoint: the warnings of `python -m runnerpool check`. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations

from runnerpool.config import Config, PoolConfig
from runnerpool.labels import distinct
from runnerpool.vm_config import VmConfig

KEPT_BY_AZURE = 5
"""Addresses of every subnet that Azure keeps for itself."""

COMMON_SUBNET = 24
"""The prefix length that most people give a subnet without a thought; it leaves 251 addresses."""

HOSTED_LABEL = re.compile(r"(ubuntu|windows|macos)-(latest|\d[\w.-]*)")
"""What GitHub calls its own machines: ubuntu-latest, windows-2025, macos-15-xlarge."""


@dataclass(frozen=True, slots=True)
class Finding:
    """`loc` is the path of the key that it is about, as in ("pools", 0, "labels")."""

    loc: tuple[str | int, ...]
    message: str


def findings(config: Config) -> list[Finding]:
    """In the order in which a reader would want them: the whole first, then pool by pool."""
    found = [*_addresses(config), *_stealing(config), *_runner_group(config)]
    for index, pool in enumerate(config.pools):
        found += [Finding(("pools", index, *finding.loc), finding.message) for finding in _pool(pool, config)]
    return found


def _pool(pool: PoolConfig, config: Config) -> Iterator[Finding]:
    yield from _hosted_labels(pool)
    yield from _ephemeral_disk(pool)
    yield from _processors(pool.vm)
    yield from _registered_ahead(pool, config)
    if pool.rerun_evicted and pool.vm.priority == "regular":
        yield Finding(("rerun_evicted",), "has no effect: regular VMs are not evicted")


# ---------------------------------------------------------------------------------------------- the whole


def _addresses(config: Config) -> Iterator[Finding]:
    most = sum(pool.maximum_pool_size for pool in config.pools)
    if most <= 2 ** (32 - COMMON_SUBNET) - KEPT_BY_AZURE:
        return
    fitting = 32 - (most + KEPT_BY_AZURE - 1).bit_length()
    yield Finding(
        ("azure", "subnet"),
        f"the pools may hold {most} VMs together, more than a /{COMMON_SUBNET} subnet has addresses for "
        f"({2 ** (32 - COMMON_SUBNET) - KEPT_BY_AZURE}, since Azure keeps {KEPT_BY_AZURE}): make sure that "
        f"{config.azure.subnet} is a /{fitting} or larger, or lower maximum_pool_size",
    )


def _stealing(config: Config) -> Iterator[Finding]:
    """GitHub gives a job to any idle runner that has its labels, whichever pool the runner was made for."""
    for (index, rich), (_, poor) in permutations(enumerate(config.pools), 2):
        if distinct(poor.labels) < distinct(rich.labels):
            yield Finding(
                ("pools", index, "labels"),
                f"the runners of {rich.name} carry every label of {poor.name}, so GitHub may give them jobs meant for {poor.name}: "
                f"give {poor.name} a label of its own, and name it in the runs-on of its jobs",
            )


def _runner_group(config: Config) -> Iterator[Finding]:
    if config.github.scope == "repo" and config.github.runner_group != "Default":
        yield Finding(("github", "runner_group"), "has no effect with scope repo: a repository has no runner groups")


# ---------------------------------------------------------------------------------------------- one pool


def _hosted_labels(pool: PoolConfig) -> Iterator[Finding]:
    for index, label in enumerate(pool.labels):
        if HOSTED_LABEL.fullmatch(label.lower()):
            yield Finding(
                ("labels", index),
                f"{label} is a label of GitHub's own machines: jobs that ask for it make VMs here and may still run there",
            )


def _ephemeral_disk(pool: PoolConfig) -> Iterator[Finding]:
    if not pool.vm.os_disk.ephemeral:
        return
    if diskless := [size for size in pool.vm.sizes if lacks_local_disk(size)]:
        yield Finding(
            ("vm", "os_disk", "ephemeral"),
            f"{', '.join(diskless)} has no local disk for it: take a size with a d, as in Standard_D4ads_v5, or set it to false",
        )
    if pool.vm.priority != "regular" and not pool.rerun_evicted:
        yield Finding(
            ("vm", "os_disk", "ephemeral"),
            "a VM with an ephemeral disk cannot be deallocated, so a spot eviction deletes it and its job is lost: "
            "set rerun_evicted: true to have such a job run again, or priority: regular",
        )


def lacks_local_disk(size: str) -> bool:
    """Whether the name alone tells that this size has neither a local disk nor a cache that holds an ephemeral OS disk.

    From the fifth version on a `d` among the small letters stands for the local disk (Standard_D4ads_v5), and sizes without
    it have none. Names of other families and versions tell nothing.
    """
    parts = re.fullmatch(r"Standard_[DEF][A-Z]*\d+(?:-\d+)?([a-z]*)_v(\d+)", size)
    return parts is not None and int(parts[2]) >= 5 and "d" not in parts[1]


def _processors(vm: VmConfig) -> Iterator[Finding]:
    arm = [size for size in vm.sizes if is_arm(size)]
    if arm and len(arm) < len(vm.sizes):
        yield Finding(("vm", "sizes"), f"{', '.join(arm)} has an ARM processor and the others have not: no image runs on both")
    elif arm and vm.image.startswith("Canonical:") and "arm64" not in vm.image:
        yield Finding(("vm", "image"), f"{', '.join(arm)} has an ARM processor: take an image for it, as in server-arm64")


def is_arm(size: str) -> bool:
    """A `p` among the small letters stands for an ARM processor: Standard_D4pds_v5."""
    parts = re.fullmatch(r"Standard_[A-Z]+\d+(?:-\d+)?([a-z]+)_v\d+", size)
    return parts is not None and "p" in parts[1]


def _registered_ahead(pool: PoolConfig, config: Config) -> Iterator[Finding]:
    if not pool.keep_registered:
        return
    if not pool.minimum_warm_vms and not any(window.minimum_warm_vms for window in pool.warm_schedule):
        yield Finding(("keep_registered",), "has no effect: the pool keeps no VM warm (minimum_warm_vms, warm_schedule)")
    elif len(config.github.targets) > 1:
        yield Finding(
            ("keep_registered",),
            "each warm VM is registered with one repository ahead of need, and then serves no other: "
            "with several repositories jobs start sooner without it",
        )
