"""What ARM and Compute look at before they accept a VM: the body, the things it refers to, and quota."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sandbox.arm_errors import QUOTA, ArmError, invalid, missing, text_of
from sandbox.arm_store import VmRecord

SIZE = re.compile(r"Standard_([A-Z]+)(\d+)(?:-\d+)?([a-z]*)(?:_([A-Z]+\d+))?(?:_(v\d+))?")
"""Series, vCPUs, features, accelerator, version; "-4" in E8-4s is a constraint that quota does not see."""
CUSTOM_DATA_LIMIT = 87380  # characters of base64
ZONES = ("1", "2", "3")


@dataclass(frozen=True, slots=True)
class Network:
    """The network that VMs may refer to; ids as ARM writes them."""

    subnet_id: str
    security_group_id: str


def read_body(raw: bytes) -> dict[str, Any]:
    try:
        body = json.loads(raw)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise ArmError(400, "InvalidRequestContent", "The request content was invalid and could not be deserialized.")
    return body


def check_body(name: str, body: Mapping[str, Any], network: Network) -> str:
    """Refuses as Compute does a body that it cannot take; returns the decoded custom data. Raises ArmError."""
    if not body.get("location"):
        raise ArmError(400, "LocationRequired", "The location property is required for this definition.")
    properties = body.get("properties") or {}
    _check_size_and_zone(body, properties)
    _check_storage(properties.get("storageProfile") or {})
    _check_network(name, properties.get("networkProfile") or {}, network)
    if properties.get("priority") != "Spot":
        if "evictionPolicy" in properties:
            code = "EvictionPolicyCanBeSetOnlyOnAzureSpotVirtualMachines"
            raise ArmError(400, code, "Eviction policy can be set only on Azure Spot Virtual Machines.")
        if "billingProfile" in properties:
            code = "MaxPriceIsSupportedOnlyForAzureSpotVirtualMachines"
            raise ArmError(400, code, "Max price is supported only for Azure Spot Virtual Machines.")
    return _check_os(properties.get("osProfile") or {})


def _check_size_and_zone(body: Mapping[str, Any], properties: Mapping[str, Any]) -> None:
    size = (properties.get("hardwareProfile") or {}).get("vmSize")
    if not size:
        raise missing("hardwareProfile.vmSize")
    if not SIZE.fullmatch(size):
        raise invalid(
            "vmSize", f"The value {size} provided for the VM size is not valid. The valid sizes in the current region are: …"
        )
    for zone in body.get("zones") or ():
        if zone not in ZONES:
            supported = ",".join(ZONES)
            text = f"The zone(s) '{zone}' is not supported. The supported zones for location '{body['location']}' are '{supported}'"
            raise ArmError(400, "InvalidAvailabilityZone", text)


def _check_storage(storage: Mapping[str, Any]) -> None:
    image = storage.get("imageReference") or {}
    disk = storage.get("osDisk") or {}
    four = [image.get(key) for key in ("publisher", "offer", "sku", "version")]
    if not all(four) and not any(image.get(key) for key in ("id", "sharedGalleryImageId", "communityGalleryImageId")):
        raise invalid("imageReference")
    if disk.get("createOption") != "FromImage":
        raise missing("osDisk.createOption")
    if disk.get("diffDiskSettings"):
        if disk.get("caching") != "ReadOnly":
            raise invalid("osDisk.caching", "Ephemeral OS disks need the caching type ReadOnly.")
        if disk.get("deleteOption", "Delete") != "Delete":
            raise invalid("osDisk.deleteOption", "Ephemeral OS disks can only be deleted with their VM.")


def _check_os(os_profile: Mapping[str, Any]) -> str:
    if not os_profile.get("computerName"):
        raise missing("computerName")
    if not os_profile.get("adminUsername"):
        raise missing("adminUsername")
    linux = os_profile.get("linuxConfiguration")
    password = os_profile.get("adminPassword")
    keys = ((linux or {}).get("ssh") or {}).get("publicKeys") or []
    if linux is None and not password:
        raise missing("adminPassword")
    if linux is not None and not keys and (linux.get("disablePasswordAuthentication") or not password):
        text = "Authentication using either SSH or by user name and password must be enabled in Linux profile."
        raise invalid("linuxConfiguration", text)
    if linux is None and len(os_profile["computerName"]) > 15:
        raise invalid("computerName", "Windows computer name cannot be more than 15 characters long.")
    for key in keys:
        if not re.match(r"(ssh-rsa|ssh-ed25519) \S+", key.get("keyData") or ""):
            raise invalid("linuxConfiguration.ssh.publicKeys.keyData")
    return _decode_custom_data(os_profile.get("customData") or "")


def _decode_custom_data(encoded: str) -> str:
    text = f"Custom data in OSProfile must be in Base64 encoding and with a maximum length of {CUSTOM_DATA_LIMIT} characters."
    if len(encoded) > CUSTOM_DATA_LIMIT:
        raise invalid("customData", text)
    try:
        return base64.b64decode(encoded, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        raise invalid("customData", text) from None


def _check_network(name: str, profile: Mapping[str, Any], network: Network) -> None:
    configurations = profile.get("networkInterfaceConfigurations") or []
    if len(configurations) != 1:
        raise invalid("networkProfile.networkInterfaceConfigurations")
    if profile.get("networkApiVersion") not in ("2020-11-01", "2022-11-01"):
        raise invalid("networkProfile.networkApiVersion")
    if configurations[0].get("tags") and profile["networkApiVersion"] < "2022-11-01":
        raise invalid("networkProfile.networkApiVersion")
    if not configurations[0].get("name"):
        raise missing("networkInterfaceConfiguration.name")
    properties = configurations[0].get("properties") or {}
    addresses = properties.get("ipConfigurations") or []
    if len(addresses) != 1 or not addresses[0].get("name"):
        raise invalid("networkInterfaceConfiguration.ipConfigurations")
    subnet = ((addresses[0].get("properties") or {}).get("subnet") or {}).get("id", "")
    group = (properties.get("networkSecurityGroup") or {}).get("id")
    for known, given in ((network.subnet_id, subnet), (network.security_group_id, group or network.security_group_id)):
        if given.lower() != known.lower():
            text = (
                f"Resource {given} referenced by resource {name} was not found. Please make sure that the referenced resource "
                "exists, and that both resources are in the same region."
            )
            raise ArmError(400, "InvalidResourceReference", text)


# ---------------------------------------------------------------------------------------------- quota


def cores(size: str) -> int:
    """vCPUs as the size's name says them: Standard_D4ads_v5 has 4."""
    match = SIZE.fullmatch(size)
    return int(match[2]) if match else 0


