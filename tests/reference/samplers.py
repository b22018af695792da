"""Goldens of noise schedules and samplers: writes samplers.safetensors beside this file.

    python tests/reference/samplers.py

diffusers' own schedulers, on the CPU, walk a latent of (2,4,6,5) with a model that both sides can evaluate:
m = 0.3 tanh(u) + 0.1 sin(t/100), u the latent as the scheduler scales it. The test is tests/t_sampler.c.

The tables (betas, alphas_cumprod, sigmas, timesteps) are the schedulers' own float32. The walk is then done twice: in
float64, which is stored, so that a golden carries no rounding of the reference's steps; and as it is, in float32: how
far that is off is the case's noise, from which the test takes its tolerance.

torch takes float32 square roots from MKL, which misses the nearest number by a bit in one of five. Here they are
rounded to nearest, as torch without MKL does it, so that tables can be compared bit for bit.

A case is one tensor: plan (HEAD numbers, see `head`), times (n), sigmas (n+1, zeros where there are none), path
(n - start, 3): first and last element of the latent after each step, first of the predicted x0 (0 from PNDM, which
predicts none); the last latent (240).
"""
import os
import sys

sys.dont_write_bytecode = True

import diffusers.schedulers.scheduling_ddim as m_ddim
import diffusers.schedulers.scheduling_ddpm as m_ddpm
import diffusers.schedulers.scheduling_dpmsolver_multistep as m_dpm
import diffusers.schedulers.scheduling_euler_ancestral_discrete as m_euler_a
import diffusers.schedulers.scheduling_euler_discrete as m_euler
import diffusers.schedulers.scheduling_pndm as m_pndm
import numpy as np
import torch
from diffusers import (DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler,
                       EulerDiscreteScheduler, PNDMScheduler)

from golden import File, draw

SHAPE = (2, 4, 6, 5)
KINDS = [("ddim", DDIMScheduler, m_ddim), ("ddpm", DDPMScheduler, m_ddpm), ("euler", EulerDiscreteScheduler, m_euler),
         ("euler-a", EulerAncestralDiscreteScheduler, m_euler_a), ("dpm++2m", DPMSolverMultistepScheduler, m_dpm),
         ("pndm", PNDMScheduler, m_pndm)]
DDIM, DDPM, EULER, EULER_A, DPM, PNDM = range(6)
PREDICTIONS = ["epsilon", "v_prediction", "sample"]
SPACINGS = [None, "leading", "linspace", "trailing"]
BETAS = [("scaled_linear", 0.00085, 0.012), ("linear", 0.0001, 0.02), ("squaredcos_cap_v2", 0.0001, 0.02)]

file = File(torch.float64)


def rounded_sqrt(x):
    return torch.from_numpy(np.asarray(np.sqrt(x.numpy())))


torch_pow = torch.Tensor.__pow__
torch.Tensor.__pow__ = lambda x, p: rounded_sqrt(x) if p == 0.5 else torch_pow(x, p)
torch.Tensor.sqrt = rounded_sqrt


class Wide:
    """torch for a scheduler's module while it steps in float64: its `.to(torch.float32)` must not round."""
    float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


def named(name, shape, scale=1.0):
    file.meta["draw " + name] = " ".join([repr(scale)] + [str(n) for n in shape])
    return torch.from_numpy(draw(name, shape, scale))


X, IMAGE, NOISE = named("x", SHAPE), named("image", SHAPE, 0.5), named("noise", (51, *SHAPE))


def scheduler(kind, pred=0, spacing=0, offset=1, one=False, clip=0.0, karras=False, zsnr=False, beta=0, n_train=1000):
    """As Class.from_config(a model's file) makes it: keys that the class does not have are left out."""
    _, cls, _ = KINDS[kind]
    config = dict(zip(("beta_schedule", "beta_start", "beta_end"), BETAS[beta]), num_train_timesteps=n_train,
                  prediction_type=PREDICTIONS[pred], steps_offset=offset, set_alpha_to_one=one, clip_sample=clip > 0,
                  clip_sample_range=clip or 1.0, use_karras_sigmas=karras, rescale_betas_zero_snr=zsnr,
                  skip_prk_steps=True)
    if spacing:
        config["timestep_spacing"] = SPACINGS[spacing]
    return cls.from_config(config)


def model(u, t):
    return 0.3 * torch.tanh(u) + 0.1 * torch.sin(torch.as_tensor(t).to(u.dtype) / 100)


def walk(s, kind, N, eta, start, dtype):
    module = KINDS[kind][2]
    s.set_timesteps(N)
    times = s.timesteps[start:]
    if dtype == torch.float64:
        for name in ("alphas_cumprod", "final_alpha_cumprod", "sigmas"):
            if hasattr(s, name):
                setattr(s, name, getattr(s, name).double())
    if hasattr(s, "set_begin_index"):
        s.set_begin_index(start)
    if start:
        x = s.add_noise(IMAGE.to(dtype), NOISE[50].to(dtype), times[:1])
    else:
        x = X.to(dtype) * s.init_noise_sigma
    path, step = [], [0]
    module.randn_tensor = lambda shape, generator=None, device=None, dtype=None: NOISE[step[0]].to(dtype)
    module.torch = Wide() if dtype == torch.float64 else torch
    for i, t in enumerate(times):
        step[0] = start + i
        m = model(s.scale_model_input(x, t), t)
        out = s.step(m, t, x, **({"eta": eta, "variance_noise": NOISE[step[0]].to(dtype) if eta > 0 else None}
                                 if kind == DDIM else {}))
        x = out.prev_sample
        x0 = getattr(out, "pred_original_sample", None)
        x0 = s.model_outputs[-1] if kind == DPM else x0
        path.append([float(x.flatten()[0]), float(x.flatten()[-1]), 0.0 if x0 is None else float(x0.flatten()[0])])
    module.torch = torch
    assert x.dtype == dtype and torch.isfinite(x).all()
    return x, path


