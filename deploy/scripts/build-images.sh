#!/usr/bin/env bash
# Builds the product's container images with buildah and writes each as a docker-archive tar that containerd and podman import.
# An image whose inputs did not change is left alone, so a second run takes about a second.
#
# usage: build-images.sh [--push PREFIX] IMAGE...        IMAGE: operator | worker | model
#   --push PREFIX   also push to PREFIX/NAME:TAG
#
# Environment, with defaults:
#   OPERATOR_BINARY, WORKER_BINARY   the built programs (no default)
#   MODEL_DIR                        a diffusers folder (tests/models/emoji-zimage); its image is localhost/<folder's name>:1
#   LIBTORCH_VARIANT                 cpu | cuda (cpu)
#   LIBTORCH_DIR                     the folder with torch/lib and nvidia/*/lib (<cache>/libtorch-2.5.1)
#   DEBIAN_SUITE                     what the base image is made of (this machine's Debian release, or bookworm); no older than where the programs were built
#   REBUILD_BASE=1                   make the base again, for security updates
# Result: <cache>/images/*.tar, and on standard output one line an image: its reference, a tab, the tar's path.
set -euo pipefail
umask 022

repository=$(cd "$(dirname "$0")/../.." && pwd)
scripts=$repository/deploy/scripts
cache=${IMAGEGEN_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/imagegen}
images=$cache/images
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' "$repository/Cargo.toml")
variant=${LIBTORCH_VARIANT:-cpu}
libtorch=${LIBTORCH_DIR:-$cache/libtorch-2.5.1}
suite=${DEBIAN_SUITE:-$(. /etc/os-release && [ "$ID" = debian ] && echo "$VERSION_CODENAME" || echo bookworm)}
base=localhost/imagegen-base:$suite

die() { echo "build-images: $*" >&2; exit 1; }
say() { echo "build-images: $*" >&2; }

