"""runnerpool/arm.py: what ARM's answers mean, and who is asked for a token."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytest
from azure.core.credentials import AccessToken
from azure.core.exceptions import ClientAuthenticationError, HttpResponseError, ServiceRequestError, ServiceResponseError
from azure.core.pipeline import AsyncPipeline
from azure.core.rest import HttpRequest

from runnerpool.arm import ArmProblem, arm_call, azure_credential, classify, client_options, is_loopback
from runnerpool.capacity import is_capacity
from runnerpool.errors import Conflict, Gone, Misconfigured, NoCapacity, PoolError, RetryLater

QUOTA = "Operation could not be completed as it results in exceeding approved {} quota. Additional details - Current Limit: 100"
SUBNET_ID = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/virtualNetworks/v/subnets/n"

ANSWERS: list[tuple[int, str, str, type[PoolError], str]] = [
    # status, code, text, what it means, area
    (409, "SkuNotAvailable", "The requested VM size is currently not available", NoCapacity, ""),
    (409, "AllocationFailed", "Allocation failed.", NoCapacity, ""),
    (409, "ZonalAllocationFailed", "Allocation failed.", NoCapacity, ""),
    (409, "OverconstrainedAllocationRequest", "Allocation failed.", NoCapacity, ""),
    (409, "OverconstrainedZonalAllocationRequest", "Allocation failed.", NoCapacity, ""),
    (500, "AllocationFailed", "Allocation failed.", NoCapacity, ""),
    (409, "OperationNotAllowed", QUOTA.format("standardDADSv5Family Cores"), NoCapacity, ""),
    (409, "OperationNotAllowed", QUOTA.format("Total Regional Cores"), NoCapacity, ""),
    (409, "OperationNotAllowed", QUOTA.format("LowPriorityCores"), NoCapacity, ""),
    (409, "QuotaExceeded", QUOTA.format("Total Regional Cores"), NoCapacity, ""),
    (400, "SpotPriceGreaterThanProvidedMaxPrice", "Unable to perform operation", NoCapacity, ""),
    (400, "AzureSpotIsNotSupportedForThisVMSize", "not supported for this VM size", NoCapacity, ""),
    (409, "AzureSpotFeatureNotEnabledForSubscription", "Subscription not enabled", NoCapacity, ""),
    (412, "PreconditionFailed", "Etag provided", Conflict, ""),
    (404, "ResourceNotFound", "The Resource 'Microsoft.Compute/virtualMachines/x' was not found.", Gone, ""),
    (404, "NotFound", "The entity was not found.", Gone, ""),
    (401, "InvalidAuthenticationToken", "The access token is invalid.", Misconfigured, "auth"),
    (403, "AuthorizationFailed", "does not have authorization", Misconfigured, "auth"),
    (403, "LinkedAuthorizationFailed", f"no permission on {SUBNET_ID}", Misconfigured, "auth"),
    (404, "SubscriptionNotFound", "The subscription could not be found.", Misconfigured, "auth"),
    (409, "ScopeLocked", "The scope cannot perform delete operation because following scope(s) are locked", Misconfigured, "auth"),
    (403, "RequestDisallowedByPolicy", "Resource was disallowed by policy.", Misconfigured, "provisioning"),
    (400, "InvalidParameter", "The value of parameter vmSize is invalid.", Misconfigured, "provisioning"),
    (400, "BadRequest", "bad", Misconfigured, "provisioning"),
    (404, "PlatformImageNotFound", "The platform image is not available.", Misconfigured, "provisioning"),
    (404, "GalleryImageNotFound", "The gallery image is not available in westus region.", Misconfigured, "provisioning"),
    (404, "ImageNotFound", "The image was not found.", Misconfigured, "provisioning"),
    (404, "ResourceGroupNotFound", "Resource group 'g' could not be found.", Misconfigured, "provisioning"),
    (404, "", "", Misconfigured, "provisioning"),
    (409, "NotSupported", "OS disk of Ephemeral VM with size greater than 50 GB is not allowed", Misconfigured, "provisioning"),
    (409, "OperationNotAllowed", "The requested operation is not allowed here.", Misconfigured, "provisioning"),
    (409, "MissingSubscriptionRegistration", "The subscription is not registered", Misconfigured, "provisioning"),
    (400, "SubnetIsFull", "Subnet does not have enough capacity for 1 IP addresses.", Misconfigured, "network"),
    (400, "InvalidResourceReference", f"Resource {SUBNET_ID} was not found.", Misconfigured, "network"),
    (404, "NotFound", f"Resource {SUBNET_ID} not found.", Misconfigured, "network"),
    (409, "Conflict", "concurrent request", RetryLater, ""),
    (409, "SomethingElse", f"{SUBNET_ID} is being updated.", RetryLater, ""),
    (409, "OperationPreempted", "preempted by a more recent operation", RetryLater, ""),
    (409, "OperationNotAllowed", "is not allowed on VM 'x' since the VM is marked for deletion.", RetryLater, ""),
    (400, "NicReservedForAnotherVm", "reserved for another Virtual Machine for 180 seconds.", RetryLater, ""),
    (400, "NicInUse", "is used by existing resource", RetryLater, ""),
    (429, "OperationNotAllowed", "too many requests have been received; quota", RetryLater, ""),
    (429, "SubscriptionRequestsThrottled", "Number of 'write' requests exceeded", RetryLater, ""),
    (409, "TooManyRequests", "too many", RetryLater, ""),
    (500, "InternalServerError", "Encountered internal server error.", RetryLater, ""),
    (503, "ServiceUnavailable", "", RetryLater, ""),
    (408, "RequestTimeout", "", RetryLater, ""),
    (302, "", "", RetryLater, ""),
]


@pytest.mark.parametrize(("status", "code", "text", "kind", "area"), ANSWERS)
def test_every_answer_of_arm_has_its_meaning(status: int, code: str, text: str, kind: type[PoolError], area: str) -> None:
    error = classify(status, [ArmProblem(code, text)] if code else [], what="create VM x", write=True)
    assert type(error) is kind
    assert getattr(error, "area", "") == area
    if isinstance(error, NoCapacity):
        assert (error.code, error.detail) == (code, text)
    else:
        assert str(error).startswith("create VM x: ")


@pytest.mark.parametrize(
    ("status", "write", "uncertain"),
    [(500, True, True), (503, True, True), (408, True, True), (429, True, False), (409, True, False), (500, False, False)],
)
def test_only_a_write_that_azure_may_have_applied_is_uncertain(status: int, write: bool, uncertain: bool) -> None:
    error = classify(status, [], what="x", write=write)
    assert isinstance(error, RetryLater)
    assert error.uncertain is uncertain


def test_the_reason_is_found_among_nested_details() -> None:
    outer = ArmProblem("DeploymentFailed", "At least one resource operation failed.")
    error = classify(409, [outer, ArmProblem("ZonalAllocationFailed", "no room")], what="x", write=True)
    assert isinstance(error, NoCapacity)
    assert error.code == "ZonalAllocationFailed"


def test_a_held_nic_is_to_be_tried_again_after_the_time_that_azure_holds_it() -> None:
    error = classify(400, [ArmProblem("NicReservedForAnotherVm", "")], what="x", write=True)
    assert isinstance(error, RetryLater)
    assert error.after == timedelta(seconds=180)


def test_quota_is_told_from_other_refusals_by_its_text_only() -> None:
    assert is_capacity("OperationNotAllowed", QUOTA.format("Total Regional Cores"))
    assert not is_capacity("OperationNotAllowed", "not allowed on VM")
    assert not is_capacity("InvalidParameter", "quota")


# ---------------------------------------------------------------------------------------------- translation


class Answer:
    """As much of a response as the SDK's exceptions read."""

    reason = "Conflict"

    def __init__(self, status: int, body: str, headers: Mapping[str, str]) -> None:
        self.status_code, self._body, self.headers = status, body, dict(headers)

    def text(self) -> str:
        return self._body


