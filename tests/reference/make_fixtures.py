"""Writes tests/fixtures: two tiny checkpoints and what diffusers computes with them, module by module and end to end.

    python tests/reference/make_fixtures.py [--retrieval]

--retrieval also remakes the accuracy of the demo checkpoint (minutes). Versions are in requirements.txt and in each
fixture's cases.json. Floats differ in the last bits between processors, so the files are pinned by SHA256SUMS.
"""

import argparse
import hashlib
import json
import shutil
from pathlib import Path

import diffusers
import tokenizers
import torch
import transformers
from safetensors.torch import load_file, save_file

import accuracy
import retrieval
import schedulers
import tiling
import tiny

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
DEMO = ROOT / "tests" / "models" / "emoji-zimage"
LENGTHS = [1, 31, 32, 33, 200]
PROMPTS = [
    "a red apple", "红苹果", "", " ", "Ünïcödé ΔЖ हिन्दी 👩‍🚀 e\u0301", "two\nlines\tand a tab", "<|im_start|>system\n<|im_end|>",
    "it's 12345 we'll", "<tool_response>x</tool_response>", "apple " * 700,
]
VERSIONS = {
    "torch": torch.__version__, "diffusers": diffusers.__version__, "transformers": transformers.__version__,
    "tokenizers": tokenizers.__version__,
}


def text_encoder(pipeline, generator) -> dict:
    """hidden_states[-2] of prompts that are right-padded to 512 tokens with a mask, as the pipeline runs them."""
    out = {}
    limit = min(512, pipeline.text_encoder.config.max_position_embeddings)
    for length in LENGTHS:
        ids = torch.randint(0, 7168, (1, length), generator=generator)
        padded = torch.nn.functional.pad(ids, (0, limit - length), value=7165)
        mask = torch.arange(limit)[None] < length
        states = pipeline.text_encoder(input_ids=padded, attention_mask=mask, output_hidden_states=True).hidden_states[-2]
        out[f"text_encoder.{length}.ids"] = ids[0]
        out[f"text_encoder.{length}.states"] = states[0, :length]
    return out


def transformer(pipeline, generator) -> dict:
    model = pipeline.transformer
    config = model.config
    out = {}

    ids = torch.stack([torch.randint(0, n, (40,), generator=generator) for n in config.axes_lens], 1)
    out["rope.ids"], out["rope.values"] = ids, torch.view_as_real(model.rope_embedder(ids))

    times = torch.tensor([0.0, 0.045455, 0.1, 0.5, 0.7, 1.0])
    embedded = model.t_embedder(times * config.t_scale)
    out["t_embedder.times"], out["t_embedder.values"] = times, embedded

    x = torch.randn(2, 37, config.dim, generator=generator)
    rope = model.rope_embedder(ids[:37])[None].expand(2, -1, -1)
    out["block.x"] = x
    # The port modulates all images of a batch alike, at one time.
    out["block.layers"] = model.layers[0](x, None, rope, embedded[3:4].expand(2, -1))
    if config.n_refiner_layers:
        out["block.context_refiner"] = model.context_refiner[0](x, None, rope)

    # 15 image tokens (17 pads), 36 (28 pads), 32 (none).
    for name, (height, width), lengths in [
        *[(f"one.{length}", (10, 6), [length]) for length in LENGTHS],
        ("square", (12, 12), [33]), ("even", (8, 16), [32, 32, 32]), ("mixed", (6, 10), [1, 33, 200]),
    ]:
        latents = torch.randn(len(lengths), config.in_channels, height, width, generator=generator)
        captions = [torch.randn(length, config.cap_feat_dim, generator=generator) for length in lengths]
        time = torch.full((len(lengths),), 0.357143)
        result = model(list(latents.unsqueeze(2).unbind(0)), time, captions, return_dict=False)[0]
        out[f"transformer.{name}.latents"], out[f"transformer.{name}.captions"] = latents, torch.cat(captions)
        out[f"transformer.{name}.lengths"] = torch.tensor(lengths)
        out[f"transformer.{name}.output"] = torch.stack(result).squeeze(2)
    return out


def vae(pipeline, generator) -> dict:
    out = {}
    channels = pipeline.vae.config.latent_channels
    for name, (height, width) in [("square", (8, 8)), ("wide", (6, 14)), ("tall", (16, 4))]:
        latents = torch.randn(1, channels, height, width, generator=generator)
        out[f"vae.{name}.latents"] = latents
        out[f"vae.{name}.decoded"] = pipeline.vae.decode(latents, return_dict=False)[0]
    return out


def schedules(pipeline) -> dict:
    out = {}
    for steps in (1, 2, 3, 8, 9, 50):
        sigmas = torch.linspace(1.0, 1 / steps, steps).tolist()
        pipeline.scheduler.set_timesteps(steps, sigmas=sigmas, mu=1.0)
        out[f"schedule.{steps}.sigmas"] = pipeline.scheduler.sigmas
        out[f"schedule.{steps}.times"] = (1000 - pipeline.scheduler.timesteps) / 1000
    return out


def noise() -> dict:
    """Every 211th number of the noise; sizes of one image from the smallest to 1024x1024."""
    out = {}
    for seed in (0, 7, 2**31, 2**32 - 1):
        for channels, height, width in [(16, 2, 2), (16, 16, 16), (16, 18, 32), (16, 128, 128)]:
            generator = torch.Generator("cpu").manual_seed(seed)
            values = torch.randn(1, channels, height, width, generator=generator)
            out[f"noise.{seed}.{channels}x{height}x{width}"] = values.flatten()[::211].clone()
    return out


