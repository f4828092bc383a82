"""GitHub's JSON, as its API and its webhooks write it: every key that the published schemas require, and the usual others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from zlib import crc32

from sandbox.clock import now
from sandbox.github_world import Job, Repository, Runner

Json = dict[str, Any]

RUNNER_VERSION = "2.330.0"

USER_URLS = {
    "followers_url": "/followers",
    "following_url": "/following{/other_user}",
    "gists_url": "/gists{/gist_id}",
    "starred_url": "/starred{/owner}{/repo}",
    "subscriptions_url": "/subscriptions",
    "organizations_url": "/orgs",
    "repos_url": "/repos",
    "events_url": "/events{/privacy}",
    "received_events_url": "/received_events",
}

ORGANIZATION_URLS = {
    "repos_url": "/repos",
    "events_url": "/events",
    "hooks_url": "/hooks",
    "issues_url": "/issues",
    "members_url": "/members{/member}",
    "public_members_url": "/public_members{/member}",
}

REPOSITORY_URLS = {
    "archive_url": "/{archive_format}{/ref}",
    "assignees_url": "/assignees{/user}",
    "blobs_url": "/git/blobs{/sha}",
    "branches_url": "/branches{/branch}",
    "collaborators_url": "/collaborators{/collaborator}",
    "comments_url": "/comments{/number}",
    "commits_url": "/commits{/sha}",
    "compare_url": "/compare/{base}...{head}",
    "contents_url": "/contents/{+path}",
    "contributors_url": "/contributors",
    "deployments_url": "/deployments",
    "downloads_url": "/downloads",
    "events_url": "/events",
    "forks_url": "/forks",
    "git_commits_url": "/git/commits{/sha}",
    "git_refs_url": "/git/refs{/sha}",
    "git_tags_url": "/git/tags{/sha}",
    "hooks_url": "/hooks",
    "issue_comment_url": "/issues/comments{/number}",
    "issue_events_url": "/issues/events{/number}",
    "issues_url": "/issues{/number}",
    "keys_url": "/keys{/key_id}",
    "labels_url": "/labels{/name}",
    "languages_url": "/languages",
    "merges_url": "/merges",
    "milestones_url": "/milestones{/number}",
    "notifications_url": "/notifications{?since,all,participating}",
    "pulls_url": "/pulls{/number}",
    "releases_url": "/releases{/id}",
    "stargazers_url": "/stargazers",
    "statuses_url": "/statuses/{sha}",
    "subscribers_url": "/subscribers",
    "subscription_url": "/subscription",
    "tags_url": "/tags",
    "teams_url": "/teams",
    "trees_url": "/git/trees{/sha}",
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where this GitHub is and whom it serves. `api` is its base URL, `web` stands for github.com."""

    api: str
    owner: str
    owner_kind: str  # Organization | User
    web: str = "https://github.example"


def stamp(at: datetime | None) -> str | None:
    """`2026-01-02T03:04:05Z`."""
    return at.strftime("%Y-%m-%dT%H:%M:%SZ") if at else None


def identifier(text: str) -> int:
    """A number that stays the same for the same name."""
    return crc32(text.encode())


def user(place: Place, login: str, kind: str = "User") -> Json:
    url = f"{place.api}/users/{login}"
    return {
        "login": login,
        "id": identifier(login),
        "node_id": f"U_{identifier(login)}",
        "avatar_url": f"{place.web}/u/{identifier(login)}",
        "gravatar_id": "",
        "url": url,
        "html_url": f"{place.web}/{login}",
        **{key: url + path for key, path in USER_URLS.items()},
        "type": kind,
        "site_admin": False,
    }


def organization(place: Place) -> Json:
    url = f"{place.api}/orgs/{place.owner}"
    return {
        "login": place.owner,
        "id": identifier(place.owner),
        "node_id": f"O_{identifier(place.owner)}",
        "url": url,
        **{key: url + path for key, path in ORGANIZATION_URLS.items()},
        "avatar_url": f"{place.web}/u/{identifier(place.owner)}",
        "description": None,
    }


