"""Gradient guidance (the paper's Eq. 7, with an optimizer in place of the fixed weight) by torch's autograd and torch's
optimizers, on the tiny models: whole runs of four rows. Writes guide.safetensors, which tests/t_guide.c compares with.

The published code has no such guidance: what is computed here is the recipe in core/diffusion/pipeline_guide.c, written
a second time in another language on a UNet (pair_unet.py) that is held to the published one.

A case: latents .x (and .y) after the run, .plainx (and .plainy) after the same run without guidance; (1,4,8,6). 48 x 64
pixels, the pictures and the mask of unicon.py (soft: (x % 5) / 4 at latent column x), latents their VAE's mean, initial
noise drawn as "guide.noise0", "guide.noise1" (8,6,4), prompts of unicon.py. Random numbers of a step are those of
torch's CPU generator with seed 4321, which has drawn one for the masked pictures where there is a mask. The metadata
has each case's options.

Computed in float64. .noise as in golden.py: how far the same in float32 is off.
"""
import functools
import os
import warnings

import numpy as np
import torch
from diffusers import DDIMScheduler, EulerAncestralDiscreteScheduler

import pair_unet
import pipelines
import tiny
from golden import File, draw

HERE = os.path.dirname(os.path.abspath(__file__))
STEPS, SEED = 4, 4321
CASES = {   # model or checkpoint, sampler, guided inputs, optimizer, lr, its steps; and what is not as usual
    "alone": ("sd1", "ddim", "x", "adamw", 0.02, 1, dict(mask="x")),
    "alone_v": ("sd2", "ddim", "x", "sgd", 0.02, 2, dict(mask="x")),
    "joint": ("depth", "ddim", "y", "adamw", 0.02, 1, dict(mask="y")),
    "euler": ("depth", "euler-a", "y", "adamw", 0.05, 2, dict(mask="y", cfg=1)),
    "both": ("depth", "ddim", "xy", "adamw", 0.02, 2, dict(mask="xy", decay=0.1, to=0.5)),
    "fixed": ("depth", "euler-a", "y", "fixed", 5e-5, 1, dict(mask="y")),
    "held": ("depth", "ddim", "x", "sgd", 5e-4, 2, dict(mask="x", held="y")),
    "soft": ("depth", "ddim", "y", "fixed", 0.005, 2, dict(mask="y", soft=True, cfg=1)),
    "contrast": ("id", "ddim", "y", "adamw", 0.02, 1, dict(mask="y", contrast=1, weight=0.6)),
}


def picture(k):
    y, x, c = np.mgrid[0:pipelines.H, 0:pipelines.W, 0:3]
    p = x * 7 + y * 3 + c * 50 if k == 0 else x * 2 + y * 5 + c * 20
    return torch.from_numpy(p % 256 / 255 * 2 - 1).permute(2, 0, 1)[None]


def mask(soft):
    y, x = np.mgrid[0:8, 0:6]
    return torch.from_numpy(x % 5 / 4 if soft else ((x >= 2) & (y < 5)).astype(float))


@functools.cache
def model_of(name, dtype):
    return Model(name, dtype)


class Model:
    """eps (or v) of all inputs with both kinds of guidance."""

    def __init__(self, name, dtype):
        self.base, self.dtype = name if name in tiny.CONFIG else "sd1", dtype
        self.joint = name not in tiny.CONFIG
        parts = tiny.build(self.base, dtype)
        self.net = pair_unet.PairUnet(parts["unet"], [pair_unet.adapters(name, dtype, name == "depth")]
                                      if self.joint else [])
        for p in self.net.parameters():
            p.requires_grad_(False)
        words = pipelines.tokenizer("!" if self.base == "sd2" else "<|endoftext|>")
        own = ("depth_map, " if name == "depth" else "") + pipelines.PROMPT
        ids = words([pipelines.NEGATIVE, pipelines.PROMPT, own], padding="max_length", max_length=77, truncation=True,
                    return_tensors="pt").input_ids
        with torch.no_grad():
            text = parts["text"](ids).last_hidden_state
            f = 2 ** (len(parts["vae"].config.block_out_channels) - 1)
            self.given = [parts["vae"].encode(picture(k)[:, :, :8 * f, :6 * f].to(dtype)).latent_dist.mode()
                          * parts["vae"].config.scaling_factor for k in range(2)]
        self.text = [[text[0:1], text[0:1]], [text[1:2], text[2:3]]]        # by half, by input

    def ask(self, z, t, halves, weight, off=False):
        rows, K = [(h, k) for h in halves for k in range(len(z))], len(z)
        if self.joint:
            xs = torch.arange(0, len(rows), K)
            self.net.pairs, self.net.off = [(xs, xs + 1, weight, weight, 0)], off
        y = self.net(torch.cat([z[k] for _, k in rows]), torch.tensor([float(t[k]) for _, k in rows]),
                     torch.cat([self.text[h][k] for h, k in rows]))
        return [[y[i * K + k:i * K + k + 1] for k in range(K)] for i in range(len(halves))]

    def __call__(self, z, t, cfg=3.0, contrast=0, weight=1.0, **_):
        *u, c = self.ask(z, t, (0, 1) if cfg > 1 else (1,), weight)
        out = [uk + cfg * (ck - uk) for uk, ck in zip(u[0], c)] if u else c
        if contrast:
            apart, = self.ask(z, t, (1,), weight, True)
            out = [o + contrast * (ck - a) for o, ck, a in zip(out, c, apart)]
        return out


