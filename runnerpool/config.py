"""The schema of the pool file, and how many VMs a pool keeps warm at a given minute. `pool_file.py` reads the file itself.

Attribute names are the file's keys. Every rule that needs no more than the file stands here, so that a `Config` made in
code is held to it as well; every message says what would be right, since `pool_file.py` shows it as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError
from pydantic import AfterValidator, Field, StrictBool, StrictInt, ValidationError, ValidationInfo, field_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from runnerpool.labels import LONGEST_RUNNER_NAME, SELF_HOSTED, SUFFIX_LENGTH, distinct
from runnerpool.pool_values import Count, Duration, Label, PoolName, ResourceName, Section, like, unique
from runnerpool.vm_config import VmConfig

_REPOSITORY = re.compile(r"(?:[\w-]{1,100}/)?(?!\.{1,2}$)[\w.-]{1,100}", re.ASCII)

_NOT_IN_TAGS = "<>%&\\?/"

# ---------------------------------------------------------------------------------------------- azure and github


class AzureConfig(Section):
    """Where the VMs live. The names that are left out follow the prefix: `hw` gives hw-rg, hw-vnet, hw-subnet and hw-nsg."""

    name_prefix: PoolName = Field(
        default="hw", description="what the names of VMs and runners begin with; one deployment, one prefix"
    )
    location: Annotated[str, like(r"(?-i:[a-z0-9]+)", "a location's short name, as in westus")] = "westus"
    resource_group: Annotated[str, like(r"[\w.()-]{0,89}[\w()-]", "a resource group's name")] = Field(
        default_factory=lambda data: f"{data['name_prefix']}-rg"
    )
    virtual_network: ResourceName = Field(default_factory=lambda data: f"{data['name_prefix']}-vnet")
    subnet: ResourceName = Field(default_factory=lambda data: f"{data['name_prefix']}-subnet")
    network_security_group: ResourceName = Field(default_factory=lambda data: f"{data['name_prefix']}-nsg")
    tags: dict[str, str] = Field(default_factory=dict, description="tags that every VM and NIC carries beside our own")

    @field_validator("tags")
    @classmethod
    def _tags_fit_azure(cls, tags: dict[str, str]) -> dict[str, str]:
        if len(tags) > 40:
            raise ValueError("at most 40 tags: Azure allows 50 on a resource, and some are ours")
        for key, value in tags.items():
            if key.lower().startswith("runnerpool"):
                raise ValueError(f"the tag {key!r} is ours to set: choose another name")
            if not key or len(key) > 512 or len(value) > 256 or any(character in key for character in _NOT_IN_TAGS):
                raise ValueError(
                    f"the tag {key!r} does not fit Azure: a name of up to 512, a value of up to 256 characters, no {_NOT_IN_TAGS}"
                )
        return tags

    def place(self, subscription_id: str) -> str:
        """Where VMs are made and looked for, as `model.Runner.place`."""
        return f"{subscription_id}/{self.resource_group}"


class GitHubConfig(Section):
    """Whose jobs are served, and where runners register."""

    scope: Literal["org", "repo", "enterprise"] = Field(
        default="org", description="where runners register: org, repo or enterprise"
    )
    owner: Annotated[str, like(r"[a-z0-9][\w-]{0,99}", "the login of a user or organisation, or an enterprise's slug")] = Field(
        description="the organisation, the enterprise's slug, or the user or organisation that owns the repositories"
    )
    repositories: tuple[str, ...] = Field(default=(), validate_default=True, description="the only repositories that are served")
    runner_group: Annotated[str, Field(min_length=1)] = "Default"
    allow_public_repositories: StrictBool = False

    @field_validator("repositories")
    @classmethod
    def _names(cls, repositories: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        """Bare names, but OWNER/NAME in an enterprise, whose repositories have many owners."""
        scope, owner = info.data.get("scope"), info.data.get("owner", "")
        if scope == "repo" and not repositories:
            raise ValueError("scope repo needs the list of repositories, as in [backend, website]")
        names = []
        for repository in repositories:
            before, slash, name = repository.rpartition("/")
            if _REPOSITORY.fullmatch(repository) is None:
                raise ValueError(f"{repository!r} is not a repository's name")
            if scope == "enterprise" and not slash:
                raise ValueError(f"{repository!r} lacks its owner: in an enterprise write OWNER/{name}")
            if scope != "enterprise" and slash and before.lower() != owner.lower():
                raise ValueError(f"{repository!r} does not belong to the owner {owner!r}")
            names.append(repository if scope == "enterprise" else name)
        return unique(tuple(names))

    @property
    def targets(self) -> tuple[str, ...]:
        """Every place where our runners may be registered, as `model.Target`."""
        if self.scope == "repo":
            return tuple(f"repo:{self.owner}/{name}" for name in self.repositories)
        return (f"{self.scope}:{self.owner}",)

    def target(self, repository: str) -> str:
        """Where a runner for this repository (OWNER/NAME) registers, as `targets` spells it."""
        if self.scope != "repo":
            return self.targets[0]
        wanted = f"repo:{repository}"
        return next((target for target in self.targets if target.lower() == wanted.lower()), wanted)


# ---------------------------------------------------------------------------------------------- pools


class WarmWindow(Section):
    """From a pool's `warm_schedule`: holds in every minute that `cron` matches on the clock of `timezone`."""

    cron: str = Field(description="five fields as in crontab(5): minute, hour, day of month, month, day of week")
    timezone: str = "UTC"
    minimum_warm_vms: Count = Field(description="how many idle VMs to keep while the window holds")

    @field_validator("cron")
    @classmethod
    def _five_fields(cls, cron: str) -> str:
        if len(cron.split()) != 5:
            raise ValueError(
                f"{cron!r} has not five fields: minute, hour, day of month, month, day of week, as in '* 8-18 * * mon-fri'"
            )
        try:
            CronSim(cron, datetime(2000, 1, 1, tzinfo=UTC))
        except (CronSimError, AssertionError) as error:
            raise ValueError(f"{cron!r} is no cron expression ({error}); an example is '* 8-18 * * mon-fri'") from None
        return cron

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, timezone: str) -> str:
        try:
            ZoneInfo(timezone)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(f"{timezone!r} is no time zone; an example is America/Los_Angeles") from None
        return timezone

    def holds(self, now: datetime) -> bool:
        local = now.astimezone(ZoneInfo(self.timezone))
        cron = CronSim(self.cron, local)
        time_fits = local.minute in cron.minutes and local.hour in cron.hours
        return time_fits and local.month in cron.months and cron.match_day(local.date())