def family(size: str) -> str:
    """The quota's name as Azure writes it: Standard_D4ads_v5 counts for standardDADSv5Family."""
    match = SIZE.fullmatch(size)
    if match is None:
        return size
    series, _, features, accelerator, version = (part or "" for part in match.groups())
    return f"standard{series}{features.upper()}{accelerator}{version}Family"


def check_quota(
    size: str, *, spot: bool, location: str, subscription: str, vms: Iterable[VmRecord], limits: Mapping[str, int]
) -> None:
    """Raises ArmError 409. `limits` in cores, keyed `LowPriorityCores`, `Total Regional Cores` or by family; absent: unlimited."""
    alike = [vm for vm in vms if vm.spot is spot]
    if spot:
        counts = {"LowPriorityCores": alike}
    else:
        counts = {"Total Regional Cores": alike, family(size): [vm for vm in alike if family(vm.size) == family(size)]}
    required = cores(size)
    for name, counted in counts.items():
        usage = sum(vm.cores for vm in counted)
        limit = limits.get(name)
        if limit is None or usage + required <= limit:
            continue
        text = QUOTA.format(
            quota=f"{name} Cores" if name.endswith("Family") else name,
            location=location,
            limit=limit,
            usage=usage,
            required=required,
            wanted=usage + required,
            subscription=subscription,
        )
        raise ArmError(409, "OperationNotAllowed", text)


def refusal(code: str, status: int, message: str, facts: Mapping[str, str]) -> ArmError:
    """What a fault answers: Azure's own text for the code, unless the fault brings one."""
    if code == "QuotaExceeded" and not message:
        message = QUOTA.format(quota="Total Regional Cores", limit=0, usage=0, required=0, wanted=0, subscription="", location="")
    return ArmError(status, code, message or text_of(code, facts))
