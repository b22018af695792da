"""Two tiny base models with the real architecture: sd1 (as SD1.5) and sd2 (as SD2.1: linear projections, heads by
stage, erf GELU, v prediction). Weights come from their names (golden.py, draw), so no weights are stored: tests/tiny.c
draws the same. Run as a script, it writes the list of all tensors, tests/reference/tiny.txt:

    sd1 unet conv_in.weight model.diffusion_model.input_blocks.0.0.weight 32 4 3 3

with the name that it has in a checkpoint of the original layout (- for sd2). sd1 has a ControlNet too, "control";
"control2" is the same with other weights, and not in the list.
"""
import os
import re
import sys

import numpy as np
import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from golden import draw

HERE = os.path.dirname(os.path.abspath(__file__))

UNET = dict(sample_size=8, block_out_channels=(32, 64, 64, 96), layers_per_block=2, cross_attention_dim=64,
            down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3)
CONFIG = {
    "sd1": dict(
        unet=dict(UNET, attention_head_dim=8),
        vae=dict(block_out_channels=(32, 64, 64, 96), layers_per_block=2, latent_channels=4, sample_size=64,
                 down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4),
        text=dict(vocab_size=49408, hidden_size=64, intermediate_size=112, num_hidden_layers=3, num_attention_heads=1,
                  max_position_embeddings=77, hidden_act="quick_gelu"),
    ),
    "sd2": dict(
        unet=dict(UNET, attention_head_dim=(2, 4, 4, 6), use_linear_projection=True),
        vae=dict(block_out_channels=(32, 64), layers_per_block=1, latent_channels=4, sample_size=32,
                 down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2),
        text=dict(vocab_size=49408, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
                  max_position_embeddings=77, hidden_act="gelu"),
    ),
}
CONTROL = dict({k: v for k, v in UNET.items() if k not in ("sample_size", "up_block_types")}, attention_head_dim=8,
               conditioning_embedding_out_channels=(8, 16, 16, 32))


def values(model, part, key, shape):
    """What a tensor of this name holds: norms near 1, biases small, the rest about 1/sqrt(fan in)."""
    name = f"{model}.{part}.{key}"
    if "norm" in key and key.endswith("weight"):
        return draw(name, shape, 0.125) + 1
    if len(shape) == 1:
        return draw(name, shape, 0.0625)
    if "embedding" in key and part == "text":
        return draw(name, shape, 0.5)
    quiet = 1 if part == "unet" and key.startswith("conv_out") else 0      # a walk that does not amplify rounding
    return draw(name, shape, 2.0 ** (-round(np.log2(np.prod(shape[1:])) / 2) - quiet))


def build(model, dtype=torch.float32):
    """unet, vae, text as modules with their weights. sd1b is sd1 with other weights."""
    c = CONFIG[model[:3]]
    parts = dict(unet=UNet2DConditionModel(**c["unet"]), vae=AutoencoderKL(**c["vae"]),
                 text=CLIPTextModel(CLIPTextConfig(**c["text"])))
    for part, module in parts.items():
        fill(model, part, module, dtype)
    return parts


def build_control(part="control", dtype=torch.float32):
    """A ControlNet for sd1. Its zero convolutions are not zero."""
    return fill("sd1", part, ControlNetModel(**CONTROL), dtype)


def fill(model, part, module, dtype):
    state = {k: torch.from_numpy(values(model, part, k, tuple(v.shape))) for k, v in module.state_dict().items()
             if not k.endswith("position_ids")}
    missing, extra = module.load_state_dict(state, strict=False)
    assert not extra and all(k.endswith("position_ids") for k in missing), (missing, extra)
    return module.to(dtype).eval()


def original_unet(key):
    """diffusers' name to that of CompVis' code, for four stages of two layers."""
    m = re.match(r"(down|up)_blocks\.(\d)\.(resnets|attentions|downsamplers|upsamplers)\.(\d)\.(.*)", key)
    if m:
        way, b, what, i, rest = m[1], int(m[2]), m[3], int(m[4]), m[5]
        if what == "downsamplers":
            return f"input_blocks.{3 * b + 3}.0.op.{rest.removeprefix('conv.')}"
        if what == "upsamplers":
            return f"output_blocks.{3 * b + 2}.{1 if b == 0 else 2}.{rest}"
        block = f"input_blocks.{3 * b + 1 + i}" if way == "down" else f"output_blocks.{3 * b + i}"
        return f"{block}.0.{original_resnet(rest)}" if what == "resnets" else f"{block}.1.{rest}"
    m = re.match(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", key)
    if m:
        return (f"middle_block.{2 * int(m[2])}.{original_resnet(m[3])}" if m[1] == "resnets"
                else f"middle_block.1.{m[3]}")
    for ours, theirs in (("time_embedding.linear_1", "time_embed.0"), ("time_embedding.linear_2", "time_embed.2"),
                         ("conv_in", "input_blocks.0.0"), ("conv_norm_out", "out.0"), ("conv_out", "out.2")):
        if key.startswith(ours + "."):
            return theirs + key[len(ours):]
    raise KeyError(key)


def original_resnet(rest):
    name, kind = rest.rsplit(".", 1)
    return {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
            "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}[name] + "." + kind


def original_control(key):
    """Of a ControlNet: its hint network is a list in which every other entry is a SiLU."""
    m = re.match(r"controlnet_cond_embedding\.(conv_in|conv_out|blocks\.(\d+))\.(.*)", key)
    if m:
        i = {"conv_in": 0, "conv_out": 2 * len(CONTROL["conditioning_embedding_out_channels"]) - 1}.get(m[1])
        return f"input_hint_block.{2 * (int(m[2]) + 1 if i is None else i)}.{m[3]}"
    m = re.match(r"controlnet_(?:down_blocks\.(\d+)|mid_block)\.(.*)", key)
    if m:
        return f"zero_convs.{m[1]}.0.{m[2]}" if m[1] else f"middle_block_out.0.{m[2]}"
    return original_unet(key)


def original_vae(key):
    key = re.sub(r"^encoder\.down_blocks\.(\d)\.resnets\.(\d)", r"encoder.down.\1.block.\2", key)
    key = re.sub(r"^encoder\.down_blocks\.(\d)\.downsamplers\.0", r"encoder.down.\1.downsample", key)
    key = re.sub(r"^decoder\.up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"decoder.up.{3 - int(m[1])}.block.{m[2]}", key)
    key = re.sub(r"^decoder\.up_blocks\.(\d)\.upsamplers\.0", lambda m: f"decoder.up.{3 - int(m[1])}.upsample", key)
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
    if "mid_block.attentions.0" in key:
        key = key.replace("mid_block.attentions.0", "mid.attn_1").replace("group_norm", "norm")
        key = key.replace("to_out.0", "proj_out").replace("to_", "")
    return key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")


def original(model, part, key):
    if model != "sd1":
        return "-"
    return {"unet": lambda: "model.diffusion_model." + original_unet(key),
            "control": lambda: "control_model." + original_control(key),
            "vae": lambda: "first_stage_model." + original_vae(key),
            "text": lambda: "cond_stage_model.transformer." + key}[part]()


def main():
    with open(os.path.join(HERE, "tiny.txt"), "w") as f:
        for model in CONFIG:
            control = dict(control=build_control()) if model == "sd1" else {}
            for part, module in {**build(model), **control}.items():
                for k, v in module.state_dict().items():
                    if not k.endswith("position_ids"):
                        print(model, part, k, original(model, part, k), *v.shape, file=f)


if __name__ == "__main__":
    sys.exit(main())
