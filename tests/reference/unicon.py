"""What the published code of the method computes with the tiny sd1 base of tiny.py and two random adapters.

    git clone https://github.com/lixirui142/UniCon CHECKOUT         (commit 4936ffc)
    python tests/reference/unicon.py CHECKOUT

That code has no licence: it is run from the checkout, and nothing of it is here. Writes unicon.safetensors and, a line
per tensor of an adapter (checkpoint, directory or file, key, shape), unicon.txt.

Adapters. `depth` is of kind conv_fuse and has a y-LoRA; `id` is of kind conv and is used with its y-LoRA only where a
case says so. They are written to a temporary directory in the published layout, which the published loader reads:
NAME/xy_lora/pytorch_lora_weights.safetensors, .., NAME/model.pth. Rank 4, no alpha: scale 1. A value is

    draw("CHECKPOINT.DIRECTORY.KEY", shape, scale)                  (golden.py; DIRECTORY is `model` for model.pth)
    .lora.down.weight (4,in)    scale 2^-round(log2(in) / 2)        unit variance in, unit variance out
    .lora.up.weight (out,4)     scale 2^-2                          about half of what the base's own product gives
    conv1n.weight (n,n)         scale 2^-(1 + round(log2(n) / 2))   n: C (id) or 2C (depth)

At guidance 7.5 ten steps of this random network amplify rounding errors up to twenty times as much; hence 3.

Cases NAME_SAMPLER: latents .x, .y (and .y2 in `two`), (1,4,8,6), after a whole run of 10 steps at 48 x 64 pixels,
guidance 3, torch's CPU generator with seed 4321; ddim has eta 1. Pictures: x and the mask are those of
pipelines.py, y and y2 are below. The prompt of a row of depth has `depth_map, ` before it; the negative one is the same
for all rows. White of a mask is made, black is kept.

    to_x        depth       x from noise, y clean: ((0,1), (1,1))           also with dpm++2m
    to_y        depth       x clean, y from noise: ((1,1), (0,1))
    joint       depth       both from noise: ((0,1), (0,1))
    coarse      depth       x from noise, y from noise level 0.7: ((0,1), (1-0.7,1))
    mask_x      depth       as to_x, and x is kept where the mask is black
    mask_y      depth       as joint, and y is kept where the mask is black
    guided      id          as to_x, pair weights 0.6 and 0.6, condition guidance 1
    two         depth, id   x from noise, y of depth (weights 1, 1) and y2 of id (weights 0.5, 0.75) clean

Computed in float32. .noise as in golden.py: how far the worst of the rows is from the same run in float64 (of the same
random numbers), in units of 2^-24. All but ddim round to float32 in either.

Cases unet_CHECKPOINT, unet_CHECKPOINT_y: one call of the denoiser without and with the y-LoRA, on the rows x, y, x, y
of a batch for classifier-free guidance (the four differ: x (4,4,8,6), text (4,77,64), both drawn; t stored).
unet_two: six rows x, y, y2, x, y, y2 and both checkpoints.

    unet_*.y            joint attention on, pair weights 1, 1 (unet_two: those of the run)
    unet_*_off.y        joint attention off                                 x, text, t: those of unet_*.y
    unet_*_uneven.y     every pair's weights 0.5 for x, 2 for y             likewise
    .dx                 gradient of sum(y dy) by x                          dy drawn for each of the three

These in float64; noise as in golden.py.

What differs from the published run, all of it done from here:
- `cuda` is `cpu` for the generator and the pair table, float16 and autocast are gone, the pipeline does not move.
- The base is made in memory instead of loaded by name. torchvision, datasets and the annotators, which nothing on the
  way here calls, are empty modules.
- Latents are asked for instead of pictures.
- A model with a y-LoRA is always the first to be loaded: the published loader masks the y-LoRA of no other.
- Gradients take the branch that training takes (same arithmetic, checked), as the other writes into views, which
  autograd refuses; so there are none for two checkpoints.
- Guidance is always on, which the published code needs.
"""
import contextlib
import functools
import os
import sys
import tempfile
import types
import unittest.mock
import warnings

import numpy as np
import torch
from diffusers import PNDMScheduler
from PIL import Image
from safetensors.torch import save_file

import pipelines
import tiny
from golden import File, draw
from models import given

