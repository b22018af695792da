"""What tests/t_base.c reads: names and sizes of the tensors of base models, and LoRA files of every layout.

base_keys.txt   every tensor of SD1.5's and SD2's UNet, VAE and text encoder: a line "diffusers' name, sizes" and under
                it "the original layout's name" (with its sizes where they differ). diffusers' side is what its modules
                have; the original's is written down here from the layout and checked by diffusers' own converters.
control_keys.txt  the same of ControlNets; their 361 million numbers are those of the published ones.
lora/*          one LoRA of a tiny UNet and text encoder, as diffusers, older diffusers, peft and kohya write it, the
                last with diffusers' and with the original layout's names.
lora/delta.safetensors   what diffusers adds to the weights after it loaded those files.
"""
import os

import torch
from diffusers import AutoencoderKL, ControlNetModel, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.loaders import lora_conversion_utils as kohya
from diffusers.loaders import single_file_utils as single
from golden import File, draw
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

HERE = os.path.dirname(os.path.abspath(__file__))

RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
          "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}
CLIP = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
        "self_attn.out_proj": "attn.out_proj"}


def unet_original(key, attends_up, layers):
    """The original layout's name of a UNet tensor, without model.diffusion_model."""
    front, rest = key.split(".", 1)
    ends = {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}
    if front in ends:
        return f"{ends[front]}.{rest}"
    if front == "time_embedding":
        return "time_embed." + rest.replace("linear_1", "0").replace("linear_2", "2")
    parts = key.split(".")
    if front == "mid_block":
        block = {"resnets.0": 0, "attentions.0": 1, "resnets.1": 2}[".".join(parts[1:3])]
        kind, where, tail = parts[1], f"middle_block.{block}", parts[3:]
    else:
        b, kind, l, tail = int(parts[1]), parts[2], int(parts[3]), parts[4:]
        first = b * (layers + 1)
        if kind == "downsamplers":
            return f"input_blocks.{first + layers + 1}.0.op.{tail[1]}"
        if kind == "upsamplers":
            return f"output_blocks.{first + layers}.{2 if attends_up[b] else 1}.conv.{tail[1]}"
        side = f"input_blocks.{first + l + 1}" if front == "down_blocks" else f"output_blocks.{first + l}"
        where = f"{side}.{int(kind == 'attentions')}"
    if kind == "resnets":
        tail = [RESNET[tail[0]]] + tail[1:]
    return where + "." + ".".join(tail)


def vae_original(key, stages):
    parts = key.split(".")
    if parts[0] not in ("encoder", "decoder"):
        return key
    half, parts = parts[0], parts[1:]
    if parts[0] == "conv_norm_out":
        return f"{half}.norm_out.{parts[1]}"
    if parts[0] == "mid_block":
        tail = ".".join(parts[3:])
        if parts[1] == "resnets":
            return f"{half}.mid.block_{int(parts[2]) + 1}.{tail}"
        names = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
        module, leaf = tail.rsplit(".", 1)
        return f"{half}.mid.attn_1.{names[module]}.{leaf}"
    if parts[0] in ("down_blocks", "up_blocks"):
        down = parts[0] == "down_blocks"
        i = int(parts[1]) if down else stages - 1 - int(parts[1])
        where = f"{half}.{'down' if down else 'up'}.{i}"
        if parts[2] == "resnets":
            return f"{where}.block.{parts[3]}." + ".".join(parts[4:]).replace("conv_shortcut", "nin_shortcut")
        return f"{where}.{'downsample' if down else 'upsample'}.conv.{parts[5]}"
    return f"{half}." + ".".join(parts)


def openclip_original(key):
    parts = key.split(".")
    if "token_embedding" in key:
        return "token_embedding.weight"
    if "position_embedding" in key:
        return "positional_embedding"
    if "final_layer_norm" in key:
        return "ln_final." + parts[-1]
    where, module = f"transformer.resblocks.{parts[3]}", ".".join(parts[4:-1])
    if module in CLIP:
        return f"{where}.{CLIP[module]}.{parts[-1]}"
    return f"{where}.attn.in_proj_{parts[-1]}"