class PoolConfig(Section):
    """One label set with its VM shape and its limits. Without a `name` the labels make it: linux-x64."""

    labels: Annotated[tuple[Label, ...], Field(min_length=1), AfterValidator(unique)] = Field(
        description="the labels that a job's runs-on asks for, as in [self-hosted, linux, x64]"
    )
    name: PoolName = Field(default_factory=lambda data: _name_from(data["labels"]), validate_default=True)
    maximum_pool_size: Annotated[StrictInt, Field(ge=1, le=1000)] = 50
    minimum_warm_vms: Count = 0
    scale_up_trigger_threshold: Annotated[StrictInt, Field(ge=1)] = 1
    idle_timeout: Duration = timedelta(minutes=10)
    warm_schedule: tuple[WarmWindow, ...] = ()
    keep_registered: StrictBool = False
    job_timeout: Duration = timedelta(hours=6)
    vm: VmConfig = Field(description="the shape of its VMs, as in `vm: {sizes: [Standard_D4ads_v5]}`")
    rerun_evicted: StrictBool = False
    job_notes: StrictBool = False

    @field_validator("minimum_warm_vms")
    @classmethod
    def _minimum_fits(cls, minimum: int, info: ValidationInfo) -> int:
        _at_most(minimum, info.data.get("maximum_pool_size"))
        return minimum

    @field_validator("warm_schedule")
    @classmethod
    def _windows_fit(cls, windows: tuple[WarmWindow, ...], info: ValidationInfo) -> tuple[WarmWindow, ...]:
        for window in windows:
            _at_most(window.minimum_warm_vms, info.data.get("maximum_pool_size"))
        return windows

    @property
    def registration_labels(self) -> tuple[str, ...]:
        """What a runner of this pool registers with: a just-in-time registration adds no default labels."""
        return tuple(self.labels) if SELF_HOSTED in map(str.lower, self.labels) else (SELF_HOSTED, *self.labels)


