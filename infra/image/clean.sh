#!/bin/bash
# Leaves nothing of the VM on which an image was built: not its user, its keys, its name, its logs. Runs as root, last.
set -euo pipefail

rm -rf /tmp/bootstrap.sh /var/lib/apt/lists/* /root/.bash_history
find /var/log -type f -exec truncate --size 0 {} +
cloud-init clean --logs
truncate --size 0 /etc/machine-id # a new one is made at the first boot
waagent -force -deprovision+user
sync
