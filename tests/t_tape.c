/* tests/t_tape.c: what the tape and its ops promise beside gradients' values (t_grad.c): where gradients go, what
 * memory is kept, what is refused and in which words. Small sums are exact in f32 and are compared for equality. */
#include <stdio.h>
#include <string.h>

#include "core/op/op.h"
#include "tests/kit.h"
#include "tests/tap.h"

static struct device dev;
static struct tape_memory mem;
static struct tape t;
static struct arena meta, data;
static struct err e;

static void fresh(bool recording)
{
    err_clear(&e);
    tape_reset(&t);
    arena_release(&meta, 0);
    arena_release(&data, 0);
    t.recording = recording;
}

static struct tensor *make(enum dtype type, int n_dim, const int64_t *dim, float first, float step)
{
    struct tensor *x = tensor_new(&meta, &data, type, n_dim, dim, &e);
    const int64_t n = tensor_count(x);
    float v[4096];

    for (int64_t i = 0; i < n; i++)
        v[i] = first + step * (float)(i % 37);
    dtype_from_f32(x->data, type, v, n);
    x->name = "x";
    return x;
}

#define NEW(first, step, ...) make(F32, LEN(((int64_t[]){ __VA_ARGS__ })), (int64_t[]){ __VA_ARGS__ }, first, step)

/* Are the n values of x's gradient want[i]? */
static bool grad_is(const struct tensor *x, const float *want, int64_t n)
{
    if (!x->grad || tensor_count(x->grad) != n)
        return false;
    for (int64_t i = 0; i < n; i++)
        if (((const float *)x->grad->data)[i] != want[i]) {
            tap_note("gradient %lld is %g, want %g", (long long)i, ((const float *)x->grad->data)[i], want[i]);
            return false;
        }
    return true;
}

static struct weight *new_weight(const char *name, int64_t Co, int K, int64_t Ci, bool bias)
{
    static struct weight pool[16];
    static int n;
    struct weight *w = &pool[n++ % 16];
    struct tensor *raw = K ? NEW(-0.5f, 0.03f, Co, K, K, Ci) : NEW(-0.5f, 0.03f, Co, Ci);

    weight_init(w, name, raw, bias ? NEW(0.1f, 0.1f, Co) : NULL, &data, &e);
    return w;
}

/* ---- where gradients go ---- */

static void test_reuse(void)
{
    struct tensor *x, *s, *unused, *y;
    int rc;

    fresh(true);
    x = NEW(1, 1, 4);
    tape_watch(x, NULL);
    s = op_mul(&t, x, x, &e);
    unused = op_scale(&t, 3, s, &e);
    y = op_add(&t, op_add(&t, s, x, &e), x, &e); /* x^2 + 2x */
    rc = tape_backward(&t, y, NULL, &e);
    tap_ok(!rc && grad_is(x, (float[]){ 4, 6, 8, 10 }, 4), "a tensor used four times gets the sum");
    tap_ok(!unused->grad && !s->grad && !y->grad, "gradients inside are gone, the unused result never had one");
    tap_ok(mem.grads.used == 64, "only the leaf's gradient is left in the pool");
}

static void test_twice(void)
{
    struct tensor *x, *dx;
    int rc = OK;

    fresh(true);
    x = NEW(1, 1, 3);
    dx = NEW(0.5f, 0, 3);
    tape_watch(x, dx);
    for (int pass = 0; pass < 2; pass++) {
        tape_reset(&t);
        rc |= tape_backward(&t, op_scale(&t, 2, x, &e), NULL, &e);
    }
    tap_ok(!rc && grad_is(x, (float[]){ 4.5f, 4.5f, 4.5f }, 3), "the caller's gradient accumulates over passes");
    x->grad = NULL;
    tape_watch(x, NULL);
    rc = tape_backward(&t, op_scale(&t, 2, x, &e), NULL, &e) | tape_backward(&t, op_scale(&t, 3, x, &e), NULL, &e);
    tap_ok(!rc && grad_is(x, (float[]){ 5, 5, 5 }, 3), "and so does the pool's, until the tape is reset");
}

