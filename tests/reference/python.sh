#!/bin/sh
# python.sh SCRIPT [ARGUMENTS]: runs a script with the pinned Python reference (diffusers, transformers, torch on the CPU), which is
# installed into the cache folder when its versions are not there yet.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
cache=${IMAGEGEN_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/imagegen}
python=$cache/reference/bin/python
if ! "$python" -c 'import sys; from importlib.metadata import version
for line in open(sys.argv[1]):
    if "==" in line:
        name, wanted = line.strip().split("==")
        assert version(name) == wanted, (name, version(name), wanted)' "$here/requirements.txt" 2>/dev/null; then
    echo "Installing the Python reference into $cache/reference (torch and CUDA libraries, about 3 GB, some minutes)." >&2
    python3 -m venv "$cache/reference"
    "$python" -m pip install --quiet --disable-pip-version-check --requirement "$here/requirements.txt"
fi
exec "$python" "$@"
