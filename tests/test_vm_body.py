"""The body of a VM's PUT: what Azure is told, and what it is not."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from azure.mgmt.compute.models import VirtualMachine

from runnerpool.compute import computer_name, image_reference, throwaway_login
from runnerpool.errors import Misconfigured
from runnerpool.ports import VmSpec
from tests.azure_sandbox import SCOPE, SPEC, WINDOWS, body_of, named


def unknown_keys(value: Any, path: str = "") -> list[str]:
    """The paths in a body that the SDK's models, made from Azure's published specification, do not know."""
    if isinstance(value, list):
        return [problem for item in value for problem in unknown_keys(item, f"{path}[]")]
    if not hasattr(value, "_attr_to_rest_field"):
        return []
    known = {field._rest_name: attribute for attribute, field in value._attr_to_rest_field.items()}
    problems = [f"{path}.{key}" for key in value if key not in known]
    return problems + [p for key in value if key in known for p in unknown_keys(getattr(value, known[key]), f"{path}.{key}")]


@pytest.mark.parametrize(
    "spec", [SPEC, WINDOWS, named("spot", spot=True, zone=None), named("disk", ephemeral_disk=False)], ids=lambda spec: spec.name
)
def test_every_property_of_the_body_is_one_that_azure_publishes(spec: VmSpec) -> None:
    assert unknown_keys(VirtualMachine(body_of(spec))) == []
    assert unknown_keys(VirtualMachine({"properties": {"osProfile": {"customdata": ""}}})) == [".properties.osProfile.customdata"]


def test_nic_and_disk_go_with_the_vm_and_there_is_no_public_address_and_no_identity() -> None:
    body = body_of(SPEC)
    (nic,) = body["properties"]["networkProfile"]["networkInterfaceConfigurations"]
    assert nic["properties"]["deleteOption"] == body["properties"]["storageProfile"]["osDisk"]["deleteOption"] == "Delete"
    assert nic["properties"]["networkSecurityGroup"]["id"] == f"{SCOPE}/providers/Microsoft.Network/networkSecurityGroups/hw-nsg"
    (address,) = nic["properties"]["ipConfigurations"]
    assert address["properties"]["subnet"]["id"] == f"{SCOPE}/providers/Microsoft.Network/virtualNetworks/hw-vnet/subnets/hw-subnet"
    assert nic["tags"] == body["tags"] == {**SPEC.tags, "team": "ci"}
    assert "publicIPAddressConfiguration" not in str(body)
    assert "identity" not in body


def test_a_spot_vm_is_deleted_when_evicted_and_never_for_its_price() -> None:
    properties = body_of(named("spot", spot=True))["properties"]
    assert (properties["priority"], properties["evictionPolicy"], properties["billingProfile"]) == (
        "Spot",
        "Delete",
        {"maxPrice": -1},
    )
    assert not {"evictionPolicy", "billingProfile"} & set(body_of(SPEC)["properties"])


def test_a_vm_without_a_zone_names_none() -> None:
    assert body_of(SPEC)["zones"] == ["2"]
    assert "zones" not in body_of(replace(SPEC, zone=None))


def test_an_ephemeral_disk_is_read_cached_and_any_other_one_a_standard_ssd() -> None:
    ephemeral = body_of(SPEC)["properties"]["storageProfile"]["osDisk"]
    managed = body_of(replace(SPEC, ephemeral_disk=False))["properties"]["storageProfile"]["osDisk"]
    assert (ephemeral["caching"], ephemeral["diffDiskSettings"], ephemeral["diskSizeGB"]) == ("ReadOnly", {"option": "Local"}, 64)
    assert "diffDiskSettings" not in managed
    assert managed["managedDisk"] == {"storageAccountType": "StandardSSD_LRS"}


def test_where_no_login_is_wanted_each_linux_vm_gets_a_key_of_its_own_that_nobody_holds() -> None:
    keys = [throwaway_login(SPEC)["linuxConfiguration"]["ssh"]["publicKeys"][0]["keyData"] for _ in range(2)]
    assert all(key.startswith("ssh-ed25519 AAAA") for key in keys)
    assert keys[0] != keys[1]


def test_a_wanted_key_is_the_only_way_in() -> None:
    linux = throwaway_login(replace(SPEC, ssh_public_key="ssh-rsa AAAAB3 me"))["linuxConfiguration"]
    assert linux["disablePasswordAuthentication"] is True
    assert linux["ssh"]["publicKeys"] == [{"path": "/home/runneradmin/.ssh/authorized_keys", "keyData": "ssh-rsa AAAAB3 me"}]


def test_a_windows_password_has_every_kind_of_character_and_is_never_the_same() -> None:
    passwords = {throwaway_login(WINDOWS)["adminPassword"] for _ in range(20)}
    assert len(passwords) == 20
    for password in passwords:
        assert all(re.search(kind, password) for kind in ("[a-z]", "[A-Z]", "[0-9]", "[^A-Za-z0-9]"))
        assert 12 <= len(password) <= 123


def test_a_windows_computer_is_named_by_the_suffix() -> None:
    assert computer_name(replace(WINDOWS, name="hw-win-2022-0123456789abcdefghij")) == "0123456789abcde"
    assert computer_name(SPEC) == SPEC.name


@pytest.mark.parametrize(
    ("image", "reference"),
    [
        ("Canonical:ubuntu:server:latest", {"publisher": "Canonical", "offer": "ubuntu", "sku": "server", "version": "latest"}),
        ("/subscriptions/s/…/images/i", {"id": "/subscriptions/s/…/images/i"}),
        ("/SharedGalleries/g/Images/i/Versions/1.0.0", {"sharedGalleryImageId": "/SharedGalleries/g/Images/i/Versions/1.0.0"}),
        ("/CommunityGalleries/g/Images/i", {"communityGalleryImageId": "/CommunityGalleries/g/Images/i"}),
    ],
)
def test_an_image_is_referred_to_by_its_kind(image: str, reference: dict[str, str]) -> None:
    assert image_reference(image) == reference


@pytest.mark.parametrize("image", ["", "ubuntu", "a:b:c", "a:b::d", "a:b:c:d:e"])
def test_an_image_that_cannot_be_read_is_a_matter_of_the_pool_file(image: str) -> None:
    with pytest.raises(Misconfigured, match="image") as caught:
        image_reference(image)
    assert caught.value.area == "provisioning"