HERE = os.path.dirname(os.path.abspath(__file__))
RANK, STEPS, SCALE, SEED = 4, 10, 3.0, 4321
KIND = {"depth": "conv_fuse", "id": "conv"}
TRIGGER = {"depth": "depth_map, ", "id": ""}
SAMPLER = {"ddim": "ddim", "euler-a": "ead", "dpm++2m": "dpm"}
CLEAN, NOISE = (1, 1), (0, 1)
DEPTH, TWO = [(0, 1, 1, 1, "depth")], [(0, 1, 1, 1, "depth"), (0, 2, 0.5, 0.75, "id")]
RUNS = {    # schedule, pairs, rows with the mask, condition guidance
    "to_x": ((NOISE, CLEAN), DEPTH, (), 0),
    "to_y": ((CLEAN, NOISE), DEPTH, (), 0),
    "joint": ((NOISE, NOISE), DEPTH, (), 0),
    "coarse": ((NOISE, (1 - 0.7, 1)), DEPTH, (), 0),
    "mask_x": ((NOISE, CLEAN), DEPTH, (0,), 0),
    "mask_y": ((NOISE, NOISE), DEPTH, (1,), 0),
    "guided": ((NOISE, CLEAN), [(0, 1, 0.6, 0.6, "id")], (), 1),
    "two": ((NOISE, CLEAN, CLEAN), TWO, (), 0),
}


def picture(row):
    y, x, c = np.mgrid[0:pipelines.H, 0:pipelines.W, 0:3]
    formula = {1: x * 2 + y * 5 + c * 20, 2: x * y + c * 90}
    return pipelines.picture() if row == 0 else Image.fromarray((formula[row] % 256).astype(np.uint8))


# ---- adapters ----

def shapes():
    """checkpoint, directory, key, shape of every tensor."""
    unet = tiny.build("sd1")["unet"]
    blocks = [k[:-len(".attn1")] for k, _ in unet.named_modules() if k.endswith(".attn1")]
    for checkpoint, kind in KIND.items():
        for directory in ("xy_lora", "yx_lora", "y_lora"):
            for block in blocks:
                for attn in ("attn1", "attn2") if directory == "y_lora" else ("attn1n",):
                    for proj in ("to_q", "to_k", "to_v", "to_out.0"):
                        of = unet.get_submodule(f"{block}.{attn.removesuffix('n')}.{proj}")
                        key = f"unet.{block}.{attn}.{proj}.lora."
                        yield checkpoint, directory, key + "down.weight", (RANK, of.in_features)
                        yield checkpoint, directory, key + "up.weight", (of.out_features, RANK)
        for block in blocks:
            n = unet.get_submodule(block + ".attn1").out_dim * (2 if kind == "conv_fuse" else 1)
            yield checkpoint, "model", block + ".conv1n.weight", (n, n)


def value(checkpoint, directory, key, shape):
    fan_in = -round(np.log2(shape[1]) / 2)
    scale = 2.0 ** (-2 if key.endswith("up.weight") else fan_in - (directory == "model"))
    return torch.from_numpy(draw(f"{checkpoint}.{directory}.{key}", shape, scale)).float()


def write_adapters(folder):
    files = {}
    for checkpoint, directory, key, shape in shapes():
        files.setdefault((checkpoint, directory), {})[key] = value(checkpoint, directory, key, shape)
    for (checkpoint, directory), tensors in files.items():
        for name in (checkpoint, checkpoint + "_y"):
            at = os.path.join(folder, name, "" if directory == "model" else directory)
            if directory == "y_lora" and not name.endswith("_y"):
                continue
            os.makedirs(at, exist_ok=True)
            if directory == "model":
                torch.save({k: torch.nn.Parameter(v) for k, v in tensors.items()}, at + "model.pth")
            else:
                save_file(tensors, at + "/pytorch_lora_weights.safetensors", {"format": "pt"})


# ---- the published code ----

