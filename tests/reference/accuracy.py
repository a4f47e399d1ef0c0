"""What bfloat16 costs in diffusers: the error of the final latents against float32, as a part of their size."""

import torch
from diffusers import ZImagePipeline

PROMPTS = ["a red apple", "红苹果", "a cat face", "a banana", "the sun", "a rocket", "a tree", "a red heart"]


def demo_latents(folder, dtype: torch.dtype) -> torch.Tensor:
    # The pipeline writes into the list that it is given.
    pipeline = ZImagePipeline.from_pretrained(folder, torch_dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        list(PROMPTS), height=128, width=128, num_inference_steps=8, guidance_scale=0.0, output_type="latent",
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in range(len(PROMPTS))]).images


def relative(errors: torch.Tensor, values: torch.Tensor) -> float:
    """Root of the mean squares, one by the other."""
    return (errors.square().sum() / values.square().sum()).sqrt().item()


def latents(pipeline, case: dict) -> torch.Tensor:
    width, height = case["size"]
    return pipeline(
        list(case["prompts"]), height=height, width=width, num_inference_steps=case["steps"], guidance_scale=case["scale"],
        cfg_normalization=case["normalization"], cfg_truncation=case["truncation"], output_type="latent",
        negative_prompt=[case["negative"]] * len(case["prompts"]) if case["negative"] else None,
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in case["seeds"]],
        max_sequence_length=min(512, pipeline.text_encoder.config.max_position_embeddings)).images


def tiny_error(folder, cases: list[dict], expected: dict) -> float:
    """Over all runs of a tiny checkpoint, whose latents in float32 are expected."""
    pipeline = ZImagePipeline.from_pretrained(folder, torch_dtype=torch.bfloat16)
    pipeline.set_progress_bar_config(disable=True)
    errors, values = [], []
    for case in cases:
        wanted = expected[f"run.{case['name']}.latents"]
        errors.append((latents(pipeline, case) - wanted).flatten())
        values.append(wanted.flatten())
    return relative(torch.cat(errors), torch.cat(values))
