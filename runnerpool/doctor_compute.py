"""`doctor` on what Azure offers: sizes in the region and its zones, images, quota."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from runnerpool.compute_catalog import REGIONAL, SPOT, Image, Quota, Size
from runnerpool.config import PoolConfig
from runnerpool.doctor_azure import Azure
from runnerpool.errors import Gone
from runnerpool.findings import Check, Finding, fail, ok, warn
from runnerpool.labels import pool_of_runner
from runnerpool.ports import Vm

QUOTA_PAGE = "https://portal.azure.com/#view/Microsoft_Azure_Capacity/QuotaMenuBlade/~/myQuotas"


def checks(azure: Azure) -> list[Check]:
    location = azure.config.azure.location
    sizes = f"az vm list-skus --location {location} --resource-type virtualMachines --output table"
    return [
        Check("sizes", lambda: sizes_offered(azure), sizes),
        Check("images", lambda: images(azure), f"az vm image list --location {location} --all --publisher Canonical"),
        Check("quota", lambda: quota(azure), QUOTA_PAGE),
    ]


# ---------------------------------------------------------------------------------------------- sizes


async def sizes_offered(azure: Azure) -> Sequence[Finding]:
    catalog, location = await azure.catalog.sizes(), azure.config.azure.location
    return [finding for pool in azure.config.pools for finding in judge_sizes(pool, catalog, location)]


def judge_sizes(pool: PoolConfig, catalog: Mapping[str, Size], location: str) -> list[Finding]:
    """A pool is served as long as one of its rungs can be had; what of them cannot is worth knowing."""
    what = f"sizes of {pool.name}"
    troubles = {size: trouble for size in pool.vm.sizes if (trouble := _size_trouble(pool, size, catalog, location))}
    mend = f"az vm list-skus --location {location} --resource-type virtualMachines --all --output table"
    if not troubles:
        zones = f" in zones {', '.join(pool.vm.zones)}" if pool.vm.zones else ""
        return [ok(what, f"{', '.join(pool.vm.sizes)} can be had in {location}{zones}")]
    hopeless = all(size in troubles and not troubles[size].startswith("only") for size in pool.vm.sizes)
    judge = fail if hopeless else warn
    return [judge(what, f"{size}: {trouble}", f"{mend}, then choose another size or zone") for size, trouble in troubles.items()]


def _size_trouble(pool: PoolConfig, name: str, catalog: Mapping[str, Size], location: str) -> str:
    """Why this size does not do for the pool, "" where it does; begins with "only" where it does in part."""
    size = catalog.get(name.lower())
    if size is None:
        return f"there is no such size in {location}"
    if size.refused:
        return f"not offered to this subscription in {location} ({size.refused})"
    if pool.vm.os_disk.ephemeral and not size.ephemeral:
        return "takes no ephemeral OS disk"
    if pool.vm.priority == "spot" and not size.spot:
        return "is not sold as spot"
    closed = [zone for zone in pool.vm.zones if zone not in size.zones]
    if closed and len(closed) == len(pool.vm.zones):
        return f"not offered to this subscription in any of the zones {', '.join(closed)}"
    if closed:
        return f"only in zones {', '.join(zone for zone in pool.vm.zones if zone in size.zones)}, not in {', '.join(closed)}"
    return ""


# ---------------------------------------------------------------------------------------------- images


async def images(azure: Azure) -> Sequence[Finding]:
    catalog = await azure.catalog.sizes()
    found: list[Finding] = []
    for pool in azure.config.pools:
        what, location = f"image of {pool.name}", azure.config.azure.location
        try:
            image = await azure.catalog.image(pool.vm.image)
        except Gone:
            publisher = pool.vm.image.partition(":")[0]
            mend = f"az vm image list --location {location} --all --publisher {publisher} --output table"
            own = f"replicate it to {location}: az sig image-version update --target-regions {location}=1 …"
            told = f"{pool.vm.image} is not offered in {location}"
            found.append(fail(what, told, own if pool.vm.image.startswith("/") else mend))
            continue
        found.append(judge_image(what, pool, image, catalog))
    return found


def judge_image(what: str, pool: PoolConfig, image: Image, catalog: Mapping[str, Size]) -> Finding:
    sizes = [size for name in pool.vm.sizes if (size := catalog.get(name.lower()))]
    told = f"{pool.vm.image} ({image.version or 'one version'}, {image.architecture})"
    if image.plan:
        return fail(what, f"{told} is sold under a plan, which runnerpool does not order", "choose an image without a plan")
    strange = [size.name for size in sizes if size.architecture != image.architecture]
    if strange:
        return fail(what, f"{told} does not run on {', '.join(strange)}", "choose image and sizes of one architecture")
    older = [size.name for size in sizes if image.generation and image.generation not in size.generations]
    if older:
        told = f"{told} is of generation {image.generation}, which {', '.join(older)} cannot boot"
        return fail(what, told, "choose an image of the other generation")
    return ok(what, told)


# ---------------------------------------------------------------------------------------------- quota


async def quota(azure: Azure) -> Sequence[Finding]:
    catalog, quotas = await azure.catalog.sizes(), await azure.catalog.quotas()
    free = without_ours(quotas, await azure.compute.list_vms(), azure.config.pools, catalog, azure.config.azure.name_prefix)
    return [judge_quota(pool, catalog, free, quotas) for pool in azure.config.pools]


def without_ours(
    quotas: Mapping[str, Quota], vms: Iterable[Vm], pools: Sequence[PoolConfig], catalog: Mapping[str, Size], prefix: str
) -> Counter[str]:
    """Free vCPUs by quota, as if none of our VMs were there: the maxima count these, too. (Whether a VM of a
    spot-then-regular pool is a spot one is not in Azure's list: it is taken for a regular one.)"""
    free = Counter({name: quota.limit - quota.used for name, quota in quotas.items()})
    spot = {pool.name for pool in pools if pool.vm.priority == "spot"}
    for vm in vms:
        pool, size = pool_of_runner(vm.name, prefix), catalog.get(vm.size.lower())
        if pool is not None and size is not None:
            for name in _counted(size, spot=pool in spot):
                free[name] += size.cores
    return free


def _counted(size: Size, *, spot: bool) -> tuple[str, ...]:
    return (SPOT,) if spot else (REGIONAL, size.family)


def judge_quota(pool: PoolConfig, catalog: Mapping[str, Size], free: Counter[str], quotas: Mapping[str, Quota]) -> Finding:
    """Takes from `free` what the pool at its maximum would, on the sizes and priorities in their order."""
    what, wanted = f"quota of {pool.name}", pool.maximum_pool_size
    kinds = {"regular": (False,), "spot": (True,), "spot-then-regular": (True, False)}[pool.vm.priority]
    fitting = 0
    named: dict[str, None] = {}
    for spot in kinds:
        for size in (catalog[name.lower()] for name in pool.vm.sizes if name.lower() in catalog):
            counted = [name for name in _counted(size, spot=spot) if name in quotas]
            named |= dict.fromkeys(counted)
            room = min((max(free[name], 0) // max(size.cores, 1) for name in counted), default=wanted)
            taken = min(room, wanted - fitting)
            for name in counted:
                free[name] -= taken * size.cores
            fitting += taken
    limits = ", ".join(f"{name} {quotas[name].used:,} of {quotas[name].limit:,} vCPUs used" for name in named)
    if fitting < wanted:
        told = f"room for {fitting} of {wanted} VMs ({limits or 'no quota of these sizes is known'})"
        return fail(what, told, f"ask for more at {QUOTA_PAGE}, or lower maximum_pool_size")
    return ok(what, f"room for all {wanted} VMs ({limits})")
