"""Two tiny base models with the real architecture: sd1 (as SD1.5) and sd2 (as SD2.1: linear projections, heads by
stage, erf GELU, v prediction). Weights come from their names (golden.py, draw), so no weights are stored: tests/tiny.c
draws the same. Run as a script, it writes the list of all tensors, tests/reference/tiny.txt:

    sd1 unet conv_in.weight 32 4 3 3
"""
import os
import sys

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from golden import draw

HERE = os.path.dirname(os.path.abspath(__file__))

UNET = dict(sample_size=8, block_out_channels=(32, 64, 64, 96), layers_per_block=2, cross_attention_dim=48,
            down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3)
CONFIG = {
    "sd1": dict(
        unet=dict(UNET, attention_head_dim=8),
        vae=dict(block_out_channels=(32, 64, 64, 96), layers_per_block=2, latent_channels=4, sample_size=64,
                 down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4),
        text=dict(vocab_size=49408, hidden_size=48, intermediate_size=112, num_hidden_layers=3, num_attention_heads=4,
                  max_position_embeddings=77, hidden_act="quick_gelu"),
    ),
    "sd2": dict(
        unet=dict(UNET, attention_head_dim=(2, 4, 4, 6), cross_attention_dim=64, use_linear_projection=True),
        vae=dict(block_out_channels=(32, 64), layers_per_block=1, latent_channels=4, sample_size=32,
                 down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2),
        text=dict(vocab_size=49408, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
                  max_position_embeddings=77, hidden_act="gelu"),
    ),
}


def values(model, part, key, shape):
    """What a tensor of this name holds: norms near 1, biases small, the rest about 1/sqrt(fan in)."""
    name = f"{model}.{part}.{key}"
    if "norm" in key and key.endswith("weight"):
        return draw(name, shape, 0.125) + 1
    if len(shape) == 1:
        return draw(name, shape, 0.0625)
    if "embedding" in key and part == "text":
        return draw(name, shape, 0.5)
    return draw(name, shape, 2.0 ** -round(np.log2(np.prod(shape[1:])) / 2))


def build(model, dtype=torch.float32):
    """unet, vae, text as modules with their weights."""
    c = CONFIG[model]
    parts = dict(unet=UNet2DConditionModel(**c["unet"]), vae=AutoencoderKL(**c["vae"]),
                 text=CLIPTextModel(CLIPTextConfig(**c["text"])))
    for part, module in parts.items():
        state = {k: torch.from_numpy(values(model, part, k, tuple(v.shape))) for k, v in module.state_dict().items()
                 if not k.endswith("position_ids")}
        missing, extra = module.load_state_dict(state, strict=False)
        assert not extra and all(k.endswith("position_ids") for k in missing), (missing, extra)
        module.to(dtype).eval()
    return parts


def main():
    with open(os.path.join(HERE, "tiny.txt"), "w") as f:
        for model in CONFIG:
            for part, module in build(model).items():
                for k, v in module.state_dict().items():
                    if not k.endswith("position_ids"):
                        print(model, part, k, *v.shape, file=f)


if __name__ == "__main__":
    sys.exit(main())
