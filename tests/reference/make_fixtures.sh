#!/bin/sh
# Remakes tests/fixtures with the pinned Python reference, which is kept in the cache folder.
# Arguments go to make_fixtures.py (--retrieval also measures the demo checkpoint, some minutes).
set -eu
here=$(cd "$(dirname "$0")" && pwd)
cache=${IMAGEGEN_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/imagegen}
python=$cache/reference/bin/python
# The versions that are there are the pinned ones, or they are installed.
if ! "$python" -c 'import sys; from importlib.metadata import version
for line in open(sys.argv[1]):
    if "==" in line:
        name, wanted = line.strip().split("==")
        assert version(name) == wanted, (name, version(name), wanted)' "$here/requirements.txt" 2>/dev/null; then
    echo "Installing the Python reference into $cache/reference (torch and CUDA libraries, about 3 GB, some minutes)."
    python3 -m venv "$cache/reference"
    "$python" -m pip install --quiet --disable-pip-version-check --requirement "$here/requirements.txt"
fi
exec "$python" "$here/make_fixtures.py" "$@"
