#!/bin/bash
# Makes a runner VM out of a plain Ubuntu, or of an image that already has some of it. Runs as root, once, from cloud-init;
# running it again changes nothing. `bootstrap.sh image` does only what can be done ahead: infra/image/ bakes images with it.
# On a VM the agent is started first, so that a set-up that hangs or fails can say so: this log's tail is part of its status.
set -Eeuo pipefail
umask 022
export DEBIAN_FRONTEND=noninteractive

runner_user=runner
runner_directory=/opt/actions-runner
state=/var/lib/runnerpool
log=/var/log/runnerpool/setup.log

step() { printf '%s %s\n' "$(date -u +%FT%TZ)" "$*"; }
failed() { step "the set-up failed in line $1: ${2%%$'\n'*}"; }
trap 'failed "$LINENO" "$BASH_COMMAND"' ERR

# What a command says is of interest only when it fails, and then its end: the log's tail has 50 lines.
quietly() {
    local output
    output=$(mktemp)
    "$@" >"$output" 2>&1 || {
        tail -n 20 "$output"
        rm -f "$output"
        return 1
    }
    rm -f "$output"
}

has() { command -v "$1" >/dev/null; }

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
        quietly update-ca-certificates
    fi
    if [ -n "${http_proxy:-}" ]; then
        # The runner and its jobs have it in their environment. What runs outside of that, or under sudo, is told here.
        install -D -m 0644 /dev/stdin /etc/systemd/system/docker.service.d/runnerpool.conf \
            <<<$'[Service]\nEnvironmentFile=/etc/runnerpool/environment'
        systemctl daemon-reload
        systemctl try-restart docker.service || true # not there before install_packages
    fi
}

# A VM that lives for one job does not upgrade itself in the middle of it, nor hold apt's locks while a job wants them.
calm_apt() {
    if has apt-get; then
        systemctl mask --now apt-daily.timer apt-daily-upgrade.timer apt-daily.service apt-daily-upgrade.service || true
        {
            echo 'Acquire::Retries "5";'
            echo 'DPkg::Lock::Timeout "300";'
            if [ -n "${http_proxy:-}" ]; then
                printf 'Acquire::http::Proxy "%s";\nAcquire::https::Proxy "%s";\n' "$http_proxy" "$http_proxy"
            fi
        } >/etc/apt/apt.conf.d/90runnerpool
    fi
}

# What jobs rely on, as on GitHub's own runners. Ubuntu's image lacks only Docker.
install_packages() {
    local name missing=() present=()
    local wanted=(curl git)
    if [ "$JOB_SUDO" = true ]; then
        wanted+=(sudo docker)
    fi
    for name in "${wanted[@]}"; do
        if has "$name"; then present+=("$name"); else missing+=("$name"); fi
    done
    step "the image has: ${present[*]:-nothing of ${wanted[*]}}"
    if [ "${#missing[@]}" -eq 0 ]; then
        return
    elif ! has apt-get; then
        step "the image lacks ${missing[*]}, and has no apt-get to install them with: jobs go without"
        return
    fi
    step "installing: ${missing[*]}"
    quietly apt-get update
    if [[ " ${missing[*]} " == *" docker "* ]]; then
        missing=("${missing[@]/#docker/docker.io}")
        for name in docker-buildx docker-compose-v2; do # not every release has them
            if apt-cache show "$name" >/dev/null 2>&1; then missing+=("$name"); fi
        done
    fi
    quietly apt-get install --yes --no-install-recommends "${missing[@]}"
    step "installed: ${missing[*]}"
}

make_user() {
    id -u "$runner_user" >/dev/null 2>&1 || useradd --create-home --shell /bin/bash "$runner_user"
}

# The version of the runner that is installed, asked as its user: it must not leave files of root's behind.
runner_version() {
    HOME=$(getent passwd "$runner_user" | cut -d: -f6) \
        runuser -u "$runner_user" -- "$runner_directory/bin/Runner.Listener" --version
}

