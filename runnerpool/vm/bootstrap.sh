#!/bin/bash
# Makes a runner VM out of a plain Ubuntu, or of an image that already has some of it. Runs once, as root, from cloud-init.
# The agent is started first, so that a VM whose set-up hangs or fails can say so: this log's tail is part of its status.
set -Eeuo pipefail
umask 022

runner_user=runner
runner_directory=/opt/actions-runner
state=/var/lib/runnerpool
log=/var/log/runnerpool/setup.log

install -d -m 0755 "$state" /var/log/runnerpool
exec >>"$log" 2>&1 </dev/null
step() { printf '%s %s\n' "$(date -u +%FT%TZ)" "$*"; }
trap 'step "the set-up failed in line $LINENO: $BASH_COMMAND"' ERR

# RUNNER_VERSION, RUNNER_URL (empty: the image has the runner), RUNNER_SHA256 (empty: pinned), JOB_SUDO (true or false)
. /etc/runnerpool/bootstrap.env
set -a
. /etc/runnerpool/environment
set +a

start_agent() {
    systemctl daemon-reload
    systemctl enable --now runnerpool-agent.service
}

# What was handed over lies in files of its own by now. cloud-init and Azure's agent keep copies of the whole, and with them a
# JIT configuration that is still good.
erase_user_data() {
    rm -f /var/lib/cloud/instance/{user-data.txt,user-data.txt.i,cloud-config.txt,obj.pkl} \
        /run/cloud-init/{instance-data-sensitive.json,combined-cloud-config.json}
    if [ -f /var/lib/waagent/ovf-env.xml ]; then
        sed -i -E 's#(<([a-z0-9]+:)?CustomData>)[^<]*#\1#g' /var/lib/waagent/ovf-env.xml
    fi
}

trust_proxy() {
    if [ -s /etc/runnerpool/authorities.pem ]; then
        # One certificate a file: update-ca-certificates asks for it.
        awk '/BEGIN CERTIFICATE/ { n++ } n { print > ("/usr/local/share/ca-certificates/runnerpool-" n ".crt") }' \
            /etc/runnerpool/authorities.pem
        update-ca-certificates
    fi
}

make_user() {
    id -u "$runner_user" >/dev/null 2>&1 || useradd --create-home --shell /bin/bash "$runner_user"
}

install_runner() {
    if [ -x "$runner_directory/run.sh" ]; then
        step "the image has a runner"
    elif [ -z "$RUNNER_URL" ]; then
        step "the image has no runner in $runner_directory, and the pool names none to download"
        return 1
    else
        step "downloading runner $RUNNER_VERSION"
        local package
        package=$(mktemp)
        curl --fail --silent --show-error --location --retry 5 --retry-connrefused --connect-timeout 10 --max-time 300 \
            --output "$package" "$RUNNER_URL"
        # GitHub gives the checksum of its latest release only; a pinned older one rests on the download's TLS alone.
        if [ -n "$RUNNER_SHA256" ]; then
            echo "$RUNNER_SHA256  $package" | sha256sum --check --quiet
        else
            step "runner $RUNNER_VERSION is pinned: no checksum is published for it"
        fi
        install -d "$runner_directory"
        tar -xzf "$package" -C "$runner_directory"
        rm -f "$package"
    fi
    if [[ $(ldconfig -p) != *libicuuc* ]]; then
        step "installing what the runner depends on"
        "$runner_directory/bin/installdependencies.sh"
    fi
    chown -R "$runner_user:" "$runner_directory"
}

run_setup_script() {
    if [ -s /opt/runnerpool/setup.sh ]; then
        step "running the pool's setup_script"
        /opt/runnerpool/setup.sh
    fi
}

# As on GitHub's own runners a job is root by sudo and by Docker, or neither.
grant_or_refuse_root() {
    if [ "$JOB_SUDO" = true ]; then
        install -D -m 0440 /dev/stdin /etc/sudoers.d/runnerpool <<<"$runner_user ALL=(ALL) NOPASSWD: ALL"
        if getent group docker >/dev/null; then
            usermod --append --groups docker "$runner_user"
        fi
    else
        rm -f /etc/sudoers.d/runnerpool
        for group in sudo docker lxd adm; do
            gpasswd --delete "$runner_user" "$group" >/dev/null 2>&1 || true
        done
    fi
}

# Azure's metadata service and its agent's endpoint are for root: not for a job, nor for a container that a job starts.
# 168.63.129.16 also serves DNS, which stays open. A job that has sudo can undo this; such a VM has no identity to steal.
close_metadata() {
    local user
    user=$(id -u "$runner_user")
    if command -v nft >/dev/null; then
        nft -f - <<EOF
table inet runnerpool
delete table inet runnerpool
table inet runnerpool {
    chain output {
        type filter hook output priority 0;
        meta skuid $user ip daddr 169.254.169.254 reject
        meta skuid $user ip daddr 168.63.129.16 tcp dport { 80, 32526 } reject
    }
    chain forward {
        type filter hook forward priority -10;
        ip daddr 169.254.169.254 reject
        ip daddr 168.63.129.16 tcp dport { 80, 32526 } reject
    }
}
EOF
    else
        iptables -I OUTPUT -d 169.254.169.254 -m owner --uid-owner "$user" -j REJECT
        iptables -I OUTPUT -d 168.63.129.16 -p tcp -m multiport --dports 80,32526 -m owner --uid-owner "$user" -j REJECT
        iptables -I FORWARD -d 169.254.169.254 -j REJECT
        iptables -I FORWARD -d 168.63.129.16 -p tcp -m multiport --dports 80,32526 -j REJECT
    fi
}

# The agent waits for this file, which tells it the runner's version.
declare_ready() {
    HOME=$(getent passwd "$runner_user" | cut -d: -f6) \
        runuser -u "$runner_user" -- "$runner_directory/bin/Runner.Listener" --version >"$state/ready.new"
    mv "$state/ready.new" "$state/ready"
}

step "the set-up begins"
start_agent
erase_user_data
trust_proxy
make_user
install_runner
run_setup_script
grant_or_refuse_root
close_metadata
declare_ready
step "the set-up is through"
