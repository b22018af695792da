"""UNet and VAE of a base on disk beside PyTorch (diffusers' modules), in CPU seconds of whole processes, batch 1.

    python tests/bench/peer_torch.py DIRECTORY [--sample bin/unicon-sample] [--bench build/release/bench] ...

DIRECTORY is a diffusers directory; tests/reference/full.py writes one of full size with random weights. The python is
one with torch, diffusers and safetensors; this process itself needs only the standard library, for what it holds would
be the floor of its children's peak memory.

How it measures. The cost of a pass is (CPU of a process that does 1 + n of them - CPU of one that does 1) / n, user and
system time of all threads as the kernel reports them when a process ends. Starting, loading, packing and the first pass
are in both and cancel. On our side the passes are steps of --sampler ddim --cfg 1, and for the VAE pictures of --count
with --x-noise 0, each with the writing of a .tif. --repeat takes the least user and the least system time of several
runs of each kind.

PyTorch has the better of everything that is tried for each pass and type: first memory formats with one thread, then,
in the better format, all processors with passive and with active waiting, then an allocator that gives no memory back
(which spares page faults), then, if asked for, torch.compile with frozen weights. These trials are timed within one
process each, after a first pass. Only the best one is then measured by whole processes as ours is; a compiled one is
timed within its process again, over as many passes, for a minute of compiling does not cancel.

Not quite the same work: a step of ours does not project the text to keys and values, which is done once a picture
(0.4 % of an evaluation at 64x64, and PyTorch has no place for it), and it does the sampler's arithmetic.
"""
import argparse
import collections
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile

# name -> what, pixels a side, passes measured, passes timed in a trial
PASSES = {
    "unet64": ("UNet 64x64", 512, 5, 1),
    "unet32": ("UNet 32x32", 256, 20, 2),
    "vae": ("VAE decode 512", 512, 2, 1),
}
TYPES = {"f32": "float32", "bf16": "bfloat16"}
KEEP = {"MALLOC_TRIM_THRESHOLD_": "100000000000", "MALLOC_MMAP_THRESHOLD_": "100000000000",
        "MALLOC_TOP_PAD_": "268435456"}

Setting = collections.namedtuple("Setting", "format threads wait keep compile")
Cost = collections.namedtuple("Cost", "user system peak_bytes out")


def setting_text(s):
    words = [s.format, f"{s.threads} thread" + "s" * (s.threads > 1)]
    return ", ".join(words + [s.wait] * (s.threads > 1) + ["memory kept"] * s.keep + ["compiled"] * s.compile)


def say(text):
    print(text, file=sys.stderr, flush=True)


# ---- processes ----

