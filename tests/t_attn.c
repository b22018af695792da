/* tests/t_attn.c: attention and its gradients against plain loops in doubles, for every twin and storage type.
 *
 * Gradients are judged by the equations with the o and lse that they were given; the equations themselves are judged by
 * differences of the forward loop. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/attn_case.h"
#include "tests/tap.h"

static const struct shape shapes[] = {
    { "one of everything",                1, 1,   1,   1,   1, false, 0, false },
    { "one query, odd D",                 1, 2,   1,   7,   3, false, 1, false },
    { "two queries, one key",             2, 1,   2,   1,   8, false, 0, false },
    { "D = 1",                            1, 3,  65,  63,   1, false, 2, false },
    { "D = 3, more keys than a block",    1, 2,   7, 130,   3, false, 0, true },
    { "D = 3, packed projection",         1, 2, 130, 130,   3, false, 0, true },
    { "D = 8",                            2, 2,  63,  77,   8, false, 3, false },
    { "first level of the denoiser",      1, 2, 300, 300,  40, false, 0, true },
    { "text behind it",                   2, 2, 130,  77,  40, false, 8, false },
    { "one query in the last lanes",      1, 1,  65, 113,  40, false, 0, false },
    { "text encoder",                     1, 2,  77,  77,  64, true,  0, true },
    { "causal, more than one block",      1, 1, 300, 300,  64, true,  5, false },
    { "causal, one token",                2, 2,   1,   1,   8, true,  0, false },
    { "causal, two tokens",               1, 1,   2,   2,   8, true,  0, false },
    { "causal, two queries in the last lanes", 1, 1, 66, 66, 8, true, 0, false },
    { "causal, odd D and T",              1, 1, 131, 131,   7, true,  0, false },
    { "D = 72",                           1, 1,  77,  65,  72, false, 0, false },
    { "second level",                     1, 2, 130, 130,  80, false, 0, true },
    { "D = 96",                           1, 1,  63, 130,  96, false, 0, false },
    { "third level",                      2, 1,  64,  77, 160, false, 1, false },
    { "odd D over a register",            1, 1,  40,  50,  77, false, 0, false },
    { "D = 25",                           1, 2,  33,  34,  25, false, 0, false },
    { "decoder",                          1, 1, 130, 300, 512, false, 0, false },
    { "several tasks of queries and keys", 1, 1, 1100, 1030, 8, false, 0, false },
    { "several tasks, causal",            1, 1, 1100, 1100, 5, true,  0, false },
    { "keys that fill scratch twice",     1, 16,  9, 6000,  24, false, 0, false },
};

static double *doubles(int64_t n)
{
    return malloc(sizeof(double) * (size_t)(n > 0 ? n : 1));
}

/* ---- comparing ---- */

/* Relative error of a whole output. f32: about 100 roundings in a row add up like a random walk, and exponentials are
 * good to 1e-7. 16 bits: one rounding on the way out; bf16 dot products round P (and dS) too. */
static const double norm_rel[N_DTYPE] = { 2e-6, 4e-4, 6e-3 };
/* The same for one element, as a share of the largest element there is. */
static const double worst_rel[N_DTYPE] = { 8e-6, 1.5e-3, 1.5e-2 };

/* floor: the size of the terms that cancel in an output that may be zero, or 0. */
static bool side_near(const struct side *s, const double *want, double times, double floor, const char *what,
                      const char *twin)
{
    struct buf d = side_dense(s);
    double top = floor, sum = 0, rel = times * norm_rel[d.type];
    bool ok = true;

    for (int64_t i = 0; i < d.n; i++) {
        top = fmax(top, fabs(want[i]));
        sum += want[i] * want[i];
    }
    if (sum < floor * floor * (double)d.n)
        rel *= floor * sqrt((double)d.n / sum);
    if (sum > 0)
        ok = buf_near_norm(&d, want, rel, "%s on %s, type %d", what, twin, (int)d.type);
    ok &= buf_near(&d, want, 0, times * worst_rel[d.type] * top, "%s on %s, type %d", what, twin, (int)d.type);
    buf_free(&d);
    return ok && side_intact(s);
}

