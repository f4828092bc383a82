"""What Azure offers in the location: VM sizes, images, and how much of the quota is used. Reads, for `doctor`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from azure.mgmt.compute.aio import ComputeManagementClient
from azure.mgmt.compute.models import GalleryImageVersion, ResourceSku

from runnerpool.arm import arm_call, client_options, word
from runnerpool.config import AzureConfig
from runnerpool.errors import Gone

if TYPE_CHECKING:
    from azure.core.credentials_async import AsyncTokenCredential


@dataclass(frozen=True, slots=True)
class Size:
    """A VM size as the location offers it to this subscription. `zones` are those in which it may be used; `refused` says why
    it may not be used in the location at all, "" where it may. `family` names its quota."""

    name: str
    family: str
    cores: int
    architecture: str  # x64 | arm64
    ephemeral: bool
    spot: bool
    generations: frozenset[str]  # V1, V2
    zones: frozenset[str]
    refused: str = ""


@dataclass(frozen=True, slots=True)
class Quota:
    used: int
    limit: int


@dataclass(frozen=True, slots=True)
class Image:
    """`plan`: it is sold under terms that somebody has to accept."""

    version: str
    architecture: str  # x64 | arm64
    generation: str  # V1 | V2, "" where Azure does not say
    plan: bool = False


REGIONAL = "cores"
SPOT = "lowprioritycores"
"""The names, in lower case, of the quotas that count over all families."""


class ComputeCatalog:
    def __init__(self, *, subscription_id: str, azure: AzureConfig, endpoint: str, credential: AsyncTokenCredential | None) -> None:
        self._azure = azure
        self._options = client_options(endpoint, credential)
        self._client = ComputeManagementClient(subscription_id=subscription_id, **self._options)

    async def close(self) -> None:
        await self._client.close()

    async def sizes(self) -> dict[str, Size]:
        """Every VM size of the location, by its name in lower case."""
        location = self._azure.location
        async with arm_call("list VM sizes", write=False):
            skus = [sku async for sku in self._client.resource_skus.list(filter=f"location eq '{location}'")]
        return {(sku.name or "").lower(): _size(sku, location) for sku in skus if sku.resource_type == "virtualMachines"}

    async def quotas(self) -> dict[str, Quota]:
        """By name in lower case: `cores`, `lowprioritycores`, and one for each family, all in vCPUs."""
        async with arm_call("list quotas", write=False):
            usages = [usage async for usage in self._client.usage.list(self._azure.location)]
        return {(usage.name.value or "").lower(): Quota(usage.current_value, usage.limit) for usage in usages}

    async def image(self, image: str) -> Image:
        """The image that a VM would get. Raises Gone where there is none, or none for this location."""
        if not image.startswith("/"):
            return await self._marketplace(*image.split(":"))
        parts = dict(re.findall(r"/(subscriptions|resourceGroups|galleries|images|versions)/([^/]+)", image, re.IGNORECASE))
        named = {key.lower(): value for key, value in parts.items()}
        async with ComputeManagementClient(subscription_id=named["subscriptions"], **self._options) as client:
            if "galleries" in named:
                return await self._gallery(client, named)
            return await self._own(client, named)

    async def _marketplace(self, publisher: str, offer: str, sku: str, version: str) -> Image:
        location, images = self._azure.location, self._client.virtual_machine_images
        async with arm_call(f"look for the image {publisher}:{offer}:{sku}:{version}", write=False):
            if version == "latest":
                found = await images.list(location, publisher, offer, sku, top=1, orderby="name desc")
                if not found:
                    raise Gone(f"{publisher}:{offer}:{sku} has no version in {location}")
                version = found[0].name
            image = await images.get(location, publisher, offer, sku, version)
        properties = image.properties
        return Image(
            version=version,
            architecture=_architecture(properties.architecture if properties else None),
            generation=word(properties.hyper_v_generation if properties else None),
            plan=bool(properties and properties.plan),
        )

    async def _gallery(self, client: ComputeManagementClient, named: Mapping[str, str]) -> Image:
        where = (named["resourcegroups"], named["galleries"], named["images"])
        async with arm_call(f"look for the gallery image {named['images']}", write=False):
            properties = (await client.gallery_images.get(*where)).properties
            if "versions" in named:
                versions = [await client.gallery_image_versions.get(*where, named["versions"])]
            else:
                listed = client.gallery_image_versions.list_by_gallery_image(*where)
                versions = [version async for version in listed if not _left_out_of_latest(version)]
        here = [version.name or "" for version in versions if self._is_here(version)]
        if not here:
            raise Gone(f"the gallery image {named['images']} has no version replicated to {self._azure.location}")
        return Image(
            version=here[-1],
            architecture=_architecture(properties.architecture if properties else None),
            generation=word(properties.hyper_v_generation if properties else None),
        )

    async def _own(self, client: ComputeManagementClient, named: Mapping[str, str]) -> Image:
        async with arm_call(f"look for the image {named['images']}", write=False):
            image = await client.images.get(named["resourcegroups"], named["images"])
        if _plain(image.location) != self._azure.location:
            raise Gone(f"the image {named['images']} is in {image.location}, not in {self._azure.location}")
        generation = image.properties.hyper_v_generation if image.properties else None
        return Image(version="", architecture="x64", generation=word(generation))  # such images are never for ARM

    def _is_here(self, version: GalleryImageVersion) -> bool:
        publishing = version.properties.publishing_profile if version.properties else None
        regions = (publishing.target_regions if publishing else None) or []
        return self._azure.location in {_plain(region.name) for region in regions} | {_plain(version.location)}


def _left_out_of_latest(version: GalleryImageVersion) -> bool:
    publishing = version.properties.publishing_profile if version.properties else None
    return bool(publishing and publishing.exclude_from_latest)


def _plain(location: str) -> str:
    """West US 2 as westus2."""
    return location.replace(" ", "").lower()


def _architecture(given: Any) -> str:
    """Azure leaves it out of older images, which are all for x64."""
    return word(given).lower() or "x64"


def _size(sku: ResourceSku, location: str) -> Size:
    able = {each.name: each.value for each in sku.capabilities or []}
    zones = {zone for info in sku.location_info or [] if _plain(info.location or "") == location for zone in info.zones or []}
    refused = ""
    for restriction in sku.restrictions or []:
        info = restriction.restriction_info
        if restriction.type == "Zone":
            zones -= {*((info.zones if info else None) or ())}
        else:
            refused = word(restriction.reason_code) or "restricted"
    return Size(
        name=sku.name or "",
        family=(sku.family or "").lower(),
        cores=int(able.get("vCPUs") or 0),
        architecture=_architecture(able.get("CpuArchitectureType")),
        ephemeral=able.get("EphemeralOSDiskSupported") == "True",
        spot=able.get("LowPriorityCapable") == "True",
        generations=frozenset((able.get("HyperVGenerations") or "").split(",")),
        zones=frozenset(zones),
        refused=refused,
    )