def _at_most(minimum: int, maximum: int | None) -> None:
    if maximum is not None and minimum > maximum:
        raise ValueError(f"minimum_warm_vms is {minimum}, more than maximum_pool_size, which is {maximum}")


def _name_from(labels: Sequence[str]) -> str:
    """`default` for a pool that has no label but `self-hosted`."""
    telling = (label.lower() for label in labels if label.lower() != SELF_HOSTED)
    return re.sub(r"[^a-z0-9]+", "-", "-".join(telling)).strip("-") or "default"


def departed(name: str) -> PoolConfig:
    """What stands for a pool that has left the file: nothing is made for it, and what it has idles out at once."""
    shape = VmConfig.model_construct(sizes=("none",))
    return PoolConfig.model_construct(name=name, labels=("departed",), maximum_pool_size=0, idle_timeout=timedelta(0), vm=shape)


def has_departed(pool: PoolConfig) -> bool:
    """Whether it stands for a pool that has left the file: one of the file has a maximum of at least 1."""
    return pool.maximum_pool_size == 0


def warm_minimum(pool: PoolConfig, now: datetime) -> int:
    """How many VMs the pool keeps warm at `now` (aware): what the last window that holds says, else `minimum_warm_vms`."""
    holding = (window.minimum_warm_vms for window in reversed(pool.warm_schedule) if window.holds(now))
    return next(holding, pool.minimum_warm_vms)


# ---------------------------------------------------------------------------------------------- the whole


class Config(Section):
    azure: AzureConfig = Field(description="where the VMs live; `azure: {}` takes every default")
    github: GitHubConfig = Field(description="whose jobs are served, as in `github: {owner: octo-org}`")
    pools: Annotated[tuple[PoolConfig, ...], Field(min_length=1)] = Field(description="a list of at least one pool")

    @field_validator("pools")
    @classmethod
    def _pools_agree(cls, pools: tuple[PoolConfig, ...], info: ValidationInfo) -> tuple[PoolConfig, ...]:
        azure = info.data.get("azure")
        if clashes := pool_clashes(list(enumerate(pools)), azure.name_prefix if azure else ""):
            raise ValidationError.from_exception_data("pools", clashes)
        return pools


def pool_clashes(pools: Iterable[tuple[int, PoolConfig]], prefix: str) -> list[InitErrorDetails]:
    """What is wrong with pools that are right one by one. Each comes with its index in the file; the first of two has the right."""
    names: dict[str, int] = {}
    label_sets: dict[frozenset[str], PoolConfig] = {}
    clashes: list[InitErrorDetails] = []

    def clash(index: int, key: str, text: str, value: Any) -> None:
        clashes.append(InitErrorDetails(type=PydanticCustomError("clash", "{text}", {"text": text}), loc=(index, key), input=value))

    longest = LONGEST_RUNNER_NAME - SUFFIX_LENGTH - len(prefix) - 2
    for index, pool in pools:
        labels = distinct(pool.labels)
        if len(pool.name) > longest:
            clash(
                index, "name", f"{pool.name!r} is too long: with the prefix {prefix!r} at most {longest} characters fit", pool.name
            )
        if pool.name in names:
            clash(
                index, "name", f"pools[{names[pool.name]}] is called {pool.name!r} too: give each pool a name of its own", pool.name
            )
        if labels in label_sets:
            clash(
                index,
                "labels",
                f"the pool {label_sets[labels].name!r} has the same labels: no job could tell them apart",
                pool.labels,
            )
        names.setdefault(pool.name, index)
        label_sets.setdefault(labels, pool)
    return clashes
