"""Checkpoints go both ways between us and the published code.

    python tests/reference/unicon_roundtrip.py CHECKOUT COPY            (COPY: build/release/tool/unicon_copy)

Three checkpoints of the tiny base (unicon.py) are saved as the published training code saves them: its patched UNet,
its adapters, its own functions. `depth` is conv_fuse with a y-LoRA of another rank, `id` conv without one, `less`
conv_fuse trained with the encoder skipped. Each is read and written again by our store, with model.pth, and by way of
model.safetensors. The published loader then reads what was saved and what we wrote, and its UNet has to give the same
bits with both; with `depth` a whole run too. What we wrote has to hold the trained parameters bit for bit.

Writes nothing that stays; prints a line for each check and fails with the first that does not hold.
"""
import os
import subprocess
import sys
import tempfile
import unittest.mock
import warnings

import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from safetensors.torch import load_file

import tiny
import unicon
from golden import draw
from unicon import Published

RANK = {"xy_lora": 4, "yx_lora": 4, "y_lora": 2}
LAYERS = {"xy_lora": ["attn1n"], "yx_lora": ["attn1n"], "y_lora": ["attn1", "attn2"]}
TRAINED = {     # post, adapters, blocks that are skipped
    "depth": ("conv_fuse", ["xy_lora", "yx_lora", "y_lora"], None),
    "id": ("conv", ["xy_lora", "yx_lora"], None),
    "less": ("conv_fuse", ["xy_lora", "yx_lora", "y_lora"], "down_blocks"),
}


def trained(code, name):
    """The UNet as after training, with numbers drawn for all that is trained."""
    post, adapters, skipped = TRAINED[name]
    unet = tiny.build("sd1")["unet"].requires_grad_(False)
    code.patch.apply_patch(unet, name_skip=skipped, train=True)
    code.patch.initialize_joint_layers(unet, post=post)
    for a in adapters:
        unet.add_adapter(LoraConfig(r=RANK[a], lora_alpha=RANK[a], init_lora_weights="gaussian", target_modules=[
            f"{layer}.{p}" for layer in LAYERS[a] for p in ("to_k", "to_q", "to_v", "to_out.0")]), adapter_name=a)
    code.patch.hack_lora_forward(unet)
    unet.set_adapters(adapters)
    unet.requires_grad_(False)
    code.peft_utils.set_adapters_requires_grad(unet, True, adapters)
    code.patch.set_joint_layer_requires_grad(unet, ["xy_lora", "yx_lora"], True)
    for key, p in unet.named_parameters():
        if p.requires_grad:
            p.data = torch.from_numpy(draw(f"{name}.{key}", tuple(p.shape), 0.125)).float()
    return unet


def save(code, unet, name, folder):
    for a in TRAINED[name][1]:
        state = convert_state_dict_to_diffusers(code.peft_utils.get_peft_model_state_dict(unet, adapter_name=a))
        StableDiffusionPipeline.save_lora_weights(save_directory=os.path.join(folder, a), unet_lora_layers=state,
                                                  safe_serialization=True)
    torch.save({k: p for k, p in unet.named_parameters() if p.requires_grad}, os.path.join(folder, "model.pth"))


def holds(unet, name, folder, safe):
    """Every trained parameter is in the files, and nothing else."""
    n = 0
    files = {a: load_file(os.path.join(folder, a, "pytorch_lora_weights.safetensors")) for a in TRAINED[name][1]}
    post = load_file(folder + "/model.safetensors") if safe else torch.load(folder + "/model.pth", weights_only=True)
    for key, p in unet.named_parameters():
        if not p.requires_grad:
            continue
        if "lora_" in key:
            stem, adapter, _ = key.rsplit(".", 2)
            stem = "unet." + stem.replace("lora_A", "lora.down").replace("lora_B", "lora.up") + ".weight"
            got = files[adapter][stem]
        else:
            got = post[key]
        assert got.dtype == torch.float32 and torch.equal(got, p.data), key
        n += 1
    assert n == len(post) + sum(len(f) for f in files.values())
    return n


def output(code, name, folder):
    """The published UNet's, and for depth a run's, with the checkpoint as its loader takes it."""
    post = TRAINED[name][0]
    with unittest.mock.patch.dict(unicon.KIND, {name: post}):
        pipe = code.load(folder, (name,))
    code.utils.set_unicon_config_inference(pipe.unet, [(0, 1, 1, 1, name)], input_len=2)
    x = torch.from_numpy(draw("roundtrip.x", (4, 4, 8, 6))).float()
    text = torch.from_numpy(draw("roundtrip.text", (4, 77, 64))).float()
    t = torch.tensor([601, 141, 601, 141])
    out = [pipe.unet(x, t, text).sample]
    code.patch.set_joint_attention(pipe.unet, enable=False)
    off = float((pipe.unet(x, t, text).sample - out[0]).norm() / out[0].norm())
    assert off > 0.1, off
    code.patch.set_joint_attention(pipe.unet, enable=True)
    return out + (list(unicon.run(code, pipe, "to_x", "ddim")) if name == "depth" else [])


def copy(tool, source, to, *options):
    subprocess.run([tool, *options, source, to], check=True)


def main():
    if len(sys.argv) != 3 or not os.path.isdir(os.path.join(sys.argv[1], "patch")):
        sys.exit("usage: unicon_roundtrip.py CHECKOUT COPY (the tool unicon_copy)")
    warnings.simplefilter("ignore")
    code, tool = Published(sys.argv[1]), os.path.abspath(sys.argv[2])
    from utils import peft_utils
    code.peft_utils = peft_utils
    with tempfile.TemporaryDirectory() as at:
        for way in ("saved", "direct", "safe", "back"):
            os.mkdir(os.path.join(at, way))
        for name in TRAINED:
            path = {way: os.path.join(at, way, name) for way in ("saved", "direct", "safe", "back")}
            unet = trained(code, name)
            save(code, unet, name, path["saved"])
            copy(tool, path["saved"], path["direct"])
            copy(tool, path["saved"], path["safe"], "-s")
            copy(tool, path["safe"], path["back"])
            for way in ("direct", "safe", "back"):
                print(f"{name}, {way}: {holds(unet, name, path[way], way == 'safe')} tensors have the trained bits")
            want = output(code, name, os.path.dirname(path["saved"]))
            for way in ("direct", "back"):
                got = output(code, name, os.path.dirname(path[way]))
                assert len(got) == len(want) and all(torch.equal(a, b) for a, b in zip(got, want)), (name, way)
                print(f"{name}, {way}: the published loader takes it; the same bits in {len(want)} outputs")


if __name__ == "__main__":
    with torch.no_grad():
        main()