static void test_inside(void)
{
    struct tensor *x, *m, *y;
    int rc;

    fresh(true);
    x = NEW(1, 1, 3);
    tape_watch(x, NULL);
    m = op_scale(&t, 2, x, &e);
    tape_watch(m, NULL);
    y = op_mul(&t, m, m, &e);
    rc = tape_backward(&t, y, NULL, &e);
    tap_ok(!rc && grad_is(m, (float[]){ 4, 8, 12 }, 3), "the gradient of a watched result is kept");
    tap_ok(!rc && grad_is(x, (float[]){ 8, 16, 24 }, 3), "and reaches the leaf unchanged");
}

static void test_wide_leaf(void)
{
    struct tensor *x, *dx;
    int rc;

    fresh(true);
    x = make(BF16, 1, (int64_t[]){ 3 }, 1, 1);
    dx = NEW(0.001f, 0, 3);
    tape_watch(x, dx);
    rc = tape_backward(&t, op_scale(&t, 2, op_add(&t, x, x, &e), &e), NULL, &e);
    tap_ok(!rc && grad_is(x, (float[]){ 4.001f, 4.001f, 4.001f }, 3), "a bf16 leaf's gradient accumulates in f32");
    tap_ok(mem.grads.used == 0, "and what was owed has been given back");
    fresh(true);
    x = make(BF16, 1, (int64_t[]){ 3 }, 1, 1);
    tape_watch(x, make(F16, 1, (int64_t[]){ 3 }, 0, 0));
    rc = tape_backward(&t, op_scale(&t, 2, x, &e), NULL, &e);
    tap_ok(rc == E_ARG && strstr(e.text, "'x'"), "a gradient of a type that cannot be: %s", e.text);
}

static void test_residual(void)
{
    struct weight *w;
    struct tensor *x, *y, *want;
    int rc;

    fresh(true);
    x = NEW(1, 1, 2, 3);
    tape_watch(x, NULL);
    w = new_weight("id", 3, 0, 3, false);
    for (int i = 0; i < 9; i++)
        ((float *)w->raw->data)[i] = i % 4 == 0 ? 2 : 0;
    y = op_linear(&t, x, w, NULL, 0, &(struct op_epilogue){ .residual = x }, &e);
    want = op_join(&t, y, x, &e); /* a skip past it */
    rc = tape_backward(&t, want, NULL, &e);
    tap_ok(!rc && grad_is(x, (float[]){ 4, 4, 4, 4, 4, 4 }, 6), "residual and skip: 2 + 1 + 1");
}

static void test_views(void)
{
    struct tensor *x, *y;
    int rc;

    fresh(true);
    x = NEW(1, 1, 4, 2);
    tape_watch(x, NULL);
    y = op_scale(&t, 5, op_rows(&t, x, 1, 2, &e), &e);
    rc = tape_backward(&t, y, NULL, &e);
    tap_ok(!rc && grad_is(x, (float[]){ 0, 0, 5, 5, 5, 5, 0, 0 }, 8), "rows: zero where the view is not");
    fresh(true);
    x = NEW(1, 1, 4, 2);
    tape_watch(x, NULL);
    y = op_rows(&t, op_reshape(&t, x, 2, (int64_t[]){ 2, 4 }, &e), 1, 1, &e);
    y = op_join_rows(&t, y, op_reshape(&t, x, 2, (int64_t[]){ 2, 4 }, &e), &e);
    rc = tape_backward(&t, op_reshape(&t, y, 1, (int64_t[]){ 12 }, &e), NULL, &e);
    tap_ok(!rc && grad_is(x, (float[]){ 1, 1, 1, 1, 2, 2, 2, 2 }, 8), "a view of a view, and the whole beside it");
    tap_ok(((float *)op_rows(&t, x, 3, 1, &e)->data) == (float *)x->data + 6, "a view shares its data");
}

static void test_seed(void)
{
    struct tensor *x, *y;
    int rc;

    fresh(true);
    x = NEW(1, 1, 3);
    tape_watch(x, NULL);
    y = op_scale(&t, 2, x, &e);
    rc = tape_backward(&t, y, NEW(1, 10, 3), &e);
    tap_ok(!rc && grad_is(x, (float[]){ 2, 22, 42 }, 3), "a seed of the caller's");
    rc = tape_backward(&t, NEW(1, 1, 3), NULL, &e);
    tap_ok(rc == E_ARG && strstr(e.text, "watched"), "backward from what depends on nothing: %s", e.text);
    y = op_scale(&t, 2, x, &e);
    rc = tape_backward(&t, y, NEW(1, 1, 4), &e);
    tap_ok(rc == E_ARG && strstr(e.text, "(4)"), "a seed of another size: %s", e.text);
}

