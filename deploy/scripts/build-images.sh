#!/usr/bin/env bash
# Builds the product's container images with buildah and writes each as a docker-archive that containerd, podman and docker import.
# An image whose inputs did not change is left alone, so a second run takes a moment.
#
# usage: build-images.sh [operator|worker|model]...      without names: all three
#
# Environment, with defaults:
#   OPERATOR_BINARY, WORKER_BINARY   the built programs (<cargo's target folder>/release/...)
#   MODEL_DIR                        a diffusers folder (tests/models/emoji-zimage); its image is localhost/<folder's name>:1
#   LIBTORCH_VARIANT                 cpu | cuda (cpu)
#   LIBTORCH_DIR                     the folder with torch/lib and nvidia/*/lib (<cache>/libtorch-2.5.1)
#   DEBIAN_SUITE                     what the base is made of (this machine's Debian release, or bookworm); no older than where the programs were built
#   REBUILD_BASE=1                   make the base again, for security updates
#
# Result, in <cache>/images: imagegen-operator.tar   localhost/imagegen-operator:<version>
#                            imagegen-worker.tar     localhost/imagegen-worker:<version>-cpu   (imagegen-worker-cuda.tar: <version>-cuda)
#                            emoji-zimage.tar        localhost/emoji-zimage:1
# Standard output has one line an image: its reference, a tab, the archive's path.
. "$(dirname "$0")/lib.sh"
scripts=$ROOT/deploy/scripts
. "$scripts/image-store.sh"

version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' "$ROOT/Cargo.toml")
programs=${CARGO_TARGET_DIR:-$CACHE/target}/release
operator=${OPERATOR_BINARY:-$programs/imagegen-operator}
worker=${WORKER_BINARY:-$programs/imagegen-worker}
variant=${LIBTORCH_VARIANT:-cpu}
libtorch=${LIBTORCH_DIR:-$CACHE/libtorch-2.5.1}
suite=${DEBIAN_SUITE:-$(. /etc/os-release && [ "$ID" = debian ] && echo "$VERSION_CODENAME" || echo bookworm)}
base=localhost/imagegen-base:$suite

digest() { sha256sum | cut -c1-32; }

# True when $1's stamp holds $2 and its archive is there.
is_current() { [ -s "$IMAGES_DIR/$1.tar" ] && [ -s "$IMAGES_DIR/$1.reference" ] && [ "$(cat "$IMAGES_DIR/$1.stamp" 2>/dev/null)" = "$2" ]; }

build_base() {
    local stamp
    stamp=$(cat "$scripts/build-base.sh" <(echo "$suite") | digest)
    if [ "${REBUILD_BASE:-0}" != 1 ] && [ -s "$IMAGES_DIR/base-$suite.rootfs" ] && [ "$(cat "$IMAGES_DIR/base-$suite.stamp" 2>/dev/null)" = "$stamp" ] &&
        buildah inspect --type image "$base" >/dev/null 2>&1; then
        return
    fi
    note "Base image of Debian $suite (about 10 seconds)"
    "$scripts/build-base.sh" "$suite" "$IMAGES_DIR/base-$suite.rootfs"
    new_context base
    place "$IMAGES_DIR/base-$suite.rootfs" "$IMAGES_DIR/context/base/rootfs.tar"
    printf 'FROM scratch\nADD rootfs.tar /\n' >"$IMAGES_DIR/context/base/Containerfile"
    buildah bud --quiet --layers --timestamp 0 --tag "$base" "$IMAGES_DIR/context/base" >/dev/null
    echo "$stamp" >"$IMAGES_DIR/base-$suite.stamp"
}

base_id() { buildah inspect --type image --format '{{.FromImageID}}' "$base"; }

new_context() { rm -rf "$IMAGES_DIR/context/$1" && mkdir -p "$IMAGES_DIR/context/$1"; }

# A hard link where the file systems allow it: the libraries are large.
place() { mkdir -p "$(dirname "$2")" && { ln -L "$1" "$2" 2>/dev/null || cp -L "$1" "$2"; }; }

# write_image NAME REFERENCE STAMP CONTAINERFILE BUILDAH_ARGS...: the context folder NAME becomes NAME.tar.
write_image() {
    local name=$1 reference=localhost/$2 stamp=$3 containerfile=$4
    shift 4
    buildah bud --quiet --layers --timestamp 0 --pull-never --build-arg "BASE=$base" --build-arg "VERSION=$version" "$@" \
        --file "$ROOT/deploy/$containerfile" --tag "$reference" "$IMAGES_DIR/context/$name" >/dev/null
    [ "$containerfile" = model.Containerfile ] || check_program "$reference"
    rm -f "$IMAGES_DIR/$name.part"
    buildah push --quiet "$reference" "docker-archive:$IMAGES_DIR/$name.part:$reference"
    mv "$IMAGES_DIR/$name.part" "$IMAGES_DIR/$name.tar"
    echo "$reference" >"$IMAGES_DIR/$name.reference"
    echo "$stamp" >"$IMAGES_DIR/$name.stamp"
    # What the tag named before.
    buildah rmi --prune >/dev/null
}

