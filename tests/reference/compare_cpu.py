"""ImageGen against diffusers on this machine's CPU: both in turns, same threads, float32, 8 steps, demo checkpoint.

    python tests/reference/compare_cpu.py BENCH_CPU [--threads N] [--images N] [--rounds N]

BENCH_CPU is the built example: cargo build --release -p imagegen-model --example bench_cpu. Each round runs one process of
each and gives one ratio of medians; the line for a size has the median ratio with its smallest and largest. ImageGen runs
with the OpenMP setting of its container image; diffusers runs once as it is, and once with that setting too.
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


# As in deploy/worker.Containerfile.
SETTING = {"GOMP_SPINCOUNT": "100000"}


def run(command: list[str], setting: dict, size: str, arguments: argparse.Namespace) -> dict:
    command = [*command, str(MODEL), size, "8", str(arguments.threads), str(arguments.images)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GOMP_", "OMP_"))} | setting
    output = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment).stdout
    return json.loads(output.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench_cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--images", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", nargs="+", default=["128x128", "256x256"])
    arguments = parser.parse_args()
    bench, diffusers = [arguments.bench_cpu], [sys.executable, str(HERE / "bench_cpu.py")]
    contenders = {"imagegen": (bench, SETTING), "diffusers": (diffusers, {}), "diffusers, same OpenMP": (diffusers, SETTING)}
    for size in arguments.sizes:
        every = {name: [] for name in contenders}
        ratios = {name: [] for name in contenders if name != "imagegen"}
        for _ in range(arguments.rounds):
            results = {name: run(*how, size, arguments) for name, how in contenders.items()}
            for name, result in results.items():
                every[name] += result["seconds"]
            medians = {name: statistics.median(result["seconds"]) for name, result in results.items()}
            for name, list_ in ratios.items():
                list_.append(medians["imagegen"] / medians[name])
        print(json.dumps({
            "size": size, "steps": 8, "threads": arguments.threads,
            "seconds": {name: spread(seconds) for name, seconds in every.items()},
            "ratio to": {name: spread(list_) for name, list_ in ratios.items()},
            "versions": {"libtorch": results["imagegen"]["libtorch"], "torch": results["diffusers"]["torch"],
                         "diffusers": results["diffusers"]["diffusers"]}}), flush=True)


def spread(values: list[float]) -> dict:
    return {"median": round(statistics.median(values), 3), "min": round(min(values), 3), "max": round(max(values), 3)}


if __name__ == "__main__":
    main()
