"""Goldens of single operations and of two blocks: writes ops.safetensors beside this file.

    python tests/reference/ops.py

torch 2.1.2, numpy 1.24.4, diffusers 0.27.2, peft 0.10.0 on the CPU, one thread; seed in golden.py. The test is
tests/t_golden.c: it has a case of the same name for every function below.
"""
import os
import sys

sys.dont_write_bytecode = True

import diffusers
import numpy as np
import peft
import torch
import torch.nn.functional as F
from diffusers.models.activations import GEGLU
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.models.lora import LoRALinearLayer
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from peft.tuners.lora.layer import Linear as PeftLinear
from torch.func import functional_call

from golden import Case, File, draw, nchw, nhwc, oihw

file = File(torch.float64)


def case(name):
    return Case(file, name)


def quick_gelu(x):
    return x * torch.sigmoid(1.702 * x)


# -- linear ------------------------------------------------------------------------------------------------------

ACTS = {"silu": F.silu, "gelu": F.gelu, "quick_gelu": quick_gelu, "relu": F.relu}


def linear():
    c = case("linear")                                  # rows (2,7), 67 -> 37
    x, w, b = c.leaf("x", (2, 7, 67)), c.weight("w", (37, 67)), c.leaf("b", (37,))
    c.done(F.linear(x, w, b))
    c = case("linear_plain")                            # as the projections of attention: no bias
    x, w = c.leaf("x", (3, 5, 13)), c.weight("w", (19, 13))
    c.done(F.linear(x, w))
    for name, act in ACTS.items():
        c = case("linear_" + name)
        x, w, b = c.leaf("x", (3, 5, 13)), c.weight("w", (19, 13)), c.leaf("b", (19,))
        c.done(act(F.linear(x, w, b)))
    c = case("linear_residual")
    x, w, b = c.leaf("x", (3, 5, 13)), c.weight("w", (19, 13)), c.leaf("b", (19,))
    r = c.leaf("r", (3, 5, 19))
    c.done(F.linear(x, w, b) + r)
    c = case("linear_everything")                       # act(x W^T + b + row_add[image]) + residual
    x, w, b = c.leaf("x", (3, 5, 13)), c.weight("w", (19, 13)), c.leaf("b", (19,))
    row, r = c.leaf("row", (3, 19)), c.leaf("r", (3, 5, 19))
    c.done(F.silu(F.linear(x, w, b) + row[:, None]) + r)
    c = case("linear_geglu")                            # 11 -> 2 x 9, [value | gate]
    m = GEGLU(11, 9).to(file.dtype)
    x = c.leaf("x", (3, 5, 11))
    c.done(functional_call(m, c.params(m), (x,)))


def lora():
    c = case("lora")                                    # two of peft's adapters at once, alpha/r = 1.5 and 0.5
    base = torch.nn.Linear(21, 17)
    m = PeftLinear(base, "p", r=4, lora_alpha=6)
    m.update_layer("q", 6, 3, lora_dropout=0.0, init_lora_weights=True, use_rslora=False, use_dora=False)
    m.set_adapter(["p", "q"])
    m.to(file.dtype)
    x = c.leaf("x", (2, 5, 21))
    y = functional_call(m, c.params(m), (x,))
    c.done(y)
    c = case("lora_residual")                           # diffusers' layer: alpha/rank = 2, times a scale of 0.75
    m = LoRALinearLayer(21, 17, rank=4, network_alpha=8.0).to(file.dtype)
    x, w, b = c.leaf("x", (2, 5, 21)), c.weight("w", (17, 21)), c.leaf("b", (17,))
    r = c.leaf("r", (2, 5, 17))
    c.done(F.linear(x, w, b) + 0.75 * functional_call(m, c.params(m), (x,)) + r)


# -- convolution -------------------------------------------------------------------------------------------------