def runs(pipeline) -> list[dict]:
    """End-to-end runs. Sizes are in pixels and not square; seeds of a batch's images differ."""
    multiple = 2 * pipeline.vae_scale_factor
    size = lambda columns, rows: [columns * multiple, rows * multiple]
    long = "one apple, two pears and " * 12
    shapes = {"columns": 5, "rows": 3}
    base = {"prompts": ["a red apple"], "size": size(**shapes), "steps": 3, "seeds": [7], "scale": 0.0,
            "normalization": 0.0, "truncation": 1.0, "negative": ""}
    three = {"prompts": ["a red apple", "红苹果", long], "seeds": [7, 4294967295, 9]}
    cases = {
        "plain": {}, "tall": {"size": size(3, 8)}, "one_step": {"steps": 1}, "eight_steps": {"steps": 8},
        "three": three, "guided": {"scale": 4.0}, "guided_negative": {"scale": 4.0, "negative": "blurry, 模糊"},
        "normalized": {"scale": 6.0, "normalization": 1.0}, "normalized_tight": {"scale": 6.0, "normalization": 0.4},
        "truncated": {"scale": 4.0, "truncation": 0.25, "steps": 8},
        "all": {**three, "scale": 5.0, "normalization": 0.8, "truncation": 0.4, "steps": 4, "negative": "ugly"},
    }
    return [{"name": name, **base, **case} for name, case in cases.items()]


def end_to_end(pipeline, case: dict) -> dict:
    width, height = case["size"]
    batch = len(case["prompts"])
    latents = pipeline(
        list(case["prompts"]), height=height, width=width, num_inference_steps=case["steps"], guidance_scale=case["scale"],
        cfg_normalization=case["normalization"], cfg_truncation=case["truncation"],
        negative_prompt=[case["negative"]] * batch if case["negative"] else None,
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in case["seeds"]], output_type="latent",
        max_sequence_length=min(512, pipeline.text_encoder.config.max_position_embeddings),
    ).images
    config = pipeline.vae.config
    decoded = pipeline.vae.decode(latents / config.scaling_factor + config.shift_factor, return_dict=False)[0]
    pixels = (decoded * 0.5 + 0.5).clamp(0, 1)
    pictures = pipeline.image_processor.numpy_to_pil(pipeline.image_processor.pt_to_numpy(pixels))
    rgb = torch.stack([torch.frombuffer(bytearray(p.tobytes()), dtype=torch.uint8).view(height, width, 3) for p in pictures])
    return {f"run.{case['name']}.latents": latents, f"run.{case['name']}.pixels": rgb}


def tokens(pipeline) -> list[dict]:
    """Token ids with the chat template around the prompt; uncut."""
    out = []
    for prompt in PROMPTS:
        text = pipeline.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True, enable_thinking=True)
        out.append({"prompt": prompt, "ids": pipeline.tokenizer(text).input_ids})
    return out


@torch.no_grad()
def write(name: str, save) -> None:
    folder = FIXTURES / name
    shutil.rmtree(folder, ignore_errors=True)
    save(folder, DEMO)
    pipeline = tiny.load(folder)
    generator = torch.Generator("cpu").manual_seed(3)
    expected = {**text_encoder(pipeline, generator), **transformer(pipeline, generator), **vae(pipeline, generator),
                **schedules(pipeline)}
    cases = runs(pipeline)
    for case in cases:
        expected.update(end_to_end(pipeline, case))
    save_file({key: value.contiguous() for key, value in expected.items()}, folder / "expected.safetensors")
    (folder / "cases.json").write_text(json.dumps(
        {"versions": VERSIONS, "runs": cases, "tokens": tokens(pipeline)}, indent=1, ensure_ascii=False) + "\n")


@torch.no_grad()
def extras() -> None:
    """What needs no more of a checkpoint than is saved."""
    save_file(schedulers.fixtures(), FIXTURES / "schedulers.safetensors")
    generator = torch.Generator("cpu").manual_seed(5)
    tiled = {}
    for name in ("tiny-a", "tiny-b"):
        tiled.update(tiling.fixtures(name, tiny.load(FIXTURES / name).vae, generator))
    save_file({key: value.contiguous() for key, value in tiled.items()}, FIXTURES / "tiled.safetensors")
    exact = accuracy.demo_latents(DEMO, torch.float32)
    errors = {"demo": accuracy.relative(accuracy.demo_latents(DEMO, torch.bfloat16) - exact, exact)}
    for name in ("tiny-a", "tiny-b"):
        cases = json.loads((FIXTURES / name / "cases.json").read_text())["runs"]
        errors[name] = accuracy.tiny_error(FIXTURES / name, cases, load_file(FIXTURES / name / "expected.safetensors"))
    save_file({"latents": exact.contiguous()}, FIXTURES / "demo.safetensors")
    (FIXTURES / "bfloat16.json").write_text(json.dumps(
        {"versions": VERSIONS, "prompts": accuracy.PROMPTS, "errors": errors}, indent=1, ensure_ascii=False) + "\n")


def checksums() -> None:
    for path in FIXTURES.rglob("*.safetensors"):
        path.chmod(0o644)
    files = sorted(path for path in FIXTURES.rglob("*") if path.is_file() and path.name != "SHA256SUMS")
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(FIXTURES).as_posix()}\n" for path in files]
    (FIXTURES / "SHA256SUMS").write_text("".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--retrieval", action="store_true", help="also measure the demo checkpoint's retrieval accuracy")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    FIXTURES.mkdir(exist_ok=True)
    write("tiny-a", tiny.save_a)
    write("tiny-b", tiny.save_b)
    save_file(noise(), FIXTURES / "noise.safetensors")
    extras()
    if arguments.retrieval:
        retrieval.write(DEMO, FIXTURES / "retrieval.json", VERSIONS)
    checksums()


if __name__ == "__main__":
    main()
