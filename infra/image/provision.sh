#!/bin/bash
# Turns a plain Ubuntu into a runner image: up to date, and with what bootstrap.sh would install on a VM at its first boot.
# Takes RUNNER_VERSION, RUNNER_URL and RUNNER_SHA256 from the environment, and bootstrap.sh from /tmp. Runs as root.
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive

apt-get update
apt-get upgrade --yes
# The agent's Python, what closes the metadata service to jobs, and what many workflows take for granted.
apt-get install --yes --no-install-recommends python3 nftables jq unzip
bash /tmp/bootstrap.sh image
apt-get clean