def tagged(shapes):
    """Tensors of those shapes that take no memory; tensor i is filled with i."""
    return {k: torch.tensor(float(i)).expand(s) for i, (k, s) in enumerate(shapes.items())}


def check(converted, want, originals):
    """diffusers made of original i a tensor of the name and the sizes that we say."""
    names = list(originals)
    assert set(converted) == set(want), set(converted) ^ set(want)
    for key, value in converted.items():
        got = names[int(value.flatten()[0])]
        assert got == want[key][0] and tuple(value.shape) == want[key][1], (key, got, value.shape)


def shapes_of(make, **config):
    with torch.device("meta"):
        return {k: tuple(v.shape) for k, v in make(**config).state_dict().items() if "position_ids" not in k}


def dims(shape):
    return ",".join(map(str, shape))


def unets():
    base = dict(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    two = dict(sample_size=96, cross_attention_dim=1024, attention_head_dim=[5, 10, 20, 20],
               use_linear_projection=True)
    both = [shapes_of(UNet2DConditionModel, **c) for c in (base, two)]
    assert list(both[0]) == list(both[1]) and len(both[0]) == 686
    up = [False, True, True, True]
    original = {k: unet_original(k, up, 2) for k in both[0]}
    for shapes in both:
        source = {single.LDM_UNET_KEY + original[k]: s for k, s in shapes.items()}
        want = {k: (single.LDM_UNET_KEY + original[k], s) for k, s in shapes.items()}
        check(single.convert_ldm_unet_checkpoint(tagged(source), {"layers_per_block": 2}), want, source)
    lines = [f"[unet {len(both[0])}] sizes of SD1.5, then those of SD2 where they differ"]
    for k, s in both[0].items():
        lines += [" ".join([k, dims(s)] + ([dims(both[1][k])] if both[1][k] != s else [])), "  " + original[k]]
    return lines


def control_original(key, hint):
    """Without control_model."""
    front, rest = key.split(".", 1)
    if front == "controlnet_cond_embedding":
        module, leaf = rest.rsplit(".", 1)
        i = {"conv_in": 0, "conv_out": 2 * hint - 1}.get(module)
        return f"input_hint_block.{2 * (int(module.split('.')[1]) + 1 if i is None else i)}.{leaf}"
    if front == "controlnet_down_blocks":
        return "zero_convs.{}.0.{}".format(*rest.split("."))
    return f"middle_block_out.0.{rest}" if front == "controlnet_mid_block" else unet_original(key, [], 2)


def controls():
    two = dict(attention_head_dim=[5, 10, 20, 20], use_linear_projection=True)
    both = [shapes_of(ControlNetModel, cross_attention_dim=d, **c) for d, c in ((768, {}), (1024, two))]
    assert list(both[0]) == list(both[1]) and len(both[0]) == 340
    assert sum(torch.Size(s).numel() for s in both[0].values()) == 361279120
    original = {k: control_original(k, 4) for k in both[0]}
    for prefix in (single.LDM_CONTROLNET_KEY, ""):
        for shapes in both:
            source = {prefix + original[k]: s for k, s in shapes.items()}
            want = {k: (prefix + original[k], s) for k, s in shapes.items()}
            check(single.convert_controlnet_checkpoint(tagged(source), {"layers_per_block": 2}), want, source)
    lines = [f"[control {len(both[0])}] sizes for SD1.5, then those for SD2 where they differ"]
    for k, s in both[0].items():
        lines += [" ".join([k, dims(s)] + ([dims(both[1][k])] if both[1][k] != s else [])), "  " + original[k]]
    return lines


def vaes():
    four = dict(down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4)
    shapes = shapes_of(AutoencoderKL, block_out_channels=[128, 256, 512, 512], layers_per_block=2, **four)
    assert len(shapes) == 248
    original = {k: vae_original(k, 4) for k in shapes}
    stored = {k: s + (1, 1) if ".attentions." in k and len(s) == 2 else s for k, s in shapes.items()}
    source = {single.LDM_VAE_KEY + original[k]: s for k, s in stored.items()}
    want = {k: (single.LDM_VAE_KEY + original[k], s) for k, s in shapes.items()}
    check(single.convert_ldm_vae_checkpoint(tagged(source), four), want, source)
    lines = [f"[vae {len(shapes)}] a second row of sizes: as the original layout stores it"]
    for k, s in shapes.items():
        lines += [f"{k} {dims(s)}", "  " + original[k] + (" " + dims(stored[k]) if stored[k] != s else "")]
    return lines


def texts():
    one = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12, num_hidden_layers=12)
    two = CLIPTextConfig(hidden_size=1024, intermediate_size=4096, num_attention_heads=16, num_hidden_layers=23,
                         hidden_act="gelu")
    shapes = shapes_of(CLIPTextModel, config=one)
    assert len(shapes) == 196
    lines = [f"[text1 {len(shapes)}] the original layout has these names too"]
    lines += [f"{k} {dims(s)}" for k, s in shapes.items()]
    shapes = shapes_of(CLIPTextModel, config=two)
    known = single.DIFFUSERS_TO_LDM_MAPPING["openclip"]
    lines.append(f"[text2 {len(shapes)}] q, k and v lie stacked in one tensor, whose sizes follow its name")
    for k, s in shapes.items():
        original = openclip_original(k)
        if k in known["layers"]:
            assert known["layers"][k] == original
        else:                                   # what diffusers makes of the original name
            back = original.removeprefix("transformer.")
            for new, old_part in known["transformer"].items():
                back = back.replace(old_part, new)
            assert back == k or back.split(".in_proj")[0] == k.rsplit(".", 2)[0], (k, back)
        stacked = " " + dims((3 * s[0], *s[1:])) if "in_proj" in original else ""
        lines += [f"{k} {dims(s)}", "  " + original + stacked]
    return lines