def answered(status: int, body: str = "", **headers: str) -> HttpResponseError:
    return HttpResponseError(response=Answer(status, body, {k.replace("_", "-"): v for k, v in headers.items()}))  # type: ignore[arg-type]


async def translated(error: Exception, *, write: bool = True, secrets: tuple[str, ...] = ()) -> PoolError:
    with pytest.raises(PoolError) as caught:
        async with arm_call("create VM x", write=write, secrets=secrets):
            raise error
    assert caught.value.__suppress_context__, "the SDK's exception holds the request's body"
    return caught.value


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry_After": "17"}, 17),
        ({"retry_after_ms": "1500"}, 1.5),
        ({"x_ms_retry_after_ms": "500", "Retry_After": "9"}, 0.5),
        ({"Retry_After": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0),
        ({"Retry_After": "soon"}, None),
        ({}, None),
    ],
)
async def test_retry_after_is_read_in_every_form(headers: dict[str, str], seconds: float | None) -> None:
    error = await translated(answered(429, **headers))
    assert isinstance(error, RetryLater)
    assert error.after == (None if seconds is None else timedelta(seconds=seconds))


@pytest.mark.parametrize(
    "error",
    [
        ClientAuthenticationError("DefaultAzureCredential failed to retrieve a token"),
        ClientAuthenticationError("invalid_client", response=Answer(400, '{"error": "invalid_client"}', {})),  # type: ignore[arg-type]
    ],
)
async def test_a_token_that_cannot_be_had_is_a_matter_of_credentials(error: Exception) -> None:
    translation = await translated(error)
    assert isinstance(translation, Misconfigured)
    assert translation.area == "auth"