def minimal_repository(place: Place, repository: Repository) -> Json:
    url = f"{place.api}/repos/{repository.name}"
    return {
        "id": identifier(repository.name),
        "node_id": f"R_{identifier(repository.name)}",
        "name": repository.name.partition("/")[2],
        "full_name": repository.name,
        "private": repository.private,
        "owner": user(place, place.owner, place.owner_kind),
        "html_url": f"{place.web}/{repository.name}",
        "description": None,
        "fork": False,
        "url": url,
        **{key: url + path for key, path in REPOSITORY_URLS.items()},
    }


def full_repository(place: Place, repository: Repository) -> Json:
    """The repository of a webhook payload."""
    web, flags = f"{place.web}/{repository.name}", ("issues", "projects", "downloads", "wiki", "pages", "discussions")
    return {
        **minimal_repository(place, repository),
        "created_at": "2024-02-03T04:05:06Z",
        "updated_at": "2026-01-02T03:04:05Z",
        "pushed_at": "2026-01-02T03:04:05Z",
        "git_url": web.replace("https:", "git:") + ".git",
        "ssh_url": f"git@github.example:{repository.name}.git",
        "clone_url": f"{web}.git",
        "svn_url": web,
        "homepage": None,
        "size": 1024,
        **dict.fromkeys(("stargazers_count", "watchers_count", "forks_count", "open_issues_count"), 0),
        **dict.fromkeys(("forks", "open_issues", "watchers"), 0),
        "language": "Python",
        **{f"has_{flag}": True for flag in flags},
        "mirror_url": None,
        "archived": False,
        "disabled": False,
        "license": None,
        "allow_forking": True,
        "is_template": False,
        "web_commit_signoff_required": False,
        "topics": [],
        "visibility": "private" if repository.private else "public",
        "default_branch": "main",
        "custom_properties": {},
    }


def job(place: Place, it: Job) -> Json:
    """The same for the API and for webhooks. A job that waits has `started_at` too: its creation."""
    repository = f"{place.api}/repos/{it.repository.name}"
    page = f"{place.web}/{it.repository.name}/actions/runs/{it.run_id}/job/{it.id}"
    return {
        "id": it.id,
        "run_id": it.run_id,
        "workflow_name": "CI",
        "head_branch": "main",
        "run_url": f"{repository}/actions/runs/{it.run_id}",
        "run_attempt": it.attempt,
        "node_id": f"CR_{it.id}",
        "head_sha": f"{it.run_id:040x}",
        "url": f"{repository}/actions/jobs/{it.id}",
        "html_url": page,
        "status": it.status,
        "conclusion": it.conclusion,
        "created_at": stamp(it.created_at),
        "started_at": stamp(it.started_at or it.created_at),
        "completed_at": stamp(it.completed_at),
        "name": it.name,
        "steps": [] if it.started_at is None else [_step(it)],
        "check_run_url": f"{repository}/check-runs/{it.id}",
        "labels": list(it.labels),
        "runner_id": it.runner_id,
        "runner_name": it.runner_name,
        "runner_group_id": it.group.id if it.group else it.runner_id,
        "runner_group_name": it.group.name if it.group else it.runner_name,
    }


def _step(it: Job) -> Json:
    over = it.status == "completed"
    return {
        "name": "Set up job",
        "status": "completed" if over else "in_progress",
        "conclusion": it.conclusion if over else None,
        "number": 1,
        "started_at": stamp(it.started_at),
        "completed_at": stamp(it.completed_at),
    }


