"""Two tiny random checkpoints, as different from each other as the layout allows.

Dimensions are chosen so that integer shortcuts show: no transformer width is divisible by 3, one is above the 256 of the
timestep embedding, head sizes are not hidden size / heads, block counts of the VAEs differ from each other and from 4.
"""

import json
import math
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM, Qwen3Model

# The constructs of the template that Qwen3 checkpoints ship: namespaces, reversed slices, Python's string methods.
QWEN3_STYLE_TEMPLATE = r"""{%- if tools %}
    {{- '<|im_start|>system\n' + (tools | tojson) + '<|im_end|>\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {%- if loop.last or (not loop.last and reasoning_content) %}
            {{- '<|im_start|>' + message.role + '\n<think>\n' + reasoning_content.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}
"""


def randomise(module: torch.nn.Module, generator: torch.Generator) -> None:
    """Weights that keep activations near 1 and make every path count, norms and pad tokens included."""
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "pad_token" in name or "embed_tokens" in name:
            values = noise
        elif parameter.ndim == 1:
            values = 1 + 0.2 * noise if name.endswith("weight") else 0.2 * noise
        else:
            values = noise / math.sqrt(parameter[0].numel())
        parameter.data.copy_(values)
    module.eval()


def transformer(generator: torch.Generator, **config) -> ZImageTransformer2DModel:
    model = ZImageTransformer2DModel(**config)
    randomise(model, generator)
    return model


def save_a(folder: Path, demo: Path) -> None:
    """Written by transformers 5: one file a network, bare Qwen3Model, template in chat_template.jinja."""
    generator = torch.Generator("cpu").manual_seed(1)
    encoder = Qwen3Model(Qwen3Config(
        vocab_size=7168, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=12, max_position_embeddings=1024, rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6}))
    randomise(encoder, generator)
    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2, block_out_channels=[16, 32],
        layers_per_block=1, latent_channels=16, norm_num_groups=8, scaling_factor=0.3611, shift_factor=0.1159,
        use_quant_conv=False, use_post_quant_conv=False)
    randomise(vae, generator)
    pipeline = ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=vae.to(torch.bfloat16),
        text_encoder=encoder.to(torch.bfloat16), tokenizer=AutoTokenizer.from_pretrained(demo / "tokenizer"),
        transformer=transformer(
            generator, all_patch_size=[2], all_f_patch_size=[1], in_channels=16, dim=32, n_layers=2, n_refiner_layers=1,
            n_heads=2, n_kv_heads=2, norm_eps=1e-5, qk_norm=True, cap_feat_dim=16, rope_theta=256.0, t_scale=1000.0,
            axes_dims=[8, 4, 4], axes_lens=[576, 64, 64]).to(torch.bfloat16))
    pipeline.save_pretrained(folder)


def save_b(folder: Path, demo: Path) -> None:
    """Written as by transformers 4: sharded, Qwen3ForCausalLM with its `model.` names, attention with bias, rope_theta in the
    config, Qwen3's template in tokenizer_config.json. The VAE has a convolution before the decoder and no attention."""
    generator = torch.Generator("cpu").manual_seed(2)
    encoder = Qwen3ForCausalLM(Qwen3Config(
        vocab_size=7168, hidden_size=20, intermediate_size=28, num_hidden_layers=2, num_attention_heads=3,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=300, rms_norm_eps=1e-5, attention_bias=True,
        rope_parameters={"rope_type": "default", "rope_theta": 5e5}, tie_word_embeddings=True))
    randomise(encoder, generator)
    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 3, up_block_types=["UpDecoderBlock2D"] * 3, block_out_channels=[8, 16, 16],
        layers_per_block=2, latent_channels=8, norm_num_groups=4, scaling_factor=0.9, shift_factor=-0.05,
        use_quant_conv=True, use_post_quant_conv=True, mid_block_add_attention=False)
    randomise(vae, generator)
    ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0), vae=vae.to(torch.bfloat16),
        text_encoder=encoder.to(torch.bfloat16), tokenizer=AutoTokenizer.from_pretrained(demo / "tokenizer"),
        transformer=transformer(
            generator, all_patch_size=[2], all_f_patch_size=[1], in_channels=8, dim=260, n_layers=1, n_refiner_layers=0,
            n_heads=2, n_kv_heads=2, norm_eps=1e-4, qk_norm=True, cap_feat_dim=20, rope_theta=256.0, t_scale=1000.0,
            axes_dims=[42, 44, 44], axes_lens=[290, 48, 48]).to(torch.bfloat16),
    ).save_pretrained(folder, max_shard_size="1MB")
    shutil.rmtree(folder / "text_encoder")
    encoder.save_pretrained(folder / "text_encoder", max_shard_size="100KB")

    path = folder / "text_encoder" / "config.json"
    config = json.loads(path.read_text())
    config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
    config["torch_dtype"] = config.pop("dtype")
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    (folder / "tokenizer" / "chat_template.jinja").unlink()
    path = folder / "tokenizer" / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config["chat_template"] = [{"name": "default", "template": QWEN3_STYLE_TEMPLATE}]
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def load(folder: Path) -> ZImagePipeline:
    """The saved checkpoint in float32, as the port reads it."""
    pipeline = ZImagePipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