/* lse: bf16 dot products go with exponentials good to 2.8e-6. times: scores of size 80 carry an absolute error of some
 * 80 roundings, which becomes P's relative error and lse's absolute one. */
static bool forward_near(struct work *w, const double *o, const double *lse, double times, const char *twin)
{
    buf_read(&w->lse);
    return side_near(&w->o, o, w->type == F32 ? times : 1, 0, "o", twin) && buf_intact(&w->lse)
        && buf_near(&w->lse, lse, 4e-7 * times, 3e-6 * times, "lse on %s, type %d", twin, (int)w->type);
}

/* dP - delta cancels, entirely with a single key. Two products more than forward: twice its tolerance. */
static bool grads_near(struct work *w, const double *dq, const double *dk, const double *dv, const char *twin)
{
    const double floor = 1 / (double)w->c->Tk;

    return side_near(&w->dq, dq, 2, floor, "dq", twin) & side_near(&w->dk, dk, 2, floor, "dk", twin)
        & side_near(&w->dv, dv, 2, 0, "dv", twin);
}

/* ---- tests ---- */

static bool one_shape(const struct shape *c, enum dtype type)
{
    struct work w = work_new(c, type, 1);
    const int64_t nq = c->B * c->Tq * c->N * c->D, nk = c->B * c->Tk * c->N * c->D;
    double *o = doubles(nq), *lse = doubles(w.lse.n), *dq = doubles(nq), *dk = doubles(nk), *dv = doubles(nk);
    const struct kern *kern;
    bool ok = true;

    ref_forward(o, lse, &w);
    for (int i = 0; (kern = kit_twin(i)); i++) {
        struct kattn a = work_call(&w, true);
        side_poison(&w.o);
        buf_poison(&w.lse);
        ok &= kern->attn(kit_ctx(kern, 2), &a) == K_OK && forward_near(&w, o, lse, 1, kern->name);
    }
    buf_read(&w.o.b);
    buf_read(&w.lse);
    ref_backward(dq, dk, dv, &w);
    for (int i = 0; (kern = kit_twin(i)); i++) {
        side_poison(&w.dq);
        side_poison(&w.dk);
        side_poison(&w.dv);
        ok &= work_back(kern, 2, &w) == K_OK;
        ok &= grads_near(&w, dq, dk, dv, kern->name);
    }
    free(o), free(lse), free(dq), free(dk), free(dv);
    work_free(&w);
    return ok;
}

static void test_shapes(void)
{
    for (size_t i = 0; i < LEN(shapes); i++) {
        bool ok = true;
        for (int t = 0; t < N_DTYPE; t++)
            ok &= one_shape(&shapes[i], (enum dtype)t);
        tap_ok(ok, "%s", shapes[i].why);
    }
}

/* Gradients of sum(o * d_o) by the equations and by central differences of the forward loop. */
static void test_reference(void)
{
    static const struct shape c = { "differences", 1, 2, 4, 4, 3, true, 0, false };
    struct work w = work_new(&c, F32, 1);
    const int64_t n = c.Tq * c.N * c.D;
    double *o = doubles(n), *lse = doubles(w.lse.n), *grad[3] = { doubles(n), doubles(n), doubles(n) }, worst = 0;
    struct side *in[3] = { &w.q, &w.k, &w.v };

    ref_forward(o, lse, &w);
    memcpy(w.o.b.v, o, sizeof *o * (size_t)n);
    memcpy(w.lse.v, lse, sizeof *lse * (size_t)w.lse.n);
    ref_backward(grad[0], grad[1], grad[2], &w);
    for (int s = 0; s < 3; s++)
        for (int64_t i = 0; i < n; i++) {
            const double x = in[s]->b.v[i], h = 1e-5;
            double f[2];
            for (int side = 0; side < 2; side++) {
                in[s]->b.v[i] = side ? x + h : x - h;
                ref_forward(o, lse, &w);
                f[side] = 0;
                for (int64_t j = 0; j < n; j++)
                    f[side] += o[j] * w.d_o.b.v[j];
            }
            in[s]->b.v[i] = x;
            worst = fmax(worst, fabs((f[1] - f[0]) / (2 * h) - grad[s][i]));
        }
    tap_ok(worst < 1e-8, "the equations agree with differences (%.2g)", worst);
    free(o), free(lse), free(grad[0]), free(grad[1]), free(grad[2]);
    work_free(&w);
}

