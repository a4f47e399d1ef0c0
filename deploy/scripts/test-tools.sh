#!/usr/bin/env bash
# Builds what the tests and the demo need to bring up Kubernetes: its components, containerd, grpcurl, and the testcluster command.
# Everything is kept in the cache folder and built again only when its source or version changes.
. "$(dirname "$0")/lib.sh"
cd "$ROOT/tests/cluster" || exit

CGO_ENABLED=0 go build -trimpath -o "$CACHE/bin/testcluster" ./cmd/testcluster
"$CACHE/bin/testcluster" build
ln -sf hyperkube "$CACHE/bin/kubectl"