push=
[ "${1:-}" = --push ] && { push=${2:?--push needs a prefix, such as registry.example/team}; shift 2; }
[ $# -gt 0 ] || die "name what to build: operator, worker, model"
for tool in buildah mmdebstrap readelf; do
    command -v "$tool" >/dev/null || die "$tool is missing; on Debian: apt-get install buildah mmdebstrap binutils"
done
[ "$(id -u)" = 0 ] || die "building images needs root (buildah's chroot isolation and image storage)"

mkdir -p "$images/context"
exec 9>"$images/.lock"
flock -w 900 9 || die "another build holds $images/.lock for 15 minutes"

# Storage of its own, so that nothing else on the machine is touched. overlay where the file system allows it: vfs copies every layer whole.
export BUILDAH_ISOLATION=chroot
buildah() { command buildah --root "$images/storage" --runroot "$images/run" --storage-driver "$driver" "$@"; }
choose_driver() {
    driver=overlay
    [ -s "$images/driver" ] && { driver=$(<"$images/driver"); return; }
    buildah info >/dev/null 2>&1 || driver=vfs
    echo "$driver" >"$images/driver"
}
choose_driver

digest() { sha256sum | cut -c1-32; }

# True when $1's stamp holds $2 and its tar is there.
is_current() { [ -s "$images/$1.tar" ] && [ "$(cat "$images/$1.stamp" 2>/dev/null)" = "$2" ]; }

build_base() {
    local stamp
    stamp=$(cat "$scripts/build-base.sh" <(echo "$suite") | digest)
    if [ "${REBUILD_BASE:-0}" != 1 ] && [ -s "$images/base-$suite.rootfs" ] && [ "$(cat "$images/base-$suite.stamp" 2>/dev/null)" = "$stamp" ] \
        && buildah inspect --type image "$base" >/dev/null 2>&1; then
        return
    fi
    say "base image of Debian $suite (about 10 seconds)"
    "$scripts/build-base.sh" "$suite" "$images/base-$suite.rootfs"
    local context=$images/context/base
    rm -rf "$context" && mkdir -p "$context"
    ln "$images/base-$suite.rootfs" "$context/rootfs.tar"
    printf 'FROM scratch\nADD rootfs.tar /\n' >"$context/Containerfile"
    buildah bud --quiet --layers --timestamp 0 --tag "$base" "$context" >/dev/null
    echo "$stamp" >"$images/base-$suite.stamp"
}

base_id() { buildah inspect --type image --format '{{.FromImageID}}' "$base"; }

# Builds the context folder $images/context/FILE into FILE.tar: write_image FILE REFERENCE STAMP CONTAINERFILE BUILDAH_ARGS...
write_image() {
    local name=$1 reference=localhost/$2 stamp=$3 containerfile=$4
    shift 4
    buildah bud --quiet --layers --timestamp 0 --pull-never --build-arg "BASE=$base" --build-arg "VERSION=$version" "$@" \
        --file "$repository/deploy/$containerfile" --tag "$reference" "$images/context/$name" >/dev/null
    [ "$containerfile" = model.Containerfile ] || check_program "$reference"
    rm -f "$images/$name.part"
    buildah push --quiet "$reference" "docker-archive:$images/$name.part:$reference"
    mv "$images/$name.part" "$images/$name.tar"
    echo "$stamp" >"$images/$name.stamp"
    # What the tag named before.
    buildah rmi --prune >/dev/null
}

# Runs the image's program inside the image: every library it needs must resolve there.
check_program() {
    local container output
    container=$(buildah from --pull-never "$1")
    local program
    program=$(buildah inspect --format '{{index .OCIv1.Config.Entrypoint 0}}' "$container")
    if ! output=$(buildah run "$container" -- "$program" --version 2>&1); then
        buildah rm "$container" >/dev/null
        die "$1: $program --version fails inside the image: $output
GLIBC not found: the program was built on a newer system than Debian $suite; set DEBIAN_SUITE to that system's release"
    fi
    buildah rm "$container" >/dev/null
    say "$1: $output"
}

# report FILE REFERENCE
report() {
    local reference=localhost/$2
    if [ -n "$push" ]; then
        reference=$push/$2
        say "pushing $reference"
        buildah push --quiet "localhost/$2" "docker://$reference" >&2
    fi
    printf '%s\t%s\n' "$reference" "$images/$1.tar"
}

new_context() { rm -rf "$images/context/$1" && mkdir -p "$images/context/$1"; }

# A hard link where the file systems allow it: the libraries are large.
place() { mkdir -p "$(dirname "$2")" && { ln -L "$1" "$2" 2>/dev/null || cp -L "$1" "$2"; }; }

need_program() { [ -x "${!1:-}" ] || die "$1 must name the built program${!1:+; ${!1} is no executable file}"; }

build_operator() {
    need_program OPERATOR_BINARY
    local stamp
    stamp=$({ cat "$repository/deploy/operator.Containerfile" "$OPERATOR_BINARY"; base_id; echo "$version"; } | digest)
    if ! is_current imagegen-operator "$stamp"; then
        say "image of the operator"
        new_context imagegen-operator
        place "$OPERATOR_BINARY" "$images/context/imagegen-operator/imagegen-operator"
        write_image imagegen-operator "imagegen-operator:$version" "$stamp" operator.Containerfile
    fi
    report imagegen-operator "imagegen-operator:$version"
}

libraries() {
    case $variant in
    cpu) "$scripts/library-closure.sh" "$WORKER_BINARY" "$libtorch" "$images/base-$suite.rootfs" ;;
    cuda)
        ls "$libtorch"/nvidia/cudnn/lib/libcudnn.so.* >/dev/null 2>&1 || die "no cuDNN under $libtorch/nvidia: run make libtorch-cuda first"
        # Python's own extension serves no program of ours.
        (cd "$libtorch" && find torch/lib nvidia/*/lib -maxdepth 1 -name '*.so*' ! -name 'libtorch_python.so' | sort)
        ;;
    *) die "LIBTORCH_VARIANT is cpu or cuda, not \"$variant\"" ;;
    esac
}

build_worker() {
    need_program WORKER_BINARY
    [ -d "$libtorch/torch/lib" ] || die "no libtorch at $libtorch: run make libtorch first, or set LIBTORCH_DIR to a folder with torch/lib and nvidia/*/lib"
    local name=imagegen-worker-$variant list stamp
    list=$(libraries)
    stamp=$({ cat "$repository/deploy/worker.Containerfile" "$WORKER_BINARY"; base_id; echo "$version $variant"; (cd "$libtorch" && stat -L -c '%n %s %Y' $list); } | digest)
    if ! is_current "$name" "$stamp"; then
        say "image of the worker with libtorch for $variant (about $([ "$variant" = cpu ] && echo "15 seconds" || echo "3 minutes"))"
        new_context "$name"
        local library
        for library in $list; do
            place "$libtorch/$library" "$images/context/$name/libtorch-$variant/$library"
        done
        local license
        for license in "$libtorch"/torch-*.dist-info/{LICENSE,NOTICE} "$libtorch"/nvidia_*.dist-info/License.txt; do
            [ -e "$license" ] && place "$license" "$images/context/$name/libtorch-$variant/licenses/${license#"$libtorch"/}"
        done
        place "$WORKER_BINARY" "$images/context/$name/imagegen-worker"
        write_image "$name" "imagegen-worker:$version-$variant" "$stamp" worker.Containerfile --build-arg "LIBTORCH=$variant"
    fi
    report "$name" "imagegen-worker:$version-$variant"
}

build_model() {
    local model=${MODEL_DIR:-$repository/tests/models/emoji-zimage}
    [ -f "$model/model_index.json" ] || die "MODEL_DIR: no model_index.json in $model, so it is no model in the diffusers folder layout"
    local unreadable
    unreadable=$(find -L "$model" ! -perm -o=r -print -quit)
    [ -z "$unreadable" ] || die "$unreadable is not readable for others, so the worker's user 65532 could not read it: chmod -R o+rX $model"
    local name stamp
    name=$(basename "$model" | tr '[:upper:]' '[:lower:]')
    stamp=$({ cat "$repository/deploy/model.Containerfile"; echo "$name"; (cd "$model" && find -L . -type f -exec stat -L -c '%n %s %Y' {} + | sort); } | digest)
    if ! is_current "$name" "$stamp"; then
        say "image of the model $name"
        new_context "$name"
        cp -rLl "$model/." "$images/context/$name" 2>/dev/null || cp -rL "$model/." "$images/context/$name"
        write_image "$name" "$name:1" "$stamp" model.Containerfile --build-arg "TITLE=$name"
    fi
    report "$name" "$name:1"
}

case " $* " in *" operator "* | *" worker "*) build_base ;; esac
for image in "$@"; do
    case $image in
    operator | worker | model) "build_$image" ;;
    *) die "there is no image \"$image\": operator, worker or model" ;;
    esac
done