/* No images at all: everything runs, no gradient is anything but zero. */
static void test_empty(void)
{
    static const struct op_conv_geom same = { 1, 1, 1, 1, 1 };
    struct tensor *x, *y, *gamma, *one;
    struct weight *c, *l;
    int rc;

    fresh(true);
    x = NEW(1, 1, 0, 4, 4, 6);
    gamma = NEW(1, 1, 6);
    tape_watch(x, NULL);
    tape_watch(gamma, NULL);
    c = new_weight("c", 6, 3, 6, true);
    l = new_weight("l", 12, 0, 6, true);
    tape_watch(c->raw, NULL);
    tape_watch(c->bias, NULL);
    y = op_group_norm(&t, x, gamma, gamma, 3, 1e-5f, true, &e);
    y = y ? op_conv(&t, y, NULL, c, same, NULL, &(struct op_epilogue){ .residual = x }, &e) : NULL;
    y = y ? op_reshape(&t, y, 3, (int64_t[]){ 0, 16, 6 }, &e) : NULL;
    y = y ? op_attention(&t, y, y, y, 2, 0, false, &e) : NULL;
    y = y ? op_linear(&t, y, l, NULL, 0, &(struct op_epilogue){ .act = K_ACT_GEGLU }, &e) : NULL;
    y = y ? op_rows(&t, op_join_rows(&t, y, y, &e), 0, 0, &e) : NULL;
    rc = y ? tape_backward(&t, y, NULL, &e) : -1;
    one = c->bias->grad;
    tap_ok(!rc && one && ((float *)one->data)[0] == 0, "nothing in, nothing out: %s", e.text);
}

/* ---- memory ---- */

static void test_into(void)
{
    struct tensor *x, *y, *z;

    fresh(false);
    x = NEW(1, 1, 2, 3);
    y = tape_like(&t, x, &e);
    tape_into(&t, y);
    z = op_scale(&t, 2, x, &e);
    tap_ok(z == y && ((float *)y->data)[5] == 12, "a result goes where it was told");
    z = op_scale(&t, 2, x, &e);
    tap_ok(z != y, "and the next one does not");
    tape_into(&t, y);
    z = op_channels(&t, x, 0, 2, &e);
    tap_ok(!z && e.code == E_ARG && strstr(e.text, "(2,3)") && strstr(e.text, "(2,2)"), "the wrong place: %s", e.text);
    tape_into(&t, y);
    z = op_reshape(&t, x, 1, (int64_t[]){ 6 }, &e);
    tap_ok(!z && e.code == E_ARG && !t.into, "a view has no place: %s", e.text);
    fresh(true);
    x = NEW(1, 1, 3);
    tape_watch(x, NULL);
    y = op_scale(&t, 2, x, &e);
    tape_into(&t, y);
    z = op_scale(&t, 3, x, &e);
    tap_ok(!z && e.code == E_BUG, "a result written twice while recording: %s", e.text);
}

/* An activation behind a product is fused or not; either way the last step writes into the place. */
static void test_into_epilogue(void)
{
    bool same = true;

    for (int recording = 0; recording < 2; recording++) {
        struct tensor *x, *r, *y, *z;
        struct weight *w;

        fresh(recording);
        x = NEW(-1, 0.1f, 2, 3);
        r = NEW(1, 1, 2, 4);
        if (recording)
            tape_watch(x, NULL);
        w = new_weight("w", 4, 0, 3, true);
        y = tape_like(&t, r, &e);
        tape_into(&t, y);
        z = op_linear(&t, x, w, NULL, 0, &(struct op_epilogue){ K_ACT_SILU, NULL, r }, &e);
        same &= z == y;
        tape_into(&t, tape_like(&t, r, &e));
        z = op_linear(&t, x, w, NULL, 0, &(struct op_epilogue){ K_ACT_SILU, NULL, NULL }, &e);
        same &= z && !t.into;
    }
    tap_ok(same, "a fused and an unfused product write into the same place");
}

