"""Latents that diffusers' pipelines make with the tiny models of tiny.py in float32: text to image, image to image and
inpainting, 20 steps with guidance, every sampler. Writes pipelines.safetensors; tests/t_sample.c runs unicon-sample
with the same options.
"""
import json
import os
import tempfile
import warnings

import numpy as np
import torch
from diffusers import (DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler,
                       EulerDiscreteScheduler, PNDMScheduler, StableDiffusionImg2ImgPipeline,
                       StableDiffusionInpaintPipeline, StableDiffusionPipeline)
from PIL import Image
from transformers import CLIPTokenizer

import tiny
from golden import File

HERE = os.path.dirname(os.path.abspath(__file__))
SAMPLERS = {"ddim": DDIMScheduler, "ddpm": DDPMScheduler, "euler": EulerDiscreteScheduler,
            "euler-a": EulerAncestralDiscreteScheduler, "dpm++2m": DPMSolverMultistepScheduler, "pndm": PNDMScheduler}
SCHEDULE = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000,
                set_alpha_to_one=False, steps_offset=1, clip_sample=False)
PROMPT, NEGATIVE = "a red fox in the snow, best quality", "blurry, low quality"
W, H, STEPS, SCALE = 48, 64, 20, 7.5


def tokenizer(pad):
    """CLIP's, from the merges that are compiled in."""
    table = [chr(i) for i in list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))]
    table += [chr(256 + k) for k in range(68)]
    with open(os.path.join(HERE, "../../store/builtin/clip_merges.txt"), encoding="utf-8") as f:
        merges = f.read().split("\n")[1:48895]
    words = table + [c + "</w>" for c in table] + ["".join(m.split()) for m in merges]
    words += ["<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as d:
        with open(f"{d}/vocab.json", "w", encoding="utf-8") as f:
            json.dump({w: i for i, w in enumerate(words)}, f)
        with open(f"{d}/merges.txt", "w", encoding="utf-8") as f:
            f.write("#version: 0.2\n" + "\n".join(merges) + "\n")
        return CLIPTokenizer(f"{d}/vocab.json", f"{d}/merges.txt", pad_token=pad, model_max_length=77)


def picture():
    y, x, c = np.mgrid[0:H, 0:W, 0:3]
    return Image.fromarray(((x * 7 + y * 3 + c * 50) % 256).astype(np.uint8))


def mask():
    y, x = np.mgrid[0:H, 0:W]
    return Image.fromarray(np.where((x >= 16) & (y < 40), 255, 0).astype(np.uint8))


def main():
    warnings.simplefilter("ignore")
    file = File(torch.float32)
    for model in ("sd1", "sd2"):
        parts = tiny.build(model)
        v = dict(prediction_type="v_prediction") if model == "sd2" else {}
        common = dict(vae=parts["vae"], text_encoder=parts["text"], unet=parts["unet"], safety_checker=None,
                      feature_extractor=None, requires_safety_checker=False,
                      tokenizer=tokenizer("!" if model == "sd2" else "<|endoftext|>"))
        for name, kind in SAMPLERS.items():
            base = PNDMScheduler(skip_prk_steps=True, **{k: x for k, x in SCHEDULE.items() if k != "clip_sample"}, **v)
            for eta in (0.0, 1.0) if name == "ddim" else (0.0,):
                case = f"{model}_{name}" + ("_eta" if eta else "")
                run = dict(prompt=PROMPT, negative_prompt=NEGATIVE, num_inference_steps=STEPS, guidance_scale=SCALE,
                           eta=eta, output_type="latent")

                def scheduler():
                    return kind.from_config({**base.config, **SCHEDULE, **v})

                def seed():
                    return torch.Generator().manual_seed(4321)

                pipe = StableDiffusionPipeline(scheduler=scheduler(), **common)
                pipe.set_progress_bar_config(disable=True)
                z = pipe(height=H, width=W, generator=seed(), **run).images
                file.put(case + "_text.y", z)
                if name == "ddim" and not eta:
                    image = pipe.vae.decode(z / pipe.vae.config.scaling_factor).sample.detach()
                    image = pipe.image_processor.postprocess(image, output_type="pt")
                    file.put(case + "_text.image", image)
                pipe = StableDiffusionImg2ImgPipeline(scheduler=scheduler(), **common)
                pipe.set_progress_bar_config(disable=True)
                file.put(case + "_image.y", pipe(image=picture(), strength=0.75, generator=seed(), **run).images)
                if name in ("ddim", "euler-a") and model == "sd1":
                    pipe = StableDiffusionInpaintPipeline(scheduler=scheduler(), **common)
                    pipe.set_progress_bar_config(disable=True)
                    for strength in (1.0, 0.75):
                        z = pipe(image=picture(), mask_image=mask(), strength=strength, height=H, width=W,
                                 generator=seed(), **run).images
                        file.put(f"{case}_mask{int(strength * 100)}.y", z)
    file.write(os.path.join(HERE, "pipelines.safetensors"), "python tests/reference/pipelines.py")


if __name__ == "__main__":
    with torch.no_grad():
        main()
