"""Pool files to begin from, and what reading one answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from runnerpool.config import Config, PoolConfig
from runnerpool.pool_file import ConfigError, load_config

SMALLEST = """\
azure: {}
github: {owner: octo-org}
pools:
  - labels: [self-hosted, linux, x64]
    vm: {sizes: [Standard_D4ads_v5]}
"""

FULL = """\
azure:
  location: westus
  resource_group: hw-rg
  virtual_network: hw-vnet
  subnet: hw-subnet
  network_security_group: hw-nsg
  tags: {team: ci}
  name_prefix: hw
github:
  scope: org
  owner: octo-org
  repositories: []
  runner_group: Default
  allow_public_repositories: false
pools:
  - name: linux-x64
    labels: [self-hosted, linux, x64]
    minimum_warm_vms: 2
    maximum_pool_size: 50
    scale_up_trigger_threshold: 1
    idle_timeout: 10m
    warm_schedule:
      - {cron: "* 8-18 * * mon-fri", timezone: America/Los_Angeles, minimum_warm_vms: 10}
    keep_registered: false
    job_timeout: 6h
    vm:
      sizes: [Standard_D4ads_v5, Standard_D4as_v5]
      zones: ["1", "2", "3"]
      priority: regular
      image: Canonical:ubuntu-24_04-lts:server:latest
      os_disk: {ephemeral: true, size_gb: 64}
      admin_username: runneradmin
      ssh_public_key: ""
      runner_version: auto
      setup_script: ""
      os: linux
      job_sudo: true
      proxy: {http_proxy: "", no_proxy: "", ca_bundle: ""}
    rerun_evicted: false
    job_notes: false
"""

POOL = "  - labels: [self-hosted, linux, x64]\n    vm: {sizes: [Standard_D4ads_v5]}\n"
OFFICE = {"cron": "* 8-18 * * mon-fri", "timezone": "America/Los_Angeles", "minimum_warm_vms": 10}


def load(folder: Path, text: str | bytes) -> Config:
    path = folder / "pool-config.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_config(path)


def messages(folder: Path, text: str | bytes) -> list[str]:
    """Each problem as `LINE: message`."""
    with pytest.raises(ConfigError) as caught:
        load(folder, text)
    return [f"{problem.line}: {problem.message}" for problem in caught.value.problems]


def pool(**keys: Any) -> PoolConfig:
    return PoolConfig.model_validate({"labels": ["linux"], "vm": {"sizes": ["Standard_D2s_v5"]}, **keys})
