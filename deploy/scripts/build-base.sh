#!/usr/bin/env bash
# Makes the root file system of the base image: C and C++ run time, certificates, user 65532. No shell, no package manager.
# usage: build-base.sh SUITE ROOTFS_TAR
set -euo pipefail
umask 022

PACKAGES=(libc6 libgcc-s1 libstdc++6 ca-certificates)

suite=${1:?usage: build-base.sh SUITE ROOTFS_TAR}
tar=${2:?usage: build-base.sh SUITE ROOTFS_TAR}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/rootfs
mkdir -p "$root"/usr/{bin,lib,lib64,sbin} "$root"/{dev,etc/ssl/certs,proc,sys,tmp,var/lib/dpkg/status.d,home/nonroot}
for merged in bin lib lib64 sbin; do ln -s "usr/$merged" "$root/$merged"; done

# The packages are unpacked, not installed: their scripts want a shell, and their dependencies a package manager.
# A status file for each tells vulnerability scanners what is inside.
cat >"$work/unpack" <<'UNPACK'
#!/bin/sh
set -eu
for package in $PACKAGES; do
    deb=$(ls "$1"/var/cache/apt/archives/"$package"_*.deb)
    dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$ROOTFS" --keep-directory-symlink
    dpkg-deb --field "$deb" >"$ROOTFS/var/lib/dpkg/status.d/$package"
done
UNPACK
chmod +x "$work/unpack"
include=$(IFS=,; echo "${PACKAGES[*]}")
PACKAGES="${PACKAGES[*]}" ROOTFS=$root mmdebstrap --quiet --variant=extract --include="$include" --format=null \
    --extract-hook="$work/unpack \"\$1\"" "$suite" /dev/null

cat "$root"/usr/share/ca-certificates/mozilla/*.crt >"$root/etc/ssl/certs/ca-certificates.crt"
echo 'root:x:0:0:root:/:/sbin/nologin
nonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin' >"$root/etc/passwd"
echo 'root:x:0:
nonroot:x:65532:' >"$root/etc/group"
echo 'hosts: files dns' >"$root/etc/nsswitch.conf"
chmod 1777 "$root/tmp"

# Licences stay (usr/share/doc/*/copyright); manuals, locales, character set tables and scripts go.
find "$root/usr/share/doc" -type f ! -name copyright -delete
find "$root/usr/share/doc" -type l -delete
find "$root/usr/share/doc" -type d -empty -delete
(
    cd "$root"
    rm -rf usr/share/{bug,ca-certificates,gcc,gdb,lintian,locale,man} usr/bin/* usr/sbin/* etc/{ca-certificates,ld.so.conf.d,ld.so.conf} \
        usr/lib/x86_64-linux-gnu/gconv var/cache var/log
)

tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -C "$root" -cf "$tar.part" .
mv "$tar.part" "$tar"