class Published:
    """Its modules, on the CPU in full precision."""

    def __init__(self, checkout):
        sys.path.insert(0, checkout)
        for name, asked in (("torchvision", None), ("torchvision.transforms", None),
                            ("torchvision.transforms.v2", None), ("datasets", "load_dataset"),
                            ("annotator", None), ("annotator.hed", "HEDdetector"),
                            ("annotator.depth_anything_v2", "DepthAnythingV2Detector"),
                            ("annotator.openpose", "OpenposeDetector")):
            sys.modules[name] = types.ModuleType(name)
            if asked:
                setattr(sys.modules[name], asked, None)
            parent, _, leaf = name.rpartition(".")
            if parent:
                setattr(sys.modules[parent], leaf, sys.modules[name])
        from patch import patch
        from pipeline.pipeline_unicon import StableDiffusionUniConPipeline
        from utils import load_utils, utils

        class Latents(StableDiffusionUniConPipeline):
            def __call__(self, **options):
                return super().__call__(output_type="latent", **options)

            def to(self, device):
                return self

        class Cpu:
            """torch, as the module that names the device sees it."""
            Generator = staticmethod(lambda device: torch.Generator())
            autocast = staticmethod(lambda device_type, dtype: contextlib.nullcontext())

            def __getattr__(self, name):
                return getattr(torch, name)

        self.patch, self.utils, self.load_utils, self.kind = patch, utils, load_utils, Latents
        utils.torch = Cpu()
        utils.set_unicon_config_inference = functools.partial(utils.set_unicon_config_inference, device="cpu")
        load_utils.load_unicon_pipeline = self.base

    def base(self, kind, base_model_id):
        parts = tiny.build("sd1")
        pipe = kind(vae=parts["vae"], text_encoder=parts["text"], unet=parts["unet"], scheduler=base_scheduler(),
                    tokenizer=pipelines.tokenizer("<|endoftext|>"), safety_checker=None, feature_extractor=None,
                    requires_safety_checker=False)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def load(self, folder, names, dtype=torch.float32):
        """names: as written by write_adapters; the model is called without _y."""
        config = [dict(model_name=n.removesuffix("_y"), base_model_id="tiny", checkpoint_path=os.path.join(folder, n),
                       post_joint=KIND[n.removesuffix("_y")]) for n in names]
        with contextlib.redirect_stdout(None):
            pipe = self.load_utils.load_unicon(self.kind, config)
        for part in (pipe.unet, pipe.vae, pipe.text_encoder):
            part.to(dtype).eval()
        for p in pipe.unet.parameters():
            p.requires_grad_(False)
        return pipe


def base_scheduler():
    """Of SD1.5's scheduler_config.json; what a sampler does not know is kept for the next."""
    s = PNDMScheduler.from_config(dict(pipelines.SCHEDULE, skip_prk_steps=True))
    assert s.config.clip_sample is False
    return s


# ---- whole runs ----

@contextlib.contextmanager
def float32_draws():
    """Random numbers of float32 whatever is asked for, so that a run in float64 has the same."""
    randn = torch.randn

    def narrow(*size, dtype=None, **options):
        return randn(*size, dtype=torch.float32, **options).to(dtype)

    with unittest.mock.patch.object(torch, "randn", narrow):
        yield


def run(code, pipe, name, sampler, weight=1.0):
    schedule, pairs, masked, guidance = RUNS[name]
    rows = len(schedule)
    white = Image.new("RGB", (pipelines.W, pipelines.H), (255, 255, 255))
    prompts = [pipelines.PROMPT] + [TRIGGER[model] + pipelines.PROMPT for *_, model in pairs]
    config = dict(input_images=[picture(k) for k in range(rows)], sample_schedule=[[*schedule, 0]],
                  image_masks=[pipelines.mask() if k in masked else white for k in range(rows)],
                  input_pairs=[(x, y, wx * weight, wy * weight, model) for x, y, wx, wy, model in pairs])
    pipe.scheduler = base_scheduler()
    return code.utils.unicon_infer(pipe, config, prompts, pipelines.NEGATIVE, pipelines.H, pipelines.W, 1, STEPS, SEED,
                                   SAMPLER[sampler], SCALE, cond_guidance_scale=guidance)


def far(a, b):
    return float((a - b).norm() / b.norm())