install_runner() {
    if [ -x "$runner_directory/run.sh" ]; then
        step "the image has a runner"
    elif [ -z "$RUNNER_URL" ]; then
        step "the image has no runner in $runner_directory, and the pool names none to download"
        return 1
    else
        download_runner
    fi
    if [[ $(ldconfig -p) != *libicuuc* ]]; then
        step "installing what the runner depends on"
        quietly "$runner_directory/bin/installdependencies.sh"
    fi
    chown -R "$runner_user:" "$runner_directory"
    compare_runner
}

download_runner() {
    step "downloading runner $RUNNER_VERSION"
    local package sum
    package=$(mktemp)
    curl --fail --silent --show-error --location --retry 5 --retry-connrefused --connect-timeout 10 --max-time 300 \
        --output "$package" "$RUNNER_URL"
    sum=$(sha256sum "$package" | cut -d' ' -f1)
    # GitHub gives the checksum of its latest release only; a pinned older one rests on the download's TLS alone.
    if [ -z "$RUNNER_SHA256" ]; then
        step "runner $RUNNER_VERSION is pinned: no checksum is published for it"
    elif [ "$sum" != "$RUNNER_SHA256" ]; then
        rm -f "$package"
        step "what came from $RUNNER_URL is not runner $RUNNER_VERSION: its sha256 is $sum and should be $RUNNER_SHA256"
        return 1
    fi
    # Under its name only when it is whole: half a runner must not look like one of the image's.
    rm -rf "$runner_directory.new" "$runner_directory"
    install -d "$runner_directory.new"
    tar -xzf "$package" -C "$runner_directory.new"
    mv "$runner_directory.new" "$runner_directory"
    rm -f "$package"
}

# An image's runner is used whatever its version. It does not update itself (see agent.py), and GitHub gives a runner no more
# jobs 30 days after a newer one came out: who reads this log may still have the time to build the image anew.
compare_runner() {
    local version
    version=$(runner_version)
    if [ -z "$RUNNER_VERSION" ] || [ "$version" = "$RUNNER_VERSION" ]; then
        step "the runner is $version"
    elif [ "$(printf '%s\n' "$version" "$RUNNER_VERSION" | sort -V | head -n 1)" = "$version" ]; then
        step "the image's runner $version is older than $RUNNER_VERSION: build the image anew before GitHub gives it no more jobs"
    else
        step "the image's runner $version is newer than $RUNNER_VERSION"
    fi
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
        install -D -m 0440 /dev/stdin /etc/sudoers.d/runnerpool <<EOF
Defaults:$runner_user env_keep += "http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY NODE_EXTRA_CA_CERTS"
$runner_user ALL=(ALL) NOPASSWD: ALL
EOF
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
    if has nft; then
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
        refuse OUTPUT -d 169.254.169.254 -m owner --uid-owner "$user"
        refuse OUTPUT -d 168.63.129.16 -p tcp -m multiport --dports 80,32526 -m owner --uid-owner "$user"
        refuse FORWARD -d 169.254.169.254
        refuse FORWARD -d 168.63.129.16 -p tcp -m multiport --dports 80,32526
    fi
}

refuse() { iptables -C "$@" -j REJECT 2>/dev/null || iptables -I "$@" -j REJECT; }

# The agent waits for this file, which tells it the runner's version.
declare_ready() {
    runner_version >"$state/ready.new"
    mv "$state/ready.new" "$state/ready"
}

if [ "${1:-}" = image ]; then # RUNNER_VERSION, RUNNER_URL and RUNNER_SHA256 come from the environment
    JOB_SUDO=true
    calm_apt
    install_packages
    make_user
    install_runner
    exit
fi

install -d -m 0755 "$state" "${log%/*}"
exec >>"$log" 2>&1 </dev/null
# RUNNER_VERSION, RUNNER_URL (empty: the image has the runner), RUNNER_SHA256 (empty: pinned), JOB_SUDO (true or false)
# shellcheck source=/dev/null
. /etc/runnerpool/bootstrap.env
set -a
# shellcheck source=/dev/null
. /etc/runnerpool/environment
set +a

step "the set-up begins"
start_agent
erase_user_data
trust_proxy
calm_apt
install_packages
make_user
install_runner
run_setup_script
grant_or_refuse_root
close_metadata
declare_ready
step "the set-up is through"
