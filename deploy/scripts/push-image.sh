#!/usr/bin/env bash
# Pushes an image that build-images.sh built, and prints the reference with its digest.
# usage: push-image.sh imagegen-operator|imagegen-worker|imagegen-worker-cuda|MODEL REFERENCE
# Credentials: buildah login, or REGISTRY_AUTH_FILE. PUSH_FLAGS adds flags of `buildah push`, such as --tls-verify=false.
. "$(dirname "$0")/lib.sh"
[ $# = 2 ] || die "push-image.sh: expected an image's name and the reference to push it to"
name=$1 reference=$2
. "$(dirname "$0")/image-store.sh"
[ -s "$IMAGES_DIR/$name.reference" ] || die "there is no image $name in $IMAGES_DIR: run deploy/scripts/build-images.sh first"

digest=$(mktemp)
trap 'rm -f "$digest"' EXIT
read -r -a flags <<<"${PUSH_FLAGS:-}"
buildah push --quiet ${flags[@]+"${flags[@]}"} --digestfile "$digest" "$(<"$IMAGES_DIR/$name.reference")" "docker://$reference" >&2
echo "${reference%:*}@$(<"$digest")"
