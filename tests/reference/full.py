"""A base model of full size with seeded random weights, and what diffusers and transformers compute with it in float32.

    python tests/reference/full.py sd15|sd2 DIRECTORY [f16]

writes a diffusers directory (3 to 4 GB; half of it with f16) and DIRECTORY/full.safetensors: inputs and outputs of
UNet (64 x 64 latents), VAE (512 px) and text encoder, in our layout. `bench -m DIRECTORY` compares and times. Nothing
here is committed or needed by `make check`.
"""
import json
import os
import shutil
import sys

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

HERE = os.path.dirname(os.path.abspath(__file__))

UNET = dict(sample_size=64, block_out_channels=(320, 640, 1280, 1280), layers_per_block=2, cross_attention_dim=768,
            attention_head_dim=8, down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3)
VAE = dict(block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4, sample_size=512,
           down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4)
TEXT = dict(vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
            max_position_embeddings=77, hidden_act="quick_gelu")
SCHEDULER = dict(_class_name="PNDMScheduler", beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
                 num_train_timesteps=1000, set_alpha_to_one=False, skip_prk_steps=True, steps_offset=1,
                 clip_sample=False, trained_betas=None)
MODELS = {
    "sd15": (UNET, VAE, TEXT, SCHEDULER),
    "sd2": (dict(UNET, attention_head_dim=(5, 10, 20, 20), cross_attention_dim=1024, use_linear_projection=True), VAE,
            dict(TEXT, hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16,
                 hidden_act="gelu"), dict(SCHEDULER, _class_name="DDIMScheduler", prediction_type="v_prediction")),
}


def seed_weights(module, seed):
    g = torch.Generator().manual_seed(seed)
    for name, p in sorted(module.named_parameters()):
        if p.dim() > 1:
            gain = 0.02 * p[0].numel() ** 0.5 if "embedding" in name else 0.7
            p.data.normal_(0, gain / p[0].numel() ** 0.5, generator=g)
        elif "norm" in name and name.endswith("weight"):
            p.data.uniform_(0.9, 1.1, generator=g)
        else:
            p.data.uniform_(-0.05, 0.05, generator=g)
    return module.eval().requires_grad_(False)


def save(module, folder, name, dtype, config, class_name):
    os.makedirs(folder, exist_ok=True)
    state = {k: v.to(dtype).contiguous() for k, v in module.state_dict().items() if not k.endswith("position_ids")}
    save_file(state, os.path.join(folder, name), metadata={"format": "pt"})
    with open(os.path.join(folder, "config.json"), "w") as f:
        json.dump(dict(config, _class_name=class_name), f, indent=1)


def main():
    which, out = sys.argv[1:3]
    dtype = torch.float16 if sys.argv[3:] == ["f16"] else torch.float32
    unet_c, vae_c, text_c, scheduler = MODELS[which]
    os.makedirs(out, exist_ok=True)
    g = torch.Generator().manual_seed(7)
    results = {}
    torch.set_grad_enabled(False)

    text = seed_weights(CLIPTextModel(CLIPTextConfig(**text_c)), 1)
    save(text, f"{out}/text_encoder", "model.safetensors", dtype, text_c, "CLIPTextModel")
    ids = torch.randint(0, 49406, (2, 77), generator=g)
    results["text.id"] = ids.int()
    hidden = text(ids).last_hidden_state
    results["text.y"] = hidden
    del text
    unet = seed_weights(UNet2DConditionModel(**unet_c), 2)
    save(unet, f"{out}/unet", "diffusion_pytorch_model.safetensors", dtype, unet_c, "UNet2DConditionModel")
    x, t = torch.randn(2, 4, 64, 64, generator=g), torch.tensor([981.0, 261.0])
    words = torch.randn(2, 77, unet_c["cross_attention_dim"], generator=g)
    results.update({"unet.x": x.permute(0, 2, 3, 1), "unet.t": t, "unet.text": words})
    results["unet.y"] = unet(x, t, words).sample.permute(0, 2, 3, 1)
    del unet
    vae = seed_weights(AutoencoderKL(**vae_c), 3)
    save(vae, f"{out}/vae", "diffusion_pytorch_model.safetensors", dtype, vae_c, "AutoencoderKL")
    image, z = torch.rand(1, 3, 512, 512, generator=g) * 2 - 1, torch.randn(1, 4, 64, 64, generator=g)
    results.update({"vae.image": image.permute(0, 2, 3, 1), "vae.z": z.permute(0, 2, 3, 1)})
    results["vae.moments"] = vae.quant_conv(vae.encoder(image)).permute(0, 2, 3, 1)
    results["vae.decoded"] = vae.decode(z / vae.config.scaling_factor).sample.permute(0, 2, 3, 1)
    save_file({k: v.contiguous() for k, v in results.items()}, f"{out}/full.safetensors")

    os.makedirs(f"{out}/tokenizer", exist_ok=True)
    shutil.copy(os.path.join(HERE, "../../store/builtin/clip_merges.txt"), f"{out}/tokenizer/merges.txt")
    os.makedirs(f"{out}/scheduler", exist_ok=True)
    with open(f"{out}/scheduler/scheduler_config.json", "w") as f:
        json.dump(scheduler, f)
    with open(f"{out}/model_index.json", "w") as f:
        json.dump({"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.27.2",
                   "scheduler": ["diffusers", scheduler["_class_name"]],
                   "text_encoder": ["transformers", "CLIPTextModel"],
                   "tokenizer": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"],
                   "vae": ["diffusers", "AutoencoderKL"], "safety_checker": [None, None],
                   "feature_extractor": [None, None]}, f, indent=1)


if __name__ == "__main__":
    main()