class Plan:
    """Noise levels: z = a x0 + b noise; c makes it of unit variance."""

    def __init__(self, sampler, v):
        config = dict(pipelines.SCHEDULE)
        self.euler, self.v = sampler == "euler-a", v
        if self.euler:
            config.pop("set_alpha_to_one"), config.pop("clip_sample")
        s = (EulerAncestralDiscreteScheduler if self.euler else DDIMScheduler)(**config)
        s.set_timesteps(STEPS)
        self.t = [float(t) for t in s.timesteps]
        if self.euler:
            self.a, self.b = [1.0] * (STEPS + 1), [float(x) for x in s.sigmas]
            self.start = float(s.init_noise_sigma)
        else:
            bar = [float(s.alphas_cumprod[int(t)]) for t in self.t]
            self.end = float(s.final_alpha_cumprod)
            self.a, self.b = [x**0.5 for x in bar] + [1.0], [(1 - x)**0.5 for x in bar] + [0.0]
            self.start = 1.0

    def scale(self, i):
        return (self.b[i]**2 + 1)**-0.5 if self.euler else 1.0

    def x0(self, i, z, m):
        return self.a[i] * z - self.b[i] * m if self.v else (z - self.b[i] * m) / self.a[i]

    def step(self, i, z, m, noise):
        x0 = self.x0(i, z, m)
        if not self.euler:
            eps = (z - self.a[i] * x0) / self.b[i]
            a = self.end**0.5 if i == STEPS - 1 else self.a[i + 1]
            return a * x0 + (1 - a * a)**0.5 * eps
        s, to = self.b[i], self.b[i + 1]
        up = (to**2 * (s**2 - to**2) / s**2)**0.5
        return z + (z - x0) / s * ((to**2 - up**2)**0.5 - s) + up * noise


def optimizer(opt, lr, decay, u):
    if opt == "adamw":
        return torch.optim.AdamW(u, lr=lr, weight_decay=decay)
    return torch.optim.SGD(u, lr=lr, momentum=0.9 if opt == "sgd" else 0)


def guide(model, plan, i, z, held, goals, opt, lr, steps, options):
    """goals: {k: (weights, latents)}"""
    c = plan.scale(i)
    u = [(zk * c).detach().requires_grad_(not h) for zk, h in zip(z, held)]
    o = optimizer(opt, lr, options.get("decay", 0), [uk for uk, h in zip(u, held) if not h])
    for _ in range(steps):
        at = [zk if h else uk / c for uk, zk, h in zip(u, z, held)]
        m = model([zk if h else uk for uk, zk, h in zip(u, z, held)], [0 if h else plan.t[i] for h in held], **options)
        loss = sum((w * (plan.x0(i, at[k], m[k]) - goal)).square().sum() for k, (w, goal) in goals.items())
        o.zero_grad()
        loss.backward()
        o.step()
    return [zk if h else (uk / c).detach() for uk, zk, h in zip(u, z, held)]


def run(name, dtype, guided=True):
    of, sampler, which, opt, lr, steps, options = CASES[name]
    model, plan, K = model_of(of, dtype), Plan(sampler, of == "sd2"), 1 if of in tiny.CONFIG else 2
    names, held = "xy"[:K], [k in options.get("held", "") for k in "xy"[:K]]
    m, generator = mask(options.get("soft", False)).to(dtype), torch.Generator().manual_seed(SEED)
    noise = [torch.from_numpy(draw(f"guide.noise{k}", (8, 6, 4))).permute(2, 0, 1)[None].to(dtype) for k in range(K)]
    z = [model.given[k] if held[k] else noise[k] * plan.start for k in range(K)]
    goals = {names.index(k): (1 - m, model.given[names.index(k)]) for k in which}
    torch.randn((K, 4, 8, 6), generator=generator, dtype=torch.float32)
    for i in range(STEPS):
        if guided and i < STEPS * options.get("to", 1):
            z = guide(model, plan, i, z, held, goals, opt, lr, steps, options)
        with torch.no_grad():
            out = model([zk if h else zk * plan.scale(i) for zk, h in zip(z, held)],
                        [0 if h else plan.t[i] for h in held], **options)
        for k in range(K):
            if held[k]:
                continue
            fresh = torch.randn((1, 4, 8, 6), generator=generator, dtype=torch.float32).to(dtype) if plan.euler else 0
            z[k] = plan.step(i, z[k], out[k], fresh)
            if names[k] in options["mask"]:
                known = plan.a[i + 1] * model.given[k] + plan.b[i + 1] * noise[k]
                z[k] = m * z[k] + (1 - m) * known
    return z


def compute(dtype, check):
    file = File(dtype)
    torch.set_default_dtype(dtype)                                      # transformers' causal mask
    for name, (of, sampler, which, opt, lr, steps, options) in CASES.items():
        with_, plain = run(name, dtype), run(name, dtype, False)
        for k, (a, b) in enumerate(zip(with_, plain)):
            file.put(f"{name}.{'xy'[k]}", a, True)
            file.put(f"{name}.plain{'xy'[k]}", b, True)
            if check:
                print(f"{name}.{'xy'[k]}: moved by {float((a - b).norm() / b.norm()):.2f}")
        file.meta[name] = f"{of} {sampler} guide {which} {opt} {lr} steps {steps} {options}"
    torch.set_default_dtype(torch.float32)
    return file


def main():
    warnings.simplefilter("ignore")
    print(f"the UNet with pairs is off by {pair_unet.check():.1e} from the published code")
    file = compute(torch.float64, True)
    file.add_noise(compute(torch.float32, False), File(torch.bfloat16))
    file.write(os.path.join(HERE, "guide.safetensors"), "python tests/reference/guide.py")


if __name__ == "__main__":
    main()
