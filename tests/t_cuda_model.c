/* tests/t_cuda_model.c: the models and whole runs on the device: against what diffusers and transformers compute, what
 * the published code computes, and the processor. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "kernels/dev.h"
#include "tests/cuda_kit.h"
#include "tests/model_kit.h"
#include "tests/pair_kit.h"

/* Of ten steps with guidance in f32; the published code's own float32 is off by up to 2.3e-5 after them. */
static const double run_off = 1e-4;

static struct pair_kit *kit;
static struct golden *golden;

/* Sanitizers on top of the emulated device make everything very slow. */
#ifdef __SANITIZE_ADDRESS__
enum { N_TYPE = 2, THOROUGH = 0 };
#else
enum { N_TYPE = 3, THOROUGH = 1 };
#endif

static void test_models(void)
{
    static const enum dtype type[] = { F32, BF16, F16 };

    model_kit_open();
    for (size_t i = 0; i < N_TYPE; i++) {
        model_test_unet("cuda", type[i], "sd1");
        if (type[i] != F16 || !cuda_kit_small())
            model_test_vae("cuda", type[i], "sd1");
        if (type[i] != F16)
            model_test_text("cuda", type[i], "sd1");
    }
    if (!cuda_kit_small())
        model_test_unet("cuda", F32, "sd2");
    model_kit_close();
}

/* ---- runs of pairs ---- */

static const struct run {
    const char *name, *schedule, *sampler;
    bool two, is_id, masked[PAIR_INPUTS];
    float guidance;
} runs[] = {
    { .name = "to_x", .schedule = "[(0,1),(1,1),0]", .sampler = "ddim" },
    { .name = "joint", .schedule = "[(0,1),(0,1),0]", .sampler = "euler-a" },
    { .name = "mask_y", .schedule = "[(0,1),(0,1),0]", .sampler = "dpm++2m", .masked = { false, true } },
    { .name = "guided", .schedule = "[(0,1),(1,1),0]", .sampler = "ddim", .is_id = true, .guidance = 1 },
    { .name = "two", .schedule = "[(0,1),(1,1),(1,1),0]", .sampler = "dpm++2m", .two = true },
};

static struct pair_run official(const struct run *r, const char *device)
{
    const struct joint_weights *depth = &kit->checkpoint[PAIR_DEPTH], *id = &kit->checkpoint[PAIR_ID];
    struct pair_run p = { .schedule = r->schedule, .sampler = r->sampler, .cfg = 3, .official = true,
                          .n_input = r->two ? 3 : 2, .n_pair = r->two ? 2 : 1, .n_contrast = r->guidance > 0,
                          .pair = { { 0, 1, 1, 1, depth }, { 0, 2, 0.5f, 0.75f, id } },
                          .contrast = { { .scale = r->guidance } }, .device = device };

    if (r->is_id)
        p.pair[0] = (struct pipeline_pair){ 0, 1, 0.6f, 0.6f, id };
    memcpy(p.masked, r->masked, sizeof p.masked);
    return p;
}

static struct pair_latents first;       /* of runs[0], alone */

/* The first also beside its dry run, which needs no device and says to the byte what the device then takes. */
static void test_runs(void)
{
    const struct pair_run dry = official(&runs[0], "null:cuda");
    struct pipeline_cost said = { 0 }, took[LEN(runs)] = { { .peak_bytes = 0 } };
    const size_t n = cuda_kit_small() ? 1 : LEN(runs);
    struct pair_latents got;
    struct err e = { 0 };
    bool ok;

    for (size_t i = 0; i < n; i++) {
        const struct pair_run r = official(&runs[i], "cuda");
        char name[64];
        double worst;

        snprintf(name, sizeof name, "%s_%s", runs[i].name, runs[i].sampler);
        worst = pair_kit_cost(kit, &r, &got, &took[i], &e) ? INFINITY : pair_kit_off(&got, golden, name, r.n_input);
        tap_ok(worst <= run_off, "%s: the published code's latents: %.1e of %.0e %s", name, worst, run_off, e.text);
        if (i == 0)
            first = got;
    }
    ok = !pair_kit_cost(kit, &dry, &got, &said, &e) && said.peak_bytes == took[0].peak_bytes && said.peak_bytes > 0;
    tap_ok(ok, "a dry run says %zu bytes, the device gives %zu %s", said.peak_bytes, took[0].peak_bytes, e.text);
}

/* Our own numbers (Philox), in 16 bits beside the processor's in f32: as far off as the processor's own bf16, and half
 * as much again, since ten guided steps add up. */
static void test_bf16(void)
{
    struct pair_run cuda = official(&runs[0], "cuda"), cpu = official(&runs[0], "cpu");
    struct pair_latents a, b, own;
    struct err e = { 0 };
    double worst = 0, most = 0;
    bool ok;

    cuda.official = cpu.official = false;
    cuda.schedule = cpu.schedule = "x=1:0 y=0";
    cuda.bf16 = true;
    ok = !pair_kit_run(kit, &cuda, &a, &e) && !pair_kit_run(kit, &cpu, &b, &e);
    cpu.bf16 = true;
    ok = ok && !pair_kit_run(kit, &cpu, &own, &e);
    for (int i = 0; ok && i < 2; i++) {
        worst = fmax(worst, pair_kit_distance(a.z[i], b.z[i]));
        most = fmax(most, 1.5 * pair_kit_distance(own.z[i], b.z[i]));
    }
    tap_ok(ok && worst <= most, "bf16 on the device, f32 on the processor, after ten steps: %.1e of %.1e %s", worst,
           most, e.text);
}

/* Requests through one pipeline: the bits of the run by itself, steps as graphs that are made once. */
static void test_graphs(void)
{
    const struct pipeline_base pipe = pair_kit_base(kit, NULL);
    struct dev_cuda_counts before = { 0 }, after = { 0 };
    const int n = cuda_kit_small() ? 1 : 2;
    struct pair_latents got;
    struct pair_run r = official(&runs[0], "cuda");
    struct pipeline *one = NULL;
    struct err e = { 0 };
    struct device dev;
    bool ok = !device_open(&dev, "cuda", 2, &e);

    if (!ok) {
        tap_ok(false, "%s", e.text);
        return;
    }
    ok = !pipeline_open(&one, &dev, F32, &pipe, &e);
    r.through = one;
    for (int i = 0; i < n && ok; i++) {
        r.same_pictures = i > 0;
        r.more = i + 1 < n;
        before = after;
        ok = !pair_kit_run(kit, &r, &got, &e) && !memcmp(got.z, first.z, sizeof first.z[0] * 2);
        dev_cuda_counts(dev.queue, &after);
    }
    tap_ok(ok, "models that are kept, and a run done again, give the same bits %s", e.text);
    /* steps of a kind that was there before */
    tap_ok(ok && after.graph_launches - before.graph_launches == (n > 1 ? 10 : 4)
           && after.graphs_made - before.graphs_made <= 5, "the last run of ten steps: %d graphs launched, %d made",
           (int)(after.graph_launches - before.graph_launches), (int)(after.graphs_made - before.graphs_made));
    pipeline_close(one);
    device_close(&dev);
}

int main(void)
{
    if (!cuda_kit_begin())
        return 0;
    kit = pair_kit_open("sd1");
    golden = golden_open("tests/reference/unicon.safetensors");
    test_models();
    if (THOROUGH) {
        test_runs();
        test_graphs();
    }
    if (!cuda_kit_small())
        test_bf16();
    golden_close(golden);
    pair_kit_close(kit);
    return cuda_kit_end();
}
