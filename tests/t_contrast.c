/* tests/t_contrast.c: condition guidance per signal against the published code's denoiser asked with two sets of
 * weights (tests/reference/unicon_more.py); and what is left out of a pass because nobody needs it changes nothing. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "tests/pair_kit.h"
#include "tests/tap.h"

#define LEN(a) (sizeof(a) / sizeof *(a))
#define TO_X2 "[(0,1),(1,1),(1,1),0]"

/* Sanitizers make everything ten times slower: there each case is walked by one sampler, and f32 is all. */
#ifdef __SANITIZE_ADDRESS__
enum { THOROUGH = 0 };
#else
enum { THOROUGH = 1 };
#endif

/* Measured: up to 3.1e-5; instruction sets vary. */
static const double run_off = 1e-4;
static struct pair_kit *kit;

static const struct {
    const char *name, *schedule;
    double cfg;
    int n_pair, n_contrast;
    struct pipeline_contrast contrast[2];
} cases[] = {
    { "against", "[(0,1),(0,1),0]", 3, 1, 1, { { 1.5f, { 0.25f }, { 0.5f } } } },
    { "plain", "[(0,1),(0,1),0]", 1, 1, 1, { { .scale = 1.5f } } },
    { "two_all", TO_X2, 3, 2, 1, { { .scale = 1 } } },
    { "two_one", TO_X2, 3, 2, 1, { { 2, { 1, 0 }, { 1, 0 } } } },
    { "two_sum", TO_X2, 3, 2, 2, { { 2, { 1, 0 }, { 1, 0 } }, { 1, { 0.25f, 0.5f }, { 0.5f, 0.75f } } } },
};

static struct pair_run pairs(int n, const char *schedule)
{
    return (struct pair_run){ .schedule = schedule, .sampler = "ddim", .cfg = 3, .n_input = n + 1, .n_pair = n,
                              .pair = { { 0, 1, 1, 1, &kit->checkpoint[PAIR_DEPTH] },
                                        { 0, 2, 0.5f, 0.75f, &kit->checkpoint[PAIR_ID] } } };
}

static void test_contrasts(void)
{
    static const char *const sampler[] = { "ddim", "euler-a" };
    struct golden *g = golden_open("tests/reference/unicon_more.safetensors");

    for (size_t i = 0; i < LEN(cases) * 2; i++) {
        struct pair_run r = pairs(cases[i / 2].n_pair, cases[i / 2].schedule);
        struct pair_latents got;
        struct err e = { 0 };
        char name[64];
        double off;

        if (!THOROUGH && i % 2 != i / 2 % 2)
            continue;
        r.sampler = sampler[i % 2];
        r.official = true;
        r.cfg = cases[i / 2].cfg;
        r.n_contrast = cases[i / 2].n_contrast;
        memcpy(r.contrast, cases[i / 2].contrast, sizeof r.contrast);
        snprintf(name, sizeof name, "%s_%s", cases[i / 2].name, r.sampler);
        off = pair_kit_run(kit, &r, &got, &e) ? INFINITY : pair_kit_off(&got, g, name, r.n_input);
        tap_ok(off <= run_off, "%s: %.1e of %.0e %s", name, off, run_off, e.text);
    }
    golden_close(g);
}

/* A weight of 0 leaves rows out of a pass; 1e-30 leaves all of them in and changes no bit of them. */
static const float almost_none = 1e-30f;

static void same_as_all(const char *what, struct pair_run r)
{
    struct pair_run all = r;
    struct pair_latents a, b;
    struct err e = { 0 };
    bool ok;

    for (int p = 0; p < r.n_pair; p++) {
        all.pair[p].wx = r.pair[p].wx != 0 ? r.pair[p].wx : almost_none;
        all.pair[p].wy = r.pair[p].wy != 0 ? r.pair[p].wy : almost_none;
        for (int c = 0; c < r.n_contrast; c++) {
            all.contrast[c].wx[p] = r.contrast[c].wx[p] != 0 ? r.contrast[c].wx[p] : almost_none;
            all.contrast[c].wy[p] = r.contrast[c].wy[p] != 0 ? r.contrast[c].wy[p] : almost_none;
        }
    }
    ok = !pair_kit_run(kit, &r, &a, &e) && !pair_kit_run(kit, &all, &b, &e);
    tap_ok(ok && !memcmp(a.z, b.z, sizeof a.z[0] * (size_t)r.n_input), "%s, %s: as with all rows %s", what,
           r.bf16 ? "bf16" : "f32", e.text);
}

static void test_left_out(bool bf16)
{
    static const struct {
        const char *what, *schedule;
        float wx, wy;
    } one[] = {
        { "y to x, y looks at nobody", "x=1:0 y=0", 1, 0 }, { "y to x, x looks at nobody", "x=1:0 y=0", 0, 1 },
        { "x to y, y looks at nobody", "x=0 y=1:0", 1, 0 }, { "x to y, x looks at nobody", "x=0 y=1:0", 0, 1 },
        { "both, y looks at nobody", "x=1:0 y=1:0", 1, 0 },
        { "both, nobody looks", "x=1:0 y=1:0", 0, 0 }, { "y waits", "x=1:0 y=0.5:0", 1, 0 },
    };
    struct pair_run r;

    for (size_t i = 0; i < LEN(one); i++) {
        r = pairs(1, one[i].schedule);
        r.bf16 = bf16;
        r.pair[0].wx = one[i].wx;
        r.pair[0].wy = one[i].wy;
        same_as_all(one[i].what, r);
    }
    r = pairs(2, "x=1:0 y=0 y2=0");
    r.bf16 = bf16;
    r.pair[1].wx = 0;
    same_as_all("y2 is for nobody", r);
    r = pairs(1, "x=1:0 y=0");
    r.bf16 = bf16;
    r.n_contrast = 1;
    r.contrast[0].scale = 1.5f;
    same_as_all("a pass against nothing", r);
    r = pairs(2, "x=1:0 y=0 y2=1:0");
    r.bf16 = bf16;
    r.n_contrast = 1;
    r.contrast[0] = (struct pipeline_contrast){ 2, { 1, 0 }, { 1, 0 } };
    same_as_all("a pass against one of two", r);
}

/* What comes without the pair's y is what its own weights of 0 give: eps + c (eps - eps) is eps. */
static void test_neutral(void)
{
    struct pair_run r = pairs(2, "x=1:0 y=0 y2=0"), with = r;
    struct pair_latents a, b;
    struct err e = { 0 };
    double off = INFINITY;

    with.n_contrast = 1;
    with.contrast[0] = (struct pipeline_contrast){ 3, { 1, 0.5f }, { 1, 0.75f } };
    if (!pair_kit_run(kit, &r, &a, &e) && !pair_kit_run(kit, &with, &b, &e))
        off = pair_kit_distance(b.z[0], a.z[0]);
    tap_ok(off <= 1e-6, "against its own weights guidance does nothing: %.1e %s", off, e.text);
}

int main(void)
{
    kit = pair_kit_open("sd1");
    test_contrasts();
    test_left_out(false);
    if (THOROUGH)
        test_left_out(true);
    test_neutral();
    pair_kit_close(kit);
    return tap_done();
}
