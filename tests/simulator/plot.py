"""plot.py FOLDER: draws FOLDER/scaling.png from the trace.csv and results.csv that the scaling bench wrote there."""

import csv
import statistics
import sys
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

SHOWN = ["ImageGen Operator mode", "HPA on GPU utilisation", "HPA on NVML used %", "HPA on queue length"]


def main() -> None:
    folder = Path(sys.argv[1])
    traces = defaultdict(list)
    with open(folder / "trace.csv", newline="") as file:
        for row in csv.DictReader(file):
            point = (float(row["seconds"]) / 60, float(row["load_workers"]), int(row["serving"]))
            traces[row["scenario"], row["autoscaler"]].append(point)
    results = defaultdict(list)
    with open(folder / "results.csv", newline="") as file:
        for row in csv.DictReader(file):
            results[row["scenario"], row["autoscaler"]].append(row)

    scenarios = ["steady", "diurnal", "bursts x10", "slow model load"]
    figure, axes = plt.subplots(len(scenarios), 2, figsize=(13, 14), width_ratios=[3, 1])
    for (left, right), scenario in zip(axes, scenarios):
        for name in SHOWN:
            points = traces[scenario, name]
            left.plot([p[0] for p in points], [p[2] for p in points], label=name, linewidth=1)
        points = traces[scenario, SHOWN[0]]
        left.plot([p[0] for p in points], [p[1] for p in points], "k--", label="load, in workers", linewidth=1)
        left.set_title(f"{scenario}: workers that serve")
        left.set_xlabel("minutes")
        for name in SHOWN:
            rows = results[scenario, name]
            hours = statistics.median(float(row["gpu_hours"]) for row in rows)
            wait = statistics.median(float(row["wait_p99_seconds"]) for row in rows)
            right.plot(hours, wait, "o", label=name)
        right.set_xlabel("GPU-hours")
        right.set_ylabel("P99 wait, s")
        right.set_xlim(left=0)
        right.set_ylim(bottom=0)
    axes[0][0].legend(fontsize=8, loc="upper left")
    figure.tight_layout()
    figure.savefig(folder / "scaling.png", dpi=80)


main()
