"""What both Azure adapters share: the way to ARM, its deadline, and the one translation of its errors.

The pipeline is spelled out instead of taken from the SDK's defaults: nothing on it retries (`retry.py` does), follows
redirects, registers resource providers (the default does, polling without an end) or logs a body.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from json import JSONDecodeError
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import aiohttp
from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    DeserializationError,
    HttpResponseError,
    ODataV4Format,
    ServiceRequestTimeoutError,
)
from azure.core.pipeline.policies import RequestIdPolicy, SansIOHTTPPolicy, UserAgentPolicy
from azure.mgmt.core.policies import AsyncARMChallengeAuthenticationPolicy

from runnerpool.capacity import is_capacity
from runnerpool.errors import Conflict, Gone, Misconfigured, NoCapacity, PoolError, RetryLater

if TYPE_CHECKING:
    from azure.core.credentials_async import AsyncTokenCredential

CONNECT_SECONDS = 5.0
READ_SECONDS = 30.0
"""Azure usually answers a VM PUT within 10 s."""
CALL_SECONDS = 60.0
"""One call of a port with its token and all its pages; ARM itself gives up a request after a minute."""
TEXT_LIMIT = 500
"""Of an error's text: Azure's quota errors end in a link that is longer than the rest."""


# ---------------------------------------------------------------------------------------------- the way to ARM


class NoAuthentication(SansIOHTTPPolicy[Any, Any]):
    """Adds nothing to a request: the sandbox on loopback asks for no token."""


class _NoCredential:
    """Stands where the SDK's constructors demand a credential; `NoAuthentication` sees to it that nobody asks it."""

    async def get_token(self, *scopes: str, **options: Any) -> Any:
        raise Misconfigured("no Azure credential is used with a loopback ARM_ENDPOINT", area="auth")

    async def close(self) -> None:
        """Holds nothing."""

    async def __aenter__(self) -> _NoCredential:
        return self

    async def __aexit__(self, *error: object) -> None:
        """Holds nothing."""


def is_loopback(endpoint: str) -> bool:
    """Whether the endpoint is plain http on this machine, the one case that needs no credential."""
    url = urlsplit(endpoint)
    host = url.hostname or ""
    try:
        local = ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    return url.scheme == "http" and local


def azure_credential(endpoint: str) -> AsyncTokenCredential | None:
    """What azure-identity finds (service principal from AZURE_*, else managed identity); None for a loopback endpoint.

    One credential serves all clients; whoever asks for it closes it.
    """
    if is_loopback(endpoint):
        return None
    from azure.identity.aio import DefaultAzureCredential

    return DefaultAzureCredential()


def client_options(endpoint: str, credential: AsyncTokenCredential | None) -> dict[str, Any]:
    """Keyword arguments for the constructor of an azure-mgmt client. Raises Misconfigured(area="auth")."""
    authentication: Any = NoAuthentication()
    if not is_loopback(endpoint):
        if not endpoint.startswith("https://"):
            raise Misconfigured(f"ARM_ENDPOINT is {endpoint!r}; plain http is for a loopback address only", area="auth")
        if credential is None:
            raise Misconfigured(f"no Azure credential for {endpoint}", area="auth")
        authentication = AsyncARMChallengeAuthenticationPolicy(credential, endpoint.rstrip("/") + "/.default")
    return {
        "credential": credential or _NoCredential(),
        "base_url": endpoint.rstrip("/"),
        "authentication_policy": authentication,
        "policies": [RequestIdPolicy(), UserAgentPolicy(user_agent="runnerpool"), authentication],
        "connection_timeout": CONNECT_SECONDS,
        "read_timeout": READ_SECONDS,
    }


def word(value: object) -> str:
    """What Azure wrote where the SDK has an enum, whose own `str` is another text; "" for nothing."""
    return str(getattr(value, "value", value) or "")


# ---------------------------------------------------------------------------------------------- errors


RETRY_CODES: Mapping[str, timedelta | None] = {
    "NicReservedForAnotherVm": timedelta(seconds=180),  # a failed VM's NIC; Azure's own number
    "NicInUse": None,
    "AnotherOperationInProgress": None,
    "ReferencedResourceNotProvisioned": None,
    "RetryableError": None,
    "OperationPreempted": None,
    "TooManyRequests": None,
}
"""Codes that pass by waiting, whatever their status; the value is how long, where Azure says so in its text only."""

AREAS: Mapping[str, str] = {
    "SubnetIsFull": "network",
    "InvalidResourceReference": "network",
    "NetcfgInvalidSubnet": "network",
    "ScopeLocked": "auth",
    "SubscriptionNotFound": "auth",
    "InvalidSubscriptionId": "auth",
    "ReadOnlyDisabledSubscription": "auth",
    "ResourceGroupNotFound": "provisioning",
    "RequestDisallowedByPolicy": "provisioning",
    "MissingSubscriptionRegistration": "provisioning",
    "NotSupported": "provisioning",
}
"""Codes whose status alone would name the wrong area, or would look as if waiting helped."""

_NETWORK_THING = re.compile(r"/(virtualNetworks|subnets|networkSecurityGroups)\b")