def workflow_run(place: Place, jobs: Sequence[Job]) -> Json:
    first, repository = jobs[0], minimal_repository(place, jobs[0].repository)
    url, sha = f"{repository['url']}/actions/runs/{first.run_id}", f"{first.run_id:040x}"
    over = all(it.status == "completed" for it in jobs)
    worst = next((it.conclusion for it in jobs if it.conclusion != "success"), "success")
    latest = max([it.completed_at or it.started_at or it.created_at for it in jobs])
    person = {"name": "Mona Octocat", "email": "mona@github.example"}
    return {
        "id": first.run_id,
        "name": "CI",
        "node_id": f"WFR_{first.run_id}",
        "head_branch": "main",
        "head_sha": sha,
        "path": ".github/workflows/ci.yml",
        "display_title": "CI",
        "run_number": 1,
        "run_attempt": max(it.attempt for it in jobs),
        "event": "push",
        "status": "completed" if over else "in_progress" if any(it.started_at for it in jobs) else "queued",
        "conclusion": worst if over else None,
        "workflow_id": 1,
        "check_suite_id": first.run_id,
        "check_suite_node_id": f"CS_{first.run_id}",
        "url": url,
        "html_url": f"{repository['html_url']}/actions/runs/{first.run_id}",
        "pull_requests": [],
        "created_at": stamp(first.created_at),
        "updated_at": stamp(latest),
        "run_started_at": stamp(first.created_at),
        "actor": user(place, "octocat"),
        **{f"{key}_url": f"{url}/{key}" for key in ("jobs", "logs", "artifacts", "cancel", "rerun")},
        "check_suite_url": f"{repository['url']}/check-suites/{first.run_id}",
        "workflow_url": f"{repository['url']}/actions/workflows/1",
        "head_commit": {
            **{"id": sha, "tree_id": sha, "message": "Change", "timestamp": stamp(first.created_at)},
            **{"author": person, "committer": person},
        },
        "repository": repository,
        "head_repository": repository,
    }


def runner(it: Runner, *, busy: bool) -> Json:
    """`busy` is a parameter because GitHub's own answer lags."""
    return {
        "id": it.id,
        "runner_group_id": it.group.id,
        "name": it.name,
        "os": "linux" if it.session else "unknown",
        "status": "online" if it.online else "offline",
        "busy": busy,
        "ephemeral": True,
        "labels": [{"id": identifier(label) % 100_000, "name": label, "type": "custom"} for label in it.labels],
        "version": RUNNER_VERSION if it.session else None,
    }


def downloads() -> list[Json]:
    found = []
    for os, arch, ending in (
        *(("osx", arch, "tar.gz") for arch in ("x64", "arm64")),
        *(("linux", arch, "tar.gz") for arch in ("x64", "arm", "arm64")),
        *(("win", arch, "zip") for arch in ("x64", "arm64")),
    ):
        name = f"actions-runner-{os}-{arch}-{RUNNER_VERSION}.{ending}"
        found.append(
            {
                "os": os,
                "architecture": arch,
                "download_url": f"https://github.com/actions/runner/releases/download/v{RUNNER_VERSION}/{name}",
                "filename": name,
                "sha256_checksum": f"{identifier(name):064x}",
            }
        )
    return found


def event(place: Place, it: Job, action: str, *, installation: int | None) -> Json:
    """The payload of a `workflow_job` delivery."""
    body: Json = {
        "action": action,
        "workflow_job": job(place, it),
        "repository": full_repository(place, it.repository),
        "sender": user(place, "octocat"),
    }
    if place.owner_kind == "Organization":
        body["organization"] = organization(place)
    if installation is not None:
        body["installation"] = {"id": installation, "node_id": f"I_{installation}"}
    return body


def ping(place: Place, described: Mapping[str, Any]) -> Json:
    body: Json = {"zen": "Keep it logically awesome.", "hook_id": described["id"], "hook": dict(described)}
    return {**body, "sender": user(place, "octocat")}


def error(status: int, message: str, documentation: str = "https://docs.github.com/rest") -> Json:
    return {"message": message, "documentation_url": documentation, "status": str(status)}


def http_date() -> str:
    """The Date header by the sandbox clock."""
    return now().strftime("%a, %d %b %Y %H:%M:%S GMT")