/* Scores from -80 to 80 and beyond: exponentials neither overflow nor vanish together. */
static void test_large(void)
{
    static const struct shape c = { "large", 1, 2, 130, 150, 40, false, 0, false };
    static const struct shape causal = { "large causal", 1, 2, 150, 150, 40, true, 0, false };
    const struct kern *kern;
    bool ok = true;

    for (int t = 0; t < N_DTYPE; t++)
        for (int which = 0; which < 2; which++) {
            struct work w = work_new(which ? &causal : &c, (enum dtype)t, 5);       /* scores of +-25, at most +-80 */
            double *o = doubles(w.o.rows * w.o.n), *lse = doubles(w.lse.n);
            ref_forward(o, lse, &w);
            for (int i = 0; (kern = kit_twin(i)); i++) {
                struct kattn a = work_call(&w, true);
                side_poison(&w.o);
                ok &= kern->attn(kit_ctx(kern, 2), &a) == K_OK && forward_near(&w, o, lse, 8, kern->name);
            }
            free(o), free(lse);
            work_free(&w);
        }
    tap_ok(ok, "large scores");
}

/* Set element i of a f32 side and of its doubles. */
static void set_f32(struct side *s, int64_t i, float x)
{
    memcpy((char *)s->b.p + 4 * i, &x, 4);
    s->b.v[i] = (double)x;
}

/* Answers known in closed form: equal rows of K give the mean of V; one key at +80 against -80 gives its V. Scores all
 * far below zero must not vanish. */
static void test_closed_form(void)
{
    static const struct shape c = { "closed", 1, 1, 50, 120, 16, false, 0, false };
    const struct kern *kern;
    bool equal = true, one = true, low = true;

    for (int i = 0; (kern = kit_twin(i)); i++) {
        struct work w = work_new(&c, F32, 1);
        double *mean = doubles(w.o.rows * w.o.n), *pick = doubles(w.o.rows * w.o.n), *lse = doubles(w.lse.n);
        struct kattn a = work_call(&w, true);

        for (int64_t x = 0; x < c.Tq * c.D; x++) {
            mean[x] = 0;
            for (int64_t j = 0; j < c.Tk; j++)
                mean[x] += w.v.b.v[j * c.D + x % c.D] / (double)c.Tk;
            pick[x] = w.v.b.v[117 * c.D + x % c.D];
            set_f32(&w.q, x, 1);
        }
        for (int64_t x = 0; x < c.Tk * c.D; x++)
            set_f32(&w.k, x, 80.0f / 4);                                /* scale is 1/4, D = 16: scores of 80 */
        for (int64_t x = 0; x < c.Tq; x++)
            lse[x] = 80 + log((double)c.Tk);
        equal &= kern->attn(kit_ctx(kern, 1), &a) == K_OK && forward_near(&w, mean, lse, 1, kern->name);
        for (int64_t x = 0; x < c.Tk * c.D; x++)
            set_f32(&w.k, x, -1000.0f / 4);
        for (int64_t x = 0; x < c.Tq; x++)
            lse[x] = -1000 + log((double)c.Tk);
        low &= kern->attn(kit_ctx(kern, 1), &a) == K_OK && forward_near(&w, mean, lse, 1, kern->name);
        for (int64_t x = 0; x < c.Tk * c.D; x++)
            set_f32(&w.k, x, x / c.D == 117 ? 80.0f / 4 : -80.0f / 4);
        for (int64_t x = 0; x < c.Tq; x++)
            lse[x] = 80;
        one &= kern->attn(kit_ctx(kern, 1), &a) == K_OK && forward_near(&w, pick, lse, 1, kern->name);
        free(mean), free(pick), free(lse);
        work_free(&w);
    }
    tap_ok(equal, "equal rows of K give the mean of V");
    tap_ok(low, "scores of -1000 give the mean of V");
    tap_ok(one, "one key at +80 among -80 gives its row of V");
}