async def test_a_token_service_that_is_down_is_to_be_tried_again() -> None:
    down = ClientAuthenticationError("unavailable", response=Answer(503, "", {"Retry-After": "3"}))  # type: ignore[arg-type]
    error = await translated(down)
    assert isinstance(error, RetryLater)
    assert error.after == timedelta(seconds=3)


@pytest.mark.parametrize(
    ("error", "uncertain"),
    [
        (ServiceResponseError("closed", error=ConnectionResetError("reset")), True),
        (ServiceRequestError("gone", error=OSError("server disconnected")), True),
        (TimeoutError(), True),
        (ConnectionResetError(), True),
        (answered(201, "not json"), True),
    ],
)
async def test_a_write_without_a_readable_answer_is_uncertain(error: Exception, uncertain: bool) -> None:
    translation = await translated(error)
    assert isinstance(translation, RetryLater)
    assert translation.uncertain is uncertain


async def test_what_azure_echoes_of_a_secret_is_struck_out_and_long_texts_are_cut() -> None:
    body = '{"error": {"code": "InvalidParameter", "message": "customData c2VjcmV0 is\\n invalid. ' + "x" * 900 + '"}}'
    text = str(await translated(answered(400, body), secrets=("c2VjcmV0", "")))
    assert "c2VjcmV0" not in text
    assert "customData *** is invalid." in text
    assert len(text) < 600


# ---------------------------------------------------------------------------------------------- the way to ARM


class Credential:
    def __init__(self) -> None:
        self.scopes: list[str] = []

    async def get_token(self, *scopes: str, **options: Any) -> AccessToken:
        self.scopes += scopes
        return AccessToken("t0ken", 4102444800)

    async def close(self) -> None:
        pass

    async def __aenter__(self) -> Credential:
        return self

    async def __aexit__(self, *error: object) -> None:
        pass


class Transport:
    """Keeps the request; its answer is never looked at."""

    def __init__(self) -> None:
        self.requests: list[HttpRequest] = []

    async def send(self, request: HttpRequest, **options: Any) -> Any:
        self.requests.append(request)
        return Answer(200, "{}", {})


async def sent(endpoint: str, credential: Credential | None) -> HttpRequest:
    transport = Transport()
    pipeline: Any = AsyncPipeline(transport, client_options(endpoint, credential)["policies"])  # type: ignore[arg-type]
    await pipeline.run(HttpRequest("GET", f"{endpoint}/subscriptions"))
    return transport.requests[0]


async def test_a_request_to_azure_carries_a_token_for_its_own_endpoint() -> None:
    credential = Credential()
    request = await sent("https://management.chinacloudapi.cn", credential)
    assert request.headers["Authorization"] == "Bearer t0ken"
    assert credential.scopes == ["https://management.chinacloudapi.cn/.default"]


async def test_a_loopback_endpoint_is_never_sent_a_token() -> None:
    credential = Credential()
    request = await sent("http://127.0.0.1:1", credential)
    assert "Authorization" not in request.headers
    assert credential.scopes == []


@pytest.mark.parametrize(
    ("endpoint", "local"),
    [
        ("http://127.0.0.1:8080", True),
        ("http://127.9.9.9", True),
        ("http://localhost:1", True),
        ("http://[::1]:1", True),
        ("https://127.0.0.1", False),
        ("http://10.0.0.1", False),
        ("http://127.0.0.1.example.com", False),
        ("https://management.azure.com", False),
    ],
)
def test_only_plain_http_on_this_machine_needs_no_credential(endpoint: str, local: bool) -> None:
    assert is_loopback(endpoint) is local


@pytest.mark.parametrize("endpoint", ["http://10.0.0.1", "https://management.azure.com"])
def test_an_endpoint_that_needs_a_credential_is_refused_without_one(endpoint: str) -> None:
    with pytest.raises(Misconfigured) as caught:
        client_options(endpoint, None)
    assert caught.value.area == "auth"


async def test_azure_identity_is_asked_for_real_endpoints_only() -> None:
    assert azure_credential("http://127.0.0.1:1") is None
    credential = azure_credential("https://management.azure.com")
    assert credential is not None
    await credential.close()