def conv():
    c = case("conv_s1")
    x, w, b = c.leaf("x", (2, 5, 7, 6)), c.weight("w", (9, 3, 3, 6)), c.leaf("b", (9,))
    c.done(nhwc(F.conv2d(nchw(x), oihw(w), b, padding=1)))
    for name, H, W in (("conv_s2", 7, 10), ("conv_s2_even", 6, 8)):
        c = case(name)
        m = Downsample2D(5, use_conv=True, out_channels=7, padding=1).to(file.dtype)
        x = c.leaf("x", (2, H, W, 5))
        c.done(nhwc(functional_call(m, c.params(m), (nchw(x),))))
    for name, H, W in (("conv_s2_vae", 8, 6), ("conv_s2_vae_odd", 7, 9)):
        c = case(name)                                  # the encoder's: zeros on the right and below only
        m = Downsample2D(5, use_conv=True, out_channels=7, padding=0).to(file.dtype)
        x = c.leaf("x", (2, H, W, 5))
        c.done(nhwc(functional_call(m, c.params(m), (nchw(x),))))
    c = case("conv_1x1")
    x, w, b = c.leaf("x", (2, 5, 7, 13)), c.weight("w", (6, 1, 1, 13)), c.leaf("b", (6,))
    c.done(nhwc(F.conv2d(nchw(x), oihw(w), b)))
    c = case("conv_1x7")
    x, w = c.leaf("x", (2, 5, 9, 4)), c.weight("w", (3, 1, 7, 4))
    c.done(nhwc(F.conv2d(nchw(x), oihw(w), padding=(0, 3))))
    c = case("conv_4x4_s2")                             # even taps, no padding
    x, w, b = c.leaf("x", (2, 7, 10, 3)), c.weight("w", (5, 4, 4, 3)), c.leaf("b", (5,))
    c.done(nhwc(F.conv2d(nchw(x), oihw(w), b, stride=2)))
    c = case("conv_silu")
    x, w, b = c.leaf("x", (2, 5, 7, 6)), c.weight("w", (9, 3, 3, 6)), c.leaf("b", (9,))
    c.done(nhwc(F.silu(F.conv2d(nchw(x), oihw(w), b, padding=1))))
    c = case("conv_add")                                # time embedding and residual
    x, w, b = c.leaf("x", (2, 5, 7, 6)), c.weight("w", (9, 3, 3, 6)), c.leaf("b", (9,))
    row, r = c.leaf("row", (2, 9)), c.leaf("r", (2, 5, 7, 9))
    c.done(nhwc(F.conv2d(nchw(x), oihw(w), b, padding=1)) + row[:, None, None] + r)
    c = case("conv_join")                               # over [x | x2]
    x, x2 = c.leaf("x", (2, 5, 7, 6)), c.leaf("x2", (2, 5, 7, 3))
    w, b = c.weight("w", (8, 3, 3, 9)), c.leaf("b", (8,))
    c.done(nhwc(F.conv2d(torch.cat([nchw(x), nchw(x2)], 1), oihw(w), b, padding=1)))
    c = case("conv_shortcut")                           # beside a 1x1 over [s | s2]
    x, s, s2 = c.leaf("x", (2, 5, 7, 6)), c.leaf("s", (2, 5, 7, 4)), c.leaf("s2", (2, 5, 7, 7))
    w, b = c.weight("w", (8, 3, 3, 6)), c.leaf("b", (8,))
    v, vb = c.weight("v", (8, 1, 1, 11)), c.leaf("vb", (8,))
    y = F.conv2d(nchw(x), oihw(w), b, padding=1)
    c.done(nhwc(y + F.conv2d(torch.cat([nchw(s), nchw(s2)], 1), oihw(v), vb)))
    c = case("conv_join_shortcut")                      # over [x | x2], beside a 1x1 over s
    x, x2, s = c.leaf("x", (2, 5, 7, 6)), c.leaf("x2", (2, 5, 7, 3)), c.leaf("s", (2, 5, 7, 4))
    w, b = c.weight("w", (8, 3, 3, 9)), c.leaf("b", (8,))
    v, vb = c.weight("v", (8, 1, 1, 4)), c.leaf("vb", (8,))
    y = F.conv2d(torch.cat([nchw(x), nchw(x2)], 1), oihw(w), b, padding=1)
    c.done(nhwc(y + F.conv2d(nchw(s), oihw(v), vb)))
    for name, size in (("upsample_even", (8, 10)), ("upsample_odd", (7, 9)), ("upsample_mixed", (8, 9))):
        c = case(name)
        m = Upsample2D(5, use_conv=True, out_channels=6).to(file.dtype)
        x = c.leaf("x", (2, 4, 5, 5))
        c.done(nhwc(functional_call(m, c.params(m), (nchw(x), size))))


# -- attention ---------------------------------------------------------------------------------------------------