static void test_mark(void)
{
    struct tape_mark m;
    struct tensor *x;
    size_t used;

    fresh(false);
    x = NEW(1, 1, 100);
    used = mem.step.used;
    m = tape_mark(&t);
    op_scale(&t, 2, op_scale(&t, 2, x, &e), &e);
    tape_release(&t, m);
    tap_ok(mem.step.used == used, "inference releases");
    t.recording = true;
    tape_watch(x, NULL);
    m = tape_mark(&t);
    op_scale(&t, 2, x, &e);
    tape_release(&t, m);
    tap_ok(mem.step.used == used + 448, "while recording a release does nothing");
    t.recording = false;
    tape_release(&t, m);
    tap_ok(mem.step.used == used + 448, "nor later, while what was noted is needed");
    tape_reset(&t);
    tap_ok(mem.step.used == 0 && mem.meta.used == 0 && mem.scratch.used == 0 && mem.grads.used == 0 && !t.last,
           "after a reset nothing is left");
}

/* 2 x in two steps, of which only the last one is kept. */
static struct tensor *doubled(struct tape *tape, struct tensor *x, struct err *err)
{
    struct tensor *y = tape_like(tape, x, err);
    const struct tape_mark m = tape_mark(tape);
    struct tensor *h = op_scale(tape, 4, x, err);

    tape_into(tape, y);
    y = op_scale(tape, 0.5f, h, err);
    tape_release(tape, m);
    return y;
}

static struct tensor *eightfold(struct tape *tape, void *ctx, struct tensor **in, int n_in, struct err *err)
{
    (void)ctx;
    (void)n_in;
    return doubled(tape, doubled(tape, doubled(tape, in[0], err), err), err);
}

static void test_segment_marks(void)
{
    struct tensor *x, *y;
    int rc;

    fresh(true);
    arena_reset_high(&mem.step);
    x = NEW(1, 1, 16);
    tape_watch(x, NULL);
    y = tape_segment(&t, eightfold, NULL, &x, 1, x, &e);
    tap_ok(y && mem.step.used == 64 && arena_high(&mem.step) == 5 * 64,
           "marks inside a segment release: at most its result, three more and one on the way, %zu bytes",
           arena_high(&mem.step));
    rc = y ? tape_backward(&t, y, NULL, &e) : -1;
    tap_ok(!rc && ((float *)x->grad->data)[15] == 8 && ((float *)y->data)[15] == 128, "and its gradient is right");
    fresh(true);
    x = NEW(1, 1, 16);
    y = tape_segment(&t, eightfold, NULL, &x, 1, x, &e);
    tap_ok(y && !y->needs_grad && !t.last, "a segment that nothing watched flows through is not noted");
    y = tape_segment(&t, eightfold, NULL, &x, 1, NEW(1, 1, 8), &e);
    tap_ok(!y && e.code == E_ARG && strstr(e.text, "(16)"), "another result than promised: %s", e.text);
}

static size_t rounded(size_t bytes) { return (bytes + ARENA_ALIGN - 1) / ARENA_ALIGN * ARENA_ALIGN; }

/* Bytes of step that an op takes beside its result. */
#define BESIDE(call)                                                                                                   \
    (used = mem.step.used, y = (call), y ? mem.step.used - used - rounded(tensor_bytes(y)) : (size_t)-1)

