"""More of what the published code of the method computes (see unicon.py, whose base, adapters, pictures and ways of
running these are): condition guidance per signal, another base, a LoRA in the base, no joint attention in the encoder.

    python tests/reference/unicon_more.py CHECKOUT

Writes unicon_more.safetensors and the LoRA, lora/base_diffusers.safetensors and lora/base_kohya.safetensors.

Cases NAME_SAMPLER: latents .x, .y (and .y2 in two_*) after ten steps, as there, in float32.

The published code can compare with joint attention switched off only. For other weights its denoiser is called once
more with those in its pair table, and c (eps(pair's weights) - eps(others)) of the rows of the prompt is added to what
it says; guidance passes that on as it is.

    against     depth       joint; c = 1.5 against 0.25, 0.5
    plain       depth       joint; c = 1.5 against 0, 0; without classifier-free guidance
    two_all     depth, id   x from noise, y and y2 clean; the published c = 1
    two_one     depth, id   likewise; c = 2 against id's 0, 0 and depth as it is
    two_sum     depth, id   likewise; c = 2 against id's 0, 0, plus c = 1 against depth's 0.25, 0.5

    other       depth       to_x and joint with the base `sd1b`: sd1 with other weights, all three parts
    lora        depth       to_x and joint with the LoRA in the base's UNet when the checkpoint is loaded, weight 0.8:
                            the joint attention copies the changed weights. Loaded into the pipeline afterwards the
                            LoRA would change attn1 but not its copy attn1n.
    less        depth       to_x and joint, model.pth without projections in down_blocks

The LoRA: two blocks, rank 2; a value is draw("lora.MODULE.down", shape, 2^-round(log2(in) / 2)), "lora.MODULE.up" with
2^-1. The kohya file has alpha 1, a scale of 1/2, and up twice as large.
"""
import contextlib
import os
import sys
import tempfile
import unittest.mock
import warnings

import numpy as np
import torch
from safetensors.torch import save_file

import pipelines
import tiny
import unicon
from golden import File, draw
from unicon import CLEAN, DEPTH, HERE, NOISE, TWO, Published, base_scheduler, far

JOINT, TO_X = (NOISE, NOISE), (NOISE, CLEAN)
KEPT = [(p[2], p[3]) for p in TWO]
CONTRASTS = {       # schedule, pairs, the published condition guidance, guidance, [(c, weights of the pairs)]
    "against": (JOINT, DEPTH, 0, 3.0, [(1.5, [(0.25, 0.5)])]),
    "plain": (JOINT, DEPTH, 0, 1.0, [(1.5, [(0, 0)])]),
    "two_all": ((NOISE, CLEAN, CLEAN), TWO, 1, 3.0, []),
    "two_one": ((NOISE, CLEAN, CLEAN), TWO, 0, 3.0, [(2.0, [KEPT[0], (0, 0)])]),
    "two_sum": ((NOISE, CLEAN, CLEAN), TWO, 0, 3.0, [(2.0, [KEPT[0], (0, 0)]), (1.0, [(0.25, 0.5), KEPT[1]])]),
}
LORA, WEIGHT = ("down_blocks.0.attentions.0", "up_blocks.3.attentions.2"), 0.8
MODULES = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "attn2.to_v", "ff.net.2")


# ---- condition guidance per signal ----

