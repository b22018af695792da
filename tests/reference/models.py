"""What the tiny models of tiny.py compute: UNet (also its gradients), VAE, text encoder. Writes models.safetensors.

The modules run in float64; the same in float32 and in bfloat16 gives each case's noise (golden.py, add_noise).
"""
import os

import torch

import tiny
from golden import File, draw

HERE = os.path.dirname(os.path.abspath(__file__))

# Attention projections whose gradients are kept: one of each kind, at the top, in the middle, on the way up.
PROJECTIONS = [
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight",
    "down_blocks.1.attentions.1.transformer_blocks.0.attn1.to_k.weight",
    "mid_block.attentions.0.transformer_blocks.0.attn1.to_v.weight",
    "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight",
    "up_blocks.1.attentions.2.transformer_blocks.0.attn1.to_out.0.weight",
    "up_blocks.3.attentions.0.transformer_blocks.0.attn2.to_q.weight",
    "up_blocks.3.attentions.2.transformer_blocks.0.attn2.to_v.weight",
]


def given(file, name, shape, scale=1.0):
    """An input, NCHW or (B,T,C), drawn by name and not stored."""
    file.meta["draw " + name] = " ".join([repr(scale)] + [str(n) for n in shape])
    return torch.from_numpy(draw(name, shape, scale)).to(file.dtype)


def unet_case(file, name, unet, shape, times, cross, gradients):
    x = given(file, name + ".x", shape).requires_grad_(gradients)
    text = given(file, name + ".text", (shape[0], 77, cross))
    t = torch.tensor(times, dtype=torch.float32)
    file.put(name + ".t", t)
    y = unet(x, t, text).sample
    file.put(name + ".y", y, True)
    if not gradients:
        return
    params = dict(unet.named_parameters())
    dy = given(file, name + ".dy", tuple(y.shape))
    grads = torch.autograd.grad(y, [x] + [params[k] for k in PROJECTIONS], dy)
    file.put(name + ".dx", grads[0], True)
    for k, g in zip(PROJECTIONS, grads[1:]):
        if k.endswith("to_out.0.weight") or g.numel() <= 5000:
            file.put(f"{name}.d{k.replace('.', '_')}", g, True)


def vae_case(file, name, vae, image, latents):
    x = given(file, name + "_encode.x", image, 0.5)
    moments = vae.quant_conv(vae.encoder(x))
    file.put(name + "_encode.y", moments, True)
    z = given(file, name + "_decode.z", latents)
    file.put(name + "_decode.y", vae.decode(z / vae.config.scaling_factor).sample, True)


def text_case(file, name, text, ids):
    h = text(torch.tensor(ids), output_hidden_states=True)
    file.put(name + ".y", h.last_hidden_state, True)
    file.put(name + "_skip.y", text.text_model.final_layer_norm(h.hidden_states[-2]), True)


def prompt(n, pad, seed):
    ids = [49406] + [(seed * 7919 + i * 104729) % 49406 for i in range(n)] + [49407]
    return ids + [pad] * (77 - len(ids))


def compute(dtype):
    file = File(dtype)
    torch.set_default_dtype(torch.float64 if dtype == torch.float64 else torch.float32)    # transformers' causal mask
    for model, pad in (("sd1", 49407), ("sd2", 0)):
        parts = tiny.build(model, dtype)
        cross = tiny.CONFIG[model]["text"]["hidden_size"]
        f64 = dtype != torch.bfloat16                       # gradients in bf16 are not asked for
        unet_case(file, model + "_unet", parts["unet"], (2, 4, 8, 8), [981.0, 37.5], cross, f64)
        for p in parts["unet"].parameters():
            p.requires_grad_(False)
        with torch.no_grad():
            unet_case(file, model + "_unet_odd", parts["unet"], (1, 4, 13, 7), [500.0], cross, False)
            factor = 8 if model == "sd1" else 2
            vae_case(file, model + "_vae", parts["vae"], (1, 3, 6 * factor, 5 * factor), (1, 4, 5, 7))
            text_case(file, model + "_text", parts["text"], [prompt(5, pad, 1), prompt(75, pad, 2)])
    return file


def main():
    file = compute(torch.float64)
    for name, n, pad, seed in (("sd1_text.id", 5, 49407, 1), ("sd2_text.id", 5, 0, 1)):
        file.put(name, torch.tensor([prompt(n, pad, seed), prompt(75, pad, 2)], dtype=torch.int32))
    with torch.no_grad():
        rough = compute(torch.bfloat16)
    f32 = compute(torch.float32)
    file.add_noise(f32, rough)
    file.write(os.path.join(HERE, "models.safetensors"), "python tests/reference/models.py")


if __name__ == "__main__":
    main()