# ---- LoRA ----

RANK, ALPHA = 4, 2.0
UNET = dict(block_out_channels=[16, 32], layers_per_block=1, cross_attention_dim=24, attention_head_dim=2,
            norm_num_groups=8, down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"],
            up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"])
TEXT = dict(hidden_size=16, intermediate_size=24, num_attention_heads=2, num_hidden_layers=1, vocab_size=64)
ATTN = "down_blocks.0.attentions.0.transformer_blocks.0"
MODULES = [f"{ATTN}.attn1.to_q", f"{ATTN}.attn1.to_out.0", f"{ATTN}.attn2.to_k",
           "up_blocks.1.attentions.1.transformer_blocks.0.attn1.to_v"]
MORE = ["down_blocks.0.attentions.0.proj_in", f"{ATTN}.ff.net.0.proj", f"{ATTN}.ff.net.2"]
CONVS = ["down_blocks.0.resnets.0.conv1", "down_blocks.0.downsamplers.0.conv", "up_blocks.0.upsamplers.0.conv",
         "mid_block.resnets.1.time_emb_proj", "up_blocks.1.resnets.0.conv_shortcut"]
LAYER = "text_model.encoder.layers.0"
TEXTS = [f"{LAYER}.self_attn.{p}_proj" for p in ("q", "k", "v", "out")] + [f"{LAYER}.mlp.fc1", f"{LAYER}.mlp.fc2"]


def tensor(name, shape):
    return torch.from_numpy(draw(name, shape, 2.0**-3)).float()


def pairs(model, modules):
    out = {}
    for m in modules:
        shape = tuple(model.get_submodule(m).weight.shape)
        out[m] = (tensor(m + ".down", (RANK, *shape[1:])),
                  tensor(m + ".up", (shape[0], RANK, *([1] * (len(shape) - 2)))))
    return out


def flat(name):
    return name.replace(".", "_")


def old(module):
    """attn1.to_q -> attn1.processor.to_q_lora"""
    front, leaf = module.replace(".to_out.0", ".to_out").rsplit(".", 1)
    return f"{front}.processor.{leaf}_lora"


def layouts(unet, text):
    u = {**pairs(unet, MODULES + MORE + CONVS)}
    t = pairs(text, TEXTS)
    attn = {m: u[m] for m in MODULES}
    linear = {m: u[m] for m in MODULES + MORE}
    down = [False, True]
    alpha = torch.tensor(ALPHA)
    files = {"diffusers": {}, "old": {}, "peft": {}, "kohya": {}, "original": {}}
    for m, (a, b) in linear.items():
        files["diffusers"] |= {f"unet.{m}.lora.down.weight": a, f"unet.{m}.lora.up.weight": b}
    for m, (a, b) in t.items():
        where = f"text_encoder.{m}.lora_linear_layer"
        files["diffusers"] |= {f"{where}.down.weight": a, f"{where}.up.weight": b}
    for m, (a, b) in attn.items():
        files["old"] |= {f"{old(m)}.down.weight": a, f"{old(m)}.up.weight": b}
    for m, (a, b) in u.items():
        files["peft"] |= {f"unet.{m}.lora_A.weight": a, f"unet.{m}.lora_B.weight": b}
        for name, spelt in (("kohya", m), ("original", unet_original(m + ".weight", down, 1)[:-7])):
            where = "lora_unet_" + flat(spelt)
            files[name] |= {where + ".lora_down.weight": a, where + ".lora_up.weight": b, where + ".alpha": alpha}
    for m, (a, b) in t.items():
        where = "lora_te_" + flat(m)
        files["kohya"] |= {where + ".lora_down.weight": a, where + ".lora_up.weight": b, where + ".alpha": alpha}
    return files


def loaded(state, unet_config, text_config):
    """What diffusers adds to every weight: its own loading and fusing, on models of random weights."""
    torch.manual_seed(1)
    unet, text = UNet2DConditionModel(**unet_config), CLIPTextModel(CLIPTextConfig(**text_config))
    before = {**{"unet." + k: v.clone() for k, v in unet.state_dict().items()},
              **{"text." + k: v.clone() for k, v in text.state_dict().items()}}
    alphas = None
    if any(k.startswith("lora_") for k in state):
        state = kohya._maybe_map_sgm_blocks_to_diffusers(dict(state), unet.config)
        state, alphas = kohya._convert_kohya_lora_to_diffusers(state)
    StableDiffusionPipeline.load_lora_into_unet(state, alphas, unet, adapter_name="a")
    if any(k.startswith("text_encoder.") for k in state):
        StableDiffusionPipeline.load_lora_into_text_encoder(state, alphas, text, adapter_name="a")
    out = {}
    for part, model in (("unet.", unet), ("text.", text)):
        for name, module in model.named_modules():
            if hasattr(module, "get_delta_weight") and "a" in module.lora_A:
                key = part + name + ".weight"
                assert key in before
                out[key] = module.get_delta_weight("a").detach()
    return out


def loras():
    torch.manual_seed(0)
    unet, text = UNet2DConditionModel(**UNET), CLIPTextModel(CLIPTextConfig(**TEXT))
    os.makedirs(f"{HERE}/lora", exist_ok=True)
    delta = {}
    for name, state in layouts(unet, text).items():
        path = f"{HERE}/lora/{name}.safetensors"
        save_file({k: v.clone() for k, v in state.items()}, path)
        os.chmod(path, 0o644)
        # diffusers 0.27.2 takes this one name of the original layout for an attention and leaves it out.
        lost = {k for k in state if "output_blocks_1_1_conv" in k}
        got = loaded({k: v for k, v in load_file(path).items() if k not in lost}, UNET, TEXT)
        scale = ALPHA / RANK if name in ("kohya", "original") else 1.0
        print(name, len(state), "tensors,", len(got), "layers,", os.path.getsize(path), "bytes")
        for key, value in got.items():
            if key in delta:
                assert torch.allclose(delta[key] * scale, value, atol=1e-6), (name, key)
            else:
                delta[key] = value / scale
        assert len(got) * (3 if scale != 1 else 2) == len(state) - len(lost), (name, len(got), len(state))
    file = File(torch.float32)
    for key, value in sorted(delta.items()):
        file.put(key, value)
    file.write(f"{HERE}/lora/delta.safetensors", "python tests/reference/base_fixtures.py")


if __name__ == "__main__":
    keys = unets() + vaes() + texts()
    with open(f"{HERE}/base_keys.txt", "w") as f:
        f.write("\n".join(keys) + "\n")
    with open(f"{HERE}/control_keys.txt", "w") as f:
        f.write("\n".join(controls()) + "\n")
    loras()
