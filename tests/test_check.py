"""`python -m runnerpool check`: what it warns of, what it prints, and how it ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from runnerpool.__main__ import main
from runnerpool.check import findings, is_arm, lacks_local_disk
from runnerpool.config import Config

ROOT = Path(__file__).parent.parent


def found(*pools: dict[str, Any], **github: Any) -> list[tuple[str, str]]:
    """Each warning as its path and its text."""
    sections = [{"vm": {"sizes": ["Standard_D4ads_v5"]}, **pool} for pool in pools]
    config = Config.model_validate({"azure": {}, "github": {"owner": "octo", **github}, "pools": sections})
    return [(".".join(map(str, finding.loc)), finding.message) for finding in findings(config)]


def vm(**keys: Any) -> dict[str, Any]:
    return {"labels": ["linux"], "vm": {"sizes": ["Standard_D4ads_v5"], **keys}}


EPHEMERAL = {"ephemeral": True}


def test_an_ordinary_pool_gives_no_warning() -> None:
    assert found({"labels": ["linux", "x64"]}, {"labels": ["linux", "arm64"]}) == []


def test_a_pool_whose_runners_fit_another_pools_jobs_is_named() -> None:
    rich, poor = {"labels": ["self-hosted", "Linux", "X64", "gpu"]}, {"labels": ["linux", "x64"]}
    for pools, path in (((rich, poor), "pools.0.labels"), ((poor, rich), "pools.1.labels")):
        ((where, text),) = found(*pools)
        assert where == path
        assert text.startswith(
            "the runners of linux-x64-gpu carry every label of linux-x64, so GitHub may give them jobs meant for"
        )


def test_a_pool_with_no_label_of_its_own_loses_its_jobs_to_every_other() -> None:
    assert [where for where, _ in found({"labels": ["self-hosted"]}, {"labels": ["a"]}, {"labels": ["b"]})] == [
        "pools.1.labels",
        "pools.2.labels",
    ]


@pytest.mark.parametrize(
    ("maxima", "expected"),
    [([251], ""), ([252], "a /23 or"), ([200, 52], "a /23 or"), ([507], "a /23 or"), ([508], "a /22 or"), ([1000, 20], "a /21 or")],
)
def test_more_vms_than_a_common_subnet_has_addresses_are_pointed_out(maxima: list[int], expected: str) -> None:
    warnings = found(*({"labels": [f"l{number}"], "maximum_pool_size": maximum} for number, maximum in enumerate(maxima)))
    assert [where for where, _ in warnings] == (["azure.subnet"] if expected else [])
    assert expected in "".join(text for _, text in warnings)


@pytest.mark.parametrize(
    ("size", "lacking"),
    [
        ("Standard_D4ads_v5", False),
        ("Standard_D4as_v5", True),
        ("Standard_D4s_v5", True),
        ("Standard_D4ds_v6", False),
        ("Standard_E8-4as_v5", True),
        ("Standard_E8bds_v5", False),
        ("Standard_DC4as_v5", True),
        ("Standard_F8als_v6", True),
        ("Standard_D4s_v3", False),  # its cache holds the disk
        ("Standard_D4as_v4", False),
        ("Standard_L8s_v3", False),
        ("Standard_NC24ads_A100_v4", False),
        ("Standard_B2s", False),
    ],
)
def test_sizes_without_a_local_disk_are_known_by_name_where_the_name_tells(size: str, lacking: bool) -> None:
    assert lacks_local_disk(size) is lacking
    expected = ["pools.0.vm.os_disk.ephemeral"] if lacking else []
    assert [where for where, _ in found(vm(sizes=[size], os_disk=EPHEMERAL))] == expected
    assert found(vm(sizes=[size])) == []


def test_an_ephemeral_disk_on_spot_loses_the_job_unless_it_is_run_again() -> None:
    for priority in ("spot", "spot-then-regular"):
        pool = vm(os_disk=EPHEMERAL, priority=priority)
        ((where, text),) = found(pool)
        assert where == "pools.0.vm.os_disk.ephemeral" and "cannot be deallocated" in text
        assert found({**pool, "rerun_evicted": True}) == []


def test_evictions_are_no_matter_of_regular_vms() -> None:
    assert [where for where, _ in found({**vm(), "rerun_evicted": True})] == ["pools.0.rerun_evicted"]


@pytest.mark.parametrize(
    ("label", "warned"), [("ubuntu-latest", True), ("Windows-2025", True), ("macos-15-xlarge", True), ("ubuntu", False)]
)
def test_labels_of_githubs_own_machines_are_pointed_out(label: str, warned: bool) -> None:
    assert [where for where, _ in found({"labels": ["x64", label]})] == (["pools.0.labels.1"] if warned else [])


def test_processors_and_images_that_do_not_fit_are_pointed_out() -> None:
    assert is_arm("Standard_D4pds_v5") and not is_arm("Standard_D4ads_v5") and not is_arm("Standard_NP10s")
    assert [where for where, _ in found(vm(sizes=["Standard_D4pds_v5", "Standard_D4ads_v5"]))] == ["pools.0.vm.sizes"]
    assert [where for where, _ in found(vm(sizes=["Standard_D4pds_v5"]))] == ["pools.0.vm.image"]
    assert found(vm(sizes=["Standard_D4pds_v5"], image="Canonical:ubuntu-24_04-lts:server-arm64:latest")) == []


def test_registering_ahead_is_questioned_where_it_does_nothing_or_harm() -> None:
    ahead = {"labels": ["linux"], "keep_registered": True}
    ((where, text),) = found(ahead)
    assert where == "pools.0.keep_registered" and text.startswith("has no effect")
    warm = {**ahead, "minimum_warm_vms": 1}
    assert found(warm) == []
    assert found({**ahead, "warm_schedule": [{"cron": "* 8 * * *", "minimum_warm_vms": 1}]}) == []
    ((_, text),) = found(warm, scope="repo", repositories=["a", "b"])
    assert text.startswith("each warm VM is registered with one repository")
    assert found(warm, scope="repo", repositories=["a"]) == []


def test_a_runner_group_means_nothing_to_a_repository() -> None:
    warnings = found({"labels": ["linux"]}, scope="repo", repositories=["a"], runner_group="ci")
    assert [where for where, _ in warnings] == ["github.runner_group"]


# ---------------------------------------------------------------------------------------------- the command

SMALL = "azure: {}\ngithub: {owner: octo-org}\npools:\n  - labels: [linux]\n    vm: {sizes: [Standard_D4ads_v5]}\n"


def test_a_sound_file_is_summed_up_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "pools.yaml"
    path.write_text(SMALL)
    assert main(["check", str(path)]) == 0
    assert capsys.readouterr().out == f"{path}: 1 pool: linux (up to 50 VMs)\n"


def test_warnings_carry_their_line_and_do_not_fail_the_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "pools.yaml"
    path.write_text(SMALL + "  - labels: [linux, gpu]\n    vm: {sizes: [Standard_D4ads_v5]}\n")
    assert main(["check", str(path)]) == 0
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{path}:6: warning: pools[1].labels: the runners of linux-gpu carry every label of linux")
    assert last == f"{path}: 2 pools: linux (up to 50 VMs), linux-gpu (up to 50 VMs)"


def test_errors_fail_the_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "pools.yaml"
    path.write_text(SMALL.replace("azure", "azur").replace("labels", "lables"))
    assert main(["check", str(path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert f"{path}:1: azur: unknown key: did you mean azure?" in lines
    assert f"{path}:4: pools[0].lables: unknown key: did you mean labels?" in lines


def test_without_a_name_it_checks_the_file_that_the_app_would_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(SMALL)
    monkeypatch.setenv("POOL_CONFIG", str(path))
    assert main(["check"]) == 0
    assert capsys.readouterr().out.startswith(f"{path}: 1 pool")


def test_the_shipped_example_passes_without_a_warning() -> None:
    environment = {"PATH": "", "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "-m", "runnerpool", "check"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout == "pool-config.yaml: 2 pools: linux-x64 (up to 50 VMs), linux-arm64 (up to 20 VMs)\n"
