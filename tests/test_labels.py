"""Which pool serves a job, which comes nearest to one that none serves, and whose a runner is."""

from __future__ import annotations

import pytest

from runnerpool.config import PoolConfig
from runnerpool.labels import lacking, match, nearest, pool_of_runner, wants_self_hosted


def pool(name: str, *labels: str) -> PoolConfig:
    return PoolConfig.model_validate({"name": name, "labels": list(labels), "vm": {"sizes": ["Standard_D2s_v5"]}})


POOLS = (
    pool("gpu", "self-hosted", "Linux", "X64", "gpu"),
    pool("linux-x64", "self-hosted", "linux", "x64"),
    pool("linux-arm64", "linux", "arm64"),
    pool("big", "linux", "x64-big", "nvme", "fast"),
)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["self-hosted", "linux", "x64"], "linux-x64"),
        (["Self-Hosted", "LINUX", "X64"], "linux-x64"),
        (["linux", "x64"], "linux-x64"),
        (["self-hosted", "linux", "x64", "gpu"], "gpu"),
        (["gpu"], "gpu"),
        (["nvme"], "big"),
        (["linux"], "linux-x64"),  # linux-arm64 has as few others, but stands later in the file
        (["self-hosted"], "linux-x64"),  # every pool matches: the fewest others, then file order
        (["SELF-HOSTED", "self-hosted"], "linux-x64"),
        (["arm64", "arm64"], "linux-arm64"),
        (["linux", "x64", "arm64"], None),
        (["ubuntu-latest"], None),
        ([""], None),
        ([], None),
    ],
)
def test_a_job_is_served_by_the_pool_that_has_all_its_labels_and_the_fewest_others(labels: list[str], expected: str | None) -> None:
    served = match(labels, POOLS)
    assert (served.name if served else None) == expected


def test_the_first_of_two_equally_good_pools_serves() -> None:
    first, second = pool("b", "linux", "b"), pool("a", "linux", "a")
    assert match(["linux"], (first, second)) is first
    assert match(["linux"], (second, first)) is second


def test_no_pool_serves_where_there_is_none() -> None:
    assert match(["self-hosted"], ()) is None
    assert nearest(["self-hosted"], ()) == ("", ())


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["self-hosted", "linux", "x64", "fpga"], ("linux-x64", ("fpga",))),
        (["self-hosted", "LINUX", "arm64", "Large"], ("linux-arm64", ("large",))),
        (["self-hosted", "windows"], ("linux-x64", ("windows",))),
        (["linux", "x64", "arm64"], ("linux-x64", ("arm64",))),
        (["a", "c", "b"], ("linux-x64", ("a", "b", "c"))),
        ([], ("", ())),
    ],
)
def test_the_nearest_pool_lacks_the_fewest_labels(labels: list[str], expected: tuple[str, tuple[str, ...]]) -> None:
    assert nearest(labels, POOLS) == expected


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["self-hosted", "LINUX", "x64"], ()),
        (["self-hosted"], ()),
        ([], ()),
        (["linux", "GPU", "big"], ("big", "gpu")),
    ],
)
def test_what_a_pool_lacks_for_a_job(labels: list[str], expected: tuple[str, ...]) -> None:
    assert lacking(labels, pool("linux-x64", "self-hosted", "Linux", "X64")) == expected


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["self-hosted"], True),
        (["linux", "Self-Hosted"], True),
        (["ubuntu-latest"], False),
        (["self-hosted-gpu"], False),
        ([], False),
    ],
)
def test_a_job_asks_for_self_hosted_runners_by_that_label_alone(labels: list[str], expected: bool) -> None:
    assert wants_self_hosted(labels) is expected


@pytest.mark.parametrize(
    ("name", "prefix", "expected"),
    [
        ("hw-linux-x64-abc123defg", "hw", "linux-x64"),
        ("hw-gone-abc", "hw", "gone"),
        ("my-ci-linux-abc", "my-ci", "linux"),
        ("hw-abc", "hw", None),
        ("hw--abc", "hw", None),
        ("hw-linux-", "hw", None),
        ("hw-Linux-abc", "hw", None),
        ("hw-a/b-abc", "hw", None),
        ("hw-linux-a_b", "hw", None),
        ("hw-linux\n-abc", "hw", None),
        ("HW-linux-abc", "hw", None),
        ("hwx-linux-abc", "hw", None),
        ("GitHub Actions 5", "hw", None),
        ("hw-" + "a" * 60 + "-b", "hw", None),
        ("", "hw", None),
        (None, "hw", None),
    ],
)
def test_a_runner_of_ours_carries_its_pool_in_its_name(name: str | None, prefix: str, expected: str | None) -> None:
    assert pool_of_runner(name, prefix) == expected