@dataclass(frozen=True, slots=True)
class ArmProblem:
    """One `code` with its `message` out of ARM's error body."""

    code: str
    message: str


@asynccontextmanager
async def arm_call(what: str, *, write: bool, secrets: Sequence[str] = ()) -> AsyncIterator[None]:
    """Runs SDK calls under `CALL_SECONDS` and raises what goes wrong as one of errors.py.

    `what` begins the message. `secrets` never appear in it, even where Azure echoes them.
    """
    # "from None": the SDK's exception holds the request with its body, which no traceback shall print.
    try:
        async with asyncio.timeout(CALL_SECONDS):
            yield
    except HttpResponseError as error:
        raise _from_response(error, what, write=write, secrets=secrets) from None
    except (AzureError, aiohttp.ClientError, OSError, TimeoutError, JSONDecodeError, DeserializationError) as error:
        raise _from_transport(error, what, write=write, secrets=secrets) from None


def _from_response(error: HttpResponseError, what: str, *, write: bool, secrets: Sequence[str]) -> PoolError:
    status = error.status_code or 0
    problems = [ArmProblem(p.code, _clean(p.message, secrets)) for p in _problems(error.error)]
    if isinstance(error, ClientAuthenticationError) and status < 500 and status != 429:
        # ARM's 401, or azure-identity that got no token: its answer, if any, is Entra's and not ARM's.
        return Misconfigured(f"{what}: {_clean(error.message, secrets)}", area="auth")
    headers: Mapping[str, str] = getattr(error.response, "headers", {})
    return classify(status, problems, what=what, write=write, after=_retry_after(headers))


def _from_transport(error: Exception, what: str, *, write: bool, secrets: Sequence[str]) -> RetryLater:
    """No answer, or none that can be read. Only a connection that never came about is certain to have changed nothing."""
    cause = getattr(error, "inner_exception", None) or error
    unsent = isinstance(error, ServiceRequestTimeoutError) or isinstance(cause, aiohttp.ClientConnectorError)
    text = _clean(str(cause), secrets)
    return RetryLater(f"{what}: {type(cause).__name__}" + (f": {text}" if text else ""), uncertain=write and not unsent)


def classify(status: int, problems: Sequence[ArmProblem], *, what: str, write: bool, after: timedelta | None = None) -> PoolError:
    """What ARM's answer means to the caller. `problems` are the error and its nested details, outermost first; pure."""
    first = problems[0] if problems else ArmProblem(f"HTTP {status}", "")
    text = f"{what}: {first.code}" + (f": {first.message}" if first.message else "")
    retry = next((p.code for p in problems if p.code in RETRY_CODES), None)
    if status == 429 or retry is not None:
        return RetryLater(text, after=after if after is not None else RETRY_CODES.get(retry or ""))
    for problem in problems:
        if is_capacity(problem.code, problem.message):
            return NoCapacity(problem.code, problem.message)
    if status < 400 or status == 408 or status >= 500:
        return RetryLater(text, after=after, uncertain=write)
    if status == 412:
        return Conflict(text)
    area = _area(status, problems)
    if area is not None:
        return Misconfigured(text, area=area)
    return Gone(text) if status == 404 else RetryLater(text, after=after)


def _area(status: int, problems: Sequence[ArmProblem]) -> str | None:
    """Which part a person must mend; None where the thing is simply absent (404) or busy (409)."""
    named = next((AREAS[p.code] for p in problems if p.code in AREAS), None)
    if named is not None:
        return named
    if status in (401, 403):
        return "auth"
    if status in (400, 404) and any(_NETWORK_THING.search(p.message) for p in problems):
        return "network"
    absent = status == 404 and any(p.code in ("ResourceNotFound", "NotFound") for p in problems)
    refused = any(p.code == "OperationNotAllowed" and "marked for deletion" not in p.message for p in problems)
    return None if absent or (status == 409 and not refused) else "provisioning"


def _problems(error: ODataV4Format | None) -> list[ArmProblem]:
    """The error and its details, flattened, outermost first."""
    if error is None:
        return []
    own = ArmProblem(error.code or "", error.message or "")
    return [own, *(problem for detail in error.details for problem in _problems(detail))]


def _retry_after(headers: Mapping[str, str]) -> timedelta | None:
    """`Retry-After` as seconds or as an HTTP date; Azure's own spelling in milliseconds counts first."""
    for name in ("x-ms-retry-after-ms", "retry-after-ms"):
        if headers.get(name, "").isdigit():
            return timedelta(milliseconds=int(headers[name]))
    value = headers.get("Retry-After", "").strip()
    if value.isdigit():
        return timedelta(seconds=int(value))
    try:
        return max(parsedate_to_datetime(value) - datetime.now(UTC), timedelta())
    except (ValueError, TypeError):
        return None


def _clean(text: object, secrets: Sequence[str]) -> str:
    """One line of at most `TEXT_LIMIT` characters without any of the secrets."""
    safe = str(text or "")
    for secret in filter(None, secrets):
        safe = safe.replace(secret, "***")
    line = " ".join(safe.split())
    return line if len(line) <= TEXT_LIMIT else line[: TEXT_LIMIT - 1] + "…"
