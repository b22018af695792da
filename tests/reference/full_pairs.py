"""Pairs at full size: runs of the published code and of unicon-sample on the same files, compared.

    python tests/reference/full.py sd15 BASE
    python tests/reference/full_pairs.py CHECKOUT BASE DIRECTORY [PROGRAM [CASE ..]]

CHECKOUT is that of unicon.py, BASE a base of random weights. Writes to DIRECTORY, once: two checkpoints of rank 64 in
the published layout with random weights, `depth` (conv_fuse, with a y-LoRA) and `id` (conv, without); pictures;
official.safetensors with the latents of the published pipeline in float32 on the CPU. What is there is not made again.
PROGRAM, bin/unicon-sample, then draws the same; per case the relative distance (l2) of the worst input is told, and for
some how far ours without joint attention is off: more than a tenth, or the runs would show little.

Measured on Zen 4: 2e-6 to 1.1e-5 at 256 x 256, 4.6e-5 at 512 x 512 (AVX-512).

20 CPU minutes, 7 GB of memory, 0.5 GB on disk. Nothing here is committed or needed by `make check`.
"""
import os
import resource
import subprocess
import sys
import warnings

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

import pipelines
from unicon import CLEAN, KIND, NOISE, TRIGGER, Published, base_scheduler, far

RANK, SCALE, SEED, SIZE = 64, 3.0, 4321, 256
DEPTH, ID = [(0, 1, 1, 1, "depth")], [(0, 1, 0.6, 0.6, "id")]
TWO = [(0, 1, 1, 1, "depth"), (0, 2, 0.5, 0.75, "id")]
Y, X, BOTH = ["--y", "y"], ["--x", "x"], ["--y", "depth=y", "--y", "id=y2", "--pair", "id=0.5,0.75"]
CASES = {   # schedule, pairs, rows with the mask, condition guidance, sampler, steps, side; the program's options
    "to_x_ddim": ((NOISE, CLEAN), DEPTH, (), 0, "ddim", 6, SIZE, Y),
    "joint_euler-a": ((NOISE, NOISE), DEPTH, (), 0, "euler-a", 6, SIZE, ["--task", "joint"]),
    "to_y_dpm++2m": ((CLEAN, NOISE), DEPTH, (), 0, "dpm++2m", 4, SIZE, X),
    "two_euler-a": ((NOISE, CLEAN, CLEAN), TWO, (), 0, "euler-a", 3, SIZE, BOTH),
    "guided_ddim": ((NOISE, CLEAN), ID, (), 1, "ddim", 3, SIZE, Y + ["--joint-scale", "0.6", "--cond-guidance", "1"]),
    "mask_y_ddim": ((NOISE, NOISE), DEPTH, (1,), 0, "ddim", 4, SIZE, Y + ["--y-mask", "mask"]),
    "large_euler-a": ((NOISE, CLEAN), DEPTH, (), 0, "euler-a", 2, 512, Y),
}
WITHOUT = ("to_x_ddim", "to_y_dpm++2m", "guided_ddim")      # drawn without joint attention too
SAMPLER = {"ddim": "ddim", "euler-a": "ead", "dpm++2m": "dpm"}


# ---- what both are given ----

def picture(row, side):
    y, x, c = np.mgrid[0:side, 0:side, 0:3] * 256.0 / side
    c = c * side / 256
    wave = {0: np.sin(x / 31 + c) + np.cos(y / 17), 1: np.sin((x + y) / 40 + c), 2: np.cos(x * y / 6000 - c)}[row]
    return Image.fromarray(np.uint8(wave * 60 + 127))


