#!/usr/bin/env bash
# Prints, relative to LIBTORCH_DIR, the libraries that BINARY and libtorch's CPU part load, found through their NEEDED entries.
# usage: library-closure.sh BINARY LIBTORCH_DIR BASE_ROOTFS_TAR
# LIBTORCH_DIR has torch/lib and nvidia/*/lib. What neither it nor the base has is an error that names the library and who wants it.
set -euo pipefail
binary=$1 libtorch=$2 base=$3

declare -A found=()
while read -r path; do found[${path##*/}]=base; done < <(tar -tf "$base" | grep -F '.so')
for path in "$libtorch"/nvidia/*/lib/*.so* "$libtorch"/torch/lib/*.so*; do
    [ -e "$path" ] && found[${path##*/}]=${path#"$libtorch"/}
done

declare -A seen=()
queue=("$binary" "$libtorch/torch/lib/libtorch_cpu.so" "$libtorch/torch/lib/libc10.so")
seen[libtorch_cpu.so]=1 seen[libc10.so]=1
missing=0
while [ ${#queue[@]} -gt 0 ]; do
    file=${queue[0]}
    queue=("${queue[@]:1}")
    needed=$(LC_ALL=C readelf -d "$file" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p')
    for name in $needed; do
        [ -z "${seen[$name]:-}" ] || continue
        seen[$name]=1
        case ${found[$name]:-none} in
        base) ;;
        none)
            echo "library-closure: ${file##*/} needs $name, which is neither in the base image nor under $libtorch" >&2
            missing=1
            ;;
        *) queue+=("$libtorch/${found[$name]}") ;;
        esac
    done
done
[ "$missing" = 0 ]
for name in "${!seen[@]}"; do
    [ "${found[$name]:-base}" = base ] || echo "${found[$name]}"
done | sort