def run(argv, env=None):
    """CPU seconds, peak resident bytes and standard output of a process and all that it waited for."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        p = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env={**os.environ, **(env or {})})
        _, status, used = os.wait4(p.pid, 0)
        p.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        if p.returncode:
            last = err.read().decode(errors="replace").strip().splitlines()[-3:]
            raise RuntimeError(f"{' '.join(argv)}: ended with {p.returncode}: {' | '.join(last)}")
        return Cost(used.ru_utime, used.ru_stime, used.ru_maxrss * 1024, out.read().decode(errors="replace"))


def warm(o):
    """Reads all weights, so that no process finds them cold: reading from disk costs CPU too."""
    for folder, _, names in os.walk(o.directory):
        for name in names:
            with open(os.path.join(folder, name), "rb") as f:
                while f.read(1 << 24):
                    pass


def difference(process, n, repeat):
    """CPU seconds of one of n passes, and the peak memory of the longer process. What disturbs user time (a neighbour
    in the cache) and system time (pages to be read) is not the same, so each has its own least."""
    few, many = [], []
    for _ in range(repeat):
        few.append(process(1))
        many.append(process(1 + n))

    def least(costs):
        return min(c.user for c in costs) + min(c.system for c in costs)

    return (least(many) - least(few)) / n, max(c.peak_bytes for c in many)


# ---- PyTorch: the child process ----

def torch_module(directory, which, dtype):
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel

    vae = which == "vae"
    kind = AutoencoderKL if vae else UNet2DConditionModel
    module = kind.from_pretrained(directory, subfolder="vae" if vae else "unet", torch_dtype=dtype).eval()
    g = torch.Generator().manual_seed(1)
    side = PASSES[which][1] // 8
    latents = torch.randn(1, 4, side, side, generator=g).to(dtype)
    if vae:
        return module, (latents,)
    text = torch.randn(1, 77, module.config.cross_attention_dim, generator=g).to(dtype)
    return module, (latents, torch.tensor([261]), text)


def torch_child(job):
    """Does job["count"] passes and prints the CPU seconds of each after the first."""
    import torch

    s = Setting(*job["setting"])
    torch.set_num_threads(s.threads)
    torch.set_grad_enabled(False)
    module, inputs = torch_module(job["directory"], job["which"], getattr(torch, TYPES[job["type"]]))
    if s.format == "channels-last":
        module = module.to(memory_format=torch.channels_last)
        inputs = (inputs[0].to(memory_format=torch.channels_last),) + inputs[1:]
    f = module.decode if job["which"] == "vae" else module
    if s.compile:
        import torch._inductor.config as inductor

        inductor.freezing = True
        f = torch.compile(f)
    times = []
    with torch.no_grad() if s.compile else torch.inference_mode():
        for i in range(job["count"]):
            y = f(*inputs).sample
            used = resource.getrusage(resource.RUSAGE_SELF)
            times.append(used.ru_utime + used.ru_stime)
    if not bool(torch.isfinite(y).all()):
        raise RuntimeError("the result is not finite")
    print(json.dumps({"cpu": [b - a for a, b in zip(times, times[1:])]}))


def torch_versions():
    code = ("import torch, diffusers; c = torch.__config__.show(); i = c.find('MKL-DNN v');"
            "print('torch', torch.__version__, 'diffusers', diffusers.__version__, 'oneDNN', c[i + 9:].split()[0])")
    return run([sys.executable, "-c", code]).out.strip()


# ---- PyTorch: the parent's side ----

def torch_run(o, which, kind, s, count):
    warm(o)
    job = dict(directory=o.directory, which=which, type=kind, setting=list(s), count=count)
    env = {"OMP_NUM_THREADS": str(s.threads), "OMP_WAIT_POLICY": s.wait, "CUDA_VISIBLE_DEVICES": ""}
    env.update(KEEP if s.keep else {})
    return run([sys.executable, os.path.abspath(__file__), "--child", json.dumps(job)], env)


def torch_passes(o, which, kind, s, n):
    """The least CPU seconds of one of n passes after the first, within one process; its peak memory."""
    c = torch_run(o, which, kind, s, 1 + n)
    return min(json.loads(c.out.strip().splitlines()[-1])["cpu"]), c.peak_bytes


def torch_best(o, which, kind, rows):
    """Tries settings one dimension after the other; the best, with a row for each."""
    tried = {}

    def attempt(s):
        try:
            tried[s], peak = torch_passes(o, which, kind, s, PASSES[which][3])
        except RuntimeError as e:
            say(f"  torch, {setting_text(s)}: {e}")
            return
        rows.append(("torch, trial", which, kind, setting_text(s), tried[s], peak))
        say(f"  torch, {setting_text(s)}: {tried[s]:.2f}")

    def best():
        if not tried:
            raise RuntimeError("no setting of PyTorch works")
        return min(tried, key=tried.get)

    for form in ("contiguous", "channels-last"):
        attempt(Setting(form, 1, "passive", False, False))
    if o.processors > 1:
        form = best().format
        for wait in ("passive", "active"):
            attempt(Setting(form, o.processors, wait, False, False))
    attempt(best()._replace(keep=True))
    if o.compile:
        attempt(best()._replace(compile=True))
    return best()


# ---- ours ----

def our_argv(o, which, kind, count, work):
    px = str(PASSES[which][1])
    argv = [o.sample, "--base", o.directory, "--device", "cpu", "--width", px, "--height", px, "--cfg", "1",
            "--sampler", "ddim", "--dtype", kind, "--quiet", "--out", os.path.join(work, "out.tif")]
    if which == "vae":
        return argv + ["--x", os.path.join(work, "x.tif"), "--x-noise", "0", "--count", str(count)]
    return argv + ["--steps", str(count)]


def our_plan(o, which, kind, count, work):
    """FLOPs of the stage in question, and the peak memory of the whole."""
    lines = run(our_argv(o, which, kind, count, work) + ["--plan", "--json"]).out.splitlines()
    rows = [json.loads(line) for line in lines]
    stage = "VAE decoder" if which == "vae" else "UNet"
    flops = [r["flops"] for r in rows if r.get("stage") == stage]
    return flops[0], rows[-1]["peak_bytes"]


def our_cost(o, which, kind, threads, work):
    argv = ["--threads", str(threads)]
    n = o.n or PASSES[which][2]

    def process(count):
        warm(o)
        return run(our_argv(o, which, kind, count, work) + argv)
    return difference(process, n, o.repeat)


# ---- stable-diffusion.cpp ----

def sdcpp_cost(o, which, kind, threads, work):
    px = str(PASSES[which][1])

    def process(count):
        return run([o.sdcpp, "-m", o.sdcpp_model or o.directory, "--type", kind, "-p", "x", "-W", px, "-H", px,
                    "-s", "1", "--cfg-scale", "1", "--sampling-method", "euler", "--steps", str(count),
                    "-t", str(threads), "-o", os.path.join(work, "sdcpp.png")])
    return difference(process, o.n or PASSES[which][2], o.repeat)


# ---- all of it ----

def peaks(o):
    text = run([o.bench, "-t", "1", "nothing"]).out
    return {k: float(v) for k, v in re.findall(r"(f32|bf16) ([0-9.]+) GFLOP/s", text)}


def measure(o, which, kind, work, rows):
    """Rows (side, pass, type, setting, CPU seconds, peak bytes) for one pass and type; FLOPs of one pass."""
    n = o.n or PASSES[which][2]
    say(f"{PASSES[which][0]}, {kind}")
    flops = (our_plan(o, which, kind, 1 + n, work)[0] - our_plan(o, which, kind, 1, work)[0]) / n
    for threads in o.our_threads:
        cpu, peak = our_cost(o, which, kind, threads, work)
        rows.append(("ours", which, kind, f"{threads} thread" + "s" * (threads > 1), cpu, peak))
        say(f"  ours, {rows[-1][3]}: {cpu:.2f}")
    if o.sdcpp and which != "vae":
        try:
            cpu, peak = sdcpp_cost(o, which, kind, 1, work)
            rows.append(("sd.cpp", which, kind, "1 thread", cpu, peak))
        except RuntimeError as e:
            say(f"  stable-diffusion.cpp: {e}")
    if o.no_torch:
        return flops
    s = torch_best(o, which, kind, rows)
    if s.compile:                       # a minute of compiling does not cancel: the passes within a process
        cpu, peak = torch_passes(o, which, kind, s, n)
    else:
        cpu, peak = difference(lambda count: torch_run(o, which, kind, s, count), n, o.repeat)
    rows.append(("torch", which, kind, setting_text(s), cpu, peak))
    say(f"  torch, {setting_text(s)}, finally: {cpu:.2f}")
    return flops


def table(rows, flops, peak):
    """One line for each pass and type: the best of ours and of PyTorch's."""
    print(f"{'CPU seconds a pass':18} {'':5} {'GFLOP':>7} {'ours':>7} {'% peak':>7} {'torch':>7} {'% peak':>7} "
          f"{'torch/ours':>10}  torch's best setting")
    for (which, kind), f in flops.items():
        def best(side):
            return min((r for r in rows if r[:3] == (side, which, kind)), key=lambda r: r[4], default=None)

        us, them, other = best("ours"), best("torch"), best("sd.cpp")
        share = f * 1e-7 / peak[kind] if peak.get(kind) else 0
        line = f"{PASSES[which][0]:18} {kind:5} {f * 1e-9:7.1f} {us[4]:7.2f} {share / us[4]:7.1f}"
        if them:
            line += f" {them[4]:7.2f} {share / them[4]:7.1f} {them[4] / us[4]:10.2f}  {them[3]}"
            line += "; OURS IS SLOWER" if them[4] < us[4] else ""
        if any(r and (r[4] <= 0 or share / r[4] > 100) for r in (us, them)):
            line += "; CANNOT BE: the machine was not quiet, measure again"
        print(line + (f"; stable-diffusion.cpp {other[4]:.2f}" if other else ""))


