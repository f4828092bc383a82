"""The pool file: what it may say, what it means, and what each mistake is answered with."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from runnerpool.config import Config, GitHubConfig, PoolConfig, warm_minimum
from runnerpool.pool_file import ConfigError, load_config, read_pool_file

SMALLEST = """\
azure: {}
github: {owner: octo-org}
pools:
  - labels: [self-hosted, linux, x64]
    vm: {sizes: [Standard_D4ads_v5]}
"""

FULL = """\
azure:
  location: westus
  resource_group: hw-rg
  virtual_network: hw-vnet
  subnet: hw-subnet
  network_security_group: hw-nsg
  tags: {team: ci}
  name_prefix: hw
github:
  scope: org
  owner: octo-org
  repositories: []
  runner_group: Default
  allow_public_repositories: false
pools:
  - name: linux-x64
    labels: [self-hosted, linux, x64]
    minimum_warm_vms: 2
    maximum_pool_size: 50
    scale_up_trigger_threshold: 1
    idle_timeout: 10m
    warm_schedule:
      - {cron: "* 8-18 * * mon-fri", timezone: America/Los_Angeles, minimum_warm_vms: 10}
    keep_registered: false
    job_timeout: 6h
    vm:
      sizes: [Standard_D4ads_v5, Standard_D4as_v5]
      zones: ["1", "2", "3"]
      priority: regular
      image: Canonical:ubuntu-24_04-lts:server:latest
      os_disk: {ephemeral: true, size_gb: 64}
      admin_username: runneradmin
      ssh_public_key: ""
      runner_version: auto
      setup_script: ""
      os: linux
      job_sudo: true
      proxy: {http_proxy: "", no_proxy: "", ca_bundle: ""}
    rerun_evicted: false
    job_notes: false
"""


def load(folder: Path, text: str | bytes) -> Config:
    path = folder / "pool-config.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_config(path)


def messages(folder: Path, text: str | bytes) -> list[str]:
    """Each problem as `LINE: message`."""
    with pytest.raises(ConfigError) as caught:
        load(folder, text)
    return [f"{problem.line}: {problem.message}" for problem in caught.value.problems]


def pool(**keys: Any) -> PoolConfig:
    return PoolConfig.model_validate({"labels": ["linux"], "vm": {"sizes": ["Standard_D2s_v5"]}, **keys})


# ---------------------------------------------------------------------------------------------- what it means


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


# ---------------------------------------------------------------------------------------------- warm schedules

OFFICE = {"cron": "* 8-18 * * mon-fri", "timezone": "America/Los_Angeles", "minimum_warm_vms": 10}


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


# ---------------------------------------------------------------------------------------------- what is refused


def test_every_error_comes_at_once_each_with_its_line(tmp_path: Path) -> None:
    text = """\
azure:
  location: West US
  tags: {team: 5}
github:
  scope: organization
  owner: octo org
pools:
  - name: Linux
    labels: [self-hosted, linux, 22.04]
    minimum_warm_vms: 12
    maximum_pool_size: 10
    minimum_warm_vm: 3
    sizes: [x]
    vm:
      sizes: Standard_D4ads_v5
      priority: Spot
      os_disk:
        ephemeral: maybe
        size_gb: 2
  - labels: [a]
    vm: {sizes: [Standard_D2s_v5, D2]}