static void test_saved(void)
{
    static const struct op_conv_geom g = { 1, 1, 1, 1, 1 };
    struct weight *w, *c, *down, *up;
    struct op_lora lora;
    struct tensor *x, *img, *gamma, *y, *q;
    size_t used;

    fresh(true);
    x = NEW(-1, 0.1f, 50, 8);
    img = NEW(-1, 0.1f, 2, 5, 5, 8);
    q = NEW(-1, 0.1f, 2, 5, 8);
    gamma = NEW(1, 0, 8);
    w = new_weight("w", 8, 0, 8, true);
    c = new_weight("c", 8, 3, 8, true);
    down = new_weight("down", 3, 0, 8, false);
    up = new_weight("up", 8, 0, 3, false);
    lora = (struct op_lora){ down, up, 1 };
    tap_ok(BESIDE(op_linear(&t, x, w, &lora, 1, &(struct op_epilogue){ .act = K_ACT_SILU }, &e)) == 0
               && BESIDE(op_conv(&t, img, NULL, c, g, NULL, &(struct op_epilogue){ .act = K_ACT_SILU }, &e)) == 0
               && BESIDE(op_group_norm(&t, img, gamma, gamma, 4, 1e-5f, true, &e)) == 0
               && BESIDE(op_layer_norm(&t, x, gamma, gamma, 1e-5f, &e)) == 0
               && BESIDE(op_attention(&t, q, q, q, 2, 0, false, &e)) == 0 && !t.last && mem.scratch.used == 0,
           "recording, nothing watched: nothing noted, nothing saved");
    tape_watch(x, NULL);
    tape_watch(img, NULL);
    tape_watch(q, NULL);
    tap_ok(BESIDE(op_linear(&t, x, w, &lora, 1, NULL, &e)) == 0
               && BESIDE(op_conv(&t, img, NULL, c, g, NULL, NULL, &e)) == 0,
           "frozen products save nothing");
    tap_ok(BESIDE(op_linear(&t, x, w, NULL, 0, &(struct op_epilogue){ .act = K_ACT_SILU }, &e)) == rounded(50 * 8 * 4),
           "with an activation behind, what went into it");
    tape_watch(up->raw, NULL);
    tap_ok(BESIDE(op_linear(&t, x, w, &lora, 1, NULL, &e)) == rounded(50 * 3 * 4),
           "a trained low-rank term: its middle");
    tap_ok(BESIDE(op_group_norm(&t, img, gamma, gamma, 4, 1e-5f, true, &e)) == 2 * 64
               && BESIDE(op_layer_norm(&t, x, gamma, gamma, 1e-5f, &e)) == 2 * rounded(50 * 4)
               && BESIDE(op_attention(&t, q, q, q, 2, 0, false, &e)) == rounded(2 * 2 * 5 * 4),
           "norms: two numbers a group or row; attention: one a query and head");
}

/* ---- weights ---- */

static void test_weights(void)
{
    struct weight *w;
    struct tensor *x;
    const void *pack, *two[2];
    size_t used;
    float before;

    fresh(false);
    x = NEW(1, 1, 1, 3);
    w = new_weight("layer", 4, 0, 3, false);
    before = ((float *)op_linear(&t, x, w, NULL, 0, NULL, &e)->data)[0];
    used = data.used;
    pack = weight_pack(w, &dev, K_PACK_FWD, &e);
    ((float *)w->raw->data)[0] += 1;
    tap_ok(((float *)op_linear(&t, x, w, NULL, 0, NULL, &e)->data)[0] == before, "packs stay until they are touched");
    weight_touch(w);
    tap_ok(((float *)op_linear(&t, x, w, NULL, 0, NULL, &e)->data)[0] == before + 1, "then they are made anew");
    tap_ok(weight_pack(w, &dev, K_PACK_FWD, &e) == pack && data.used == used, "in the same place");
    tap_ok(!weight_pack_split(w, &dev, K_PACK_FWD, 1, two, &e) && two[0] != two[1], "split");
    for (int kind = K_PACK_FWD; kind <= K_PACK_DX; kind++) {
        unsigned char old[64];

        weight_pack_split(w, &dev, kind, 1, two, &e);
        memcpy(old, two[1], sizeof old);
        ((float *)w->raw->data)[1] += 1;
        weight_touch(w);
        weight_pack_split(w, &dev, kind, 1, two, &e);
        tap_ok(memcmp(old, two[1], sizeof old), "and made anew");
    }
    tap_ok(weight_pack_split(w, &dev, K_PACK_FWD, 2, two, &e) == E_ARG, "but always alike: %s", e.text);
    weight_pack(w, &dev, K_PACK_FWD, &e);
    w->raw = NULL;
    tap_ok(weight_pack(w, &dev, K_PACK_FWD, &e) == pack && !weight_pack(w, &dev, K_PACK_DX, &e) && e.code == E_BUG,
           "dropped weights: old packs, no new ones: %s", e.text);
}

/* ---- messages ---- */

#define REFUSED(call, words) refused((call), words)

static void refused(const void *y, const char *words)
{
    tap_ok(!y && e.code == E_ARG && strstr(e.text, words), "%s", e.text);
    if (!strstr(e.text, words))
        tap_note("want: %s", words);
    err_clear(&e);
    t.into = NULL;
}