def memory(o, rows, work):
    """Peak resident memory of our whole runs beside what --plan says; torch's of its whole processes."""
    for which, kind in dict.fromkeys(r[1:3] for r in rows):
        if which == "unet64":
            plan = our_plan(o, which, kind, 1 + (o.n or PASSES[which][2]), work)[1]
            real = max(r[5] for r in rows if r[:3] == ("ours", which, kind))
            them = [f"; torch's UNet alone {r[5] / 2**20:.0f}" for r in rows if r[:3] == ("torch", which, kind)]
            print(f"peak memory of a whole 512 x 512 run, {kind}, MiB: {real / 2**20:.0f} measured, "
                  f"{plan / 2**20:.0f} planned{''.join(them)}")


def tsv(rows, flops, peak):
    print("side\tpass\ttype\tsetting\tcpu_s\tpeak_rss_mib\tgflop\tshare_of_peak")
    for side, which, kind, setting, cpu, rss in rows:
        f = flops[which, kind]
        share = f * 1e-9 / cpu / peak[kind] if peak.get(kind) else 0
        print(f"{side}\t{which}\t{kind}\t{setting}\t{cpu:.3f}\t{rss / 2**20:.0f}\t{f * 1e-9:.1f}\t{share:.3f}")


def options():
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("directory", help="diffusers directory")
    p.add_argument("--sample", default="bin/unicon-sample", help="our program (default %(default)s)")
    p.add_argument("--bench", default="build/release/bench", help="for the machine's peaks (default %(default)s)")
    p.add_argument("--passes", default=",".join(PASSES), help="default %(default)s")
    p.add_argument("--types", default=",".join(TYPES), help="default %(default)s")
    p.add_argument("--our-threads", default="1", help="thread counts of ours to try (default %(default)s)")
    p.add_argument("--n", type=int, default=0, help="passes in each difference; by default 5, 20 and 2")
    p.add_argument("--repeat", type=int, default=1, help="runs of each process; the least counts (default %(default)s)")
    p.add_argument("--compile", action="store_true", help="try torch.compile too: minutes for each pass and type")
    p.add_argument("--no-torch", action="store_true", help="ours alone")
    p.add_argument("--sdcpp", help="stable-diffusion.cpp's program, to measure its steps too")
    p.add_argument("--sdcpp-model", help="what it loads; by default the directory")
    o = p.parse_args()
    o.processors = len(os.sched_getaffinity(0))
    o.passes, o.types = o.passes.split(","), o.types.split(",")
    o.our_threads = [int(t) for t in o.our_threads.split(",")]
    for given, known in (o.passes, PASSES), (o.types, TYPES):
        if set(given) - set(known):
            p.error(f"{', '.join(set(given) - set(known))}: want some of {', '.join(known)}")
    return o


def main():
    if sys.argv[1:2] == ["--child"]:
        return torch_child(json.loads(sys.argv[2]))
    o = options()
    rows, flops = [], {}
    if not o.no_torch:
        print(torch_versions())
    if not o.sdcpp:
        print("stable-diffusion.cpp: not asked for (--sdcpp PATH)")
    before = peaks(o)
    with tempfile.TemporaryDirectory() as work:
        if "vae" in o.passes:           # any picture will do: one step of ours
            run(our_argv(o, "unet32", o.types[-1], 1, work))
            shutil.move(os.path.join(work, "out.tif"), os.path.join(work, "x.tif"))
        for which in o.passes:
            for kind in o.types:
                flops[which, kind] = measure(o, which, kind, work, rows)
        after = peaks(o)
        peak = {k: max(before[k], after[k]) for k in before}
        print("peaks of one processor, measured before and after: "
              + ", ".join(f"{k} {before[k]:.1f} and {after[k]:.1f} GFLOP/s" for k in before))
        table(rows, flops, peak)
        memory(o, rows, work)
    print()
    tsv(rows, flops, peak)


if __name__ == "__main__":
    try:
        main()
    except (RuntimeError, OSError) as error:
        sys.exit(f"peer_torch.py: {error}")
