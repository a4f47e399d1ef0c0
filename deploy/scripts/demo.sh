#!/usr/bin/env bash
# demo.sh up|down: from nothing to pictures from a worker pod, and back.
#
# Without KUBECONFIG it brings up a single-node Kubernetes of its own (root). With KUBECONFIG it uses that cluster and pushes images
# to the prefix in IMAGES. What it made is written to a folder in the cache, and `down` removes exactly that.
. "$(dirname "$0")/lib.sh"
cd "$ROOT" || exit

STATE=$CACHE/demo
CLUSTER=$STATE/cluster
PICTURES=$ROOT/demo-pictures
SYSTEM=imagegen-system
NAMESPACE=imagegen-demo
NAME=emoji
export CARGO_TARGET_DIR=$CACHE/target

# made NAME: remembers that the demo made something, before it does.
made() { grep -qxF "$1" "$STATE/made" 2>/dev/null || printf '%s\n' "$1" >>"$STATE/made"; }
was_made() { grep -qxF "$1" "$STATE/made" 2>/dev/null; }

ask_before_building() {
    if [ -n "${KUBECONFIG:-}" ]; then
        [ -n "${IMAGES:-}" ] || die "KUBECONFIG names a cluster, so IMAGES must say where its nodes can pull from, for example IMAGES=registry.example/you (push access needed). Unset KUBECONFIG to let the demo bring up a cluster of its own."
    else
        need_root "Bringing up a Kubernetes node on this machine (containers, a bridge, mounts; \`make demo-down\` removes them)"
    fi
}

first_picture() {
    note "A first picture, straight from the worker, without a server"
    "$CARGO_TARGET_DIR/release/imagegen-worker" generate --model tests/models/emoji-zimage --device cpu --precision float32 \
        --prompt "a red apple" --width 256 --height 256 --seed 7 --output "$PICTURES/first-red-apple.png"
}

cluster_up() {
    ask_before_building
    mkdir -p "$STATE" "$PICTURES"
    note "Set-up"
    "$ROOT/deploy/scripts/setup.sh" build cluster
    note "Building (Kubernetes meanwhile, in the background)"
    "$ROOT/deploy/scripts/test-tools.sh" >"$CACHE/log/tools.log" 2>&1 </dev/null &
    local tools=$!
    trap 'kill "$tools" 2>/dev/null || true' EXIT
    step "worker" "8 min from nothing" make --no-print-directory worker
    first_picture
    step "operator and client" "6 min from nothing" make --no-print-directory operator cli
    for name in imagegen kubectl-imagegen; do ln -sf "$CARGO_TARGET_DIR/release/imagegen" "$CACHE/bin/$name"; done
    step "container images" "1 min from nothing" "$ROOT/deploy/scripts/build-images.sh"
    note "Kubernetes from its Go modules (usually 8 min from nothing; log: $CACHE/log/tools.log)"
    wait "$tools" || { tail -n 40 "$CACHE/log/tools.log" >&2 && die "building Kubernetes failed"; }
    cluster_up
    give_images
    install_chart
    wait_ready
    pictures
}

down() {
    [ -f "$STATE/made" ] || { note "There is nothing of the demo to remove."; return; }
    if was_made cluster; then
        note "Removing the cluster"
        need_root "Removing the demo's Kubernetes node"
        testcluster down --dir "$CLUSTER" --wipe
    else
        : "${KUBECONFIG:?set KUBECONFIG to the cluster that the demo used}"
        note "Removing what the demo made in the cluster that KUBECONFIG names"
        ! was_made imagegen || kubectl delete imagegen "$NAME" --namespace "$NAMESPACE" --ignore-not-found
        ! was_made namespace || kubectl delete namespace "$NAMESPACE" --ignore-not-found
        ! was_made release || helm uninstall imagegen --namespace "$SYSTEM" --ignore-not-found
        # Deleting the definition deletes every ImageGen, so it stays when someone else's are there.
        if was_made crd && [ -z "$(kubectl get imagegens --all-namespaces -o name)" ]; then
            kubectl delete crd imagegens.imagegen.dev --ignore-not-found
        fi
        ! was_made system-namespace || kubectl delete namespace "$SYSTEM" --ignore-not-found
    fi
    rm -rf "$STATE"
    rm -f "$PICTURES"/{first-red-apple,red-apple,hong-ping-guo}.png
    rmdir --ignore-fail-on-non-empty "$PICTURES" 2>/dev/null || true
    note "Removed. Builds and downloads stay in $CACHE."
}

case ${1:-} in
    up | down) "$1" ;;
    *) die "demo.sh: expected up or down, found \"${1:-}\"" ;;
esac
