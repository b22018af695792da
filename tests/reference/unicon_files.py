"""UniCon checkpoints of a tiny UNet for t_unicon_file.c under tests/, written as its training code writes them:
adapters by peft and diffusers' save_lora_weights, trainable parameters by torch.save.

    python tests/reference/unicon_files.py              writes tests/corpus/unicon/

depth/ is what training leaves: three adapters, model.pth with parameters, projections (2C,2C) and copies of the xy
adapter (training has copies of all; one keeps the file small). peft 0.10 saves as y_lora whatever has "y_lora" in its
name, so that file has the xy adapter too, with its name in the keys. variant/ says the same kind of thing in other
ways: peft's names with an adapter's name, in F16, without "unet."; older names with ".processor.", in BF16; plain
tensors in F16 under post1n.<model>; projections (C,C); no y_lora. odd.json describes it.

Element i of a tensor is ((7 i + s) % 101 - 50) / 64, s the sum of the bytes of "<adapter or post>/<name in core>":
exact in every type. Versions are those of requirements.txt.
"""
import copy
import json
import pathlib
import shutil

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

OUT = pathlib.Path(__file__).resolve().parent.parent / "corpus" / "unicon"
RANK = 4
BLOCKS = ["down_blocks.0.attentions.0.transformer_blocks.0", "mid_block.attentions.0.transformer_blocks.0"]


def formula(part, name, shape):
    s = sum(f"{part}/{name}".encode())
    n = torch.Size(shape).numel()
    return (((7 * torch.arange(n) + s) % 101 - 50) / 64).reshape(shape)


def unet(post):
    """With the joint layers beside every self-attention, as the training code patches them in."""
    u = UNet2DConditionModel(
        in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=12,
        attention_head_dim=2, norm_num_groups=4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"))
    u.requires_grad_(False)
    modules = dict(u.named_modules())
    assert [n for n, m in modules.items() if type(m).__name__ == "BasicTransformerBlock"] == BLOCKS
    for b in BLOCKS:
        block, width = modules[b], modules[b].attn1.to_q.out_features * (2 if post == "conv_fuse" else 1)
        block.attn1n = copy.deepcopy(block.attn1)
        block.conv1n = torch.nn.Linear(width, width, bias=False)
    return u


def adapters(u, names):
    for name in names:
        layers = ["attn1", "attn2"] if name == "y_lora" else ["attn1n"]
        u.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=[
            f"{a}.{p}" for a in layers for p in ("to_k", "to_q", "to_v", "to_out.0")]), adapter_name=name)


def own_name(name):
    """What core/joint.h calls a parameter of the UNet; (adapter or post, name)."""
    if "lora" not in name:
        return "post", name
    stem, half, adapter, _ = name.replace(".lora_", " lora_").replace(" ", ".", 1).rsplit(".", 3)
    return adapter, f"{stem}.{'down' if half == 'lora_A' else 'up'}.weight"


def trained(post, names):
    u = unet(post)
    adapters(u, names)
    u.requires_grad_(False)
    for name, p in u.named_parameters():
        if "lora" in name or "conv1n" in name:
            p.data = formula(*own_name(name), p.shape)
            p.requires_grad_(True)
    return u


def save(u, folder, names, copies):
    for name in names:
        state = convert_state_dict_to_diffusers(get_peft_model_state_dict(u, adapter_name=name))
        StableDiffusionPipeline.save_lora_weights(save_directory=folder / name, unet_lora_layers=state,
                                                  safe_serialization=True)
    torch.save({n: p for n, p in u.named_parameters() if p.requires_grad and ("lora" not in n or copies in n)},
               folder / "model.pth")


def rewrite(path, rename, dtype):
    tensors = {rename(k): v.to(dtype) for k, v in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})


def peft_name(name):
    name = name.removeprefix("unet.")
    return name.replace(".lora.down.", ".lora_A.depth_xy_lora.").replace(".lora.up.", ".lora_B.depth_xy_lora.")


def old_name(name):
    return name.replace(".attn1n.", ".attn1n.processor.").replace("to_out.0", "to_out").replace(".lora.", "_lora.")


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    three = ["xy_lora", "yx_lora", "y_lora"]
    save(trained("conv_fuse", three), OUT / "depth", three, ".xy_lora.")

    variant = OUT / "variant"
    save(trained("conv", three[:2]), variant, three[:2], "nothing")
    (variant / "xy_lora" / "pytorch_lora_weights.safetensors").rename(variant / "xy_lora" / "other.safetensors")
    rewrite(variant / "xy_lora" / "other.safetensors", peft_name, torch.float16)
    rewrite(variant / "yx_lora" / "pytorch_lora_weights.safetensors", old_name, torch.bfloat16)
    post = torch.load(variant / "model.pth")
    torch.save({k.replace("conv1n", "post1n.odd"): v.data.half() for k, v in post.items()}, variant / "model.pth")
    (OUT / "odd.json").write_text(json.dumps({
        "model_name": "odd", "base_model_id": "runwayml/stable-diffusion-v1-5", "checkpoint_path": "variant",
        "post_joint": "conv", "trigger_word": "odd_map, ", "adapter_names": three[:2]}) + "\n")


main()