static void test_messages(void)
{
    static const struct op_conv_geom g = { 1, 1, 1, 1, 1 };
    struct weight *lin, *conv, *one, *down;
    struct tensor *x, *img, *gamma;
    struct op_lora lora;
    struct op_shortcut cut;

    fresh(false);
    x = NEW(0, 1, 2, 5, 6);
    img = NEW(0, 1, 2, 4, 4, 6);
    gamma = NEW(0, 1, 6);
    gamma->name = "norm1.weight";
    lin = new_weight("to_q", 8, 0, 7, false);
    conv = new_weight("down.0.conv1", 8, 3, 7, false);
    one = new_weight("skip", 9, 1, 6, false);
    down = new_weight("lora.down", 2, 0, 6, false);
    lora = (struct op_lora){ down, down, 1 };
    cut = (struct op_shortcut){ one, img, NULL };
    REFUSED(op_linear(&t, x, lin, NULL, 0, NULL, &e), "linear 'to_q': x f32 (2,5,6) has width 6, weights take 7");
    REFUSED(op_conv(&t, img, NULL, conv, g, NULL, NULL, &e),
            "conv 'down.0.conv1': x f32 (2,4,4,6) has 6 channels, weights take 7");
    REFUSED(op_conv(&t, img, img, conv, g, NULL, NULL, &e), "has 12 channels, weights take 7");
    REFUSED(op_conv(&t, x, NULL, conv, g, NULL, NULL, &e), "want (B,H,W,C)");
    conv = new_weight("conv2", 8, 3, 6, false);
    REFUSED(op_conv(&t, img, NULL, conv, g, &cut, NULL, &e), "shortcut 'skip'");
    REFUSED(op_conv(&t, img, NULL, conv, g, NULL, &(struct op_epilogue){ .residual = img }, &e), "'conv2'");
    REFUSED(op_conv(&t, img, NULL, conv, g, NULL, &(struct op_epilogue){ .row_add = x }, &e), "want f32 (2,8)");
    REFUSED(op_upsample_conv(&t, img, conv, 9, 8, &e), "cannot be doubled to 9x8");
    lin = new_weight("to_k", 8, 0, 6, false);
    REFUSED(op_linear(&t, x, lin, &lora, 1, NULL, &e), "low-rank 'lora.down' (2,6)");
    REFUSED(op_group_norm(&t, img, gamma, gamma, 4, 1e-5f, false, &e), "group_norm 'norm1.weight'");
    REFUSED(op_layer_norm(&t, img, NEW(0, 1, 5), gamma, 1e-5f, &e), "want f32 (6)");
    REFUSED(op_attention(&t, x, x, x, 4, 0, false, &e), "4 heads");
    REFUSED(op_add(&t, x, img, &e), "(2,5,6)");
    REFUSED(op_join(&t, x, NEW(0, 1, 2, 4, 6), &e), "cannot be joined");
    REFUSED(op_rows(&t, x, 1, 2, &e), "2 from 1 of f32 (2,5,6)");
    REFUSED(op_channels(&t, x, -1, 2, &e), "2 from -1");
    REFUSED(op_reshape(&t, x, 1, (int64_t[]){ 61 }, &e), "(61)");
    REFUSED(op_gather(&t, NEW(0, 1, 4, 2), (const int32_t[]){ 3, 4 }, 2, F32, &e), "id 4 of 4 rows");
    REFUSED(op_geglu(&t, NEW(0, 1, 4, 3), &e), "odd width");
    REFUSED(op_mse(&t, x, x, NEW(0, 1, 3), NULL, &e), "want f32 (2)");
}

int main(void)
{
    const struct tape_caps caps = { 1 << 20, 1 << 20, 1 << 20, 1 << 20 };

    if (device_open(&dev, "cpu", 2, &e) || tape_memory_init(&mem, &dev, &caps, &e)
        || arena_init(&meta, "test meta", ARENA_HOST, 1 << 20, &e)
        || arena_init(&data, "test data", ARENA_HOST, 1 << 22, &e)) {
        tap_ok(false, "set up: %s", e.text);
        return tap_done();
    }
    tape_init(&t, &dev, &mem);
    test_reuse();
    test_twice();
    test_inside();
    test_wide_leaf();
    test_residual();
    test_views();
    test_seed();
    test_empty();
    test_into();
    test_into_epilogue();
    test_mark();
    test_segment_marks();
    test_saved();
    test_weights();
    test_messages();
    tape_memory_free(&mem);
    arena_free(&meta);
    arena_free(&data);
    device_close(&dev);
    return tap_done();
}
