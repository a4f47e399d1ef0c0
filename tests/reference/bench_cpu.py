"""Seconds an image on the CPU with diffusers, as one line of JSON. worker/model/examples/bench_cpu.rs prints the same.

    python tests/reference/bench_cpu.py MODEL_DIR WIDTHxHEIGHT STEPS THREADS IMAGES
"""

import json
import sys
import time

import diffusers
import torch


def main() -> None:
    model_dir, size, steps, threads, images = sys.argv[1:6]
    width, height = map(int, size.split("x"))
    torch.set_num_threads(int(threads))
    started = time.perf_counter()
    pipeline = diffusers.ZImagePipeline.from_pretrained(model_dir, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    load_seconds = time.perf_counter() - started
    seconds = []
    for seed in range(int(images) + 1):
        generator = torch.Generator("cpu").manual_seed(seed)
        started = time.perf_counter()
        pipeline("a red apple", width=width, height=height, num_inference_steps=int(steps), guidance_scale=0.0,
                 generator=generator, output_type="np")
        # The first image warms up.
        if seed > 0:
            seconds.append(round(time.perf_counter() - started, 4))
    print(json.dumps({
        "engine": "diffusers", "diffusers": diffusers.__version__, "torch": torch.__version__, "threads": int(threads),
        "size": size, "steps": int(steps), "load_seconds": round(load_seconds, 3), "seconds": seconds}))


if __name__ == "__main__":
    main()
