"""Seconds from the start of a worker to ready, and its resident memory, as one line of JSON.

    python3 tests/reference/start_to_ready.py IMAGEGEN_WORKER [--starts N]
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

MODEL = Path(__file__).resolve().parent.parent / "models" / "emoji-zimage"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=1) as reply:
            return reply.status == 200
    except (urllib.error.URLError, ConnectionError):
        return False


def start(worker: str) -> tuple[float, float]:
    """Seconds to ready, and MiB resident then."""
    port = free_port()
    environment = os.environ | {"GOMP_SPINCOUNT": "100000"}
    began = time.perf_counter()
    process = subprocess.Popen(
        [worker, "serve", "--model", str(MODEL), "--listen", f"127.0.0.1:{free_port()}", "--http-listen", f"127.0.0.1:{port}"],
        env=environment, stderr=subprocess.DEVNULL)
    try:
        while not is_ready(port):
            if process.poll() is not None:
                raise SystemExit(f"the worker ended with {process.returncode} before it was ready")
        seconds = time.perf_counter() - began
        status = Path(f"/proc/{process.pid}/status").read_text()
        resident = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))
        return seconds, resident / 1024
    finally:
        process.terminate()
        process.wait()


def spread(values: list[float]) -> dict:
    return {"median": round(statistics.median(values), 3), "min": round(min(values), 3), "max": round(max(values), 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("worker")
    parser.add_argument("--starts", type=int, default=7)
    arguments = parser.parse_args()
    starts = [start(arguments.worker) for _ in range(arguments.starts)]
    print(json.dumps({"seconds to ready": spread([seconds for seconds, _ in starts]),
                      "resident MiB": spread([resident for _, resident in starts])}))


if __name__ == "__main__":
    main()
