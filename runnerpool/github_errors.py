"""What GitHub's refusals and the network's failures mean, said once, in the words of `errors.py`.

The texts of the originals stay out of ours: h11, for one, quotes an illegal header, and with it the token. What GitHub
itself writes in `message` is quoted; it never repeats a credential.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

import httpx
import jwt
import pydantic
from githubkit.exception import GitHubException, RequestError, RequestFailed

from runnerpool.errors import Busy, Conflict, Gone, Misconfigured, PoolError, RetryLater

UNNAMED_WAIT = timedelta(seconds=60)
"""What GitHub asks for after a secondary limit that names no time:
https://docs.github.com/rest/using-the-rest-api/rate-limits-for-the-rest-api#exceeding-the-rate-limit"""

LONGEST_WAIT = timedelta(hours=1)
"""The primary limit's window; a wait beyond it is a clock gone wrong."""

NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)

Headers = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Call:
    """One call, with the words that its errors are made of: what it is for, and what the credential needs for it."""

    method: str
    path: str
    purpose: str
    permission: str

    @property
    def writes(self) -> bool:
        return self.method != "GET"


class Forbidden(Misconfigured):
    """403 for want of a permission, where 401 would be a credential that is no good for anything."""

    def __init__(self, message: str) -> None:
        super().__init__(message, area="auth")


TOKEN_EXCHANGE = Call(
    method="POST",
    path="/app/installations/…/access_tokens",
    purpose="turn the App's key into an installation token",
    permission="GITHUB_APP_ID, GITHUB_APP_PRIVATE_KEY and GITHUB_APP_INSTALLATION_ID of one App and one of its installations",
)


def translate(error: GitHubException, call: Call) -> PoolError:
    """The error of ours that says what the caller does next. Raise it `from None`: the original may hold a secret."""
    if isinstance(error, RequestFailed):
        return refusal(error.response.status_code, error.response.headers, error.response.content, call)
    if isinstance(error, RequestError):
        return _failure(error.exc, call)
    return Misconfigured(f"GitHub credentials are incomplete ({type(error).__name__})", area="auth", everywhere=True)


def _failure(cause: Exception, call: Call) -> PoolError:
    """Something other than an answer to this call: the network, or the token exchange that comes before it."""
    name = type(cause).__name__
    if isinstance(cause, RequestFailed):
        return _without_token(translate(cause, TOKEN_EXCHANGE))
    if isinstance(cause, httpx.LocalProtocolError | httpx.UnsupportedProtocol | httpx.InvalidURL):
        told = f"GITHUB_API_URL or the GitHub credential cannot be sent ({name}): a stray character?"
        return Misconfigured(told, area="auth", everywhere=True)
    if isinstance(cause, httpx.HTTPError):
        uncertain = call.writes and not isinstance(cause, NEVER_SENT)
        return RetryLater(f"GitHub gave no answer ({name}) when asked to {call.purpose}", uncertain=uncertain)
    if isinstance(cause, jwt.PyJWTError | ValueError) and not isinstance(cause, pydantic.ValidationError):
        return Misconfigured("GITHUB_APP_PRIVATE_KEY is not the text of an RSA key in PEM form", area="auth", everywhere=True)
    return RetryLater(f"no call to GitHub could be made ({name}) to {call.purpose}")


def _without_token(error: PoolError) -> PoolError:
    """The call itself was never made: nothing uncertain about it, and a 404 or a 422 is about the App."""
    if isinstance(error, RetryLater):
        return RetryLater(str(error), after=error.after)
    needed = "" if TOKEN_EXCHANGE.permission in str(error) else f"; it needs {TOKEN_EXCHANGE.permission}"
    return Misconfigured(f"{error}{needed}", area="auth", everywhere=True)


def refusal(status: int, headers: Headers, content: bytes, call: Call) -> PoolError:
    """What an answer of 300 and above means."""
    said = message_in(content)
    told = f"GitHub answered {status}{f' ({said})' if said else ''} when asked to {call.purpose}"
    if status in (403, 429):
        if (wait := limited(status, headers, said)) is not None:
            return RetryLater(f"GitHub's rate limit: {told}", after=wait)
        return Forbidden(f"{told}; it needs {call.permission}")
    if status == 401:
        told = f"{told}: the credential is wrong, expired or revoked; it needs {call.permission}"
        return Misconfigured(told, area="auth", everywhere=True)
    if status == 404:
        return Gone(told)
    if status == 409:
        return Conflict(told)
    if status == 422 and call.method == "DELETE":
        return Busy(told)
    if 400 <= status < 500 and status != 408:
        return Misconfigured(told, area="setup")
    return RetryLater(told, after=retry_after(headers), uncertain=call.writes)


def limited(status: int, headers: Headers, said: str) -> timedelta | None:
    """How long GitHub's primary or secondary rate limit keeps us away; None: this 403 is no rate limit."""
    if (wait := retry_after(headers)) is not None:
        return wait
    if headers.get("x-ratelimit-remaining") == "0" and (wait := until_reset(headers)) is not None:
        return wait
    if status == 429 or "rate limit" in said.lower() or "abuse detection" in said.lower():
        return UNNAMED_WAIT
    return None


def retry_after(headers: Headers) -> timedelta | None:
    value = headers.get("retry-after", "")
    return min(timedelta(seconds=int(value)), LONGEST_WAIT) if value.isdecimal() else None


def until_reset(headers: Headers) -> timedelta | None:
    """From the answer's own `Date` to `x-ratelimit-reset`, so that it does not matter how wrong our clock is."""
    reset = headers.get("x-ratelimit-reset", "")
    if not reset.isdecimal():
        return None
    try:
        sent = parsedate_to_datetime(headers.get("date", ""))
    except ValueError:
        sent = datetime.now(UTC)
    wait = datetime.fromtimestamp(int(reset), UTC) - sent + timedelta(seconds=1)
    return max(timedelta(seconds=1), min(wait, LONGEST_WAIT))


def message_in(content: bytes) -> str:
    """GitHub's `message`, shortened; nothing of a body that is not GitHub's JSON (a proxy's page, say)."""
    try:
        body = json.loads(content)
    except ValueError:
        return ""
    message = body.get("message") if isinstance(body, dict) else None
    return message[:200] if isinstance(message, str) else ""


@contextmanager
def understood(call: Call) -> Iterator[None]:
    """Around the reading of a 2xx answer that may lack what we need; its text stays out of the error, it may hold a JIT config."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        told = f"GitHub's answer lacks something ({type(error).__name__}) when asked to {call.purpose}"
        raise RetryLater(told, uncertain=call.writes) from None
