# Sourced after lib.sh: the images' folder, and buildah with storage of its own, so that nothing else on the machine is touched.
# shellcheck shell=bash
umask 022
IMAGES_DIR=$CACHE/images
mkdir -p "$IMAGES_DIR/context"

for tool in buildah mmdebstrap readelf; do
    command -v "$tool" >/dev/null || die "$tool is missing; on Debian: apt-get install buildah mmdebstrap binutils"
done
need_root "Building container images (buildah's image storage and chroot isolation)"

export BUILDAH_ISOLATION=chroot
buildah() { command buildah --root "$IMAGES_DIR/storage" --runroot "$IMAGES_DIR/run" --storage-driver "$driver" "$@"; }
# overlay where the file system allows it: vfs copies every layer whole.
driver=overlay
if [ -s "$IMAGES_DIR/driver" ]; then
    driver=$(<"$IMAGES_DIR/driver")
else
    buildah info >/dev/null 2>&1 || driver=vfs
    echo "$driver" >"$IMAGES_DIR/driver"
fi

exec 9>"$IMAGES_DIR/.lock"
flock -w 900 9 || die "another build of images has held $IMAGES_DIR/.lock for 15 minutes"
