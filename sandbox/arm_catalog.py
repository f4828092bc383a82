"""What Azure offers here: sizes, quota, images; and the resource group with what the caller may do in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aiohttp import web

from sandbox.arm_checks import SIZE, ZONES, cores, family
from sandbox.arm_errors import ArmError, not_found

if TYPE_CHECKING:
    from sandbox.arm import ArmSandbox, Route

API_VERSIONS = ("2021-04-01", "2021-07-01", "2022-04-01", "2024-03-03", "2025-03-03", "2026-03-03", "2026-04-01")

SIZES = [
    f"Standard_{series}{count}{features}_{version}"
    for series in "DE"
    for version, kinds in (("v5", ("s", "ds", "as", "ads", "ps", "pds")), ("v6", ("s", "ds", "as", "ads", "pds")))
    for features in kinds
    for count in (2, 4, 8, 16)
]

PLENTY = 5_000  # cores, where no quota is set
VERSION = "24.04.202601020"


class CatalogProvider:
    def __init__(self, arm: ArmSandbox) -> None:
        self._arm = arm

    def routes(self) -> list[Route]:
        subscription = "/subscriptions/{subscription}"
        compute = subscription + "/providers/Microsoft.Compute"
        here = compute + "/locations/{location}"
        group = subscription + "/resourceGroups/{group}"
        network = group + "/providers/Microsoft.Network"
        permissions = "/providers/Microsoft.Authorization/permissions"
        image = here + "/publishers/{publisher}/artifacttypes/vmimage/offers/{offer}/skus/{sku}/versions"
        gallery = group + "/providers/Microsoft.Compute/galleries/{gallery}/images/{name}"
        return [
            ("GET", group, "group.get", self._get_group),
            *(
                ("GET", scope + permissions, "permissions.list", self._list_permissions)
                for scope in (group, network + "/virtualNetworks/{vnet}/subnets/{name}", network + "/networkSecurityGroups/{name}")
            ),
            ("GET", compute + "/skus", "skus.list", self._list_skus),
            ("GET", here + "/usages", "usages.list", self._list_usages),
            ("GET", image, "image.list", self._list_image),
            ("GET", image + "/{version}", "image.get", self._get_image),
            ("GET", gallery, "gallery.get", self._get_gallery_image),
            ("GET", gallery + "/versions", "gallery.list", self._list_gallery_versions),
            ("GET", gallery + "/versions/{version}", "gallery.get", self._get_gallery_version),
        ]

    async def _get_group(self, request: web.Request) -> web.Response:
        name = self._arm.resource_group
        properties = {"provisioningState": "Succeeded"}
        kind = "Microsoft.Resources/resourceGroups"
        body = {"id": self._arm.scope, "name": name, "type": kind, "location": self._arm.location, "properties": properties}
        return web.json_response(body)

    async def _list_permissions(self, request: web.Request) -> web.Response:
        """One entry a role; actions that a role excepts are what it does not grant."""
        denied = list(self._arm.surroundings.denied)
        role = {"actions": ["*"], "notActions": denied, "dataActions": [], "notDataActions": []}
        return web.json_response({"value": [role]})

    # ------------------------------------------------------------------------------------------ sizes and quota

    async def _list_skus(self, request: web.Request) -> web.Response:
        if request.query.get("$filter") not in (None, f"location eq '{self._arm.location}'"):
            raise ArmError(400, "InvalidParameter", "The filter cannot be understood.", target="$filter")
        disk = {"resourceType": "disks", "name": "Premium_LRS", "tier": "Premium", "size": "P10", "locations": [self._arm.location]}
        return web.json_response({"value": [disk, *(self._sku(size) for size in SIZES)]})

    def _sku(self, size: str) -> dict[str, Any]:
        location, around = self._arm.location, self._arm.surroundings
        restrictions: list[dict[str, Any]] = []
        if size in around.not_offered:
            restrictions.append(_restriction("Location", location, {"locations": [location]}))
        if closed := list(around.closed_zones.get(size, ())):
            restrictions.append(_restriction("Zone", location, {"locations": [location], "zones": closed}))
        return {
            "resourceType": "virtualMachines",
            "name": size,
            "tier": "Standard",
            "size": size.removeprefix("Standard_"),
            "family": family(size),
            "locations": [location],
            "locationInfo": [{"location": location, "zones": list(ZONES), "zoneDetails": []}],
            "capabilities": [{"name": name, "value": value} for name, value in _capabilities(size).items()],
            "restrictions": restrictions,
        }

    async def _list_usages(self, request: web.Request) -> web.Response:
        vms = list(self._arm.estate.vms.values())
        regular = [vm for vm in vms if not vm.spot]
        used = {"cores": sum(vm.cores for vm in regular), "lowPriorityCores": sum(vm.cores for vm in vms if vm.spot)}
        limits = {"cores": "Total Regional Cores", "lowPriorityCores": "LowPriorityCores"}
        for name in sorted({family(size) for size in SIZES}):
            used[name] = sum(vm.cores for vm in regular if family(vm.size) == name)
        shown = [
            {
                "unit": "Count",
                "currentValue": count,
                "limit": self._arm.quotas.get(limits.get(name, name), PLENTY),
                "name": {"value": name, "localizedValue": _localized(name)},
            }
            for name, count in used.items()
        ]
        return web.json_response({"value": shown})

    # ------------------------------------------------------------------------------------------ images

    async def _list_image(self, request: web.Request) -> web.Response:
        self._architecture(request)
        path = request.path.removesuffix("/")
        return web.json_response([{"id": f"{path}/{VERSION}", "name": VERSION, "location": self._arm.location}])

    async def _get_image(self, request: web.Request) -> web.Response:
        if request.match_info["version"] != VERSION:
            raise _no_image()
        architecture = self._architecture(request)
        properties = {
            "hyperVGeneration": "V2",
            "architecture": architecture,
            "osDiskImage": {"operatingSystem": "Linux", "sizeInGb": 31},
            "dataDiskImages": [],
            "automaticOSUpgradeProperties": {"automaticOSUpgradeSupported": False},
        }
        body = {"id": request.path, "name": VERSION, "location": self._arm.location, "properties": properties}
        return web.json_response(body)

    def _architecture(self, request: web.Request) -> str:
        given = request.match_info
        found = self._arm.surroundings.images.get(f"{given['publisher']}:{given['offer']}:{given['sku']}")
        if found is None or given["location"] != self._arm.location:
            raise _no_image()
        return found

    async def _get_gallery_image(self, request: web.Request) -> web.Response:
        found = self._gallery(request)
        identifier = {"publisher": "own", "offer": "own", "sku": "own"}
        properties = {"osType": "Linux", "osState": "Generalized", "hyperVGeneration": "V2", "identifier": identifier}
        properties |= {"architecture": found, "provisioningState": "Succeeded"}
        body = {"id": request.path, "name": request.match_info["name"], "location": self._arm.location, "properties": properties}
        return web.json_response(body)

    async def _list_gallery_versions(self, request: web.Request) -> web.Response:
        self._gallery(request)
        return web.json_response({"value": [self._version(f"{request.path}/1.0.0", "1.0.0")]})

    async def _get_gallery_version(self, request: web.Request) -> web.Response:
        self._gallery(request)
        if request.match_info["version"] != "1.0.0":
            raise not_found("Microsoft.Compute/galleries/images/versions", request.match_info["version"], self._arm.resource_group)
        return web.json_response(self._version(request.path, "1.0.0"))

    def _version(self, path: str, name: str) -> dict[str, Any]:
        targets = [{"name": "West US", "regionalReplicaCount": 1}] if self._arm.location == "westus" else []
        publishing = {"targetRegions": targets, "excludeFromLatest": False}
        properties = {"publishingProfile": publishing, "provisioningState": "Succeeded", "storageProfile": {}}
        return {"id": path, "name": name, "location": self._arm.location, "properties": properties}

    def _gallery(self, request: web.Request) -> str:
        path = request.path.partition("/versions")[0]
        found = {name.lower(): architecture for name, architecture in self._arm.surroundings.images.items()}.get(path.lower())
        if found is None:
            raise not_found("Microsoft.Compute/galleries/images", request.match_info["name"], self._arm.resource_group)
        return found


def _restriction(kind: str, location: str, info: dict[str, Any]) -> dict[str, Any]:
    return {"type": kind, "values": [location], "restrictionInfo": info, "reasonCode": "NotAvailableForSubscription"}


def _capabilities(size: str) -> dict[str, str]:
    match = SIZE.fullmatch(size)
    features = match[3] if match else ""
    disk = "d" in features
    return {
        "vCPUs": str(cores(size)),
        "MemoryGB": str(cores(size) * 4),
        "HyperVGenerations": "V2" if "p" in features or size.endswith("v6") else "V1,V2",
        "CpuArchitectureType": "Arm64" if "p" in features else "x64",
        "EphemeralOSDiskSupported": str(disk),
        "LowPriorityCapable": "True",
        "MaxResourceVolumeMB": str(75 * 1024 * cores(size) // 2 if disk else 0),
    }


def _localized(name: str) -> str:
    fixed = {"cores": "Total Regional vCPUs", "lowPriorityCores": "Total Regional Low-priority vCPUs"}
    return fixed.get(name, f"Standard {name.removeprefix('standard').removesuffix('Family')} Family vCPUs")


def _no_image() -> ArmError:
    return ArmError(404, "NotFound", "Artifact: VMImage was not found.")