def compute_runs(code, folder, dtype, check):
    file, loaded = File(dtype), {}
    torch.set_default_dtype(dtype)                                      # transformers' causal mask
    for name, (schedule, pairs, _, _) in RUNS.items():
        names = tuple({"depth": "depth_y", "id": "id"}[model] for *_, model in pairs)
        if names not in loaded:
            torch.set_default_dtype(torch.float32)
            loaded[names] = code.load(folder, names, dtype)
            torch.set_default_dtype(dtype)
        for sampler in ("ddim", "euler-a") + (("dpm++2m",) if name == "to_x" else ()):
            y = run(code, loaded[names], name, sampler)
            for row, z in zip(("x", "y", "y2"), y):
                file.put(f"{name}_{sampler}.{row}", z[None], True)
            if not check:
                continue
            off = run(code, loaded[names], name, sampler, 0)
            moved = [far(off[k], y[k]) for k, s in enumerate(schedule) if s != CLEAN]
            print(f"{name}_{sampler}: off by", *(f"{m:.2f}" for m in moved), "without joint attention; standard"
                  " deviation", *(f"{y[k].std():.2f}" for k in range(len(y))))
            assert min(moved) > 0.1
    torch.set_default_dtype(torch.float32)
    return file


# ---- one call of the denoiser ----

def unet_case(code, file, pipe, name, pairs, x, t, text, gradients, train=False):
    """train: the branch that training takes."""
    unet = pipe.unet
    code.utils.set_unicon_config_inference(unet, pairs, input_len=len(x) // 2)
    y = unet(x.detach(), t, text).sample
    if gradients:
        for m in unet.modules():
            if m.__class__.__name__ == "UniConBlock":
                m.conv1n = m.post1n[pairs[0][4]]
        unet.unicon_config["train"] = True
        with torch.enable_grad():
            again = unet(x, t, text).sample
            dy = given(file, name + ".dy", tuple(again.shape))
            dx = torch.autograd.grad(again, x, dy)[0]
        unet.unicon_config["train"] = False
        assert far(again, y) < 1e-6
        file.put(name + ".dx", dx, True)
    file.put(name + ".y", y, True)
    return y


def compute_unet(code, folder, dtype, check):
    file = File(dtype)
    for name in ("depth", "depth_y", "id", "id_y", "two"):
        two, model = name == "two", name.removesuffix("_y")
        pipe = code.load(folder, ("depth_y", "id") if two else (name,), dtype)
        rows, case = 6 if two else 4, "unet_" + name
        x = given(file, case + ".x", (rows, 4, 8, 6)).requires_grad_(not two)
        text = given(file, case + ".text", (rows, 77, 64))
        t = torch.tensor(([601, 1, 221] if two else [601, 141]) * 2)
        file.put(case + ".t", t.float())
        pairs = TWO if two else [(0, 1, 1, 1, model)]
        gradients = not two and dtype != torch.bfloat16
        on = unet_case(code, file, pipe, case, pairs, x, t, text, gradients)
        uneven = [(a, b, 0.5, 2, m) for a, b, _, _, m in pairs]
        other = unet_case(code, file, pipe, case + "_uneven", uneven, x, t, text, gradients)
        code.patch.set_joint_attention(pipe.unet, enable=False)
        off = unet_case(code, file, pipe, case + "_off", pairs, x, t, text, gradients)
        if check:
            print(f"{case}: off by {far(off, on):.2f} without joint attention, {far(other, on):.2f} with other weights")
            assert min(far(off[k], on[k]) for k in range(rows)) > 0.1
    return file


def main():
    if len(sys.argv) != 2 or not os.path.isdir(os.path.join(sys.argv[1], "patch")):
        sys.exit("usage: unicon.py CHECKOUT (of the published code)")
    warnings.simplefilter("ignore")
    code = Published(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        write_adapters(folder)
        file = compute_runs(code, folder, torch.float32, True)
        with float32_draws():
            file.add_noise(compute_runs(code, folder, torch.float64, False), File(torch.bfloat16))
        unet = compute_unet(code, folder, torch.float64, True)
        unet.add_noise(compute_unet(code, folder, torch.float32, False),
                       compute_unet(code, folder, torch.bfloat16, False))
    for name, tensor in unet.tensors.items():
        file.put(name, tensor)
    file.meta.update(unet.meta)
    file.write(os.path.join(HERE, "unicon.safetensors"), "python tests/reference/unicon.py CHECKOUT")
    with open(os.path.join(HERE, "unicon.txt"), "w") as f:
        for checkpoint, directory, key, shape in shapes():
            print(checkpoint, directory, key, *shape, file=f)


if __name__ == "__main__":
    with torch.no_grad():
        main()