def mask(side):
    y, x = np.mgrid[0:side, 0:side]
    return Image.fromarray(np.where((x >= side // 4) & (y < side * 5 // 8), 255, 0).astype(np.uint8))


def write_checkpoints(base, folder):
    """Low-rank products about half of what the base's own give, as in unicon.py."""
    unet = UNet2DConditionModel.from_pretrained(os.path.join(base, "unet"))
    blocks = [k[:-len(".attn1")] for k, _ in unet.named_modules() if k.endswith(".attn1")]
    g = torch.Generator().manual_seed(11)

    def normal(rows, columns, std):
        return torch.randn(rows, columns, generator=g) * std

    def adapter(attentions):
        out = {}
        for block in blocks:
            for attn in attentions:
                for proj in ("to_q", "to_k", "to_v", "to_out.0"):
                    of = unet.get_submodule(f"{block}.{attn.removesuffix('n')}.{proj}")
                    key = f"unet.{block}.{attn}.{proj}.lora."
                    out[key + "down.weight"] = normal(RANK, of.in_features, of.in_features ** -0.5)
                    out[key + "up.weight"] = normal(of.out_features, RANK, 0.35 * RANK ** -0.5)
        return out

    for name, kind in KIND.items():
        parts = ("xy_lora", "yx_lora") + (("y_lora",) if name == "depth" else ())
        for part in parts:
            at = os.path.join(folder, name, part)
            os.makedirs(at, exist_ok=True)
            save_file(adapter(("attn1", "attn2") if part == "y_lora" else ("attn1n",)),
                      at + "/pytorch_lora_weights.safetensors", {"format": "pt"})
        post = {}
        for block in blocks:
            n = unet.get_submodule(block + ".attn1").out_dim * (2 if kind == "conv_fuse" else 1)
            post[block + ".conv1n.weight"] = torch.nn.Parameter(normal(n, n, n ** -0.5))
        torch.save(post, os.path.join(folder, name, "model.pth"))


def write_inputs(base, folder):
    if not os.path.exists(os.path.join(folder, "id", "model.pth")):
        write_checkpoints(base, folder)
    for side in {case[6] for case in CASES.values()}:
        at = os.path.join(folder, str(side))
        os.makedirs(at, exist_ok=True)
        for row, name in enumerate(("x", "y", "y2")):
            picture(row, side).save(os.path.join(at, name + ".png"))
        mask(side).save(os.path.join(at, "mask.png"))


# ---- the published code ----

class Full(Published):
    def __init__(self, checkout, base):
        self.folder = base
        super().__init__(checkout)

    def base(self, kind, base_model_id):
        unet, vae, text = (k.from_pretrained(os.path.join(self.folder, name)) for k, name in
                           ((UNet2DConditionModel, "unet"), (AutoencoderKL, "vae"), (CLIPTextModel, "text_encoder")))
        return kind(vae=vae, text_encoder=text, unet=unet, scheduler=base_scheduler(), safety_checker=None,
                    tokenizer=pipelines.tokenizer("<|endoftext|>"), feature_extractor=None,
                    requires_safety_checker=False)


def official(code, pipe, folder, name):
    schedule, pairs, masked, guidance, sampler, steps, side, _ = CASES[name]
    given = [Image.open(os.path.join(folder, str(side), n + ".png")) for n in ("x", "y", "y2", "mask")]
    white = Image.new("RGB", (side, side), (255, 255, 255))
    prompts = [pipelines.PROMPT] + [TRIGGER[model] + pipelines.PROMPT for *_, model in pairs]
    config = dict(input_images=given[:len(schedule)], sample_schedule=[[*schedule, 0]], input_pairs=pairs,
                  image_masks=[given[3] if k in masked else white for k in range(len(schedule))])
    pipe.scheduler = base_scheduler()
    return code.utils.unicon_infer(pipe, config, prompts, pipelines.NEGATIVE, side, side, 1, steps, SEED,
                                   SAMPLER[sampler], SCALE, cond_guidance_scale=guidance)


def make_official(checkout, base, folder, names):
    path, pipe, loaded = os.path.join(folder, "official.safetensors"), None, None
    done = load_file(path) if os.path.exists(path) else {}
    missing = [n for n in names if n + ".x" not in done]
    code = Full(checkout, base) if missing else None
    for name in sorted(missing, key=lambda n: len(CASES[n][1]) * 2 + (CASES[n][1] == ID)):
        models = tuple(p[4] for p in CASES[name][1])
        if models != loaded:
            pipe, loaded = None, models
            pipe = code.load(folder, models)
        for row, z in zip(("x", "y", "y2"), official(code, pipe, folder, name)):
            done[f"{name}.{row}"] = z.contiguous()
        save_file(done, path)
        print(f"{name}: {seconds(resource.RUSAGE_SELF):.0f} CPU seconds so far", flush=True)
    return done


# ---- the program ----

def seconds(who):
    u = resource.getrusage(who)
    return u.ru_utime + u.ru_stime


def ours(program, base, folder, name, *more):
    schedule, pairs, _, _, sampler, steps, side, options = CASES[name]
    files = {n: os.path.join(folder, str(side), n + ".png") for n in ("x", "y", "y2", "mask")}
    options = [files.get(o) or (o if "=" not in o or o.split("=")[1] not in files
                                else o.split("=")[0] + "=" + files[o.split("=")[1]]) for o in options]
    out = os.path.join(folder, "ours.safetensors")
    command = [program, "--base", base, "--prompt", pipelines.PROMPT, "--negative", pipelines.NEGATIVE, "-q",
               "--dtype", "f32", "--threads", "2", "--width", str(side), "--height", str(side), "--steps", str(steps),
               "--cfg", str(SCALE), "--rng", "torch-cpu", "--seed", str(SEED), "--compat", "official", "--sampler",
               sampler, "--save-latents", out, "--out", os.path.join(folder, "ours.png"), *options, *more]
    for model in dict.fromkeys(p[4] for p in pairs):
        command += ["--unicon", os.path.join(folder, model)]
    if sampler == "ddim":
        command += ["--eta", "1"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return load_file(out)


def compare(program, base, folder, want, names):
    worst = 0
    print("case, distance, CPU seconds, off by without joint attention")
    for name in names:
        begun = seconds(resource.RUSAGE_CHILDREN)
        got = ours(program, base, folder, name)
        took = seconds(resource.RUSAGE_CHILDREN) - begun
        rows = [k for k in ("x", "y", "y2") if f"{name}.{k}" in want]
        distance = max(far(got[k][0], want[f"{name}.{k}"]) for k in rows)
        print(f"{name}, {distance:.1e}, {took:.0f}", end="", flush=True)
        if name in WITHOUT:
            off = ours(program, base, folder, name, "--joint-scale", "0")
            moved = min(far(off[k][0], got[k][0]) for k, s in zip(rows, CASES[name][0]) if s != CLEAN)
            print(f", {moved:.2f}", end="")
            assert moved > 0.1
        print()
        worst = max(worst, distance)
    assert worst <= 1e-3, worst


def main():
    if len(sys.argv) < 4 or not os.path.isdir(os.path.join(sys.argv[1], "patch")):
        sys.exit("usage: full_pairs.py CHECKOUT BASE DIRECTORY [PROGRAM [CASE ..]]")
    checkout, base, folder, *program = sys.argv[1:]
    names = program[1:] or list(CASES)
    for name in names:
        if name not in CASES:
            sys.exit(f"full_pairs.py: there is no case '{name}'; there are {', '.join(CASES)}")
    warnings.simplefilter("ignore")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    write_inputs(base, folder)
    want = make_official(checkout, base, folder, names)
    if program:
        compare(program[0], base, folder, want, names)


if __name__ == "__main__":
    with torch.no_grad():
        main()