def attention_one(name, B, N, D, Tq, Tk, causal=False):
    c = case(name)
    m = Attention(query_dim=N * D, heads=N, dim_head=D)
    q, k, v = (c.leaf(n, (B, t, N * D)) for n, t in (("q", Tq), ("k", Tk), ("v", Tk)))
    mask = torch.full((Tq, Tk), -torch.inf, dtype=q.dtype).triu(1).expand(B * N, -1, -1) if causal else None
    p = m.get_attention_scores(*(m.head_to_batch_dim(a) for a in (q, k)), mask)
    c.done(m.batch_to_head_dim(torch.bmm(p, m.head_to_batch_dim(v))))


def attention():
    attention_one("attention_cross", 1, 8, 40, 50, 77)
    attention_one("attention_self", 1, 3, 40, 50, 50)
    attention_one("attention_causal", 1, 1, 64, 77, 77, causal=True)
    attention_one("attention_batch", 3, 3, 5, 7, 9)


# -- norms and activations ---------------------------------------------------------------------------------------

def norms():
    for name, G, eps, silu in (("group_norm", 4, 1e-6, False), ("group_norm_silu", 6, 1e-5, True)):
        c = case(name)
        x, g, b = c.leaf("x", (2, 5, 7, 12), 1.0, 0.5), c.leaf("gamma", (12,), 0.25, 1.0), c.leaf("beta", (12,), 0.5)
        y = F.group_norm(nchw(x), G, g, b, eps)
        c.done(nhwc(F.silu(y) if silu else y))
    c = case("layer_norm")
    x, g, b = c.leaf("x", (3, 5, 37), 1.0, 0.5), c.leaf("gamma", (37,), 0.25, 1.0), c.leaf("beta", (37,), 0.5)
    c.done(F.layer_norm(x, (37,), g, b, 1e-5))


def activations():
    for name, act in ACTS.items():
        c = case(name)
        c.done(act(c.leaf("x", (3, 5, 17), 2.0)))
    c = case("geglu")
    x = c.leaf("x", (3, 5, 22), 2.0)
    m = GEGLU(22, 11).to(file.dtype)                          # the projection is the identity: the gate alone
    proj = {"proj.weight": torch.eye(22).to(file.dtype), "proj.bias": torch.zeros(22).to(file.dtype)}
    c.done(functional_call(m, proj, (x,)))
    c = case("softmax")
    c.done(torch.softmax(c.leaf("x", (3, 5, 19), 2.0), -1))


# -- element by element and shapes -------------------------------------------------------------------------------

def elements():
    s = (3, 5, 7, 3)
    c = case("axpby")
    c.done(0.75 * c.leaf("x", s) - 1.5 * c.leaf("z", s))
    c = case("add")
    c.done(c.leaf("x", s) + c.leaf("z", s))
    c = case("scale")
    c.done(-0.375 * c.leaf("x", s))
    c = case("mul")
    c.done(c.leaf("x", s) * c.leaf("z", s))
    c = case("row_axpby")                               # how noise is mixed in, a factor per image
    a, b = c.values("a", (3,)), c.values("c", (3,))
    x, z = c.leaf("x", s), c.leaf("z", s)
    c.done(a[:, None, None, None] * x + b[:, None, None, None] * z)
    c = case("row_scale")
    a, x = c.values("a", (3,)), c.leaf("x", s)
    c.done(a[:, None, None, None] * x)
    c = case("join")
    c.done(torch.cat([c.leaf("x", s), c.leaf("z", (3, 5, 7, 4))], -1))
    c = case("join_rows")
    c.done(torch.cat([c.leaf("x", s), c.leaf("z", (2, 5, 7, 3))], 0))
    c = case("rows")
    c.done(c.leaf("x", s)[1:3])
    c = case("channels")
    c.done(c.leaf("x", (3, 5, 7, 6))[..., 2:5])
    for name, type in (("cast_bf16", torch.bfloat16), ("cast_f16", torch.float16)):
        c = case(name)                                  # exact, ties to even; the gradient is rounded on arrival
        file.put(name + ".y", c.values("x", s).float().to(type).float())
        file.put(name + ".dx", c.values("dy", s).float().to(type).float())
    c = case("reshape")
    c.done(c.leaf("x", s).reshape(3, 35, 3))


