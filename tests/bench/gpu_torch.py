"""The UNet of SD1.5 in plain PyTorch on a CUDA device, random weights, for comparison with `bench gpu models`.

    python tests/bench/gpu_torch.py --out FILE [--seconds N] [--device cuda] [--check]

FILE gets a line for each case, as `bench gpu` writes them: name, milliseconds, steps per second, unit, time over that
of the eager case of the same work; what it has already is not measured again. Modules are named as in diffusers, so
that its state dicts fit; --check compares with diffusers on the processor, if it is there.

Each case is a process of its own with a limit: torch.compile may take minutes, and what fails takes nothing along.
Activations and weights are channels-last, attention is F.scaled_dot_product_attention. The pair is UniCon's joint
attention the straight way: every product by itself, LoRA as two thin products.
"""
import argparse
import json
import os
import signal
import subprocess
import sys
import time

WIDTHS, HEADS, TEXT, RANK = (320, 640, 1280, 1280), 8, 768, 64

# name as `bench gpu` has it, type, UNet rows, a pair or not
WORK = [("UNet step 1x2 bf16", "bfloat16", 2, False), ("UNet step 1x2 f16", "float16", 2, False),
        ("UNet step 8x2 bf16", "bfloat16", 16, False), ("UNet step 8x2 f16", "float16", 16, False),
        ("pair step 1x2 bf16", "bfloat16", 4, True), ("pair step 8x2 bf16", "bfloat16", 32, True)]
# work, mode of torch.compile ("" is eager), seconds at most; in the order of what matters
CASES = [(0, "", 60), (1, "", 60), (4, "", 60), (2, "", 60), (5, "", 60), (3, "", 60),
         (0, "reduce-overhead", 240), (0, "max-autotune-no-cudagraphs", 400), (4, "reduce-overhead", 240),
         (2, "max-autotune-no-cudagraphs", 400), (1, "reduce-overhead", 240)]