n_case = 0


def case(kind, N, eta=0.0, start=0, **options):
    global n_case
    exact, path = walk(scheduler(kind, **options), kind, N, eta, start, torch.float64)
    rough, _ = walk(scheduler(kind, **options), kind, N, eta, start, torch.float32)
    s = scheduler(kind, **options)
    s.set_timesteps(N)
    n, o = len(s.timesteps), dict(dict(pred=0, spacing=0, offset=1, one=False, clip=0.0, karras=False, zsnr=False,
                                       beta=0), **options)
    noise = float((rough.double() - exact).norm() / exact.norm()) * 2**24
    sigmas = s.sigmas.numpy() if hasattr(s, "sigmas") and kind in (EULER, EULER_A, DPM) else np.zeros(n + 1)
    head = [n, kind, N, o["pred"], o["spacing"], o["offset"], o["one"], o["clip"], o["karras"], o["zsnr"], o["beta"],
            eta, start, float(s.init_noise_sigma), noise]
    file.put(f"case{n_case:03d}", np.concatenate([np.array(head, dtype=np.float64), s.timesteps.numpy(), sigmas,
                                                  np.array(path).flatten(), exact.flatten().numpy()]))
    n_case += 1


def starts(kind, N, strength, **options):
    """Where StableDiffusionImg2ImgPipeline.get_timesteps begins."""
    case(kind, N, start=max(N - min(int(N * strength), N), 0), **options)


def cases():
    for kind in range(6):
        for pred in (0, 1):
            for N in (1, 2, 7, 10, 20, 50):
                case(kind, N, pred=pred)
        for spacing in (1, 2, 3):
            case(kind, 7, spacing=spacing, offset=spacing & 1, pred=spacing == 2)
        case(kind, 10, offset=0)
        for strength in (0.3, 0.85, 0.95):
            starts(kind, 10, strength)
        starts(kind, 7, 0.8, pred=1)
    for pred in (0, 1):
        for N in (7, 20):
            case(DDIM, N, eta=1.0, pred=pred)
        for N in (1, 10, 20):
            case(EULER, N, karras=True, pred=pred)
            case(DPM, N, karras=True, pred=pred)
        for clip in (1.0, 0.5):
            case(DDIM, 10, clip=clip, pred=pred, eta=clip - 0.5)
            case(DDPM, 10, clip=clip, pred=pred)
        for kind in (DDIM, DDPM, PNDM):
            case(kind, 10, one=True, pred=pred)
        case(DDIM, 10, one=True, offset=0, eta=1.0, pred=pred)
    case(DDIM, 10, eta=0.5, beta=1)
    for kind in (DDIM, DDPM, EULER, DPM):
        case(kind, 10, pred=2)
    case(DDIM, 10, pred=2, clip=0.5, eta=1.0)
    for kind in (DDIM, DDPM, EULER, EULER_A, DPM):
        case(kind, 10, pred=1, zsnr=True, spacing=3)
        case(kind, 10, beta=2, spacing=3)
        case(kind, 10, beta=1)
    case(DDIM, 10, pred=2, zsnr=True, spacing=3)
    starts(EULER, 20, 0.5, karras=True)
    starts(DPM, 20, 0.5, karras=True)


def fnv(h, data):
    for b in data:
        h = (h ^ b) * 0x01000193 & 0xFFFFFFFF
    return h


def digest(*arrays):
    h = 0x811C9DC5
    for a in arrays:
        h = fnv(h, np.ascontiguousarray(a, dtype="<f4").tobytes())
    return np.uint32(h).astype(np.int32)


def tables():
    """FNV-1a of all betas and products; every number of the usual schedule."""
    rows = []
    for beta, zsnr, n in ((0, 0, 1000), (0, 1, 1000), (1, 0, 1000), (1, 1, 1000), (2, 0, 1000), (0, 0, 37),
                          (1, 0, 2000)):
        s = scheduler(DDIM, beta=beta, zsnr=bool(zsnr), n_train=n)
        rows.append([beta, zsnr, n, digest(s.betas.numpy()), digest(s.alphas_cumprod.numpy())])
    file.put("tables", np.array(rows, dtype=np.int32))
    file.put("alpha_bar", scheduler(DDIM).alphas_cumprod)


def plans():
    """For N = 1.. 1000, ten at a time, FNV-1a of times, then sigmas; a plan that the engine refuses counts as nothing.
    Trailing spacing is cut to N where a rounding error gives the reference a time -1 at the end."""
    for kind in (DDIM, EULER, DPM):
        for spacing in (1, 2, 3):
            s, sums = scheduler(kind, spacing=spacing), np.full(100, 0x811C9DC5, dtype=np.uint32)
            for N in range(1, 1001):
                s.set_timesteps(N)
                times = s.timesteps.numpy()[:N].astype("<f4")
                sigmas = s.sigmas.numpy()[:N] if kind != DDIM else np.zeros(0)
                if times.max() > 999 or (kind == DPM and (np.diff(sigmas) >= 0).any()):
                    continue
                at = (N - 1) // 10
                sums[at] = fnv(fnv(int(sums[at]), times.tobytes()), sigmas.astype("<f4").tobytes())
            file.put(f"plans_{KINDS[kind][0]}_{SPACINGS[spacing]}", sums.astype(np.int32))


cases()
tables()
plans()
file.write(os.path.join(os.path.dirname(os.path.abspath(__file__)), "samplers.safetensors"),
           "python tests/reference/samplers.py")