"""
    assert messages(tmp_path, text) == [
        "2: azure.location: 'West US' is not a location's short name, as in westus",
        '3: azure.tags.team: must be text: write "5" in quotes',
        "5: github.scope: 'organization' is none of org, repo, enterprise",
        "6: github.owner: 'octo org' is not the login of a user or organisation, or an enterprise's slug",
        "8: pools[0].name: 'Linux' is not a name: lower-case letters, digits and inner hyphens only",
        '9: pools[0].labels[2]: must be text: write "22.04" in quotes',
        "10: pools[0].minimum_warm_vms: minimum_warm_vms is 12, more than maximum_pool_size, which is 10",
        "12: pools[0].minimum_warm_vm: unknown key: did you mean minimum_warm_vms?",
        "13: pools[0].sizes: unknown key: sizes belongs under vm",
        "15: pools[0].vm.sizes: must be a list, as in [Standard_D4ads_v5]",
        "16: pools[0].vm.priority: 'Spot' is none of regular, spot, spot-then-regular: did you mean spot?",
        "18: pools[0].vm.os_disk.ephemeral: must be true or false, not 'maybe'",
        "19: pools[0].vm.os_disk.size_gb: must be at least 4, not 2",
        "21: pools[1].vm.sizes[1]: 'D2' is not a VM size, as in Standard_D4ads_v5",
    ]


def test_an_error_prints_as_file_line_and_path(tmp_path: Path) -> None:
    path = tmp_path / "pools.yaml"
    path.write_text(SMALLEST.replace("[Standard_D4ads_v5]", "[]"))
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value) == f"{path}:5: pools[0].vm.sizes: needs at least one entry"


POOL = "  - labels: [self-hosted, linux, x64]\n    vm: {sizes: [Standard_D4ads_v5]}\n"


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        # what is required
        ("azure: {}\n", "", "1: azure: is required: where the VMs live; `azure: {}` takes every default"),
        (
            "{owner: octo-org}",
            "{}",
            "2: github.owner: is required: the organisation, the enterprise's slug, or the user or organisation",
        ),
        ("vm: {sizes: [Standard_D4ads_v5]}", "name: a", "4: pools[0].vm: is required: the shape of its VMs, as in `vm: {sizes:"),
        (POOL, "  []\n", "3: pools: needs at least one entry"),
        (POOL, "  - linux\n", "4: pools[0]: must be a mapping of labels, name, maximum_pool_size"),
        (POOL, "  a: b\n", "3: pools: must be a list"),
        ("labels: [self-hosted, linux, x64]", "labels:", "4: pools[0].labels: has no value: write one, or remove the line"),
        ("labels: [self-hosted, linux, x64]", "labels: []", "4: pools[0].labels: needs at least one entry"),
        # keys
        ("azure: {}", "azure: {locaton: x}", "1: azure.locaton: unknown key: did you mean location?"),
        ("azure: {}", "azure: {resourceGroup: x}", "1: azure.resourceGroup: unknown key: did you mean resource_group?"),
        ("azure: {}", "azure: {zzz: x}", "1: azure.zzz: unknown key: the keys here are name_prefix, location"),
        ("azure: {}", "azure: {1: x}", "1: azure.1: unknown key"),
        ("azure: {}", "azure: {yes: x}", "1: azure.yes: unknown key"),
        ("azure: {}", "azure: {}\nextra: 1", "2: extra: unknown key: the keys here are azure, github, pools"),
        ("azure: {}", "azure: {}\ngithub: {owner: a}", "3: github: stands here twice; the first is in line 2"),
        ("azure: {}", "azure: {tags: {a: b, a: c}}", "1: azure.tags.a: stands here twice; the first is in line 1"),
        # values
        ("azure: {}", "azure: {name_prefix: Hw}", "1: azure.name_prefix: 'Hw' is not a name"),
        ("azure: {}", "azure: {name_prefix: hw-}", "1: azure.name_prefix: 'hw-' is not a name"),
        ("azure: {}", "azure: {tags: {runnerpool-pool: x}}", "1: azure.tags: the tag 'runnerpool-pool' is ours to set"),
        ("azure: {}", "azure: {tags: {a/b: x}}", "1: azure.tags: the tag 'a/b' does not fit Azure"),
        ("azure: {}", "azure: {subnet: a/b}", "1: azure.subnet: 'a/b' is not a name of an Azure resource"),
        ("azure: {}", "azure: [a]", "1: azure: must be a mapping of name_prefix, location"),
        ("owner: octo-org", "owner: octo-org, scope: repo", "2: github.repositories: scope repo needs the list of repositories"),
        ("owner: octo-org", "owner: octo-org, repositories: [other/web]", "2: github.repositories: 'other/web' does not belong to"),
        ("owner: octo-org", "owner: octo-org, repositories: [a b]", "2: github.repositories: 'a b' is not a repository's name"),
        ("owner: octo-org", "owner: o, scope: enterprise, repositories: [web]", "2: github.repositories: 'web' lacks its owner"),
        (
            "owner: octo-org",
            "owner: octo-org, allow_public_repositories: 1",
            "2: github.allow_public_repositories: must be true or false",
        ),
        ("[self-hosted, linux, x64]", "[linux, LINUX]", "4: pools[0].labels: 'LINUX' stands here twice (case does not count)"),
        ("[self-hosted, linux, x64]", "['a,b']", "4: pools[0].labels[0]: 'a,b' is not a label"),
        ("[self-hosted, linux, x64]", "['']", "4: pools[0].labels[0]: '' is not a label"),
        ("    vm:", "    maximum_pool_size: 0\n    vm:", "5: pools[0].maximum_pool_size: must be at least 1, not 0"),
        ("    vm:", "    maximum_pool_size: 1.5\n    vm:", "5: pools[0].maximum_pool_size: must be a whole number, not 1.5"),
        ("    vm:", "    minimum_warm_vms: true\n    vm:", "5: pools[0].minimum_warm_vms: must be a whole number, not True"),
        ("    vm:", "    minimum_warm_vms: 51\n    vm:", "5: pools[0].minimum_warm_vms: minimum_warm_vms is 51, more than maximum"),
        (
            "    vm:",
            "    idle_timeout: 600\n    vm:",
            "5: pools[0].idle_timeout: 600 is not a duration: write a number with its unit",
        ),
        ("    vm:", "    idle_timeout: 1:30\n    vm:", "5: pools[0].idle_timeout: 90 is not a duration"),
        ("    vm:", "    idle_timeout: 2024-13-45\n    vm:", "5: pools[0].idle_timeout: '2024-13-45' cannot be read"),
        (
            "sizes: [Standard_D4ads_v5]",
            "sizes: [Standard_D4ads_v5, standard_d4ads_v5]",
            "5: pools[0].vm.sizes: 'standard_d4ads_v5' stands",
        ),
        (
            "[Standard_D4ads_v5]}",
            "[Standard_D4ads_v5], image: ubuntu}",
            "5: pools[0].vm.image: 'ubuntu' is neither Publisher:Offer",
        ),
        (
            "[Standard_D4ads_v5]}",
            "[Standard_D4ads_v5], os: windows}",
            "5: pools[0].vm.image: windows needs the resource id of a gallery",
        ),
        (
            "[Standard_D4ads_v5]}",
            "[Standard_D4ads_v5], admin_username: root}",
            "5: pools[0].vm.admin_username: Azure refuses the name",
        ),
        ("[Standard_D4ads_v5]}", "[Standard_D4ads_v5], runner_version: 2.3}", "5: pools[0].vm.runner_version: must be text: write"),
        (
            "[Standard_D4ads_v5]}",
            "[Standard_D4ads_v5], runner_version: latest}",
            "5: pools[0].vm.runner_version: 'latest' is not auto or",
        ),
        (
            "[Standard_D4ads_v5]}",
            "[Standard_D4ads_v5], zones: [one]}",
            "5: pools[0].vm.zones[0]: 'one' is not an availability zone",
        ),
        (
            "[Standard_D4ads_v5]}",
            "[Standard_D4ads_v5], setup_script: no.sh}",
            "5: pools[0].vm.setup_script: there is no file 'no.sh'",
        ),
        (
            "[Standard_D4ads_v5]}",
            "[Standard_D4ads_v5], proxy: {http_proxy: x}}",
            "5: pools[0].vm.proxy.http_proxy: is not a proxy's",
        ),
    ],
)
def test_a_mistake_is_answered_with_its_line_and_what_would_be_right(
    tmp_path: Path, before: str, after: str, expected: str
) -> None:
    assert before in SMALLEST
    (message,) = messages(tmp_path, SMALLEST.replace(before, after, 1))
    assert message.startswith(expected)


def test_window_minima_may_not_exceed_the_maximum() -> None:
    with pytest.raises(ValidationError, match="minimum_warm_vms is 10, more than maximum_pool_size, which is 5"):
        pool(maximum_pool_size=5, warm_schedule=[OFFICE])


def test_an_unknown_time_zone_is_refused_whatever_it_looks_like(tmp_path: Path) -> None:
    for zone in ("America/Los_Angels", "America", "../../etc/passwd", "/etc/localtime", "", "\0"):
        with pytest.raises(ValidationError, match="is no time zone"):
            pool(warm_schedule=[{**OFFICE, "timezone": zone}])


def test_a_private_key_in_the_place_of_the_public_one_is_refused_without_repeating_it(tmp_path: Path) -> None:
    text = SMALLEST.replace(
        "[Standard_D4ads_v5]}", '[Standard_D4ads_v5], ssh_public_key: "-----BEGIN OPENSSH PRIVATE KEY----- hush"}'
    )
    (message,) = messages(tmp_path, text)
    assert message.startswith("5: pools[0].vm.ssh_public_key: is not one line of an OpenSSH public key") and "hush" not in message


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


# ---------------------------------------------------------------------------------------------- pools beside each other

TWO = SMALLEST + POOL.replace("x64", "arm64")


def test_two_pools_with_the_same_label_set_are_refused(tmp_path: Path) -> None:
    (message,) = messages(tmp_path, SMALLEST + "  - name: other\n    labels: [X64, Linux]\n    vm: {sizes: [Standard_D4ads_v5]}\n")
    assert message == "7: pools[1].labels: the pool 'linux-x64' has the same labels: no job could tell them apart"


def test_two_pools_of_one_name_are_refused(tmp_path: Path) -> None:
    (message,) = messages(tmp_path, TWO.replace("arm64]", "arm64]\n    name: linux-x64"))
    assert message == "7: pools[1].name: pools[0] is called 'linux-x64' too: give each pool a name of its own"


def test_clashing_pools_are_reported_beside_other_errors(tmp_path: Path) -> None:
    broken = "  - labels: [c]\n    vm: {}\n"
    found = messages(tmp_path, TWO.replace("arm64]", "arm64]\n    name: linux-x64") + broken)
    assert [message.partition(":")[0] for message in found] == ["7", "10"]


@pytest.mark.parametrize(
    ("prefix", "length", "fits"), [("hw", 50, True), ("hw", 51, False), ("a" * 20, 32, True), ("a" * 20, 33, False)]
)
def test_prefix_pool_and_suffix_fit_into_a_name_of_64_characters(tmp_path: Path, prefix: str, length: int, fits: bool) -> None:
    text = SMALLEST.replace("azure: {}", f"azure: {{name_prefix: {prefix}}}").replace(
        "  - labels", f"  - name: {'p' * length}\n    labels"
    )
    if fits:
        name = f"{prefix}-{load(tmp_path, text).pools[0].name}-{'s' * 10}"
        assert len(name) == 64
    else:
        (message,) = messages(tmp_path, text)
        assert message.startswith("4: pools[0].name: ") and f"at most {length - 1} characters fit" in message


# ---------------------------------------------------------------------------------------------- strange YAML


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "1: the file is empty"),
        ("# only a comment\n", "1: the file is empty"),
        ("null", "1: azure: is required"),
        ("- a\n- b\n", "1: must be a mapping of azure, github, pools, not a list"),
        ("hello", "1: must be a mapping of azure, github, pools, not 'hello'"),
        ("a: b\n---\nc: d\n", "2: this is not valid YAML: expected a single document"),
        ("azure:\n\tlocation: x\n", "2: a tab stands where YAML wants spaces"),
        ("azure: [\n", "2: this is not valid YAML"),
        ("azure: *nowhere\n", "1: this is not valid YAML: found undefined alias 'nowhere'"),
        ("azure: &a {tags: *a}\n", "1: azure.tags: an alias refers to what it is part of"),
        ("azure: {<<: 5}\n", "1: this is not valid YAML"),
        ("azure: {? [a, b] : c}\n", "1: azure: a key must be a plain word"),
        ("azure: !!python/object:os.system {}\n", "1: azure: the tag"),
        ("azure: !!set {a, b}\n", "1: azure: the tag"),
        ("azure: !secret x\n", "1: azure: 'x' cannot be read: could not determine a constructor for the tag '!secret'"),
        ("azure: !!int x\n", "1: azure: 'x' cannot be read"),
        ("azure: !!timestamp x\n", "1: azure: 'x' cannot be read"),
        (b"azure: {}\n\xff\xfe\n", "2: this is not UTF-8 text"),
        (b"azure: {}\nx: \x00\n", "2: the character U+0000 is not allowed"),
        ("[" * 5_000, "1: the values are nested too deeply"),
        (b"#" * 1_000_001, "0: is larger than 1000000 bytes"),
    ],
)
def test_strange_files_are_answered_not_crashed_on(tmp_path: Path, text: str | bytes, expected: str) -> None:
    assert messages(tmp_path, text)[0].startswith(expected)


def test_a_file_that_means_billions_of_values_is_refused_at_once(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    assert any("too many values" in message for message in messages(tmp_path, "\n".join(lines)))


def test_a_missing_file_and_a_folder_are_answered(tmp_path: Path) -> None:
    for path, expected in ((tmp_path / "none.yaml", "there is no such file"), (tmp_path, "cannot be read")):
        with pytest.raises(ConfigError) as caught:
            load_config(path)
        assert str(caught.value).startswith(f"{path}: {expected}")


def test_anchors_and_merged_keys_work_and_keep_their_lines(tmp_path: Path) -> None:
    text = """\
