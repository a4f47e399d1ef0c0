# Sourced by the scripts beside it: where things are kept, and how a step is shown.
# shellcheck shell=bash
set -euo pipefail

# shellcheck disable=SC2034 # used by the scripts that source this
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
CACHE=${IMAGEGEN_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/imagegen}
mkdir -p "$CACHE"/{downloads,bin,log}
export PATH="$CACHE/bin:$CACHE/cargo-tools/bin:$PATH"

note() { printf '\033[1m==>\033[0m %s\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# step NAME USUALLY CMD...: runs CMD with its output in a log, shows a running clock on a terminal, and the log's end on failure.
step() {
    local name=$1 usually=$2 log started pid
    shift 2
    log=$CACHE/log/$(printf '%s' "$name" | tr -cs 'a-zA-Z0-9' '-').log
    started=$SECONDS
    [ -t 2 ] || printf '    %s (usually %s) ...\n' "$name" "$usually" >&2
    "$@" >"$log" 2>&1 </dev/null &
    pid=$!
    while [ -t 2 ] && kill -0 "$pid" 2>/dev/null; do
        printf '\r\033[K    %s, usually %s: %d s' "$name" "$usually" $((SECONDS - started)) >&2
        read -r -t 1 <> <(:) || true
    done
    if wait "$pid"; then
        { [ -t 2 ] && printf '\r\033[K' >&2; } || true
        printf '    %s: done in %d s\n' "$name" $((SECONDS - started)) >&2
    else
        { [ -t 2 ] && printf '\n' >&2; } || true
        tail -n 40 "$log" >&2
        die "$name failed; the whole log is $log"
    fi
}

# need_root WHY: stops with a sentence unless the effective user is root.
need_root() { [ "$(id -u)" = 0 ] || die "$1 needs root. Run it as root (for example with sudo -E), or see docs/development-cluster.md for what it would do."; }
