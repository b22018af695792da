"""A UNet of diffusers with joint attention for pairs, written from the paper's equations (design as in core/model/
transformer.c), so that gradients flow through it in any type. pair_unet.check() holds it to what the published code
computes (unicon.safetensors). For guide.py and fit_guide.py.

    net = PairUnet(unet, [adapters("depth")])
    net.pairs = [(xs, ys, wx, wy, 0)]       rows of x, rows of y (index tensors), weights, which adapters
    eps = net(x, t, text)

Adapters: a dict of tensors KEY -> value with the keys of the published files without `unet.`: part xy, yx, y, post.
"""
import os

import numpy as np
import torch
from safetensors.numpy import load_file
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from golden import draw

HERE = os.path.dirname(os.path.abspath(__file__))
PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")


def adapters(checkpoint, dtype=torch.float32, y_lora=True):
    """The random checkpoints of unicon.py, by unicon.txt."""
    out = dict(kind={"depth": "conv_fuse", "id": "conv"}[checkpoint], xy={}, yx={}, y={}, post={})
    with open(os.path.join(HERE, "unicon.txt")) as f:
        for line in f:
            of, directory, key, *shape = line.split()
            shape = tuple(int(n) for n in shape)
            if of != checkpoint or (directory == "y_lora" and not y_lora):
                continue
            scale = 2.0 ** (-2 if key.endswith("up.weight") else
                            -round(np.log2(shape[1]) / 2) - (directory == "model"))
            part = "post" if directory == "model" else directory.removesuffix("_lora")
            name = key.removeprefix("unet.").replace(".lora.", ".")
            out[part][name] = torch.from_numpy(draw(f"{of}.{directory}.{key}", shape, scale)).to(dtype)
    return out


class PairUnet(nn.Module):
    def __init__(self, unet, checkpoints):
        super().__init__()
        self.unet, self.checkpoints, self.pairs, self.scale, self.off = unet, checkpoints, [], 1.0, False
        for name, block in unet.named_modules():
            if block.__class__.__name__ == "BasicTransformerBlock":
                block.forward = self.block(name, block)

    def forward(self, x, t, text):
        return self.unet(x, t, text).sample

    def term(self, part, name, attn, proj, x, which):
        a = self.checkpoints[which][part]
        key = f"{name}.{attn}.{proj}"
        return x @ a[key + ".down.weight"].T @ a[key + ".up.weight"].T

    def own(self, name, attn, layer, proj, x):
        """layer(x), with the y-LoRA on rows of y."""
        y = layer(x)
        for _, ys, _, _, which in self.pairs:
            if self.checkpoints[which]["y"]:
                y = y.index_add(0, ys, self.term("y", name, attn, proj, x[ys], which))
        return y

    @staticmethod
    def mix(a, q, k, v):
        def heads(x):
            return x.unflatten(2, (a.heads, -1)).transpose(1, 2)
        return scaled_dot_product_attention(heads(q), heads(k), heads(v)).transpose(1, 2).flatten(2)

    def attention(self, name, attn, a, x, context):
        q, k, v = (self.own(name, attn, layer, proj, of) for layer, proj, of in
                   ((a.to_q, "to_q", x), (a.to_k, "to_k", context), (a.to_v, "to_v", context)))
        return self.own(name, attn, a.to_out[0], "to_out.0", self.mix(a, q, k, v))

    def joint(self, name, a, n, out):
        for xs, ys, wx, wy, which in self.pairs:
            post, kind = self.checkpoints[which]["post"].get(name + ".conv1n.weight"), self.checkpoints[which]["kind"]
            if self.off or post is None:
                continue

            def side(rows, part):
                return [layer(n[rows]) + self.term(part, name, "attn1n", proj, n[rows], which)
                        for layer, proj in ((a.to_q, "to_q"), (a.to_k, "to_k"), (a.to_v, "to_v"))]

            def leave(o, part):
                return a.to_out[0](o) + self.term(part, name, "attn1n", "to_out.0", o, which)
            (xq, xk, xv), (yq, yk, yv) = side(xs, "xy"), side(ys, "yx")
            ox, oy = leave(self.mix(a, xq, yk, yv), "xy"), leave(self.mix(a, yq, xk, xv), "yx")
            if kind == "conv_fuse":
                px, py = (torch.cat([ox, oy], -1) @ post.T).chunk(2, -1)
            else:
                px, py = ox @ post.T, oy @ post.T
            out = out.index_add(0, xs, px * (self.scale * wx)).index_add(0, ys, py * (self.scale * wy))
        return out

    def block(self, name, m):
        def forward(h, encoder_hidden_states=None, **_):
            n = m.norm1(h)
            h = h + self.joint(name, m.attn1, n, self.attention(name, "attn1", m.attn1, n, n))
            h = h + self.attention(name, "attn2", m.attn2, m.norm2(h), encoder_hidden_states)
            return h + m.ff(m.norm3(h))
        return forward


def check():
    """Against the published code: outputs and gradients of one call."""
    import tiny
    want = load_file(os.path.join(HERE, "unicon.safetensors"))
    worst = 0
    for case in ("depth", "depth_y", "id", "id_y"):
        of = case.removesuffix("_y")
        unet = tiny.build("sd1", torch.float64)["unet"]
        net = PairUnet(unet, [adapters(of, torch.float64, case.endswith("_y"))])
        net.pairs = [(torch.tensor([0, 2]), torch.tensor([1, 3]), 1, 1, 0)]
        x = torch.from_numpy(draw(f"unet_{case}.x", (4, 4, 8, 6))).requires_grad_(True)
        text = torch.from_numpy(draw(f"unet_{case}.text", (4, 77, 64)))
        y = net(x, torch.from_numpy(want[f"unet_{case}.t"]).double(), text)
        dy = torch.from_numpy(draw(f"unet_{case}.dy", (4, 4, 8, 6)))
        dx = torch.autograd.grad(y, x, dy)[0]
        for got, name in ((y, "y"), (dx, "dx")):
            ref = torch.from_numpy(want[f"unet_{case}.{name}"]).double()
            worst = max(worst, float((got - ref).norm() / ref.norm()))
    assert worst < 1e-6, worst
    return worst


if __name__ == "__main__":
    print(f"off by {check():.1e} from the published code")
