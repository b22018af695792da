"""What the golden scripts share: inputs drawn by name, gradients in our layout, a safetensors file of them.

Inputs are drawn from their names, so that large ones need not be kept: element i of tensor NAME is

    s = FNV-1a-64(NAME) xor SEED
    z = splitmix64(s + (i+1) * 0x9E3779B97F4A7C15)
    value = scale * 2^-15 * (sum of z's four 16-bit fields - 131070)        standard deviation 1.15 scale

which is exact in float32 (18 bits) and hardly ever in a 16-bit type: a kernel that rounds where it should not is
seen. tests/golden.c draws the same numbers. Tensors of up to KEEP elements are stored as well; of larger
ones the file's metadata keeps "draw NAME" = "scale dim0 dim1 ..".

Leaves are made in our layout (NHWC, OHWI, (B,T,C)) and permuted inside the graph, so the gradients come out in it.
References are computed in float64 and stored as float32, so that no summation error of the reference's own is in them.
The same is computed again in float32 and in bfloat16: how far those are off is the case's noise, from which tests take
their tolerances.
"""
import json
import platform

import numpy as np
import torch

SEED = 20240229
KEEP = 400

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)


def draw(name, shape, scale=1.0):
    """A float64 array whose values are exact in float32; scale is a power of two."""
    n = int(np.prod(shape))
    s = 0xCBF29CE484222325
    for c in name.encode():
        s = (s ^ c) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    with np.errstate(over="ignore"):
        z = np.uint64(s ^ SEED) + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    total = sum(((z >> np.uint64(16 * f)) & np.uint64(0xFFFF)).astype(np.int64) for f in range(4))
    return ((total - 131070) * (2.0**-15 * scale)).reshape(shape)


def nchw(x):
    return x.permute(0, 3, 1, 2)


def nhwc(x):
    return x.permute(0, 2, 3, 1)


oihw = nchw     # OHWI -> OIHW is the same permutation


class File:
    """dtype: what the modules compute in. results: names of what they computed."""

    def __init__(self, dtype):
        self.dtype, self.tensors, self.meta, self.results = dtype, {}, {}, []

    def put(self, name, value, result=False):
        if isinstance(value, torch.Tensor):
            value = value.detach()
            value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
        a = np.asarray(value)
        a = np.ascontiguousarray(a, dtype=np.int32 if a.dtype.kind == "i" else np.float32)
        assert name not in self.tensors and np.isfinite(a).all(), name
        self.tensors[name] = a
        if result:
            self.results.append(name)

    def add_noise(self, f32, bf16):
        """case.noise (2,2): rows float32, bfloat16; columns the output (or state), the worst of the gradients;
        ||rough - ours|| / ||ours|| in units of 2^-24 and 2^-8. 0 where a type was not computed."""
        noise = {}
        for name in self.results:
            case, of = name.split(".")
            table = noise.setdefault(case, np.zeros((2, 2)))
            want = self.tensors[name].astype(np.float64)
            for row, (rough, unit) in enumerate(((f32, 2.0**-24), (bf16, 2.0**-8))):
                if name in rough.tensors:
                    error = np.linalg.norm(rough.tensors[name] - want) / max(np.linalg.norm(want), 1e-300) / unit
                    assert error < 1000, (name, error)
                    table[row, int(of[0] == "d")] = max(table[row, int(of[0] == "d")], error)
        for case, table in noise.items():
            self.put(case + ".noise", table)

    def write(self, path, command):
        self.meta.update(seed=str(SEED), command=command, python=platform.python_version(), numpy=np.__version__,
                         torch=torch.__version__.split("+")[0])
        header, at = {"__metadata__": dict(sorted(self.meta.items()))}, 0
        for name, a in sorted(self.tensors.items()):
            header[name] = {"dtype": "I32" if a.dtype == np.int32 else "F32", "shape": list(a.shape),
                            "data_offsets": [at, at + a.nbytes]}
            at += a.nbytes
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        with open(path, "wb") as f:
            f.write(len(text).to_bytes(8, "little") + text)
            for _, a in sorted(self.tensors.items()):
                f.write(a.tobytes())
        print(f"{path}: {len(self.tensors)} tensors, {8 + len(text) + at} bytes")


class Case:
    """Leaves, one output, its gradients. The gradient of NAME is stored as dNAME."""

    def __init__(self, file, name):
        self.file, self.name, self.leaves = file, name, {}

    def values(self, name, shape, scale=1.0, shift=0.0):
        full = f"{self.name}.{name}"
        a = draw(full, shape, scale) + shift
        if a.size <= KEEP or shift:
            self.file.put(full, a)
        else:
            self.file.meta["draw " + full] = " ".join([repr(scale)] + [str(n) for n in shape])
        return torch.from_numpy(a).to(self.file.dtype)

    def leaf(self, name, shape, scale=1.0, shift=0.0):
        x = self.values(name, shape, scale, shift).requires_grad_(True)
        self.leaves[name] = x
        return x

    def weight(self, name, shape):
        """About unit variance out of unit variance in: the scale is a power of two near 1/sqrt(fan in)."""
        fan_in = np.prod(shape[1:])
        return self.leaf(name, shape, 2.0 ** -round(np.log2(fan_in) / 2))

    def params(self, module):
        """Leaves for every parameter of a torch module, in our layout; the dict is for functional_call.
        The weights of norms are near 1. Dots in names become underscores; those of a single layer are w and b."""
        out, keys = {}, [key for key, _ in module.named_parameters()]
        single = len({key.rsplit(".", 1)[0] for key in keys}) == 1
        for key, p in module.named_parameters():
            name, shape = key.rsplit(".", 1)[1][0] if single else key.replace(".", "_"), tuple(p.shape)
            if p.dim() == 4:
                out[key] = oihw(self.weight(name, (shape[0], *shape[2:], shape[1])))
            elif p.dim() == 2:
                out[key] = self.weight(name, shape)
            elif key.endswith("weight"):
                out[key] = self.leaf(name, shape, 0.25, 1.0)
            else:
                out[key] = self.leaf(name, shape, 0.5)
        return out

    def done(self, y):
        self.file.put(f"{self.name}.y", y, True)
        dy = self.values("dy", tuple(y.shape)) if y.dim() else torch.ones((), dtype=y.dtype)
        if self.leaves:
            grads = torch.autograd.grad(y, list(self.leaves.values()), dy)
            for name, g in zip(self.leaves, grads):
                self.file.put(f"{self.name}.d{name}", g, True)
