"""The ladder of offers of a pool, and which of them rest after Azure refused them. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache

from runnerpool.model import Rest, Target
from runnerpool.vm_config import VmConfig

SPOT_REST = timedelta(hours=1)
"""Spot capacity comes and goes by the hour; asking sooner mostly repeats the refusal."""
ALLOCATION_REST = timedelta(hours=1)
"""A cluster that is full for one request stays full for a while; Azure's advice is to retry later or elsewhere."""
QUOTA_REST = timedelta(minutes=10)
"""Quota frees as VMs go and grows when somebody asks for more: look again soon."""
SKU_REST = timedelta(hours=23)
"""A size not offered to this subscription in a region or zone changes by a support request, not by waiting."""
TROUBLE_REST = timedelta(minutes=5)
"""A pool that Azure or GitHub refuses for its configuration is tried again this often, so that a mended one recovers by itself."""

TARGET_REST = timedelta(minutes=10)
"""The same for one repository: as long as a job that had its tries waits for the next one, so that no alert ends between two."""

CAPACITY_CODES = frozenset(
    {
        "SkuNotAvailable",
        "InvalidAvailabilityZone",
        "AllocationFailed",
        "ZonalAllocationFailed",
        "OverconstrainedAllocationRequest",
        "OverconstrainedZonalAllocationRequest",
        "QuotaExceeded",
        "SpotPriceGreaterThanProvidedMaxPrice",
        "AzureSpotFeatureNotEnabledForSubscription",
        "AzureSpotIsNotSupportedForThisVMSize",
    }
)
"""Every `error.code` by which Azure says that it has no room there, beside `OperationNotAllowed` with a quota in its text."""

POOL = "pool"
"""The key of a rest that holds for the whole pool."""

_TARGET = "target "
"""Begins the key of a rest that holds for the jobs of one target."""


@dataclass(frozen=True, slots=True)
class Rung:
    """One offer: a size in a zone (None: regional) at a priority."""

    size: str
    zone: str | None
    spot: bool

    def __str__(self) -> str:
        return f"{'spot ' if self.spot else ''}{self.size}" + (f" in zone {self.zone}" if self.zone else "")


@lru_cache(maxsize=1_000)
def ladder(vm: VmConfig, *, regular: bool = False) -> tuple[Rung, ...]:
    """Every offer in the pool's order: spot before regular where both are allowed, then sizes, then zones. `regular`: no spot,
    even in a pool that has nothing else."""
    spots = [False] if regular else {"regular": [False], "spot": [True], "spot-then-regular": [True, False]}[vm.priority]
    return tuple(Rung(size, zone, spot) for spot in spots for size in vm.sizes for zone in (vm.zones or [None]))


@lru_cache(maxsize=1_000)
def family(size: str) -> str:
    """The quota family that a size's name implies: Standard_D4ads_v5 -> Dads_v5. Constrained sizes count as their parent."""
    body = size.removeprefix("Standard_")
    match = re.match(r"([A-Za-z]+)\d+(?:-\d+)?([a-z]*)(.*)", body)
    return "".join(match.groups()) if match else body


def is_capacity(code: str, message: str) -> bool:
    """Whether this code and text mean "not this offer, not now": capacity, or quota of cores, a family, a region or spot.

    Azure says it in the answer to the PUT or, later, in a failed VM's status; `OperationNotAllowed` is quota only by its text.
    """
    return code in CAPACITY_CODES or (code == "OperationNotAllowed" and "quota" in message.lower())


def architecture(size: str) -> str:
    """The processor that a size's name implies: a `p` among the letters after the count of cores says Arm (Standard_D4pds_v5)."""
    match = re.match(r"[A-Za-z]+\d+(?:-\d+)?([a-z]*)", size.removeprefix("Standard_"))
    return "arm64" if match and "p" in match.group(1) else "x64"


@lru_cache(maxsize=1_000)
def _keys(rung: Rung) -> tuple[str, ...]:
    """Every key under which something may rest that covers this rung."""
    kind = "spot" if rung.spot else "regular"
    return (
        POOL,
        f"{kind}",
        f"{kind} family {family(rung.size)}",
        f"{kind} {rung.size}",
        f"{kind} {rung.size} zone {rung.zone or '-'}",
    )


def resting(rung: Rung, rests: Mapping[str, Rest], now: datetime) -> Rest | None:
    """The rest that keeps this rung from being tried, the one that lasts longest; None when it may be tried."""
    active = [rests[key] for key in _keys(rung) if key in rests and rests[key].until > now]
    return max(active, key=lambda rest: rest.until, default=None)


def next_rung(vm: VmConfig, rests: Mapping[str, Rest], now: datetime, *, regular: bool = False) -> Rung | None:
    """The first offer that does not rest."""
    return next((rung for rung in ladder(vm, regular=regular) if resting(rung, rests, now) is None), None)


def rest_after(rung: Rung, code: str, detail: str, now: datetime) -> tuple[str, Rest]:
    """What rests, and until when, after Azure refused this rung with that `error.code` and text."""
    _pool, kind, family_key, size_key, zone_key = _keys(rung)
    text = detail.lower()
    if code in ("QuotaExceeded", "OperationNotAllowed"):
        if "lowprioritycores" in text or "low priority" in text or "spot" in text:
            return "spot", Rest(now + SPOT_REST, code)
        whole = "total regional" in text or "regional cores" in text
        return (kind if whole else family_key), Rest(now + QUOTA_REST, code)
    if code == "AzureSpotFeatureNotEnabledForSubscription":
        return "spot", Rest(now + SPOT_REST, code)
    if code == "AzureSpotIsNotSupportedForThisVMSize":
        return size_key, Rest(now + SPOT_REST, code)
    if code == "InvalidAvailabilityZone":
        return zone_key, Rest(now + SKU_REST, code)  # the region has no such zone; its others are as good as ever
    if code == "SkuNotAvailable":
        return (zone_key if rung.zone else size_key), Rest(now + (SPOT_REST if rung.spot else SKU_REST), code)
    return zone_key, Rest(now + (SPOT_REST if rung.spot else ALLOCATION_REST), code)


def target_key(target: Target) -> str:
    """The key of the rest of a target at which GitHub refuses registrations. It covers no offer: others may use them all."""
    return f"{_TARGET}{target}"


def resting_targets(rests: Mapping[str, Rest], now: datetime) -> dict[Target, Rest]:
    """The targets at which nobody is to be registered now."""
    return {key.removeprefix(_TARGET): rest for key, rest in rests.items() if key.startswith(_TARGET) and rest.until > now}


def offers_resting(rests: Mapping[str, Rest], now: datetime) -> list[Rest]:
    """Every rest of an offer, or of all of them."""
    return [rest for key, rest in rests.items() if not key.startswith(_TARGET) and rest.until > now]


def live_rests(rests: Mapping[str, Rest], now: datetime) -> dict[str, Rest]:
    """Without those that are over: the head must not grow."""
    return {key: rest for key, rest in rests.items() if rest.until > now}