/* Weights add up to one, also when they are rounded: V of ones gives ones, with no bias. */
static void test_ones(void)
{
    static const struct shape c = { "ones", 1, 1, 100, 300, 16, false, 0, false };
    const struct kern *kern;
    bool ok = true;

    for (int i = 0; (kern = kit_twin(i)); i++)
        for (int t = 0; t < N_DTYPE; t++) {
            struct work w = work_new(&c, (enum dtype)t, 1);
            struct kattn a = work_call(&w, true);
            double sum = 0;
            for (int64_t x = 0; x < w.v.b.n; x++) {
                const float one = 1;
                const uint16_t half = t == F16 ? 0x3c00 : 0x3f80;
                memcpy((char *)w.v.b.p + (size_t)x * dtype_bytes((enum dtype)t), t == F32 ? (const void *)&one : &half,
                       dtype_bytes((enum dtype)t));
            }
            ok &= kern->attn(kit_ctx(kern, 2), &a) == K_OK;
            buf_read(&w.o.b);
            for (int64_t x = 0; x < w.o.b.n; x++) {
                ok &= fabs(w.o.b.v[x] - 1) <= kit_rel[t] + 1e-6;
                sum += w.o.b.v[x] - 1;
            }
            ok &= fabs(sum) <= (double)w.o.b.n * (kit_rel[t] / 8 + 5e-7);
            work_free(&w);
        }
    tap_ok(ok, "V of ones gives ones");
}

/* Zero and negative scale are as good as any. */
static void test_scale(void)
{
    static const struct shape c = { "scale", 1, 2, 40, 120, 24, false, 0, false };
    static const double scale[] = { 0, -0.25, 2 };
    const struct kern *kern;
    bool ok = true;

    for (int t = 0; t < N_DTYPE; t++)
        for (size_t s = 0; s < LEN(scale); s++) {
            struct work w = work_new(&c, (enum dtype)t, 0.5);
            const int64_t nq = w.q.rows * w.q.n, nk = w.k.rows * w.k.n;
            double *o = doubles(nq), *lse = doubles(w.lse.n), *dq = doubles(nq), *dk = doubles(nk), *dv = doubles(nk);
            w.scale = scale[s];
            ref_forward(o, lse, &w);
            for (int i = 0; (kern = kit_twin(i)); i++) {
                struct kattn a = work_call(&w, true);
                ok &= kern->attn(kit_ctx(kern, 1), &a) == K_OK && forward_near(&w, o, lse, 2, kern->name);
                buf_read(&w.o.b);
                ref_backward(dq, dk, dv, &w);
                ok &= work_back(kern, 1, &w) == K_OK && grads_near(&w, dq, dk, dv, kern->name);
            }
            free(o), free(lse), free(dq), free(dk), free(dv);
            work_free(&w);
        }
    tap_ok(ok, "scale of 0, negative and large");
}

/* Same bits for 1, 2 and 3 threads, forward and backward. */
static bool threads_agree(const struct kern *kern, const struct shape *c, enum dtype type)
{
    struct work w = work_new(c, type, 1);
    struct side *out[] = { &w.o, &w.dq, &w.dk, &w.dv };
    struct buf first[4], lse;
    bool ok = true;

    for (int n = 1; n <= 3; n++) {
        struct kattn a = work_call(&w, true);
        for (size_t i = 0; i < LEN(out); i++)
            side_poison(out[i]);
        buf_poison(&w.lse);
        ok &= kern->attn(kit_ctx(kern, n), &a) == K_OK && work_back(kern, n, &w) == K_OK;
        for (size_t i = 0; n == 1 && i < LEN(out); i++)
            first[i] = buf_copy(&out[i]->b);
        if (n == 1)
            lse = buf_copy(&w.lse);
        for (size_t i = 0; i < LEN(out); i++)
            ok &= buf_same(&out[i]->b, &first[i], "%s: output %zu with %d threads on %s", c->why, i, n, kern->name);
        ok &= buf_same(&w.lse, &lse, "%s: lse with %d threads on %s", c->why, n, kern->name);
    }
    for (size_t i = 0; i < LEN(out); i++)
        buf_free(&first[i]);
    buf_free(&lse);
    work_free(&w);
    return ok;
}

