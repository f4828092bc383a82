"""The pool file: what it means."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from runnerpool.config import GitHubConfig, warm_minimum
from runnerpool.pool_file import load_config
from tests.pool_files import FULL, OFFICE, SMALLEST, load, pool

# ---------------------------------------------------------------------------------------------- keys and defaults


def test_the_smallest_file_takes_every_default(tmp_path: Path) -> None:
    config = load(tmp_path, SMALLEST)
    (only,) = config.pools
    assert config.azure.name_prefix == "hw" and config.azure.resource_group == "hw-rg"
    assert config.github.scope == "org" and config.github.runner_group == "Default"
    assert only.name == "linux-x64"
    assert (only.minimum_warm_vms, only.maximum_pool_size, only.scale_up_trigger_threshold) == (0, 50, 1)
    assert (only.idle_timeout, only.job_timeout) == (timedelta(minutes=10), timedelta(hours=6))
    assert only.vm.zones == () and only.vm.priority == "regular" and not only.vm.os_disk.ephemeral


def test_every_key_of_the_schema_is_read(tmp_path: Path) -> None:
    config = load(tmp_path, FULL)
    (only,) = config.pools
    assert config.azure.tags == {"team": "ci"}
    assert only.vm.zones == ("1", "2", "3") and only.vm.os_disk.ephemeral and only.vm.os_disk.size_gb == 64
    assert only.warm_schedule[0].minimum_warm_vms == 10


def test_the_shipped_example_is_a_valid_file() -> None:
    assert len(load_config(Path(__file__).parent.parent / "pool-config.yaml").pools) == 2


def test_an_empty_section_is_a_section_of_defaults(tmp_path: Path) -> None:
    assert load(tmp_path, SMALLEST.replace("azure: {}", "azure:")) == load(tmp_path, SMALLEST)


def test_names_that_are_left_out_follow_the_prefix(tmp_path: Path) -> None:
    azure = load(tmp_path, SMALLEST.replace("azure: {}", "azure: {name_prefix: acme, subnet: runners}")).azure
    names = (azure.resource_group, azure.virtual_network, azure.subnet, azure.network_security_group)
    assert names == ("acme-rg", "acme-vnet", "runners", "acme-nsg")


@pytest.mark.parametrize(
    ("labels", "name"),
    [(["self-hosted", "Linux", "X64"], "linux-x64"), (["self-hosted"], "default"), (["a_b", "c.d"], "a-b-c-d"), (["§"], "default")],
)
def test_a_pool_without_a_name_is_named_after_its_labels(labels: list[str], name: str) -> None:
    assert pool(labels=labels).name == name


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("6h", 21_600), ("1h30m", 5_400), ("1d", 86_400), ("1d1h1m1s", 90_061)]
)
def test_durations_carry_their_units(text: str, seconds: int) -> None:
    assert pool(idle_timeout=text).idle_timeout == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "value", ["", "10", "m", "1.5h", "10 m", "-5m", "30m1h", "0s", "31d", "999999999d", 600, 1.5, True, ["10m"], "१m"]
)
def test_what_is_no_duration_is_refused(value: object) -> None:
    with pytest.raises(ValidationError):
        pool(idle_timeout=value)


def test_zones_may_be_written_as_numbers() -> None:
    assert pool(vm={"sizes": ["Standard_D2s_v5"], "zones": [1, "2"]}).vm.zones == ("1", "2")


def test_a_registration_carries_self_hosted_besides_the_pools_labels() -> None:
    assert pool(labels=["linux", "x64"]).registration_labels == ("self-hosted", "linux", "x64")
    assert pool(labels=["linux", "Self-Hosted"]).registration_labels == ("linux", "Self-Hosted")


@pytest.mark.parametrize(
    ("github", "targets"),
    [
        ({"owner": "octo-org"}, ("org:octo-org",)),
        ({"owner": "octo", "scope": "enterprise"}, ("enterprise:octo",)),
        ({"owner": "octo", "scope": "repo", "repositories": ["web", "Octo/api"]}, ("repo:octo/web", "repo:octo/api")),
    ],
)
def test_the_scope_says_where_runners_register(github: dict[str, object], targets: tuple[str, ...]) -> None:
    assert GitHubConfig.model_validate(github).targets == targets


def test_the_target_of_a_repository_is_spelled_as_in_the_file() -> None:
    github = GitHubConfig.model_validate({"owner": "octo", "scope": "repo", "repositories": ["Web"]})
    assert github.target("OCTO/web") == "repo:octo/Web"
    assert github.target("other/x") == "repo:other/x"


@pytest.mark.parametrize("kind", ["ssh-rsa", "ssh-ed25519"])
def test_a_public_key_is_accepted(kind: str) -> None:
    key = f"{kind} AAAAB3NzaC1yc2E= somebody@example.com"
    assert pool(vm={"sizes": ["Standard_D2s_v5"], "ssh_public_key": key + "\n"}).vm.ssh_public_key == key


@pytest.mark.parametrize(
    "image",
    [
        "Canonical:ubuntu-24_04-lts:server:latest",
        "/subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/galleries/a/images/b",
        "/subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/galleries/a/images/b/versions/1.0.0",
        "/subscriptions/s/resourcegroups/g/providers/microsoft.compute/images/b",
    ],
)
def test_an_image_is_the_marketplaces_or_ones_own(image: str) -> None:
    assert pool(vm={"sizes": ["Standard_D2s_v5"], "image": image}).vm.image == image


def test_files_are_meant_from_the_folder_of_the_pool_file(tmp_path: Path) -> None:
    (tmp_path / "setup.sh").write_text("echo")
    config = load(tmp_path, SMALLEST.replace("[Standard_D4ads_v5]}", "[Standard_D4ads_v5], setup_script: setup.sh}"))
    assert config.pools[0].vm.setup_script == str(tmp_path / "setup.sh")


# ---------------------------------------------------------------------------------------------- warm schedules


@pytest.mark.parametrize(
    ("schedule", "now", "expected"),
    [
        ([], "2026-03-02T12:00Z", 2),
        ([OFFICE], "2026-03-02T16:00Z", 10),  # Monday, 8:00 in Los Angeles
        ([OFFICE], "2026-03-02T15:59:59Z", 2),
        ([OFFICE], "2026-03-03T02:59:59.999Z", 10),  # 18:59:59 there: the last minute of the window
        ([OFFICE], "2026-03-03T03:00Z", 2),
        ([OFFICE], "2026-03-08T16:00Z", 2),  # Sunday
        ([OFFICE], "2026-03-09T15:00Z", 10),  # summer time began the day before
        ([OFFICE], "2026-03-02T17:00+01:00", 10),  # the same instant as 16:00Z, whatever zone it is told in
        ([OFFICE, {"cron": "0-29 12 * * *", "timezone": "America/Los_Angeles", "minimum_warm_vms": 1}], "2026-03-02T20:15Z", 1),
        ([{"cron": "* * * * *", "minimum_warm_vms": 0}, OFFICE], "2026-03-02T16:00Z", 10),  # the last match wins
        ([OFFICE, {"cron": "* * * * *", "minimum_warm_vms": 0}], "2026-03-02T16:00Z", 0),
        ([{"cron": "* * 1 * mon", "minimum_warm_vms": 5}], "2026-03-02T00:00Z", 5),  # both restricted: either day
        ([{"cron": "* * 1 * mon", "minimum_warm_vms": 5}], "2026-03-01T00:00Z", 5),
        ([{"cron": "* * 1 * mon", "minimum_warm_vms": 5}], "2026-03-03T00:00Z", 2),
        ([{"cron": "* * L * *", "minimum_warm_vms": 5}], "2028-02-29T23:59Z", 5),
        ([{"cron": "*/15 * * * 7", "minimum_warm_vms": 5}], "2026-03-01T10:45:30Z", 5),
        ([{"cron": "*/15 * * * 7", "minimum_warm_vms": 5}], "2026-03-01T10:46:00Z", 2),
        ([{"cron": "* 2 29 3 *", "timezone": "Europe/Berlin", "minimum_warm_vms": 5}], "2026-03-29T01:30Z", 2),  # no 2:30 that day
        ([{"cron": "* 2 25 10 *", "timezone": "Europe/Berlin", "minimum_warm_vms": 5}], "2026-10-25T00:30Z", 5),  # 2:30 comes twice
        ([{"cron": "* 2 25 10 *", "timezone": "Europe/Berlin", "minimum_warm_vms": 5}], "2026-10-25T01:30Z", 5),
    ],
)
def test_a_window_holds_in_every_minute_that_its_cron_expression_matches(schedule: list[Any], now: str, expected: int) -> None:
    moment = datetime.fromisoformat(now)
    assert warm_minimum(pool(minimum_warm_vms=2, warm_schedule=schedule), moment) == expected


@pytest.mark.parametrize(
    "cron",
    ["", "* * * *", "0 * * * * *", "61 * * * *", "* 25 * * *", "* * * * mon-", "* * 30 2 *", "@daily", "* * 1/L * *", "a b c d e"],
)
def test_what_is_no_cron_expression_is_refused(cron: str) -> None:
    with pytest.raises(ValidationError):
        pool(warm_schedule=[{"cron": cron, "minimum_warm_vms": 1}])


@given(st.lists(st.text("0123456789*/-,#LWlwmonsun?@ ", max_size=8), min_size=5, max_size=5).map(" ".join))
def test_any_cron_text_is_either_refused_or_answers(cron: str) -> None:
    try:
        scheduled = pool(warm_schedule=[{"cron": cron, "minimum_warm_vms": 1}])
    except ValidationError:
        return
    assert warm_minimum(scheduled, datetime(2026, 3, 2, tzinfo=UTC)) in (0, 1)


# ---------------------------------------------------------------------------------------------- the shape of a VM


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({}, True),
        ({"sizes": ["Standard_D8s_v5"]}, True),  # an existing VM has its own size
        ({"zones": ["1"], "priority": "spot", "ssh_public_key": "ssh-ed25519 AAAA"}, True),
        ({"image": "Canonical:ubuntu-24_04-lts:server:24.04.202611"}, False),
        ({"os_disk": {"size_gb": 128}}, False),
        ({"runner_version": "2.330.0"}, False),
        ({"job_sudo": False}, False),
        ({"proxy": {"http_proxy": "http://proxy.example.com:3128"}}, False),
    ],
)
def test_the_shape_tells_apart_what_makes_an_existing_vm_wrong(changes: dict[str, Any], same: bool) -> None:
    before = pool(vm={"sizes": ["Standard_D2s_v5"]}).vm.shape
    assert (pool(vm={"sizes": ["Standard_D2s_v5"], **changes}).vm.shape == before) is same


@pytest.mark.parametrize("key", ["setup_script: f", "proxy: {ca_bundle: f}"])
def test_a_script_that_changes_under_its_path_changes_the_shape(tmp_path: Path, key: str) -> None:
    def shape(content: str) -> str:
        (tmp_path / "f").write_text(content)
        text = SMALLEST.replace("[Standard_D4ads_v5]}", f"[Standard_D4ads_v5], {key}}}")
        return load(tmp_path, text).pools[0].vm.shape

    assert shape("echo") == shape("echo")
    assert shape("echo") != shape("echo again")
