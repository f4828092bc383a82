"""The pool file: what each mistake is answered with."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from runnerpool.pool_file import ConfigError, load_config
from tests.pool_files import OFFICE, POOL, SMALLEST, load, messages, pool

# ---------------------------------------------------------------------------------------------- keys and values


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
