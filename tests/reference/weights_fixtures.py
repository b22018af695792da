"""Small weight files as torch.save and safetensors write them, for t_weights_file.c and t_pickle.c under tests/.

    python tests/reference/weights_fixtures.py          writes tests/corpus/weights/

What comes before _ in a name says what is in the file; WHAT.want.safetensors holds the tensors that a reader has to
find there, dense, under the names that it has to give them. types.safetensors is checked against a formula in the test
instead: element i of a tensor is (i % 17) * 0.375 - 2, its absolute value where the type has no sign, rounded towards 0
where it is an integer, i % 3 == 0 for truth values. Files of the old form hold addresses as keys and differ in them
from run to run. Versions are those of requirements.txt and safetensors 0.8.0.
"""
import collections
import datetime
import functools
import io
import json
import pathlib
import sys
import tarfile
import zipfile

import numpy as np
import torch
from safetensors.torch import save_file

OUT = pathlib.Path(__file__).resolve().parent.parent / "corpus" / "weights"


class Callback:
    """Stands for a trainer's own class: a reader has never heard of it."""

    def __init__(self, best):
        self.best = best
        self.history = {"loss": [0.5, 0.25], "tensor": torch.ones(2)}
        self.me = self


class Slotted:
    __slots__ = ("a", "b")

    def __init__(self):
        self.a, self.b = 1, {"c": (1, 2)}


class WithNew:
    def __new__(cls, *args, **keywords):
        return super().__new__(cls)

    def __getnewargs_ex__(self):
        return (1,), {"two": 2}


class Counts(dict):
    pass


def formula(n):
    return torch.tensor([(i % 17) * 0.375 - 2 for i in range(n)], dtype=torch.float64)


def values(shape, dtype):
    n = int(np.prod(shape)) if shape else 1
    x = formula(n)
    if dtype == torch.bool:
        return torch.tensor([i % 3 == 0 for i in range(n)]).reshape(shape)
    if dtype == torch.uint8:
        x = x.abs()
    return x.to(dtype).reshape(shape)


def types():
    return {
        "f32": values((3, 4), torch.float32), "f16": values((2, 3, 5), torch.float16),
        "bf16": values((7,), torch.bfloat16), "f64": values((2, 2), torch.float64), "i8": values((17,), torch.int8),
        "u8": values((17,), torch.uint8), "i16": values((5, 1), torch.int16), "i32": values((6,), torch.int32),
        "i64": values((1, 18), torch.int64), "bool": values((4, 2), torch.bool), "scalar": values((), torch.float32),
        "empty": torch.empty((0, 3)),
    }


def views():
    base = values((4, 6), torch.float32)
    shared = values((40,), torch.float16)
    conv = values((2, 3, 2, 2), torch.float32).contiguous(memory_format=torch.channels_last)
    return collections.OrderedDict([
        ("whole", base), ("transposed", base.t()), ("slice", base[1:3, ::2]), ("column", base[:, 4]),
        ("expanded", base[0, :1].expand(3, 5)), ("half.a", shared[:12].view(3, 4)), ("half.b", shared[7:].view(11, 3)),
        ("conv", conv), ("permuted", values((2, 3, 4), torch.bfloat16).permute(2, 0, 1)),
        ("long", torch.tensor([2**62 + 1, -(2**53) - 1, 2**24 + 1, -7])[::2]), ("twice", base),
    ])


def module():
    m = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    with torch.no_grad():
        for p in m.parameters():
            p.copy_(values(tuple(p.shape), torch.float32))
    return m


def trained():
    """A checkpoint as trainers leave it, and what is to be found in it."""
    m = module()
    opt = torch.optim.AdamW(m.parameters(), lr=1e-3)
    m(torch.ones(4, 3)).sum().backward()
    opt.step()
    state = m.state_dict()
    ema = {"decay": torch.tensor(0.999), "shadow": {"w": values((2, 2), torch.float32), 7: values((1,), torch.int32)}}
    shared = {"s": values((3,), torch.float32)}
    recursive = [1]
    recursive.append(recursive)
    counts = Counts(a=1)
    top = {
        "state_dict": state, "epoch": 3, "global_step": 12345678901, "big": 1 << 80, "minus": -(1 << 70), "small": -3,
        "lr": 0.1, "none": None, "flags": (True, False), "bytes": b"\x00\xff" * 200, "ema": ema, "again": shared,
        "shared": {"twice": shared}, "optimizer_states": [opt.state_dict()], "optimizer": opt.state_dict(),
        "partial": functools.partial(print, "called", end=""), "numpy": np.float64(1.5), "array": np.arange(3),
        "callback": Callback(np.float32(2.5)), "slotted": Slotted(), "new": WithNew(), "counts": counts,
        "set": {1, 2}, "frozen": frozenset(("a", "b")), "complex": 1 + 2j, "when": datetime.datetime(2024, 2, 29),
        "dtype": torch.float16, "device": torch.device("cpu"), "size": torch.Size([1, 2]), "recursive": recursive,
        "range": range(4), "text": "\u00e9\u20ac\n" * 100, "function": print, "type": dict,
        "path": pathlib.PurePosixPath("a/b"), "bytearray": bytearray(b"ab"), (1, 2): "a tuple is no name",
        "default": collections.defaultdict(list, {"x": values((2,), torch.float32)}),
    }
    want = {k: v for k, v in state.items()}
    want |= {"ema.decay": ema["decay"], "ema.shadow.w": ema["shadow"]["w"], "ema.shadow.7": ema["shadow"][7]}
    want |= {"again.s": shared["s"], "shared.twice.s": shared["s"], "default.x": top["default"]["x"]}
    for i, s in opt.state_dict()["state"].items():
        want |= {f"optimizer.state.{i}.{k}": v for k, v in s.items()}
    return top, want


