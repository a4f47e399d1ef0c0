"""AutoencoderKL.tiled_decode on the tiny checkpoints, at the tile size of their vae/config.json."""

import torch


def fixtures(name: str, vae, generator: torch.Generator) -> dict:
    """Latents in units of a tile: larger on both sides, on one, with a last tile narrower than the blended strip."""
    out = {}
    vae.enable_tiling()
    tile = vae.tile_latent_min_size
    for case, (height, width) in {
        "both": (2 * tile, 2 * tile + 3), "wide": (tile - 2, 3 * tile), "tall": (tile + 1, tile), "small": (tile, tile - 1),
    }.items():
        latents = torch.randn(1, vae.config.latent_channels, height, width, generator=generator)
        out[f"{name}.{case}.latents"] = latents
        out[f"{name}.{case}.decoded"] = vae.decode(latents, return_dict=False)[0]
    vae.disable_tiling()
    return out