@contextlib.contextmanager
def contrasted(code, unet, guidance, contrasts):
    forward, guided = unet.forward, guidance > 1

    def both(*given, **options):
        table = unet.unicon_config["attn_config"]
        y = forward(*given, **options)[0]
        shift = torch.zeros_like(y[len(y) // 2:] if guided else y)
        for scale, weights in contrasts:
            w = torch.tensor(weights * (2 if guided else 1))
            unet.unicon_config["attn_config"] = (*table[:2], w[:, 0].view(-1, 1, 1), w[:, 1].view(-1, 1, 1))
            d = y - forward(*given, **options)[0]
            shift = shift + scale * (d[len(y) // 2:] if guided else d)
        unet.unicon_config["attn_config"] = table
        return (y + (torch.cat([shift, shift]) if guided else shift),)

    config = code.utils.set_unicon_config_inference
    unet.forward = both
    with unittest.mock.patch.object(unicon, "SCALE", guidance), unittest.mock.patch.object(
            code.utils, "set_unicon_config_inference", lambda *a, **k: config(*a, **k, use_cfg=guided)):
        yield
    unet.forward = forward


def put(file, code, pipe, name, run, sampler):
    y = unicon.run(code, pipe, run, sampler)
    for row, z in zip(("x", "y", "y2"), y):
        file.put(f"{name}_{sampler}.{row}", z[None])
    return y


def contrasts(code, folder, file):
    pipes = {1: code.load(folder, ("depth_y",)), 2: code.load(folder, ("depth_y", "id"))}
    for name, (schedule, pairs, published, guidance, others) in CONTRASTS.items():
        pipe = pipes[len(pairs)]
        for sampler in ("ddim", "euler-a"):
            unicon.RUNS[name] = (schedule, pairs, (), published)
            with contrasted(code, pipe.unet, guidance, others):
                y = put(file, code, pipe, name, name, sampler)
            unicon.RUNS[name] = (schedule, pairs, (), 0)
            with contrasted(code, pipe.unet, guidance, []):
                print(f"{name}_{sampler}: x off by {far(unicon.run(code, pipe, name, sampler)[0], y[0]):.2f} without")
            if name == "two_all":
                with contrasted(code, pipe.unet, guidance, [(1.0, [(0, 0), (0, 0)])]):
                    assert far(unicon.run(code, pipe, name, sampler)[0], y[0]) < 1e-4


# ---- other bases ----

def lora():
    """MODULE: down, up"""
    unet = tiny.build("sd1")["unet"]
    for block in LORA:
        for module in MODULES:
            name = f"{block}.transformer_blocks.0.{module}"
            rows, columns = unet.get_submodule(name).weight.shape
            down = draw(f"lora.{name}.down", (2, columns), 2.0 ** -round(np.log2(columns) / 2))
            up = draw(f"lora.{name}.up", (rows, 2), 0.5)
            yield name, torch.from_numpy(down).float(), torch.from_numpy(up).float()


def write_lora():
    diffusers, kohya = {}, {}
    for name, down, up in lora():
        diffusers |= {f"unet.{name}.lora.down.weight": down, f"unet.{name}.lora.up.weight": up}
        key = "lora_unet_" + name.replace(".", "_")
        kohya |= {key + ".lora_down.weight": down, key + ".lora_up.weight": up * 2, key + ".alpha": torch.tensor(1.0)}
    for name, tensors in (("diffusers", diffusers), ("kohya", kohya)):
        path = os.path.join(HERE, "lora", f"base_{name}.safetensors")
        save_file(tensors, path)
        os.chmod(path, 0o644)


def base(code, change):
    """Published.base with other parts."""
    def make(kind, base_model_id):
        parts = change()
        pipe = kind(vae=parts["vae"], text_encoder=parts["text"], unet=parts["unet"], scheduler=base_scheduler(),
                    tokenizer=pipelines.tokenizer("<|endoftext|>"), safety_checker=None, feature_extractor=None,
                    requires_safety_checker=False)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return unittest.mock.patch.object(code.load_utils, "load_unicon_pipeline", make)


def with_lora():
    parts = tiny.build("sd1")
    for name, down, up in lora():
        parts["unet"].get_submodule(name).weight.data += WEIGHT * (up @ down)
    return parts


def without_encoder(folder):
    """depth_y with fewer projections."""
    path = os.path.join(folder, "depth_y", "model.pth")
    post = torch.load(path)
    kept = {k: v for k, v in post.items() if not k.startswith("down_blocks")}
    assert 0 < len(kept) < len(post)
    torch.save(kept, path)
    return tiny.build("sd1")


def bases(code, folder, file):
    plain = code.load(folder, ("depth_y",))
    for name, change in (("other", lambda: tiny.build("sd1b")), ("lora", with_lora),
                         ("less", lambda: without_encoder(folder))):
        with base(code, change):
            pipe = code.load(folder, ("depth_y",))
        for run, sampler in (("to_x", "ddim"), ("joint", "euler-a")):
            y = put(file, code, pipe, f"{name}_{run}", run, sampler)
            print(f"{name}_{run}: off by {far(unicon.run(code, plain, run, sampler)[0], y[0]):.2f} otherwise")


def main():
    if len(sys.argv) != 2 or not os.path.isdir(os.path.join(sys.argv[1], "patch")):
        sys.exit("usage: unicon_more.py CHECKOUT (of the published code)")
    warnings.simplefilter("ignore")
    write_lora()
    code, file = Published(sys.argv[1]), File(torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        unicon.write_adapters(folder)
        contrasts(code, folder, file)
        bases(code, folder, file)
    file.write(os.path.join(HERE, "unicon_more.safetensors"), "python tests/reference/unicon_more.py CHECKOUT")


if __name__ == "__main__":
    with torch.no_grad():
        main()
