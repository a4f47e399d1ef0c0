#!/usr/bin/env bash
# libtorch.sh [2.5.1|2.11] [--cuda]: puts libtorch into the cache folder, unpacked from the wheels on PyPI, and prints
# the variables a build needs. Without --cuda it takes exactly what building for CPU and GPU and running on a CPU needs.
. "$(dirname "$0")/lib.sh"

version=2.5.1 cuda=
for argument in "$@"; do
    case $argument in
        2.5.1 | 2.11) version=$argument ;;
        --cuda) cuda=1 ;;
        *) die "libtorch.sh: expected 2.5.1, 2.11 or --cuda, found \"$argument\"" ;;
    esac
done

case $version in
    2.5.1)
        abi=0
        wheels="torch==2.5.1 nvidia-cuda-runtime-cu12==12.4.127 nvidia-cuda-cupti-cu12==12.4.127"
        header_wheels="nvidia-cuda-nvcc-cu12==12.4.131"
        compiler_wheels="nvidia-cuda-nvrtc-cu12==12.4.127"
        cuda_wheels="nvidia-cublas-cu12==12.4.5.8 nvidia-cudnn-cu12==9.1.0.70 nvidia-cufft-cu12==11.2.1.3
            nvidia-curand-cu12==10.3.5.147 nvidia-cusolver-cu12==11.6.1.9 nvidia-cusparse-cu12==12.3.1.170 nvidia-nccl-cu12==2.21.5
            nvidia-nvtx-cu12==12.4.127 nvidia-nvjitlink-cu12==12.4.127"
        ;;
    2.11)
        abi=1
        wheels="torch==2.11.0 nvidia-cuda-runtime==13.0.96 nvidia-cuda-cupti==13.0.85"
        header_wheels="nvidia-cuda-crt==13.0.88"
        compiler_wheels="nvidia-cuda-nvrtc==13.0.88"
        cuda_wheels="nvidia-cublas==13.1.0.3 nvidia-cudnn-cu13==9.19.0.56 nvidia-cufft==12.0.0.61
            nvidia-cufile==1.15.1.6 nvidia-curand==10.4.0.35 nvidia-cusolver==12.0.4.66 nvidia-cusparse==12.6.3.3 nvidia-cusparselt-cu13==0.8.0
            nvidia-nccl-cu13==2.28.9 nvidia-nvjitlink==13.0.88 nvidia-nvshmem-cu13==3.4.5 nvidia-nvtx==13.0.85"
        ;;
esac

folder=$CACHE/libtorch-$version

# unpack STAMP REQUIREMENT...: downloads wheels without their dependencies and unpacks them into $folder.
unpack() {
    local stamp=$folder/.$1 scratch
    shift
    [ -f "$stamp" ] && return
    scratch=$(mktemp -d "$CACHE/downloads/libtorch.XXXXXX")
    local tags=()
    for tag in manylinux1 manylinux2014 manylinux_2_17 manylinux_2_24 manylinux_2_25 manylinux_2_26 manylinux_2_27 manylinux_2_28; do tags+=(--platform "${tag}_x86_64"); done
    python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.11 --implementation cp "${tags[@]}" --dest "$scratch" "$@"
    mkdir -p "$folder"
    for wheel in "$scratch"/*.whl; do python3 -m zipfile -e "$wheel" "$folder"; done
    rm -r "$scratch"
    touch "$stamp"
}

# shellcheck disable=SC2086 # a list of words
[ -f "$folder/.cpu" ] || step "libtorch $version for the CPU" "1 min" unpack cpu $wheels
# The runtime's own headers include two of the compiler's.
# shellcheck disable=SC2086
[ -f "$folder/.headers" ] || step "CUDA headers for libtorch $version" "10 s" unpack headers $header_wheels
# The kernels' compiler needs no GPU: tests compile them for every architecture.
# shellcheck disable=SC2086
[ -f "$folder/.compiler" ] || step "CUDA compiler for libtorch $version" "10 s" unpack compiler $compiler_wheels
# shellcheck disable=SC2086
[ -z "$cuda" ] || [ -f "$folder/.cuda" ] || step "libtorch $version for CUDA" "3 min" unpack cuda $cuda_wheels
printf 'LIBTORCH=%s LIBTORCH_CXX11_ABI=%s\n' "$folder/torch" "$abi"
