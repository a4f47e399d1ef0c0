"""ImageGen against diffusers on this machine's CPU: both in turns, same threads, float32, 8 steps, demo checkpoint.

    python tests/reference/compare_cpu.py BENCH_CPU [--threads N] [--images N] [--rounds N]

BENCH_CPU is the built example: cargo build --release -p imagegen-model --example bench_cpu. Each round runs one process of
each and gives one ratio of medians; the last line for a size has the median ratio with its smallest and largest.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
MODEL = HERE.parent / "models" / "emoji-zimage"


def run(command: list[str], size: str, arguments: argparse.Namespace) -> dict:
    command = [*command, str(MODEL), size, "8", str(arguments.threads), str(arguments.images)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    return json.loads(output.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench_cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--images", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", nargs="+", default=["128x128", "256x256"])
    arguments = parser.parse_args()
    peers = {"imagegen": [arguments.bench_cpu], "diffusers": [sys.executable, str(HERE / "bench_cpu.py")]}
    for size in arguments.sizes:
        ratios, every = [], {name: [] for name in peers}
        for _ in range(arguments.rounds):
            round_ = {name: run(command, size, arguments) for name, command in peers.items()}
            for name, result in round_.items():
                every[name] += result["seconds"]
            medians = {name: statistics.median(result["seconds"]) for name, result in round_.items()}
            ratios.append(medians["imagegen"] / medians["diffusers"])
        spread = {name: {"median": statistics.median(s), "min": min(s), "max": max(s)} for name, s in every.items()}
        print(json.dumps({
            "size": size, "steps": 8, "threads": arguments.threads, "seconds": spread,
            "ratio": {"median": round(statistics.median(ratios), 3), "min": round(min(ratios), 3), "max": round(max(ratios), 3)},
            "versions": {"libtorch": round_["imagegen"]["libtorch"], "torch": round_["diffusers"]["torch"],
                         "diffusers": round_["diffusers"]["diffusers"]}}))


if __name__ == "__main__":
    main()