azure: {}
github: {owner: octo-org}
pools:
  - labels: [linux]
    vm: &shape
      sizes: [Standard_D4ads_v5]
      zones: ["1"]
  - labels: [large]
    vm:
      <<: *shape
      sizes: [Standard_D16ads_v5]
"""
    config = load(tmp_path, text)
    assert config.pools[1].vm.sizes == ("Standard_D16ads_v5",) and config.pools[1].vm.zones == ("1",)
    found = messages(tmp_path, text.replace('["1"]', "[x]"))
    assert [message.partition(" is ")[0] for message in found] == ["7: pools[0].vm.zones[0]: 'x'", "7: pools[1].vm.zones[0]: 'x'"]


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    assert load(tmp_path, b"\xef\xbb\xbf" + SMALLEST.encode()) == load(tmp_path, SMALLEST)


def test_the_lines_of_a_sound_file_are_known_too(tmp_path: Path) -> None:
    path = tmp_path / "pools.yaml"
    path.write_text(FULL)
    read = read_pool_file(path)
    assert read.line(("pools", 0, "vm", "os_disk", "ephemeral")) == 31
    assert read.line(("pools", 0, "vm", "nothing")) == 26
    assert read.line(("nowhere",)) == 1


WORDS = [
    "azure",
    "github",
    "pools",
    "owner",
    "labels",
    "vm",
    "sizes",
    ": ",
    "\n",
    "  ",
    "- ",
    "[",
    "]",
    "{",
    "}",
    "x",
    "1",
    "&a",
    "*a",
    "<<",
    "!",
]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.one_of(st.binary(max_size=200), st.lists(st.sampled_from(WORDS), max_size=60).map(lambda words: "".join(words).encode())))
def test_no_file_whatever_crashes_the_reading(tmp_path: Path, content: bytes) -> None:
    try:
        load(tmp_path, content)
    except ConfigError as error:
        assert error.problems
