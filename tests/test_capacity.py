"""The ladder of offers, and what rests after Azure refused one."""

from __future__ import annotations

from datetime import timedelta

import pytest

from runnerpool.capacity import (
    ALLOCATION_REST,
    POOL,
    QUOTA_REST,
    SKU_REST,
    SPOT_REST,
    Rung,
    architecture,
    family,
    ladder,
    live_rests,
    next_rung,
    offers_resting,
    rest_after,
    resting,
    resting_targets,
    target_key,
)
from runnerpool.model import Rest
from runnerpool.vm_config import VmConfig
from tests.made_rows import MINUTE, NOW

TWO = ["Standard_D4ads_v5", "Standard_D4as_v5"]


def vm(**changes: object) -> VmConfig:
    return VmConfig.model_validate({"sizes": TWO, **changes})


def test_the_ladder_goes_through_spot_then_sizes_then_zones() -> None:
    assert [str(rung) for rung in ladder(vm(zones=["1", "2"], priority="spot-then-regular"))] == [
        "spot Standard_D4ads_v5 in zone 1",
        "spot Standard_D4ads_v5 in zone 2",
        "spot Standard_D4as_v5 in zone 1",
        "spot Standard_D4as_v5 in zone 2",
        "Standard_D4ads_v5 in zone 1",
        "Standard_D4ads_v5 in zone 2",
        "Standard_D4as_v5 in zone 1",
        "Standard_D4as_v5 in zone 2",
    ]
    assert ladder(vm(priority="spot")) == tuple(Rung(size, None, True) for size in TWO)


@pytest.mark.parametrize(
    ("size", "quota_family", "processor"),
    [
        ("Standard_D4ads_v5", "Dads_v5", "x64"),
        ("Standard_D4as_v5", "Das_v5", "x64"),
        ("Standard_D64-16ads_v5", "Dads_v5", "x64"),
        ("Standard_D4pds_v5", "Dpds_v5", "arm64"),
        ("Standard_NC24ads_A100_v4", "NCads_A100_v4", "x64"),
        ("Standard_B2pts_v2", "Bpts_v2", "arm64"),
    ],
)
def test_a_sizes_name_tells_its_quota_family_and_its_processor(size: str, quota_family: str, processor: str) -> None:
    assert (family(size), architecture(size)) == (quota_family, processor)


ZONAL, SPOT, REGIONAL = Rung(TWO[0], "1", False), Rung(TWO[0], "1", True), Rung(TWO[0], None, False)
HERE, OTHER_ZONE, OTHER_FAMILY, THE_SPOT = "here", "other zone", "other family", "spot"
SPOT_THERE, OTHER_SPOT = "spot in another zone", "spot of another size"
RUNGS = {
    HERE: ZONAL,
    OTHER_ZONE: Rung(TWO[0], "2", False),
    OTHER_FAMILY: Rung(TWO[1], "1", False),
    THE_SPOT: SPOT,
    SPOT_THERE: Rung(TWO[0], "2", True),
    OTHER_SPOT: Rung(TWO[1], "1", True),
}


@pytest.mark.parametrize(
    ("refused", "code", "detail", "covered", "period"),
    [
        (ZONAL, "ZonalAllocationFailed", "", {HERE}, ALLOCATION_REST),
        (ZONAL, "SkuNotAvailable", "", {HERE}, SKU_REST),
        (REGIONAL, "SkuNotAvailable", "", {HERE, OTHER_ZONE}, SKU_REST),
        (ZONAL, "InvalidAvailabilityZone", "The zone(s) '1' is not supported", {HERE}, SKU_REST),
        (SPOT, "InvalidAvailabilityZone", "The zone(s) '1' is not supported", {THE_SPOT}, SKU_REST),
        (ZONAL, "OverconstrainedZonalAllocationRequest", "", {HERE}, ALLOCATION_REST),
        (ZONAL, "QuotaExceeded", "exceeding approved standardDADSv5Family Cores quota", {HERE, OTHER_ZONE}, QUOTA_REST),
        (
            ZONAL,
            "OperationNotAllowed",
            "exceeding approved Total Regional Cores quota",
            {HERE, OTHER_ZONE, OTHER_FAMILY},
            QUOTA_REST,
        ),
        (
            SPOT,
            "OperationNotAllowed",
            "exceeding approved LowPriorityCores quota",
            {THE_SPOT, SPOT_THERE, OTHER_SPOT},
            SPOT_REST,
        ),
        (SPOT, "SkuNotAvailable", "", {THE_SPOT}, SPOT_REST),
        (SPOT, "AllocationFailed", "", {THE_SPOT}, SPOT_REST),
        (SPOT, "AzureSpotIsNotSupportedForThisVMSize", "", {THE_SPOT, SPOT_THERE}, SPOT_REST),
        (SPOT, "AzureSpotFeatureNotEnabledForSubscription", "", {THE_SPOT, SPOT_THERE, OTHER_SPOT}, SPOT_REST),
    ],
)
def test_what_rests_after_a_refusal_and_for_how_long(
    refused: Rung, code: str, detail: str, covered: set[str], period: timedelta
) -> None:
    key, rest = rest_after(refused, code, detail, NOW)
    assert {name for name, rung in RUNGS.items() if resting(rung, {key: rest}, NOW)} == covered
    assert rest.until == NOW + period


def test_the_next_rung_is_the_first_that_does_not_rest_and_a_rest_ends() -> None:
    rests = dict([rest_after(REGIONAL, "AllocationFailed", "", NOW)])
    assert next_rung(vm(), rests, NOW) == Rung(TWO[1], None, False)
    assert next_rung(vm(), rests, NOW + ALLOCATION_REST) == REGIONAL


def test_a_rest_of_the_whole_pool_leaves_no_rung() -> None:
    assert next_rung(vm(), {POOL: Rest(NOW + MINUTE, "no such image")}, NOW) is None


def test_a_rest_of_one_target_covers_no_offer() -> None:
    rests = {target_key("repo:octo-org/b"): Rest(NOW + MINUTE, "403"), "regular": Rest(NOW + MINUTE, "full")}
    assert next_rung(vm(), {target_key("repo:octo-org/b"): rests[target_key("repo:octo-org/b")]}, NOW) == REGIONAL
    assert resting_targets(rests, NOW).keys() == {"repo:octo-org/b"}
    assert not resting_targets(rests, NOW + MINUTE)
    assert offers_resting(rests, NOW) == [rests["regular"]]


def test_of_several_rests_the_longest_counts() -> None:
    rests = {POOL: Rest(NOW + MINUTE, "short"), "regular": Rest(NOW + 2 * MINUTE, "long")}
    found = resting(ZONAL, rests, NOW)
    assert found is not None
    assert found.code == "long"


def test_rests_that_are_over_are_dropped() -> None:
    assert live_rests({"a": Rest(NOW, "over"), "b": Rest(NOW + MINUTE, "not yet")}, NOW) == {"b": Rest(NOW + MINUTE, "not yet")}
