#!/usr/bin/env bash
# tree.sh VERSION: a folder of links to the checkout in the cache folder, whose Cargo.lock is the committed one for that libtorch.
. "$(dirname "$0")/lib.sh"

version=${1:?"tree.sh: which libtorch version?"}
lock=$ROOT/Cargo-$version.lock
[ -f "$lock" ] || die "there is no Cargo-$version.lock: libtorch $version is not one of the versions this project is built with"
tree=$CACHE/tree-$version
mkdir -p "$tree"
find "$tree" -mindepth 1 -maxdepth 1 -type l -delete
for entry in "$ROOT"/*; do
    case ${entry##*/} in
        Cargo*.lock | target) ;;
        *) ln -s "$entry" "$tree/" ;;
    esac
done
ln -s "$lock" "$tree/Cargo.lock"
