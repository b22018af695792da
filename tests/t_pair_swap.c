/* tests/t_pair_swap.c: a checkpoint goes with every base of its sizes, with a LoRA in the base, and with others in any
 * order; and one that leaves the encoder alone. Whole runs against the published code's
 * (tests/reference/unicon_more.py). */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "store/lora_file.h"
#include "store/unicon_file.h"
#include "tests/pair_kit.h"
#include "tests/tap.h"

/* Measured: up to 2.0e-5; instruction sets vary. */
static const double run_off = 1e-4;
static struct golden *golden;

static struct pair_run one_pair(const struct joint_weights *w)
{
    return (struct pair_run){ .cfg = 3, .official = true, .n_input = 2, .n_pair = 1, .pair = { { 0, 1, 1, 1, w } } };
}

static void check(const struct pair_kit *kit, const char *case_name, const char *what, struct pair_run r)
{
    static const char *const schedule[] = { "[(0,1),(1,1),0]", "[(0,1),(0,1),0]" };
    static const char *const of[] = { "to_x_ddim", "joint_euler-a" }, *const sampler[] = { "ddim", "euler-a" };

    for (int i = 0; i < 2; i++) {
        struct pair_latents got;
        struct err e = { 0 };
        char name[64];
        double off;

        r.schedule = schedule[i];
        r.sampler = sampler[i];
        snprintf(name, sizeof name, "%s_%s", case_name, of[i]);
        off = pair_kit_run(kit, &r, &got, &e) ? INFINITY : pair_kit_off(&got, golden, name, 2);
        tap_ok(off <= run_off, "%s, %s: %.1e of %.0e %s", what, of[i], off, run_off, e.text);
    }
}

static void test_other_base(void)
{
    struct pair_kit *kit = pair_kit_open("sd1b");

    check(kit, "other", "another base", one_pair(&kit->checkpoint[PAIR_DEPTH]));
    pair_kit_close(kit);
}

/* The joint attention works with the base's weights as the LoRA left them. */
static void test_lora(const struct pair_kit *kit)
{
    static const char *const layout[] = { "diffusers", "kohya" };

    for (int i = 0; i < 2; i++) {
        struct pair_run r = one_pair(&kit->checkpoint[PAIR_DEPTH]);
        struct lora_set set = { .n = 1 };
        struct lora_file *f = NULL;
        struct err e = { 0 };
        char path[100], what[100];

        snprintf(path, sizeof path, "tests/reference/lora/base_%s.safetensors", layout[i]);
        snprintf(what, sizeof what, "a LoRA of %s in the base", layout[i]);
        if (lora_file_open(&f, path, &kit->base->unet, &e)) {
            tap_ok(false, "%s: %s", what, e.text);
            continue;
        }
        set.use[0] = (struct lora_use){ &f->lora, 0.8 };
        r.lora = &set;
        check(kit, "lora", what, r);
        lora_file_close(f);
    }
}

/* ---- no joint attention in the encoder ---- */

/* The entries that are not of the encoder. */
static struct weights without_encoder(const struct weights *t)
{
    struct weights out = *t;

    out.n = 0;
    out.entry = malloc(sizeof *out.entry * (size_t)t->n);
    for (int i = 0; out.entry && i < t->n; i++)
        if (strncmp(t->entry[i].name, "down_blocks.", 12))
            out.entry[out.n++] = t->entry[i];
    return out;
}

static void test_encoder_less(const struct pair_kit *kit)
{
    struct unicon_file *f = NULL;
    struct err e = { 0 };
    char dir[80];
    struct joint_weights w = kit->checkpoint[PAIR_DEPTH];
    struct weights post = without_encoder(w.post), xy = without_encoder(w.xy), yx = without_encoder(w.yx);

    w.post = &post;
    check(kit, "less", "no projections in the encoder", one_pair(&w));
    w.xy = &xy;
    w.yx = &yx;
    check(kit, "less", "nor adapters, as training leaves it", one_pair(&w));
    snprintf(dir, sizeof dir, "%s/less", kit->path);
    if (unicon_file_write(dir, &w, NULL, NULL, true, &e) || unicon_file_open(&f, dir, NULL, &e))
        tap_ok(false, "the same from disk: %s", e.text);
    else
        check(kit, "less", "the same from disk", one_pair(&f->weights));
    unicon_file_close(f);
    free(post.entry);
    free(xy.entry);
    free(yx.entry);
}

/* ---- order ---- */

/* The y-LoRA of a checkpoint works wherever it stands in the list; sums of two in another order round otherwise. */
static void test_order(const struct pair_kit *kit)
{
    struct pair_run r = { .schedule = "x=1:0 y=0 y2=1:0", .sampler = "ddim", .cfg = 3, .n_input = 3, .n_pair = 2,
                          .pair = { { 0, 1, 1, 1, &kit->checkpoint[PAIR_DEPTH] },
                                    { 0, 2, 0.5f, 0.75f, &kit->checkpoint[PAIR_ID] } } };
    struct pair_run turned = r;
    struct pair_latents a, b;
    struct err e = { 0 };
    double off = INFINITY;

    turned.pair[0] = r.pair[1];
    turned.pair[1] = r.pair[0];
    if (!pair_kit_run(kit, &r, &a, &e) && !pair_kit_run(kit, &turned, &b, &e))
        off = fmax(pair_kit_distance(a.z[0], b.z[0]), pair_kit_distance(a.z[2], b.z[2]));
    tap_ok(off <= 5e-5, "checkpoints in another order: %.1e %s", off, e.text);
}

int main(void)
{
    struct pair_kit *kit = pair_kit_open("sd1");

    golden = golden_open("tests/reference/unicon_more.safetensors");
    test_other_base();
    test_lora(kit);
    test_encoder_less(kit);
    test_order(kit);
    golden_close(golden);
    pair_kit_close(kit);
    return tap_done();
}
