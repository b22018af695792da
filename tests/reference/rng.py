#!/usr/bin/env python3
"""rng.txt: torch's CPU generator, for tests/t_rng_torch.c. `seed S` begins a generator's life; the lines below it are
calls and what they gave: `kind type n = bits ..` in hexadecimal, or `kind type n # FNV-1a-64 of the bytes` where that
is longer than a line. An element of f32 has 32 bits, of f16 and bf16 16, an integer 64; bytes are little endian.

torch 2.1.2 on x86-64 with AVX2; draws of less than 16 and the 16-bit types go through the C library's functions."""
import os
import random

import torch

TYPES = {"f32": (torch.float32, torch.int32, 8), "f16": (torch.float16, torch.int16, 4),
         "bf16": (torch.bfloat16, torch.int16, 4)}


def fnv(data):
    h = 0xCBF29CE484222325
    for b in data:
        h = (h ^ b) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return h


def call(g, kind, name, n):
    if kind == "normal":
        dtype, bits, digits = TYPES[name]
        x = torch.randn(n, dtype=dtype, generator=g).view(bits)
    elif kind == "uniform":
        bits, digits = torch.int32, 8
        x = torch.rand(n, generator=g).view(bits)
    else:
        bits, digits = torch.int64, 16
        x = torch.randint(0, int(name), (n,), generator=g)
    mask = (1 << 4 * digits) - 1
    line = ("%s %s %d = " % (kind, name, n) + " ".join("%0*x" % (digits, v & mask) for v in x[:30].tolist())).rstrip()
    return line if n <= 30 and len(line) <= 120 else "%s %s %d # %016x" % (kind, name, n, fnv(x.numpy().tobytes()))


def life(f, seed, calls):
    g = torch.Generator().manual_seed(seed)
    f.write("seed %d\n" % (seed & 0xFFFFFFFFFFFFFFFF))
    for c in calls:
        f.write(call(g, *c) + "\n")


def main():
    r = random.Random(7)
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "rng.txt"), "w") as f:
        for name in TYPES:
            for n in (1, 2, 3, 4, 7, 15, 16, 17, 20, 31, 32, 33, 47, 48, 100, 255, 512, 4096, 16384, 65537):
                life(f, 0 if n < 30 else n, [("normal", name, n)])
        life(f, 42, [("normal", "f32", 16)])
        life(f, 42, [("normal", "f32", 2 * 4 * 64 * 64)])
        life(f, -1, [("normal", "f32", 4)])
        life(f, 2**32 + 5, [("normal", "f32", 4)])
        life(f, 5, [("normal", "f32", 4)])
        life(f, 1607339132, [("normal", "f32", 4)])
        life(f, 0, [("normal", "f32", 3), ("normal", "f32", 16), ("normal", "f32", 1)])
        for seed in (1753191, 2934939, 5528393):            # a uniform of 0, so a radius of -0; the sum with 0 shows
            life(f, seed, [("normal", "f32", 16)])
        life(f, 1, [("normal", "f32", 1000003)])
        life(f, 2, [("normal", "bf16", 1000003)])
        life(f, 3, [("normal", "f16", 1000003)])
        life(f, 4, [("uniform", "f32", 1000003), ("uniform", "f32", 5), ("normal", "f32", 32)])
        life(f, 0, [("uniform", "f32", 4), ("below", "1000", 8), ("below", "4294967295", 8), ("below", "1", 2)])
        for seed in range(100, 160):                        # mixed, so that kept values cross every kind of call
            calls = []
            for _ in range(r.randint(3, 7)):
                kind = r.choice(["normal"] * 5 + ["uniform", "below"])
                name = r.choice(list(TYPES)) if kind == "normal" else "f32" if kind == "uniform" else \
                    str(r.choice([2, 1000, 3000000000]))
                calls.append((kind, name, r.choice([0, 1, 1, 2, 3, 5, 15, 16, 17, 33, 640])))
            life(f, seed, calls)


main()
