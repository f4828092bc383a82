"""`doctor` on GitHub: the credential and what it may do, the runner group, the runner's version."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from runnerpool.check import is_arm
from runnerpool.config import Config, PoolConfig
from runnerpool.errors import Gone, Misconfigured
from runnerpool.findings import Check, Finding, fail, ok, warn
from runnerpool.github import GitHubApi
from runnerpool.github_client import GitHubClient
from runnerpool.github_setup import GitHubSetup
from runnerpool.planner import github_credential
from runnerpool.settings import Settings

CREDENTIAL_PAGE = "docs/deploy.md#github-credentials"

APP_NEEDS = {
    "org": {"organization_self_hosted_runners": "write", "actions": "read"},
    "repo": {"administration": "write", "actions": "read"},
    "enterprise": {"enterprise_self_hosted_runners": "write", "actions": "read"},
}
"""The permissions of an App's installation, by GitHub's own names; `actions` has to be `write` with `rerun_evicted`."""

RANKS = {"": 0, "read": 1, "write": 2, "admin": 3}


@dataclass(frozen=True, slots=True)
class GitHub:
    """What the checks read through; `client` is to be entered by whoever runs them."""

    settings: Settings
    config: Config
    client: GitHubClient
    setup: GitHubSetup
    api: GitHubApi

    @classmethod
    def open(cls, settings: Settings, config: Config) -> GitHub:
        credential = github_credential(settings)
        client = GitHubClient(api_url=settings.github_api_url, credential=credential)
        api = GitHubApi(api_url=settings.github_api_url, credential=credential)
        return cls(settings, config, client, GitHubSetup(client), api)


def checks(github: GitHub) -> list[Check]:
    return [
        Check("GitHub credential", lambda: credential(github), CREDENTIAL_PAGE),
        Check("GitHub permissions", lambda: permissions(github), CREDENTIAL_PAGE),
        Check("jobs", lambda: jobs(github), CREDENTIAL_PAGE),
        Check("runner group", lambda: runner_group(github), "docs/deploy.md#runner-group"),
        Check("runner version", lambda: runner_version(github), "https://github.com/actions/runner/releases"),
    ]


async def credential(github: GitHub) -> Sequence[Finding]:
    what = "GitHub credential"
    left = await github.setup.calls_left()
    kind = "the App's key" if github.settings.github_app else "the token"
    if left is None:
        return [ok(what, f"{kind} is accepted by {github.settings.github_api_url}")]
    remaining, limit = left
    told = f"{kind} is accepted by {github.settings.github_api_url}, {remaining:,} of {limit:,} calls are left this hour"
    if remaining < limit // 10:
        return [warn(what, told, "something else uses this credential: give runnerpool one of its own")]
    return [ok(what, told)]


async def permissions(github: GitHub) -> Sequence[Finding]:
    """An App's are read; a token's show in a list that it may read and a registration that GitHub refuses for its form only."""
    what, scope = "GitHub permissions", github.config.github.scope
    installation = github.settings.github_app_installation_id
    if github.settings.github_app and installation is not None:
        grant = await github.setup.app_grant(installation)
        needs = APP_NEEDS[scope] | ({"actions": "write"} if reruns(github.config) else {})
        missing = [
            f"{name}: {wanted}" for name, wanted in needs.items() if RANKS.get(grant.permissions.get(name, ""), 0) < RANKS[wanted]
        ]
        if missing:
            told = f"the App's installation lacks {', '.join(missing)}"
            return [fail(what, told, f"add it on the App's page, then accept it at {grant.page}")]
    for target in github.config.github.targets:
        await github.api.list_runners(target)
        await github.setup.may_register(target)
    return [ok(what, f"runners can be listed and registered on {', '.join(github.config.github.targets)}")]


def reruns(config: Config) -> bool:
    return any(pool.rerun_evicted for pool in config.pools)


async def jobs(github: GitHub) -> Sequence[Finding]:
    """Whether jobs can be read: what a late delivery says is asked about there. And run again, where a pool wants that."""
    what, it = "jobs", github.config.github
    named = [name if "/" in name else f"{it.owner}/{name}" for name in it.repositories]
    if not named and it.scope == "org":
        try:
            found = await github.setup.some_repository(it.owner)
        except Gone:
            found = None
        named = [found] if found else []
    if not named:
        told = "no repository is visible to try it on, so whether jobs can be read is not known"
        return [warn(what, told, f"give the credential the repositories that are served: {CREDENTIAL_PAGE}")]
    again = reruns(github.config)
    for repository in named:
        await github.setup.may_read_jobs(repository)
        if again:
            await github.setup.may_rerun_jobs(repository)
    return [ok(what, f"can be read{' and run again' if again else ''} in {', '.join(named)}")]


async def runner_group(github: GitHub) -> Sequence[Finding]:
    what, it = "runner group", github.config.github
    if it.scope == "repo":
        return [ok(what, "a repository has none")]
    target = it.targets[0]
    page = {"org": "organizations", "enterprise": "enterprises"}[it.scope]
    mend = f"https://github.com/{page}/{it.owner}/settings/actions/runner-groups"
    group = await github.setup.group(target, it.runner_group)
    if group is None:
        return [fail(what, f"{it.owner} has no runner group {it.runner_group!r}", f"create it at {mend}, or correct runner_group")]
    if it.allow_public_repositories and not group.public:
        told = f"{group.name} is closed to public repositories, which allow_public_repositories wants served"
        return [fail(what, told, f"allow them at {mend}")]
    limits = [] if group.everybody else ["chosen repositories or organisations"]
    limits += ["chosen workflows"] if group.some_workflows else []
    if limits:
        told = f"{group.name} admits {' and '.join(limits)} only: jobs of others wait for ever"
        return [warn(what, told, f"see that it admits what is served: {mend}")]
    return [ok(what, f"{group.name} admits every repository")]


# ---------------------------------------------------------------------------------------------- the runner's version


async def runner_version(github: GitHub) -> Sequence[Finding]:
    return [await _version_of(github, pool) for pool in github.config.pools]


async def _version_of(github: GitHub, pool: PoolConfig) -> Finding:
    what, pinned = f"runner version of {pool.name}", pool.vm.runner_version
    os = {"linux": "linux", "windows": "win"}[pool.vm.os]
    arch = "arm64" if is_arm(pool.vm.sizes[0]) else "x64"
    try:
        package = await github.api.runner_package(github.config.github.targets[0], os, arch)
    except Misconfigured as error:
        if error.area == "auth":
            raise
        return fail(what, str(error), "pin runner_version: https://github.com/actions/runner/releases")
    if pinned == "auto" or pinned == package.version:
        return ok(what, f"{package.version} for {os} on {arch}, GitHub's latest")
    if _parts(pinned) > _parts(package.version):
        return fail(what, f"{pinned} is pinned, GitHub's latest is {package.version}", "set runner_version: auto")
    told = f"{pinned} is pinned, GitHub's latest is {package.version}: 30 days after a release older runners get no jobs"
    return warn(what, told, f"set runner_version: auto, or {package.version}")


def _parts(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]
