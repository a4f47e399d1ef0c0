#!/usr/bin/env bash
# bench_gpu.sh PROGRAM [PEER_SCRIPT [OPTION...]]: the GPU bench in bfloat16 and in 8 bits and, on the same card in the same call, a Python
# script of the peer with its options.
set -euo pipefail
program=${1:?"bench_gpu.sh: which program?"}
shift

"$program" --check
"$program" --precision float8
[ $# = 0 ] || python3 "$@"