def network(widths=WIDTHS, heads=HEADS, text=TEXT, groups=32, depth=2, pair=False):
    """The UNet; with `pair` the first half of a batch is x, the second y, with adapters between them."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    class Attention(nn.Module):
        def __init__(self, c, context):
            super().__init__()
            self.to_q = nn.Linear(c, c, bias=False)
            self.to_k, self.to_v = nn.Linear(context, c, bias=False), nn.Linear(context, c, bias=False)
            self.to_out = nn.ModuleList([nn.Linear(c, c)])

        def forward(self, x, context, lora=(None,) * 4):
            def project(layer, v, term):
                return layer(v) if term is None else layer(v) + term(v)

            def split(v):
                return v.unflatten(-1, (heads, -1)).transpose(1, 2)

            q, k, v = (split(project(f, of, t)) for f, of, t in
                       ((self.to_q, x, lora[0]), (self.to_k, context, lora[1]), (self.to_v, context, lora[2])))
            return project(self.to_out[0], F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2), lora[3])

    class Low(nn.Sequential):
        def __init__(self, n_in, n_out):
            super().__init__(nn.Linear(n_in, RANK, bias=False), nn.Linear(RANK, n_out, bias=False))

    def terms(c, context):
        return nn.ModuleList([Low(c, c), Low(context, c), Low(context, c), Low(c, c)])

    class Gated(nn.Module):
        def __init__(self, c):
            super().__init__()
            self.proj = nn.Linear(c, 8 * c)

        def forward(self, x):
            value, gate = self.proj(x).chunk(2, -1)
            return value * F.gelu(gate)

    class FeedForward(nn.Module):
        def __init__(self, c):
            super().__init__()
            self.net = nn.ModuleList([Gated(c), nn.Identity(), nn.Linear(4 * c, c)])

        def forward(self, x):
            return self.net[2](self.net[0](x))

    class Block(nn.Module):
        def __init__(self, c):
            super().__init__()
            self.norm1, self.norm2, self.norm3 = nn.LayerNorm(c), nn.LayerNorm(c), nn.LayerNorm(c)
            self.attn1, self.attn2, self.ff = Attention(c, c), Attention(c, text), FeedForward(c)
            if pair:
                self.xy, self.yx, self.y1, self.y2 = terms(c, c), terms(c, c), terms(c, c), terms(c, text)
                self.post = nn.Linear(2 * c, 2 * c, bias=False)

        def self_attention(self, n):
            if not pair:
                return self.attn1(n, n)
            x, y = n.chunk(2)
            own = torch.cat([self.attn1(x, x), self.attn1(y, y, self.y1)])
            both = torch.cat([self.attn1(x, y, self.xy), self.attn1(y, x, self.yx)], -1)
            return own + torch.cat(self.post(both).chunk(2, -1))

        def text_attention(self, n, words):
            if not pair:
                return self.attn2(n, words)
            (x, y), (wx, wy) = n.chunk(2), words.chunk(2)
            return torch.cat([self.attn2(x, wx), self.attn2(y, wy, self.y2)])

        def forward(self, x, words):
            x = x + self.self_attention(self.norm1(x))
            x = x + self.text_attention(self.norm2(x), words)
            return x + self.ff(self.norm3(x))

    class Transformer(nn.Module):
        def __init__(self, c):
            super().__init__()
            self.norm = nn.GroupNorm(groups, c, eps=1e-6)
            self.proj_in, self.proj_out = nn.Conv2d(c, c, 1), nn.Conv2d(c, c, 1)
            self.transformer_blocks = nn.ModuleList([Block(c)])

        def forward(self, x, words):
            b, c, h, w = x.shape
            y = self.proj_in(self.norm(x)).permute(0, 2, 3, 1).reshape(b, h * w, c)
            y = self.transformer_blocks[0](y, words)
            return x + self.proj_out(y.reshape(b, h, w, c).permute(0, 3, 1, 2))

    class Resnet(nn.Module):
        def __init__(self, n_in, c):
            super().__init__()
            self.norm1, self.conv1 = nn.GroupNorm(groups, n_in), nn.Conv2d(n_in, c, 3, padding=1)
            self.time_emb_proj = nn.Linear(4 * widths[0], c)
            self.norm2, self.conv2 = nn.GroupNorm(groups, c), nn.Conv2d(c, c, 3, padding=1)
            self.conv_shortcut = nn.Conv2d(n_in, c, 1) if n_in != c else None

        def forward(self, x, time):
            y = self.conv1(F.silu(self.norm1(x))) + self.time_emb_proj(F.silu(time))[:, :, None, None]
            y = self.conv2(F.silu(self.norm2(y)))
            return y + (x if self.conv_shortcut is None else self.conv_shortcut(x))

    class Sampler(nn.Module):
        def __init__(self, c, down):
            super().__init__()
            self.conv, self.down = nn.Conv2d(c, c, 3, stride=2 if down else 1, padding=1), down

        def forward(self, x):
            return self.conv(x if self.down else F.interpolate(x, scale_factor=2.0, mode="nearest"))

    class Level(nn.Module):
        def __init__(self, inputs, c, attends, sampler):
            super().__init__()
            self.resnets = nn.ModuleList([Resnet(n, c) for n in inputs])
            self.attentions = nn.ModuleList([Transformer(c) for _ in inputs[:len(inputs) - (sampler == "mid")]]
                                            if attends else [])
            self.downsamplers = nn.ModuleList([Sampler(c, True)]) if sampler == "down" else None
            self.upsamplers = nn.ModuleList([Sampler(c, False)]) if sampler == "up" else None

    class TimeEmbedding(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear_1 = nn.Linear(widths[0], 4 * widths[0])
            self.linear_2 = nn.Linear(4 * widths[0], 4 * widths[0])

        def forward(self, t, dtype):
            half = widths[0] // 2
            f = torch.exp(torch.arange(half, device=t.device) * (-9.210340371976184 / half))
            angle = t.float()[:, None] * f[None]
            return self.linear_2(F.silu(self.linear_1(torch.cat([angle.cos(), angle.sin()], -1).to(dtype))))

    class UNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv_in, self.time_embedding = nn.Conv2d(4, widths[0], 3, padding=1), TimeEmbedding()
            last, skips, self.down_blocks, self.up_blocks = widths[0], [widths[0]], nn.ModuleList(), nn.ModuleList()
            for i, c in enumerate(widths):
                deepest = i == len(widths) - 1
                self.down_blocks.append(Level([last] + [c] * (depth - 1), c, not deepest, "" if deepest else "down"))
                skips += [c] * (depth + (not deepest))
                last = c
            self.mid_block = Level([last, last], last, True, "mid")
            for i, c in enumerate(reversed(widths)):
                inputs = []
                for _ in range(depth + 1):
                    inputs.append(last + skips.pop())
                    last = c
                self.up_blocks.append(Level(inputs, c, i > 0, "up" if i < len(widths) - 1 else ""))
            self.conv_norm_out = nn.GroupNorm(groups, widths[0])
            self.conv_out = nn.Conv2d(widths[0], 4, 3, padding=1)

        def forward(self, x, t, words):
            time, x = self.time_embedding(t, x.dtype), self.conv_in(x)
            skips = [x]
            for level in self.down_blocks:
                for i, resnet in enumerate(level.resnets):
                    x = resnet(x, time)
                    x = level.attentions[i](x, words) if len(level.attentions) else x
                    skips.append(x)
                if level.downsamplers is not None:
                    x = level.downsamplers[0](x)
                    skips.append(x)
            x = self.mid_block.resnets[0](x, time)
            x = self.mid_block.resnets[1](self.mid_block.attentions[0](x, words), time)
            for level in self.up_blocks:
                for i, resnet in enumerate(level.resnets):
                    x = resnet(torch.cat([x, skips.pop()], 1), time)
                    x = level.attentions[i](x, words) if len(level.attentions) else x
                if level.upsamplers is not None:
                    x = level.upsamplers[0](x)
            return self.conv_out(F.silu(self.conv_norm_out(x)))

    return UNet().eval().requires_grad_(False)


def child(job):
    """One case: prints the median milliseconds of a step."""
    import torch

    name, dtype, rows, pair = WORK[job["work"]]
    device, tiny = job["device"], job["tiny"]
    torch.manual_seed(1)
    torch.set_grad_enabled(False)
    torch.backends.cudnn.benchmark = True
    dtype = getattr(torch, dtype)
    with torch.device(device):
        net = network(*(((32, 64), 2, 16, 8) if tiny else ()), pair=pair).to(dtype)
        net = net.to(memory_format=torch.channels_last)
        side = 8 if tiny else 64
        x = torch.randn(rows, 4, side, side).to(dtype).to(memory_format=torch.channels_last)
        t, words = torch.full((rows,), 261.0), torch.randn(rows, 77, 16 if tiny else TEXT).to(dtype)
    f = torch.compile(net, mode=job["mode"]) if job["mode"] else net

    def wait():
        if device.startswith("cuda"):
            torch.cuda.synchronize()

    def seconds(n):
        wait()
        began = time.perf_counter()
        for _ in range(n):
            y = f(x, t, words)
        wait()
        took = (time.perf_counter() - began) / n
        if not bool(torch.isfinite(y).all()):
            raise SystemExit("the result is not finite")
        return took

    for _ in range(3):
        once = seconds(1)
    n = 1 if tiny else max(1, int(0.2 / once))
    times = sorted(seconds(n) for _ in range(5))
    print(json.dumps({"ms": 1e3 * times[2]}))


def check():
    """Beside diffusers, small, on the processor."""
    import torch
    from diffusers import UNet2DConditionModel

    torch.set_grad_enabled(False)
    torch.manual_seed(1)
    for widths in ((32, 64), (32, 64, 64, 64)):
        n = len(widths)
        theirs = UNet2DConditionModel(
            block_out_channels=widths, layers_per_block=2, cross_attention_dim=16, attention_head_dim=2,
            norm_num_groups=8, down_block_types=("CrossAttnDownBlock2D",) * (n - 1) + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (n - 1)).eval()
        ours = network(widths, 2, 16, 8)
        ours.load_state_dict(theirs.state_dict())
        x, t, words = torch.randn(2, 4, 16, 16), torch.tensor([3.0, 981.0]), torch.randn(2, 7, 16)
        a, b = ours(x, t, words), theirs(x, t, words).sample
        off = float((a - b).norm() / b.norm())
        print(f"{n} levels: off by {off:.1e}")
        if not off < 1e-5:
            raise SystemExit("not diffusers' UNet")
    with torch.device("meta"):
        n = sum(p.numel() for p in network().parameters())
    print(f"{n} parameters")
    if n != 859520964:
        raise SystemExit("not SD1.5's UNet")


def key(i, mode):
    return f"{WORK[i][0]}, torch {mode or 'eager'}"


def measure(o, i, mode, limit):
    """Milliseconds, or why there are none."""
    job = {"work": i, "mode": mode, "device": o.device, "tiny": o.tiny}
    argv = [sys.executable, os.path.abspath(__file__), "--child", json.dumps(job)]
    p = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    try:
        out, err = p.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(p.pid, signal.SIGKILL)                # with what it started to compile
        p.wait()
        return None, f"not done in {limit:.0f} s"
    if p.returncode:
        return None, (err.decode(errors="replace").strip().splitlines() or ["failed"])[-1]
    return json.loads(out.decode().strip().splitlines()[-1])["ms"], ""


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("--out", default="torch.tsv")
    p.add_argument("--seconds", type=float, default=1800, help="for all cases (default %(default)s)")
    p.add_argument("--device", default="cuda")
    p.add_argument("--tiny", action="store_true", help="a small UNet, to see that it runs")
    p.add_argument("--check", action="store_true", help="compare with diffusers")
    p.add_argument("--child", help=argparse.SUPPRESS)
    o = p.parse_args()
    if o.child:
        return child(json.loads(o.child))
    if o.check:
        return check()
    end, done, first = time.monotonic() + o.seconds, {}, {}
    if os.path.exists(o.out):
        with open(o.out, encoding="utf-8") as f:
            done = {line.split("\t")[0]: float(line.split("\t")[1]) for line in f if "\t" in line}
    for i, mode, limit in CASES:
        ms, why = done.get(key(i, mode)), ""
        if ms is None:
            left = end - time.monotonic()
            ms, why = measure(o, i, mode, min(limit, left)) if left > 15 else (None, "no time was left")
            if ms is None:
                print(f"{key(i, mode)}: {why}", file=sys.stderr, flush=True)
                continue
            first.setdefault(i, ms)
            with open(o.out, "a", encoding="utf-8") as f:
                f.write(f"{key(i, mode)}\t{ms:.4f}\t{1e3 / ms:.2f}\tsteps/s\t{ms / first[i]:.3f}\n")
        first.setdefault(i, ms)
        print(f"{key(i, mode)}: {ms:.3f} ms", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
