"""The agents on the VMs, over plain HTTP inside the subnet: `ports.Agents`.

On the VM everything is the job's, so nothing here trusts an answer: its size and time are bounded, redirects are not followed,
and whatever cannot be read is silence. A token, and even more a JIT configuration, goes to an address in the runner subnet only.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from ipaddress import IPv4Network, ip_address, ip_network
from typing import Any

import httpx

from runnerpool.errors import Conflict, Misconfigured, PoolError, RetryLater
from runnerpool.ports import AgentPhase, AgentStatus, AgentTrouble, JitConfig
from runnerpool.vm import AGENT_PORT
from runnerpool.vm.token import agent_token

TIMEOUT = 5.0  # seconds for one call, whatever it takes
LARGEST_ANSWER = 64 * 1024
AT_ONCE = 64  # calls under way; a further one waits its turn before its own time begins
PREFIXES_HOLD, FAILURE_HOLDS = 600.0, 15.0  # seconds for which the subnet's ranges are not asked for again
LOG_LINES, LOG_WIDTH = 50, 500


class HttpAgents:
    """`keys`: RUNNER_AGENT_KEY and, during a rotation, the one before it. `subnet_prefixes` is `Network.subnet_prefixes`.

    Use it as an async context manager, or call `aclose`.
    """

    def __init__(
        self, *, keys: Sequence[str], subnet_prefixes: Callable[[], Awaitable[Sequence[str]]], port: int = AGENT_PORT
    ) -> None:
        self._keys = tuple(filter(None, keys))
        self._ask_prefixes = subnet_prefixes
        self._prefixes: list[IPv4Network] = []
        self._no_prefixes: PoolError | None = None
        self._ask_again_at = 0.0
        self._asking = asyncio.Lock()
        self._port = port
        self._turn = asyncio.Semaphore(AT_ONCE)
        # trust_env: a proxy of the app's own must never see these requests.
        self._http = httpx.AsyncClient(
            trust_env=False, follow_redirects=False, timeout=TIMEOUT, limits=httpx.Limits(max_keepalive_connections=0)
        )

    async def __aenter__(self) -> HttpAgents:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._http.aclose()

    async def status(self, name: str, address: str) -> AgentStatus | AgentTrouble:
        """Never raises. An address outside the subnet, or one that cannot be checked now, is REFUSED without a request:
        what keeps us from asking says nothing about the agent."""
        try:
            await self._admit(address)
        except PoolError:
            return AgentTrouble.REFUSED
        try:
            code, body = await self._call("GET", name, address, "/runner/status", None)
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError):
            return AgentTrouble.SILENT
        if code == 401:
            return AgentTrouble.REFUSED
        return (parse_status(body, name) if code == 200 else None) or AgentTrouble.SILENT

    async def start(self, name: str, address: str, config: JitConfig) -> AgentStatus:
        """Beyond what the port says: Misconfigured(area="network") for an address outside the subnet, Misconfigured(area="auth")
        when the agent takes no key of ours, RetryLater(uncertain=False) when it refuses for now."""
        await self._admit(address)
        content = json.dumps({"runner_id": config.runner_id, "jit_config": config.encoded}).encode()
        try:
            code, body = await self._call("POST", name, address, "/runner/start", content)
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            raise RetryLater(f"the agent of {name} gave no answer ({type(error).__name__})", uncertain=True) from None
        if code == 409:
            raise Conflict(f"the agent of {name} holds another binding")
        if code == 401:
            raise Misconfigured(f"the agent of {name} accepts no key of ours", area="auth")
        if code != 200:
            # A redirect or a success of another kind did not come from our agent: who knows what took the configuration.
            raise RetryLater(f"the agent of {name} answered {code}", uncertain=code < 400)
        status = parse_status(body, name)
        if status is None or status.binding != config.runner_id:
            raise RetryLater(f"the agent of {name} gave an answer that says nothing of this binding", uncertain=True)
        return status

    async def _call(self, method: str, name: str, address: str, path: str, content: bytes | None) -> tuple[int, bytes]:
        """Status and body; an older key is tried where the newer one is refused. Raises httpx's errors and TimeoutError."""
        code, body = 401, b""
        async with self._turn, asyncio.timeout(TIMEOUT):
            for key in self._keys:
                headers = {"Authorization": f"Bearer {agent_token(key, name)}", "Accept-Encoding": "identity"}
                url = f"http://{address}:{self._port}{path}"
                async with self._http.stream(method, url, headers=headers, content=content) as response:
                    code, body = response.status_code, await _bounded(response)
                if code != 401:
                    break
        return code, body

    async def _admit(self, address: str) -> None:
        """Raises Misconfigured(area="network") for an address outside the subnet, and what asking for its ranges raises."""
        prefixes = await self._subnet()
        try:
            inside = any(ip_address(address) in prefix for prefix in prefixes)
        except ValueError:
            inside = False
        if not inside:
            raise Misconfigured(f"the address {address[:50]!r} does not lie in the runner subnet", area="network")

    async def _subnet(self) -> list[IPv4Network]:
        """The subnet's ranges; those of the last time where they cannot be read again."""
        async with self._asking:
            if time.monotonic() >= self._ask_again_at:
                try:
                    prefixes = [ip_network(prefix) for prefix in await self._ask_prefixes()]
                except PoolError as error:
                    self._no_prefixes = error
                    self._ask_again_at = time.monotonic() + FAILURE_HOLDS
                else:
                    self._prefixes = [prefix for prefix in prefixes if isinstance(prefix, IPv4Network)]
                    self._no_prefixes = None
                    self._ask_again_at = time.monotonic() + PREFIXES_HOLD
            if self._no_prefixes is not None and not self._prefixes:
                raise self._no_prefixes.with_traceback(None)
            return self._prefixes


async def _bounded(response: httpx.Response) -> bytes:
    """The body as it came. Raises httpx.DecodingError for one that no agent of ours sends."""
    body = b""
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > LARGEST_ANSWER:
            raise httpx.DecodingError("the answer is too long")
    return body


def parse_status(body: bytes, name: str) -> AgentStatus | None:
    """The status, or None for anything but a status of the VM `name`. What decisions rest on must be right; the rest is only shown,
    and cut or left out where it is not."""
    try:
        raw = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(raw, dict) or raw.get("name") != name or raw.get("phase") not in list(AgentPhase):
        return None
    worker, job_seen, binding = raw.get("worker"), raw.get("job_seen"), raw.get("binding")
    if not isinstance(worker, bool) or not isinstance(job_seen, bool) or not (binding is None or type(binding) is int):
        return None
    version, log, exit_code = raw.get("runner_version"), raw.get("log"), raw.get("exit_code")
    lines = [line[:LOG_WIDTH] for line in log if isinstance(line, str)] if isinstance(log, list) else []
    return AgentStatus(
        phase=AgentPhase(raw["phase"]),
        worker=worker,
        job_seen=job_seen,
        binding=binding,
        exit_code=exit_code if type(exit_code) is int else None,
        runner_version=version[:50] if isinstance(version, str) else "",
        eviction_at=_time(raw.get("eviction_at")),
        log=tuple(lines[-LOG_LINES:]),
    )


def _time(text: Any) -> datetime | None:
    """An aware time, None for anything else."""
    try:
        moment = datetime.fromisoformat(text)
    except (ValueError, TypeError):
        return None
    return moment if moment.tzinfo else None