/* Same bits for image 1 of a batch of three, alone. */
static bool batch_agrees(const struct kern *kern, const struct shape *c, enum dtype type)
{
    const struct shape alone = { c->why, 1, c->N, c->Tq, c->Tk, c->D, c->causal, c->gap, false };
    struct work w = work_new(c, type, 1), u = work_new(&alone, type, 1);
    struct side *in[] = { &w.q, &w.k, &w.v, &w.d_o }, *in1[] = { &u.q, &u.k, &u.v, &u.d_o };
    struct side *out[] = { &w.o, &w.dq, &w.dk, &w.dv }, *out1[] = { &u.o, &u.dq, &u.dk, &u.dv };
    const size_t size = dtype_bytes(type);
    struct kattn a = work_call(&w, true), a1 = work_call(&u, true);
    bool ok = true;

    for (size_t i = 0; i < LEN(in); i++)
        memcpy(in1[i]->b.p, (char *)in[i]->b.p + (size_t)in1[i]->b.n * size, (size_t)in1[i]->b.n * size);
    ok &= kern->attn(kit_ctx(kern, 2), &a) == K_OK && work_back(kern, 2, &w) == K_OK;
    ok &= kern->attn(kit_ctx(kern, 1), &a1) == K_OK && work_back(kern, 1, &u) == K_OK;
    for (size_t i = 0; i < LEN(out); i++)
        ok &= !memcmp(out1[i]->b.p, (char *)out[i]->b.p + (size_t)out1[i]->b.n * size, (size_t)out1[i]->b.n * size);
    ok &= !memcmp(u.lse.p, (char *)w.lse.p + 4 * u.lse.n, (size_t)(4 * u.lse.n));
    if (!ok)
        tap_note("%s on %s, type %d: image 1 differs alone", c->why, kern->name, (int)type);
    work_free(&w);
    work_free(&u);
    return ok;
}

static void test_same_bits(void)
{
    static const struct shape cases[] = {
        { "several tasks",       3, 1, 1100, 1100,  8, false, 0, false },
        { "few queries",         3, 5,   33,   77, 24, false, 7, false },
        { "causal",              3, 2,  300,  300,  8, true,  0, false },
    };
    const struct kern *kern;
    bool threads = true, batch = true;

    for (int i = 0; (kern = kit_twin(i)); i++)
        for (size_t s = 0; s < LEN(cases); s++)
            for (int t = 0; t < N_DTYPE; t++) {
                threads &= threads_agree(kern, &cases[s], (enum dtype)t);
                batch &= batch_agrees(kern, &cases[s], (enum dtype)t);
            }
    tap_ok(threads, "same bits with 1, 2 and 3 threads");
    tap_ok(batch, "same bits alone and in a batch");
}

/* A query's bits come from its own row, K and V: the same query among others, in other lanes. */
static void test_lanes(void)
{
    static const struct shape many = { "many", 1, 1, 77, 130, 40, false, 0, false };
    static const struct shape few = { "few", 1, 1, 1, 130, 40, false, 0, false };
    const struct kern *kern;
    bool ok = true;

    for (int i = 0; (kern = kit_twin(i)); i++)
        for (int t = 0; t < N_DTYPE; t++) {
            struct work w = work_new(&many, (enum dtype)t, 1), u = work_new(&few, (enum dtype)t, 1);
            const size_t row = (size_t)many.D * dtype_bytes((enum dtype)t);
            struct kattn a = work_call(&w, true), b = work_call(&u, true);
            ok &= kern->attn(kit_ctx(kern, 1), &a) == K_OK;
            for (int64_t q = 0; q < many.Tq; q++) {
                memcpy(u.q.b.p, (char *)w.q.b.p + (size_t)q * row, row);
                ok &= kern->attn(kit_ctx(kern, 1), &b) == K_OK
                    && !memcmp(u.o.b.p, (char *)w.o.b.p + (size_t)q * row, row)
                    && !memcmp(u.lse.p, (char *)w.lse.p + 4 * q, 4);
            }
            work_free(&w);
            work_free(&u);
        }
    tap_ok(ok, "a query's bits do not depend on its neighbours");
}