# Runs the image's program inside the image, as the image's user: every library it needs must resolve there.
check_program() {
    local container program output
    container=$(buildah from --pull-never "$1")
    program=$(buildah inspect --format '{{index .OCIv1.Config.Entrypoint 0}}' "$container")
    if ! output=$(buildah run "$container" -- "$program" --version 2>&1); then
        buildah rm "$container" >/dev/null
        die "$1: $program --version fails inside the image: $output
If it names GLIBC: the program was built on a newer system than Debian $suite; set DEBIAN_SUITE to that system's release."
    fi
    buildah rm "$container" >/dev/null
    note "$1: $output"
}

report() { printf '%s\t%s\n' "$(<"$IMAGES_DIR/$1.reference")" "$IMAGES_DIR/$1.tar"; }

build_operator() {
    [ -x "$operator" ] || die "no program at $operator: run make operator first, or set OPERATOR_BINARY"
    build_base
    local stamp
    stamp=$({ cat "$ROOT/deploy/operator.Containerfile" "$operator"; base_id; echo "$version"; } | digest)
    if ! is_current imagegen-operator "$stamp"; then
        note "Image of the operator"
        new_context imagegen-operator
        place "$operator" "$IMAGES_DIR/context/imagegen-operator/imagegen-operator"
        write_image imagegen-operator "imagegen-operator:$version" "$stamp" operator.Containerfile
    fi
    report imagegen-operator
}

libraries() {
    case $variant in
        cpu) "$scripts/library-closure.sh" "$worker" "$libtorch" "$IMAGES_DIR/base-$suite.rootfs" ;;
        cuda)
            ls "$libtorch"/nvidia/cudnn/lib/libcudnn.so.* >/dev/null 2>&1 || die "no cuDNN in $libtorch/nvidia: run make libtorch-cuda first"
            # The name of a C++ variable of libtorch's CUDA part that only the shim's CUDA half refers to.
            grep -q _ZN3c104cuda20CUDACachingAllocator9allocatorE "$worker" || die "$worker was built without CUDA's headers and cannot use a GPU: run make setup worker"
            # Python's own extension serves no program of ours.
            (cd "$libtorch" && find torch/lib nvidia/*/lib -maxdepth 1 -name '*.so*' ! -name libtorch_python.so | sort)
            ;;
        *) die "LIBTORCH_VARIANT: expected cpu or cuda, found \"$variant\"" ;;
    esac
}

build_worker() {
    [ -x "$worker" ] || die "no program at $worker: run make worker first, or set WORKER_BINARY"
    [ -d "$libtorch/torch/lib" ] || die "no libtorch at $libtorch: run make setup first, or set LIBTORCH_DIR to a folder with torch/lib and nvidia/*/lib"
    build_base
    local name=imagegen-worker usually="15 seconds" list stamp library license
    [ "$variant" = cpu ] || { name=imagegen-worker-$variant && usually="3 minutes"; }
    list=$(libraries)
    mapfile -t list <<<"$list"
    stamp=$({ cat "$ROOT/deploy/worker.Containerfile" "$worker"; base_id; echo "$version $variant"; cd "$libtorch" && stat -L -c '%n %s %Y' "${list[@]}"; } | digest)
    if ! is_current "$name" "$stamp"; then
        note "Image of the worker with libtorch for $variant (about $usually)"
        new_context "$name"
        for library in "${list[@]}"; do
            place "$libtorch/$library" "$IMAGES_DIR/context/$name/libtorch-$variant/$library"
        done
        for license in "$libtorch"/torch-*.dist-info/{LICENSE,NOTICE} "$libtorch"/nvidia_*.dist-info/License.txt; do
            [ ! -e "$license" ] || place "$license" "$IMAGES_DIR/context/$name/libtorch-$variant/licenses/${license#"$libtorch"/}"
        done
        place "$worker" "$IMAGES_DIR/context/$name/imagegen-worker"
        write_image "$name" "imagegen-worker:$version-$variant" "$stamp" worker.Containerfile --build-arg "LIBTORCH=$variant"
    fi
    report "$name"
}

build_model() {
    local model=${MODEL_DIR:-$ROOT/tests/models/emoji-zimage} unreadable name stamp
    [ -f "$model/model_index.json" ] || die "no model_index.json in $model, so it is no model in the diffusers folder layout; set MODEL_DIR"
    unreadable=$(find -L "$model" ! -perm -o=r -print -quit)
    [ -z "$unreadable" ] || die "$unreadable is not readable for others, so the worker's user 65532 could not read it: chmod -R o+rX $model"
    name=$(basename "$model" | tr '[:upper:]' '[:lower:]')
    stamp=$({ cat "$ROOT/deploy/model.Containerfile"; echo "$name"; cd "$model" && find -L . -type f -exec stat -L -c '%n %s %Y' {} + | sort; } | digest)
    if ! is_current "$name" "$stamp"; then
        note "Image of the model $name"
        new_context "$name"
        cp -rLl "$model/." "$IMAGES_DIR/context/$name" 2>/dev/null || cp -rL "$model/." "$IMAGES_DIR/context/$name"
        write_image "$name" "$name:1" "$stamp" model.Containerfile --build-arg "TITLE=$name"
    fi
    report "$name"
}

[ $# -gt 0 ] || set -- operator worker model
for image in "$@"; do
    case $image in
        operator | worker | model) "build_$image" ;;
        *) die "there is no image \"$image\": expected operator, worker or model" ;;
    esac
done
