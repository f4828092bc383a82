"""The shape of a pool's VMs: the section `vm` of a pool in the pool file."""

from __future__ import annotations

import hashlib
import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PrivateAttr, StrictBool, StrictInt, ValidationInfo, field_validator, model_validator

from runnerpool.pool_values import FilePath, Section, VmSize, Zone, like, unique

_OWN_IMAGE = re.compile(
    r"/subscriptions/[^/\s]+/resourceGroups/[^/\s]+/providers/Microsoft\.Compute"
    r"/(?:galleries/[^/\s]+/)?images/[^/\s]+(?:/versions/[^/\s]+)?",
    re.IGNORECASE,
)
"""The resource id of an image, of a gallery's image (then its latest version is meant) or of one version of it."""


class OsDisk(Section):
    ephemeral: StrictBool = Field(
        default=False, description="on the host's own disk: faster and free, but only on sizes that have one"
    )
    size_gb: Annotated[StrictInt, Field(ge=4, le=4095)] = 64


class Proxy(Section):
    http_proxy: Annotated[str, Field(repr=False)] = ""  # may hold a password
    no_proxy: Annotated[str, like(r"[^\r\n]*", "one line of hosts, as in localhost,.example.com")] = ""
    ca_bundle: FilePath = Field(default="", description="path of a PEM file with the proxy's certificate authorities")

    @field_validator("http_proxy")
    @classmethod
    def _url(cls, url: str) -> str:
        if url and re.fullmatch(r"https?://[^\s/]+/?", url) is None:
            raise ValueError("is not a proxy's address, as in http://proxy.example.com:3128")
        return url


class VmConfig(Section):
    """The shape of a pool's VMs."""

    sizes: Annotated[tuple[VmSize, ...], Field(min_length=1), AfterValidator(unique)] = Field(
        description="the VM sizes to try, in order, as in [Standard_D4ads_v5]"
    )
    zones: Annotated[tuple[Zone, ...], AfterValidator(unique)] = Field(
        default=(), description="availability zones; none: wherever Azure likes"
    )
    priority: Literal["regular", "spot", "spot-then-regular"] = "regular"
    os: Literal["linux", "windows"] = "linux"
    image: str = Field(default="Canonical:ubuntu-24_04-lts:server:latest", validate_default=True)
    os_disk: OsDisk = OsDisk()
    admin_username: Annotated[str, like(r"(?-i:[a-z_][a-z0-9_-]{0,31})", "a user's name: lower-case letters, digits, _ and -")] = (
        "runneradmin"
    )
    ssh_public_key: str = Field(default="", description="empty: nobody can log in")
    runner_version: Annotated[str, like(r"auto|\d+\.\d+\.\d+", "auto or a version, as in 2.330.0")] = "auto"
    setup_script: FilePath = Field(default="", description="path of a script that runs as root before the runner starts")
    job_sudo: StrictBool = True
    proxy: Proxy = Proxy()
    _files: tuple[str, ...] = PrivateAttr(default=())

    @model_validator(mode="after")
    def _read_files(self, info: ValidationInfo) -> VmConfig:
        """Notes what the files hold where they may be read, as by `_file`: a script can change while its path stays."""
        if (info.context or {}).get("folder") is not None:
            self._files = tuple(_digest(path) if path else "" for path in (self.setup_script, self.proxy.ca_bundle))
        return self

    @property
    def shape(self) -> str:
        """A fingerprint of what a VM is made from: one made from another shape is to be replaced. Sizes are no part of it,
        since a size that is still in the list is as right as it was."""
        return _fingerprint(self)

    @field_validator("image")
    @classmethod
    def _marketplace_or_gallery(cls, image: str, info: ValidationInfo) -> str:
        windows = info.data.get("os") == "windows"
        if _OWN_IMAGE.fullmatch(image) and ("/galleries/" in image.lower() or not windows):
            return image
        if windows:
            raise ValueError("windows needs the resource id of a gallery image that has our start-up task")
        if re.fullmatch(r"[\w.-]+(:[\w.-]+){3}", image, re.ASCII) is None:
            raise ValueError(f"{image!r} is neither Publisher:Offer:Sku:Version nor the resource id of an image in a gallery")
        return image

    @field_validator("job_sudo")
    @classmethod
    def _kept_by_the_system(cls, job_sudo: bool, info: ValidationInfo) -> bool:
        if not job_sudo and info.data.get("os") == "windows":
            raise ValueError("cannot be refused on windows (a preview), where jobs run as the system does: set it to true")
        return job_sudo

    @field_validator("admin_username")
    @classmethod
    def _allowed_by_azure(cls, name: str) -> str:
        if name in {"root", "admin", "administrator", "user", "test", "guest", "owner", "support", "sys", "backup", "console"}:
            raise ValueError(f"Azure refuses the name {name!r}; the default is runneradmin")
        return name

    @field_validator("ssh_public_key")
    @classmethod
    def _public_key(cls, key: str) -> str:
        if key and re.fullmatch(r"(?:ssh-rsa|ssh-ed25519) [A-Za-z0-9+/]+=*(?: [^\r\n]*)?", key.strip()) is None:
            # It is not repeated in the message: it might be the private one.
            raise ValueError("is not one line of an OpenSSH public key that begins with ssh-rsa or ssh-ed25519")
        return key.strip()


@lru_cache
def _fingerprint(vm: VmConfig) -> str:
    """Every pass compares it with every idle VM's; configurations are frozen, and equal only with equal files."""
    parts = vm.model_dump(mode="json", include={"os", "image", "os_disk", "runner_version", "job_sudo", "proxy"})
    parts["proxy"].pop("ca_bundle")  # a path; what the file holds counts
    return hashlib.sha256(json.dumps([parts, vm._files], sort_keys=True).encode()).hexdigest()[:12]


def _digest(path: str) -> str:
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ValueError(f"the file {path!r} cannot be read: {error.strerror}") from None
