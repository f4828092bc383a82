"""GitHub behind its port: runners, jobs and webhook deliveries. `github_client.py` makes the calls, `github_errors.py` says
what their failures mean, `github_hooks.py` knows the deliveries."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx

from runnerpool.errors import Busy, Gone, Misconfigured, RetryLater
from runnerpool.github_client import TIMEOUT, App, GitHubClient, Token
from runnerpool.github_errors import Call, understood
from runnerpool.github_hooks import Hooks
from runnerpool.ports import Delivery, JitConfig, JobReport, Registration, Removal, RunnerPackage

__all__ = ["App", "GitHubApi", "Token"]

ROOTS = {"org": "/orgs", "repo": "/repos", "enterprise": "/enterprises"}

PERMISSIONS = {
    "org": "the organisation permission 'Self-hosted runners: write' (classic token: admin:org)",
    "repo": "the repository permission 'Administration: write' (classic token: repo)",
    "enterprise": "a classic token with manage_runners:enterprise",
}
WRITE_JOBS = "the repository permission 'Actions: write' (classic token: repo)"
READ_JOBS = "the repository permission 'Actions: read' (classic token: repo)"

REPOSITORY_GROUP = 1
"""Repositories have no runner groups; the JIT call asks for one all the same, and 1 is what GitHub's examples send."""

PAGE_SIZES = (100, 90, 80, 70)
"""One reading of the runner list each. 100 is GitHub's maximum; the others put the pages' borders elsewhere."""


class GitHubApi:
    """The port `ports.GitHub` on one credential. Long-lived, with `async with` around each pass (see `GitHubClient`).

    `hook_targets` are the scopes that may carry our webhook, `webhook` is how its URL ends.
    """

    def __init__(
        self,
        *,
        api_url: str,
        credential: Token | App,
        hook_targets: Sequence[str] = (),
        webhook: str = "/github/webhook",
        timeout: httpx.Timeout = TIMEOUT,
    ) -> None:
        self._client = GitHubClient(api_url=api_url, credential=credential, timeout=timeout)
        self._hooks = Hooks(client=self._client, targets=hook_targets, webhook=webhook)
        self._groups: dict[tuple[str, str], int] = {}
        self._finding_group = asyncio.Lock()

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._client.__aexit__(kind, error, trace)

    async def mint_jit_config(self, target: str, name: str, labels: Sequence[str], group: str) -> JitConfig:
        call = _call("POST", target, "/runners/generate-jitconfig", f"register a runner in group {group!r} of {target}")
        body = {"name": name, "labels": list(labels), "runner_group_id": await self._group_id(target, group)}
        try:
            with _scope_must_exist(target):
                answer = await self._client.send(call, expect=201, body={**body, "work_folder": "_work"})
        except Misconfigured:
            self._groups.pop((target, group), None)  # it may have been deleted and made again under another id
            raise
        with understood(call):
            return JitConfig(runner_id=int(answer.data["runner"]["id"]), encoded=str(answer.data["encoded_jit_config"]))

    async def remove_runner(self, target: str, runner_id: int) -> Removal:
        try:
            await self._client.send(_call("DELETE", target, f"/runners/{runner_id}", f"remove a runner of {target}"), expect=204)
        except Gone:
            return Removal.ABSENT
        except Busy:
            return Removal.BUSY
        return Removal.REMOVED

    async def list_runners(self, target: str) -> list[Registration]:
        """Pages of a list that changes meanwhile can skip a runner that was there all the time; GitHub keeps no order
        between pages (https://github.com/github-aws-runners/terraform-aws-github-runner/issues/4584 lost VMs to that).
        A list of one page is exact. A longer one is read at least twice, with page borders at other places, until a reading
        has as many runners as GitHub counts; the union is returned, in which a runner that was just removed may linger.
        """
        seen: dict[int, Registration] = {}
        for reading, size in enumerate(PAGE_SIZES):
            runners, counted, pages = await self._read_runners(target, size)
            seen |= runners
            if pages == 1 or (reading > 0 and len(runners) >= counted):
                return list(seen.values())
        raise RetryLater(f"the runner list of {target} kept shifting while it was read")

    async def find_runner(self, target: str, name: str) -> Registration | None:
        call = _call("GET", target, "/runners", f"find a runner of {target} by name")
        with _scope_must_exist(target):
            answer = await self._client.send(call, expect=200, params={"name": name, "per_page": 100})
        with understood(call):
            found = [_registration(item) for item in answer.data["runners"]]
        return next((runner for runner in found if runner.name == name), None)

    async def get_job(self, repository: str, job_id: str) -> JobReport | None:
        path = f"/repos/{quote(repository)}/actions/jobs/{quote(job_id, safe='')}"
        call = Call("GET", path, f"read a job of {repository}", READ_JOBS)
        try:
            answer = await self._client.send(call, expect=200)
        except Gone:
            return None
        with understood(call):
            return _report(answer.data)

    async def reads_jobs(self, repository: str) -> bool:
        """By its list of runs, for which the same permission is needed."""
        call = Call("GET", f"/repos/{quote(repository)}/actions/runs", f"read jobs of {repository}", READ_JOBS)
        try:
            await self._client.send(call, expect=200, params={"per_page": 1})
        except Gone:
            return False
        return True

    async def rerun_job(self, repository: str, job_id: str) -> None:
        path = f"/repos/{quote(repository)}/actions/jobs/{quote(job_id, safe='')}/rerun"
        call = Call("POST", path, f"run a job of {repository} again", WRITE_JOBS)
        try:
            await self._client.send(call, expect=201)
        except Misconfigured as error:
            if "already running" not in str(error):
                raise
            raise RetryLater(f"{error}: other jobs of its run go on") from None

    async def runner_package(self, target: str, os: str, arch: str) -> RunnerPackage:
        """Raises Misconfigured(area="setup") where GitHub offers no such package, or one without its checksum."""
        call = _call("GET", target, "/runners/downloads", f"list the runner releases for {target}")
        with _scope_must_exist(target):
            answer = await self._client.send(call, expect=200)
        with understood(call):
            offered = [item for item in answer.data if (item["os"], item["architecture"]) == (os, arch)]
            if not offered or not offered[0].get("sha256_checksum"):
                raise Misconfigured(f"GitHub offers no runner with a checksum for {os} on {arch}: pin runner_version", area="setup")
            return _package(offered[0])

    async def failed_deliveries(self, since: datetime) -> list[Delivery]:
        return await self._hooks.failed(since)

    async def redeliver(self, delivery: Delivery) -> None:
        """Takes what `failed_deliveries` returned. Raises Gone when GitHub keeps the delivery no longer."""
        await self._hooks.redeliver(delivery)

    def calls_left(self) -> int | None:
        return self._client.calls_left()

    async def _group_id(self, target: str, group: str) -> int:
        if target.startswith("repo:"):
            return REPOSITORY_GROUP
        async with self._finding_group:  # a burst of registrations looks it up once
            if (target, group) not in self._groups:
                self._groups[target, group] = await self._find_group(target, group)
            return self._groups[target, group]

    async def _find_group(self, target: str, group: str) -> int:
        call = _call("GET", target, "/runner-groups", f"find the runner group {group!r} of {target}")
        page = 1
        while True:
            with _scope_must_exist(target):
                answer = await self._client.send(call, expect=200, params={"per_page": 100, "page": page})
            with understood(call):
                groups = [(str(item["name"]).casefold(), int(item["id"])) for item in answer.data["runner_groups"]]
            found = [group_id for name, group_id in groups if name == group.casefold()]
            if found:
                return found[0]
            if len(groups) < 100:
                told = f"{target} has no runner group named {group!r}: create it, or correct runner_group"
                raise Misconfigured(told, area="setup")
            page += 1

    async def _read_runners(self, target: str, size: int) -> tuple[dict[int, Registration], int, int]:
        """One reading: the runners by id, the smallest count that GitHub gave while it was read, the number of pages."""
        call = _call("GET", target, "/runners", f"list the runners of {target}")
        runners: dict[int, Registration] = {}
        counts: list[int] = []
        while True:
            with _scope_must_exist(target):
                answer = await self._client.send(call, expect=200, params={"per_page": size, "page": len(counts) + 1})
            with understood(call):
                counts.append(int(answer.data["total_count"]))
                page = [_registration(item) for item in answer.data["runners"]]
            runners |= {runner.runner_id: runner for runner in page}
            if not page or len(counts) * size >= counts[-1]:
                return runners, min(counts), len(counts)


