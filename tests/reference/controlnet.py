"""What the tiny ControlNets of tiny.py compute. Writes controlnet.safetensors.

control_net: the 13 residuals of one pass, the UNet's answer with them, its gradient to the latents; float64, as in
models.py. The others: latents of whole runs of diffusers' ControlNet pipelines in float32, 20 steps with guidance;
tests/t_controlnet.c runs unicon-sample with the same options.
"""
import os
import warnings

import numpy as np
import torch
from diffusers import (DDIMScheduler, DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler, PNDMScheduler,
                       StableDiffusionControlNetImg2ImgPipeline, StableDiffusionControlNetPipeline)
from PIL import Image

import tiny
from golden import File
from models import given
from pipelines import H, NEGATIVE, PROMPT, SCALE, SCHEDULE, STEPS, W, picture, tokenizer

HERE = os.path.dirname(os.path.abspath(__file__))
SAMPLERS = {"ddim": DDIMScheduler, "euler-a": EulerAncestralDiscreteScheduler, "dpm++2m": DPMSolverMultistepScheduler}


def condition(k, w=W, h=H):
    """The pictures that t_controlnet.c makes."""
    y, x, c = np.mgrid[0:h, 0:w, 0:3]
    return Image.fromarray(((x * 2 + y * 5 + c * 20 if k == 1 else x * y + c * 90) % 256).astype(np.uint8))


def pass_case(file, name, parts, control, shape, times, gradients):
    """Weight 0.7; the picture is the same for all rows."""
    x = given(file, name + ".x", shape).requires_grad_(gradients)
    text = given(file, name + ".text", (shape[0], 77, 64))
    hint = given(file, name + ".picture", (1, 3, 8 * shape[2], 8 * shape[3]), 0.25)
    t = torch.tensor(times, dtype=torch.float32)
    file.put(name + ".t", t)
    down, mid = control(x, t, text, hint.expand(shape[0], -1, -1, -1), conditioning_scale=0.7, return_dict=False)
    for i, r in enumerate(list(down) + [mid]):
        file.put(f"{name}.r{i}", r, True)
    y = parts["unet"](x, t, text, down_block_additional_residuals=down, mid_block_additional_residual=mid).sample
    file.put(name + ".y", y, True)
    if gradients:
        dy = given(file, name + ".dy", tuple(y.shape))
        file.put(name + ".dx", torch.autograd.grad(y, [x], dy)[0], True)


def passes(dtype):
    file = File(dtype)
    parts, control = tiny.build("sd1", dtype), tiny.build_control("control", dtype)
    f64 = dtype != torch.bfloat16
    pass_case(file, "pass", parts, control, (2, 4, 8, 8), [981.0, 37.5], f64)
    with torch.no_grad():
        pass_case(file, "odd", parts, control, (1, 4, 13, 7), [500.0], False)
    return file


def seed():
    return torch.Generator().manual_seed(4321)


def run(file, case, kind, sampler, parts, control, image, **more):
    base = PNDMScheduler(skip_prk_steps=True, **{k: x for k, x in SCHEDULE.items() if k != "clip_sample"})
    pipe = kind(vae=parts["vae"], text_encoder=parts["text"], unet=parts["unet"], controlnet=control,
                tokenizer=tokenizer("<|endoftext|>"), safety_checker=None, feature_extractor=None,
                requires_safety_checker=False,
                scheduler=SAMPLERS[sampler].from_config({**base.config, **SCHEDULE}))
    pipe.set_progress_bar_config(disable=True)
    z = pipe(prompt=PROMPT, negative_prompt=NEGATIVE, image=image, num_inference_steps=STEPS, guidance_scale=SCALE,
             generator=seed(), output_type="latent", **more).images
    file.put(f"{case}_{sampler}.y", z)


def runs(file):
    parts = tiny.build("sd1")
    one, two = tiny.build_control("control"), tiny.build_control("control2")
    plain, other = StableDiffusionControlNetPipeline, StableDiffusionControlNetImg2ImgPipeline
    size = dict(height=H, width=W)
    for sampler in SAMPLERS:
        run(file, "text", plain, sampler, parts, one, condition(1), **size)
    run(file, "half", plain, "ddim", parts, one, condition(1), control_guidance_end=0.5, **size)
    run(file, "late", plain, "dpm++2m", parts, one, condition(1), control_guidance_start=0.3, **size)
    run(file, "large", plain, "ddim", parts, one, condition(1, 72, 96), **size)
    for sampler in ("ddim", "euler-a"):
        run(file, "two", plain, sampler, parts, [one, two], [condition(1), condition(2)],
            controlnet_conditioning_scale=[0.7, 0.4], **size)
    for sampler in ("ddim", "dpm++2m"):
        run(file, "image", other, sampler, parts, one, picture(), control_image=condition(1), strength=0.75,
            controlnet_conditioning_scale=0.8, **size)


def main():
    warnings.simplefilter("ignore")
    file = passes(torch.float64)
    with torch.no_grad():
        rough = passes(torch.bfloat16)
    file.add_noise(passes(torch.float32), rough)
    with torch.no_grad():
        runs(file)
    file.write(os.path.join(HERE, "controlnet.safetensors"), "python tests/reference/controlnet.py")


if __name__ == "__main__":
    main()