/* NULL lse, empty sizes, bad arguments. */
static void test_arguments(void)
{
    static const struct shape c = { "arguments", 1, 2, 30, 40, 8, false, 0, false };
    const struct kern *kern;
    bool null = true, empty = true, bad = true;

    for (int i = 0; (kern = kit_twin(i)); i++) {
        struct work w = work_new(&c, F32, 1);
        struct kctx *k = kit_ctx(kern, 2);
        struct kattn a = work_call(&w, true), x;
        struct kattn_back g = { .f = a, .ldd_o = 16, .lddq = 16, .lddk = 16, .lddv = 16 };
        struct buf o;

        bad &= kern->attn(k, &a) == K_OK;
        o = buf_copy(&w.o.b);
        side_poison(&w.o);
        x = work_call(&w, false);
        null &= kern->attn(k, &x) == K_OK && buf_same(&o, &w.o.b, "lse NULL on %s", kern->name);
        for (int s = 0; s < 5; s++) {
            x = a;
            *(int64_t *[]){ &x.B, &x.N, &x.Tq, &x.Tk, &x.D }[s] = 0;
            side_poison(&w.o);
            g.f = x;
            empty &= kern->attn(k, &x) == K_OK && kern->attn_back(k, &g) == K_OK;
            buf_read(&w.o.b);
            for (int64_t e = 0; e < w.o.b.n; e++)
                empty &= isnan(w.o.b.v[e]);
            *(int64_t *[]){ &x.B, &x.N, &x.Tq, &x.Tk, &x.D }[s] = -1;
            g.f = x;
            bad &= kern->attn(k, &x) == K_ARG && kern->attn_back(k, &g) == K_ARG;
        }
        for (int s = 0; s < 4; s++) {
            x = a;
            *(int64_t *[]){ &x.ldq, &x.ldk, &x.ldv, &x.ldo }[s] = c.N * c.D - 1;
            g.f = x;
            bad &= kern->attn(k, &x) == K_ARG && kern->attn_back(k, &g) == K_ARG;
        }
        x = a;
        x.causal = true;                                                /* Tq != Tk */
        bad &= kern->attn(k, &x) == K_ARG;
        x = a;
        x.type = N_DTYPE;
        bad &= kern->attn(k, &x) == K_ARG;
        g.f = a;
        g.lddk = 1;
        bad &= kern->attn_back(k, &g) == K_ARG;
        buf_free(&o);
        work_free(&w);
    }
    tap_ok(null, "lse may be NULL");
    tap_ok(empty, "an empty size writes nothing");
    tap_ok(bad, "bad arguments are refused");
}

/* A NaN in a query reaches its own row and no other. */
static void test_nan(void)
{
    static const struct shape c = { "nan", 1, 1, 40, 130, 24, false, 0, false };
    const struct kern *kern;
    bool ok = true;

    for (int i = 0; (kern = kit_twin(i)); i++)
        for (int t = 0; t < N_DTYPE; t++) {
            struct work w = work_new(&c, (enum dtype)t, 1);
            const size_t size = dtype_bytes((enum dtype)t);
            struct kattn a = work_call(&w, true);
            memset((char *)w.q.b.p + (size_t)(17 * c.D + 3) * size, 0xFF, size);
            ok &= kern->attn(kit_ctx(kern, 1), &a) == K_OK;
            buf_read(&w.o.b);
            for (int64_t x = 0; x < w.o.b.n; x++)
                ok &= isnan(w.o.b.v[x]) == (x / c.D == 17);
            work_free(&w);
        }
    tap_ok(ok, "a NaN in a query reaches its row and no other");
}

int main(void)
{
    test_reference();
    test_shapes();
    test_large();
    test_closed_form();
    test_ones();
    test_scale();
    test_same_bits();
    test_lanes();
    test_arguments();
    test_nan();
    return tap_done();
}