def _call(method: str, target: str, path: str, purpose: str) -> Call:
    kind, _, name = target.partition(":")
    return Call(method, f"{ROOTS[kind]}/{quote(name)}/actions{path}", purpose, PERMISSIONS[kind])


@contextmanager
def _scope_must_exist(target: str) -> Iterator[None]:
    """A whole scope that is not found is one that the credential may not see: GitHub answers 404 to hide it."""
    try:
        yield
    except Gone as gone:
        kind, _, name = target.partition(":")
        raise Misconfigured(f"{gone}: no {kind} {name!r}, or the credential lacks {PERMISSIONS[kind]}", area="auth") from None


def _registration(item: Mapping[str, Any]) -> Registration:
    return Registration(
        runner_id=int(item["id"]), name=str(item["name"]), online=item.get("status") == "online", busy=bool(item.get("busy"))
    )


def _report(item: Mapping[str, Any]) -> JobReport:
    """A job that still waits has a `started_at` too, equal to its creation: it is left out."""
    begun = item["status"] in ("in_progress", "completed")
    return JobReport(
        job_id=str(item["id"]),
        status=str(item["status"]),
        conclusion=item.get("conclusion"),
        runner_name=item.get("runner_name") or None,
        runner_id=item.get("runner_id") or None,
        started_at=_time(item.get("started_at")) if begun else None,
        completed_at=_time(item.get("completed_at")),
    )


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def _package(item: Mapping[str, Any]) -> RunnerPackage:
    """The version stands in the file's name only: `actions-runner-linux-x64-2.330.0.tar.gz`."""
    version = re.search(r"-(\d+\.\d+\.\d+)\.(?:tar\.gz|zip)$", item["filename"])
    if version is None:
        raise ValueError("no version in the file name")
    return RunnerPackage(version=version[1], url=str(item["download_url"]), sha256=str(item["sha256_checksum"]))
