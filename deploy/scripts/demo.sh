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
export GOMP_SPINCOUNT=100000

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
    if [ -z "${KUBECONFIG:-}" ]; then
        note "Kubernetes on this machine"
        made cluster
        KUBECONFIG=$(testcluster up --dir "$CLUSTER")
        export KUBECONFIG
    fi
    kubectl version >/dev/null || die "the cluster that KUBECONFIG=$KUBECONFIG names does not answer"
}

# give_images: sets OPERATOR_IMAGE, WORKER_IMAGE and MODEL_IMAGE to what the cluster's nodes can run.
give_images() {
    note "Images into the cluster"
    local name
    if [ -n "${IMAGES:-}" ]; then
        for name in imagegen-operator imagegen-worker emoji-zimage; do
            note "pushing $IMAGES/$name"
            "$ROOT/deploy/scripts/push-image.sh" "$name" "$IMAGES/$name:demo" >"$STATE/$name"
        done
    else
        testcluster load --dir "$CLUSTER" "$CACHE"/images/{imagegen-operator,imagegen-worker,emoji-zimage}.tar
        for name in imagegen-operator imagegen-worker emoji-zimage; do cp "$CACHE/images/$name.reference" "$STATE/$name"; done
    fi
    OPERATOR_IMAGE=$(<"$STATE/imagegen-operator") WORKER_IMAGE=$(<"$STATE/imagegen-worker") MODEL_IMAGE=$(<"$STATE/emoji-zimage")
}

# image_values KEY REFERENCE: the chart's values for an image with a tag, or with a digest.
image_values() {
    case $2 in
        *@*) printf '%s.repository=%s,%s.digest=%s' "$1" "${2%@*}" "$1" "${2#*@}" ;;
        *) printf '%s.repository=%s,%s.tag=%s' "$1" "${2%:*}" "$1" "${2##*:}" ;;
    esac
}

install_chart() {
    note "The Helm chart"
    if ! was_made release && helm status imagegen --namespace "$SYSTEM" >/dev/null 2>&1; then
        die "there is a Helm release imagegen in namespace $SYSTEM already that the demo did not make, and the demo would change it"
    fi
    kubectl get crd imagegens.imagegen.dev >/dev/null 2>&1 || made crd
    kubectl get namespace "$SYSTEM" >/dev/null 2>&1 || made system-namespace
    made release
    helm upgrade --install imagegen charts/imagegen --namespace "$SYSTEM" --create-namespace --wait --timeout 5m \
        --set "$(image_values image "$OPERATOR_IMAGE")" --set "$(image_values workerImage "$WORKER_IMAGE")" >/dev/null
    if ! kubectl get namespace "$NAMESPACE" >/dev/null 2>&1; then
        made namespace
        kubectl create namespace "$NAMESPACE" >/dev/null
    fi
    made imagegen
    sed "s#reference: localhost/emoji-zimage:1#reference: $MODEL_IMAGE#" deploy/examples/emoji.yaml | kubectl apply --namespace "$NAMESPACE" -f -
}

# wait_ready: shows the Ready condition's reason whenever it changes, until it is true.
wait_ready() {
    note "Waiting for the ImageGen to be Ready (usually 10 s)"
    local deadline=$((SECONDS + 300)) line last=
    while [ $SECONDS -lt $deadline ]; do
        line=$(kubectl get imagegen "$NAME" --namespace "$NAMESPACE" \
            -o jsonpath='{range .status.conditions[?(@.type=="Ready")]}{.status} {.reason}: {.message}{end}')
        [ "$line" = "$last" ] || printf '    %s\n' "${line:-no status yet}" >&2
        last=$line
        [ "${line%% *}" = True ] && return
        kubectl wait imagegen "$NAME" --namespace "$NAMESPACE" --for=condition=Ready --timeout=2s >/dev/null 2>&1 || true
    done
    kubectl get pods --namespace "$NAMESPACE" >&2
    die "the ImageGen is not Ready after 5 minutes: $last"
}

pictures() {
    note "Pictures over gRPC"
    kubectl imagegen generate "$NAME" "a red apple" --namespace "$NAMESPACE" --size 256x256 --seed 7 --output "$PICTURES/red-apple.png"
    kubectl imagegen generate "$NAME" "红苹果" --namespace "$NAMESPACE" --size 256x256 --seed 8 --output "$PICTURES/hong-ping-guo.png"
    note "What the cluster says"
    kubectl get imagegen --namespace "$NAMESPACE"
    printf '\nPictures:\n'
    printf '  %s\n' "$PICTURES"/*.png
    # shellcheck disable=SC2016 # for the reader to paste
    printf 'More: KUBECONFIG=%s PATH=%s:$PATH kubectl imagegen generate %s "a green frog" -n %s -o frog.png\nRemove it all: make demo-down\n' \
        "$KUBECONFIG" "$CACHE/bin" "$NAME" "$NAMESPACE"
}

up() {
    ask_before_building
    mkdir -p "$STATE" "$PICTURES"
    note "Set-up"
    "$ROOT/deploy/scripts/setup.sh" build cluster
    note "Building (Kubernetes meanwhile, in the background)"
    "$ROOT/deploy/scripts/test-tools.sh" >"$CACHE/log/tools.log" 2>&1 </dev/null &
    local name
    tools=$! # not local: the trap runs after this function
    trap 'kill "$tools" 2>/dev/null || true' EXIT
    step "worker" "6 min from nothing" make --no-print-directory worker
    first_picture
    step "operator and client" "5 min from nothing" make --no-print-directory programs
    for name in imagegen kubectl-imagegen; do ln -sf "$CARGO_TARGET_DIR/release/imagegen" "$CACHE/bin/$name"; done
    step "container images" "25 s from nothing" "$ROOT/deploy/scripts/build-images.sh"
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
