"""ARM's refusals: the envelope, and the texts that Azure itself uses, because people and programs match on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from aiohttp import web

TEXTS = {
    "AllocationFailed": "Allocation failed. We do not have sufficient capacity for the requested VM size in this region. "
    "Read more about improving likelihood of allocation success at https://aka.ms/allocation-guidance",
    "ZonalAllocationFailed": "Allocation failed. We do not have sufficient capacity for the requested VM size in this zone. "
    "Read more about improving likelihood of allocation success at https://aka.ms/allocation-guidance",
    "OverconstrainedAllocationRequest": "Allocation failed. VM(s) with the following constraints cannot be allocated, because "
    "the condition is too restrictive. Please remove some constraints and try again. Constraints applied are:\n  - VM Size\n",
    "OverconstrainedZonalAllocationRequest": "Allocation failed. VM(s) with the following constraints cannot be allocated, "
    "because the condition is too restrictive. Please remove some constraints and try again. Constraints applied are:\n"
    "  - Availability Zone\n  - VM Size\n",
    "SkuNotAvailable": "The requested VM size for resource 'Following SKUs have failed for Capacity Restrictions: {size}' is "
    "currently not available in location '{location}'. Please try another size or deploy to a different location or different "
    "zone. See https://aka.ms/azureskunotavailable for details.",
    "SubnetIsFull": "Subnet {subnet} with address prefix {prefix} does not have enough capacity for 1 IP addresses.",
    "Conflict": "The request failed due to conflict with a concurrent request. To resolve it, please refer to "
    "https://aka.ms/activitylog to get more details on the conflicting requests.",
    "OperationPreempted": "Operation execution has been preempted by a more recent operation.",
    "AuthorizationFailed": "The client does not have authorization to perform action '{action}' over scope '{scope}' or the scope "
    "is invalid. If access was recently granted, please refresh your credentials.",
    "InvalidAuthenticationToken": "The access token is invalid.",
    "InternalServerError": "Encountered internal server error. Diagnostic information: timestamp '', subscription id '', tracking "
    "id '', request correlation id ''.",
    "InternalExecutionError": "An internal execution error occurred. Please retry later.",
    "ServiceUnavailable": "The service is unavailable.",
    "OSProvisioningTimedOut": "OS Provisioning for VM '{name}' did not finish in the allotted time. The VM may still finish "
    "provisioning successfully. Please check provisioning state later.",
    "NicReservedForAnotherVm": "Nic(s) in request is reserved for another Virtual Machine for 180 seconds. Please provide another "
    "nic(s) or retry after 180 seconds. Reserved VM: {scope}/providers/Microsoft.Compute/virtualMachines/{name}",
    "PlatformImageNotFound": "The platform image '{image}' is not available. Verify that all fields in the storage profile are "
    "correct. For more details about storage profile information, please refer to https://aka.ms/storageprofile",
}

QUOTA = (
    "Operation could not be completed as it results in exceeding approved {quota} quota. Additional details - Deployment Model: "
    "Resource Manager, Location: {location}, Current Limit: {limit}, Current Usage: {usage}, Additional Required: {required}, "
    "(Minimum) New Limit Required: {wanted}. Submit a request for Quota increase at https://aka.ms/ProdportalCRP/#blade/"
    "Microsoft_Azure_Capacity/UsageAndQuota.ReactView/Parameters/%7B%22subscriptionId%22:%22{subscription}%22%7D by specifying "
    "parameters listed in the ‘Details’ section for deployment to succeed. Please read more about quota limits at "
    "https://docs.microsoft.com/en-us/azure/azure-supportability/per-vm-quota-requests"
)


class ArmError(Exception):
    """Becomes the answer of the request during which it is raised."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        target: str | None = None,
        details: Sequence[Mapping[str, str]] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(f"{status} {code}: {message}")
        self.status = status
        self.code = code
        self.message = message
        self.target = target
        self.details = details
        self.headers = dict(headers or {})

    def response(self) -> web.Response:
        error: dict[str, object] = {"code": self.code, "message": self.message}
        if self.target:
            error["target"] = self.target
        if self.details:
            error["details"] = [dict(detail) for detail in self.details]
        return web.json_response({"error": error}, status=self.status, headers=self.headers)


class _Blanks(dict[str, str]):
    def __missing__(self, key: str) -> str:
        return ""


def text_of(code: str, facts: Mapping[str, str]) -> str:
    """Azure's text for a code, with what is known of the request in it; the code itself where no text is kept."""
    return TEXTS.get(code, code).format_map(_Blanks(facts))


def not_found(kind: str, name: str, group: str) -> ArmError:
    """`kind` as in Microsoft.Compute/virtualMachines."""
    return ArmError(
        404,
        "ResourceNotFound",
        f"The Resource '{kind}/{name}' under resource group '{group}' was not found. "
        "For more details please go to https://aka.ms/ARMResourceNotFoundFix",
    )


def invalid(target: str, message: str | None = None) -> ArmError:
    return ArmError(400, "InvalidParameter", message or f"The value of parameter {target} is invalid.", target=target)


def missing(target: str) -> ArmError:
    return invalid(target, f"Required parameter '{target}' is missing (null).")


def throttled(kind: str, subscription: str, seconds: int) -> ArmError:
    """`kind` is read, write or delete."""
    return ArmError(
        429,
        "SubscriptionRequestsThrottled",
        f"Number of '{kind}' requests for subscription '{subscription}' exceeded. Please try again after '{seconds}' seconds after "
        "additional tokens are available. Refer to https://aka.ms/arm-throttling for additional information.",
        headers={"Retry-After": str(seconds)},
    )
