"""Fits a small UNet with a pair's adapters to four known pairs of pictures, so that a test can see gradient guidance
reach a known signal (tests/t_guide_fit.c). Writes guide_fit.safetensors (float16): the UNet's tensors under `unet.`,
the adapters' under `xy.`, `yx.`, `y.`, `post.`.

Pair i: two pictures of 64 x 64 of which each colour of 8 x 8 squares is drawn, tanh(draw("fit.x0", (8,8,3))), ..; the
tiny sd1 VAE's mean makes latents of them, scaled by SCALING so that they have about unit variance. Loss: the noise of
both, x and y at noise levels that have nothing to do with each other. Prompts are those of unicon.py, of which the
tiny text encoder makes what it makes. The last hundred steps' loss is 0.004. Some ten minutes on one processor.
"""
import os
import sys
import time

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file

import pipelines
import tiny
from golden import draw
from pair_unet import PROJECTIONS, PairUnet

HERE = os.path.dirname(os.path.abspath(__file__))
PAIRS, RANK, SCALING, STEPS, BATCH, RATE = 4, 4, 2.0, 3000, 6, 2e-3
UNET = dict(sample_size=8, block_out_channels=(32, 48), layers_per_block=1, cross_attention_dim=64, norm_num_groups=8,
            attention_head_dim=4, down_block_types=("CrossAttnDownBlock2D",) * 2,
            up_block_types=("CrossAttnUpBlock2D",) * 2)
PROMPTS = [pipelines.PROMPT, "depth_map, " + pipelines.PROMPT]


def picture(name):
    squares = torch.from_numpy(np.tanh(draw("fit." + name, (8, 8, 3)))).float()
    return squares.repeat_interleave(8, 0).repeat_interleave(8, 1).permute(2, 0, 1)


def known():
    """Latents (PAIRS,2,4,8,8) and text (2,77,64)."""
    parts, words = tiny.build("sd1"), pipelines.tokenizer("<|endoftext|>")
    with torch.no_grad():
        z = [[parts["vae"].encode(picture(f"{k}{i}")[None]).latent_dist.mode()[0] * SCALING for k in "xy"]
             for i in range(PAIRS)]
        ids = words(PROMPTS, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
        return torch.stack([torch.stack(pair) for pair in z]), parts["text"](ids).last_hidden_state


def fresh(unet):
    """Adapters that change nothing yet."""
    a = dict(kind="conv_fuse", xy={}, yx={}, y={}, post={})
    for name, m in unet.named_modules():
        if m.__class__.__name__ != "BasicTransformerBlock":
            continue
        for part, attns in (("xy", ("attn1n",)), ("yx", ("attn1n",)), ("y", ("attn1", "attn2"))):
            for attn in attns:
                for proj in PROJECTIONS:
                    of = m.get_submodule(f"{attn.removesuffix('n')}.{proj}")
                    key = f"{name}.{attn}.{proj}"
                    a[part][key + ".down.weight"] = torch.randn(RANK, of.in_features) / RANK
                    a[part][key + ".up.weight"] = torch.zeros(of.out_features, RANK)
        n = 2 * m.attn1.out_dim
        a["post"][name + ".conv1n.weight"] = torch.zeros(n, n)
    return a


def alphas():
    return torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0)


def main():
    torch.manual_seed(1)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(False)
    z, text = known()
    unet = UNet2DConditionModel(**UNET)
    a = fresh(unet)
    leaves = [v.requires_grad_(True) for part in ("xy", "yx", "y", "post") for v in a[part].values()]
    net = PairUnet(unet, [a])
    net.pairs = [(torch.arange(BATCH), torch.arange(BATCH, 2 * BATCH), 1, 1, 0)]
    params = list(unet.parameters()) + leaves
    print(sum(p.numel() for p in params), "parameters", flush=True)
    optimizer = torch.optim.AdamW(params, RATE, weight_decay=0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, STEPS, pct_start=0.05)
    mean = [p.detach().clone() for p in params]
    bar, words, total, began = alphas(), text.repeat_interleave(BATCH, 0), 0, time.time()
    for step in range(STEPS):
        x0 = z[torch.randint(PAIRS, (BATCH,))].transpose(0, 1).flatten(0, 1)
        t, noise = torch.randint(1000, (2 * BATCH,)), torch.randn_like(x0)
        b = bar[t].view(-1, 1, 1, 1)
        loss = (net(b.sqrt() * x0 + (1 - b).sqrt() * noise, t, words) - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            for m, p in zip(mean, params):
                m.lerp_(p, 1 - min(0.998, step / (step + 50)))
        total += loss.item()
        if step % 100 == 99:
            print(step + 1, f"{total / 100:.4f}", f"{time.time() - began:.0f} s", flush=True)
            total = 0
    with torch.no_grad():
        for m, p in zip(mean, params):
            p.copy_(m)
    out = {"unet." + k: v for k, v in unet.state_dict().items()}
    for part in ("xy", "yx", "y", "post"):
        out.update({f"{part}.{k}": v for k, v in a[part].items()})
    out = {k: v.detach().half().contiguous() for k, v in out.items()}
    to = sys.argv[1] if len(sys.argv) > 1 else os.path.join(HERE, "guide_fit.safetensors")
    save_file(out, to, {"command": "python tests/reference/fit_guide.py"})
    print(to, os.path.getsize(to), "bytes")


if __name__ == "__main__":
    main()