def put_want(name, want):
    dense = {k: v.detach().clone().contiguous() for k, v in want.items()}
    save_file(dense, OUT / f"{name}.want.safetensors")


def old_tar():
    with tarfile.open(OUT / "old_tar.pth", "w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("sys_info", "storages", "tensors", "pickle"):
            info = tarfile.TarInfo(name)
            info.size = 3
            tar.addfile(info, io.BytesIO(b"\x80\x02."))


def repacked(name, method):
    """The same archive as Python's zipfile packs it: another order of extra fields, no padding."""
    with zipfile.ZipFile(OUT / "views.pt") as old, zipfile.ZipFile(OUT / name, "w", method) as new:
        for entry in old.infolist():
            new.writestr(zipfile.ZipInfo(entry.filename, (2024, 2, 29, 0, 0, 0)), old.read(entry), method)


def shards():
    parts = [{"a.weight": values((2, 3), torch.float32), "a.bias": values((2,), torch.float16)},
             {"b.weight": values((3, 2), torch.bfloat16)}]
    names = [f"model-0000{i + 1}-of-00002.safetensors" for i in range(2)]
    for part, name in zip(parts, names):
        save_file(part, OUT / name, metadata={"format": "pt"})
    where = {k: name for part, name in zip(parts, names) for k in part}
    index = {"metadata": {"total_size": 40}, "weight_map": where}
    (OUT / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    put_want("model", parts[0] | parts[1])


def main():
    torch.manual_seed(20240229)
    sys.modules["trainer"] = sys.modules["__main__"]
    OUT.mkdir(parents=True, exist_ok=True)
    save_file(types(), OUT / "types.safetensors", metadata={"format": "pt", "note": "r\u00e9f \"q\""})
    save_file({"a": torch.ones(2).to(torch.float8_e4m3fn), "b": torch.ones(3).to(torch.float8_e5m2)},
              OUT / "f8.safetensors")
    parameters = {f"layer.{k}": v for k, v in module().named_parameters()}
    parameters["layer.0.weight"].note = "a parameter with an attribute"
    attribute = values((2, 3), torch.float32)
    attribute.note = "a tensor with an attribute"
    parameters["attribute"] = attribute
    top, want = trained()
    old = {"_use_new_zipfile_serialization": False}
    for name, what in {"types": types(), "views": views(), "parameters": parameters, "trained": top}.items():
        put_want(name, want if name == "trained" else what)
        torch.save(what, OUT / f"{name}.pt")
        torch.save(what, OUT / f"{name}_old.pt", **old)
    for protocol in (1, 4, 5):
        torch.save(views(), OUT / f"views_p{protocol}.pt", pickle_protocol=protocol)
        torch.save(views(), OUT / f"views_old_p{protocol}.pt", pickle_protocol=protocol, **old)
    torch.save(top, OUT / "trained_p4.pt", pickle_protocol=4)
    torch.save([torch.ones(1)], OUT / "list.pt")
    torch.save(torch.ones(1), OUT / "tensor.pt")
    torch.save(module(), OUT / "module.pt")
    torch.save({"z": torch.ones(2, dtype=torch.complex64)}, OUT / "complex.pt")
    itself = {"a": torch.ones(1)}
    itself["itself"] = itself
    torch.save(itself, OUT / "cycle.pt")
    repacked("compressed.pt", zipfile.ZIP_DEFLATED)
    repacked("views_repacked.pt", zipfile.ZIP_STORED)
    old_tar()
    shards()
    for f in OUT.iterdir():
        f.chmod(0o644)
    total = sum(f.stat().st_size for f in OUT.iterdir())
    print(f"{OUT}: {len(list(OUT.iterdir()))} files, {total} bytes")


if __name__ == "__main__":
    main()