def resample():
    for mode in ("nearest", "bilinear", "bilinear_corners"):
        for name, Ho, Wo in (("up", 11, 9), ("down", 3, 5), ("twice", 10, 14)):
            c = case(f"{mode}_{name}")
            x = c.leaf("x", (2, 5, 7, 3))
            more = {} if mode == "nearest" else {"align_corners": mode == "bilinear_corners"}
            c.done(nhwc(F.interpolate(nchw(x), size=(Ho, Wo), mode=mode.split("_")[0], **more)))


# -- the rest ----------------------------------------------------------------------------------------------------

def embed():
    c = case("gather")
    id = torch.tensor([3, 0, 10, 3, 7, 3, 1])           # repeated rows add up in the gradient
    c.file.put("gather.id", id)
    c.done(F.embedding(id, c.leaf("table", (11, 6))))
    t = torch.tensor([0.0, 1.0, 17.0, 500.0, 999.0, 0.5])
    file.put("time_embed.t", t)
    y = get_timestep_embedding(t, 46, flip_sin_to_cos=True, downscale_freq_shift=0)
    if file.dtype == torch.float64:     # float32 up to the angles, as diffusers has it, then exact
        power = (np.float32(-np.log(10000)) * np.arange(23, dtype=np.float32)) / np.float32(23)
        angle = torch.from_numpy(t.numpy()[:, None] * np.exp(power.astype(np.float64)).astype(np.float32)).double()
        y = torch.cat([angle.cos(), angle.sin()], -1)
    file.put("time_embed.y", y, True)


def loss():
    s = (3, 5, 7, 4)
    c = case("mse")
    w, m = c.values("w", (3,), 0.25, 1.0), c.values("mask", (3, 5, 7), 0.25, 0.5)
    x, z = c.leaf("x", s), c.leaf("z", s)
    wide = torch.promote_types(file.dtype, torch.float32)               # losses are summed in float32
    square = F.mse_loss(x.to(wide), z.to(wide), reduction="none")
    c.done((w * (m[..., None] * square).flatten(1).mean(1)).sum())
    c = case("mse_mean")
    c.done(F.mse_loss(c.leaf("x", s).to(wide), c.leaf("z", s).to(wide)))


def adamw():
    """Five steps; gradients from 1 down to 2^-27, so that where eps stands is seen."""
    c = case("adamw")
    n, steps = 61, 5
    p = torch.nn.Parameter(c.values("p", (n,)).clone())
    g = torch.from_numpy(draw("adamw.g", (steps, n)) * 2.0 ** -(np.arange(n) % 28)).to(file.dtype)
    file.put("adamw.g", g)
    opt = torch.optim.AdamW([p], lr=0.0625, betas=(0.875, 0.96875), eps=2.0**-20, weight_decay=0.125, foreach=False)
    for i in range(steps):
        p.grad = g[i].clone()
        opt.step()
    file.put("adamw.p_end", p, True)
    file.put("adamw.m_end", opt.state[p]["exp_avg"], True)
    file.put("adamw.v_end", opt.state[p]["exp_avg_sq"], True)


def blocks():
    c = case("resnet")                                  # 32 -> 64 with time embedding (40) and shortcut
    m = ResnetBlock2D(in_channels=32, out_channels=64, temb_channels=40, groups=8, eps=1e-5).to(file.dtype)
    x, temb = c.leaf("x", (2, 5, 7, 32)), c.leaf("temb", (2, 40))
    c.done(nhwc(functional_call(m, c.params(m), (nchw(x), temb))))
    c = case("transformer")                             # 2 heads of 40 over 21 tokens; text 13 x 48; GEGLU to 104
    m = BasicTransformerBlock(80, 2, 40, cross_attention_dim=48, ff_inner_dim=104).to(file.dtype)
    x, text = c.leaf("x", (2, 21, 80)), c.leaf("text", (2, 13, 48))
    c.done(functional_call(m, c.params(m), (x,), {"encoder_hidden_states": text}))


def everything(dtype):
    global file
    file = File(dtype)
    for make in (linear, lora, conv, attention, norms, activations, elements, resample, embed, loss, blocks):
        make()
    if dtype != torch.bfloat16:                         # the optimizer's state is always f32
        adamw()
    return file


if __name__ == "__main__":
    exact = everything(torch.float64)
    exact.add_noise(everything(torch.float32), everything(torch.bfloat16))
    exact.meta.update(diffusers=diffusers.__version__, peft=peft.__version__)
    exact.write(os.path.join(os.path.dirname(os.path.abspath(__file__)), "ops.safetensors"),
                "python tests/reference/ops.py")
