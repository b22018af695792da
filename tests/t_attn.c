/* tests/t_attn.c: attention and its gradients against plain loops in doubles, for every twin and storage type.
 *
 * Gradients are judged by the equations with the o and lse that they were given; the equations themselves are judged by
 * differences of the forward loop. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/kit.h"
#include "tests/tap.h"

/* Sizes of a case. gap: unused elements between tokens, so that strides are larger than N*D. packed: q, k and v are
 * thirds of one projection. */
struct shape {
    const char *why;
    int64_t B, N, Tq, Tk, D;
    bool causal;
    int64_t gap;
    bool packed;
};

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

/* One side of a call: rows of N*D elements `ld` apart inside a buffer. */
struct side {
    struct buf b;
    int64_t first, ld, rows, n;
};

static void *side_p(const struct side *s)
{
    return (char *)s->b.p + (size_t)s->first * dtype_bytes(s->b.type);
}

static double side_v(const struct side *s, int64_t row, int64_t i)
{
    return s->b.v[s->first + row * s->ld + i];
}

static struct side side_new(const struct shape *c, enum dtype type, int64_t T, uint64_t seed, double scale)
{
    struct side s = { .rows = c->B * T, .n = c->N * c->D };

    s.ld = s.n + c->gap;
    s.b = scale > 0 ? buf_random(type, s.rows * s.ld, seed, scale) : buf_new(type, s.rows * s.ld);
    return s;
}

/* The rows without what lies between them. */
static struct buf side_dense(const struct side *s)
{
    const size_t size = dtype_bytes(s->b.type);
    struct buf d = buf_new(s->b.type, s->rows * s->n);

    for (int64_t r = 0; r < s->rows; r++)
        memcpy((char *)d.p + (size_t)(r * s->n) * size, (char *)side_p(s) + (size_t)(r * s->ld) * size,
               (size_t)s->n * size);
    return d;
}

/* Guards and everything between rows still as they were made. */
static bool side_intact(const struct side *s)
{
    const size_t size = dtype_bytes(s->b.type);

    for (int64_t r = 0; r < s->rows; r++)
        for (size_t i = (size_t)(r * s->ld + s->n) * size; i < (size_t)((r + 1) * s->ld) * size; i++)
            if (((unsigned char *)s->b.p)[i] != 0xFF) {
                tap_note("byte %zu of a gap was written", i);
                return false;
            }
    return buf_intact(&s->b);
}

/* Everything that one case reads and writes. */
struct work {
    const struct shape *c;
    enum dtype type;
    double scale;
    struct side q, k, v, o, d_o, dq, dk, dv;
    struct buf lse;
};

static struct work work_new(const struct shape *c, enum dtype type, double size)
{
    struct work w = { .c = c, .type = type, .scale = (double)(float)(1 / sqrt((double)c->D)) };

    w.q = side_new(c, type, c->Tq, 1, size);
    w.k = side_new(c, type, c->Tk, 2, size);
    w.v = side_new(c, type, c->Tk, 3, 1);
    if (c->packed && c->Tq == c->Tk) {
        struct side *third[3] = { &w.q, &w.k, &w.v };
        const struct buf all = buf_random(type, 3 * w.q.rows * w.q.n, 4, size);
        for (int i = 0; i < 3; i++) {
            buf_free(&third[i]->b);
            third[i]->b = i ? buf_copy(&all) : all;
            third[i]->first = i * w.q.n;
            third[i]->ld = 3 * w.q.n;
        }
    }
    w.o = side_new(c, type, c->Tq, 0, 0);
    w.d_o = side_new(c, type, c->Tq, 5, 1);
    w.dq = side_new(c, type, c->Tq, 0, 0);
    w.dk = side_new(c, type, c->Tk, 0, 0);
    w.dv = side_new(c, type, c->Tk, 0, 0);
    w.lse = buf_new(F32, c->B * c->N * c->Tq);
    return w;
}

static void work_free(struct work *w)
{
    struct side *s[] = { &w->q, &w->k, &w->v, &w->o, &w->d_o, &w->dq, &w->dk, &w->dv };

    for (size_t i = 0; i < LEN(s); i++)
        buf_free(&s[i]->b);
    buf_free(&w->lse);
}

static struct kattn call_of(const struct work *w, bool with_lse)
{
    const struct shape *c = w->c;

    return (struct kattn){
        .type = w->type, .B = c->B, .N = c->N, .Tq = c->Tq, .Tk = c->Tk, .D = c->D,
        .q = side_p(&w->q), .k = side_p(&w->k), .v = side_p(&w->v), .o = side_p(&w->o),
        .ldq = w->q.ld, .ldk = w->k.ld, .ldv = w->v.ld, .ldo = w->o.ld,
        .lse = with_lse ? w->lse.p : NULL, .scale = (float)w->scale, .causal = c->causal,
    };
}

static int run_back(const struct kern *kern, int n_threads, struct work *w)
{
    struct kattn_back g = {
        .f = call_of(w, true), .d_o = side_p(&w->d_o), .ldd_o = w->d_o.ld,
        .dq = side_p(&w->dq), .dk = side_p(&w->dk), .dv = side_p(&w->dv),
        .lddq = w->dq.ld, .lddk = w->dk.ld, .lddv = w->dv.ld,
    };
    struct buf mem = buf_raw(kern->attn_back_bytes(&g.f, n_threads));
    int rc;

    g.work = mem.p;
    rc = kern->attn_back(kit_ctx(kern, n_threads), &g);
    if (!buf_intact(&mem))
        rc = 1;
    buf_free(&mem);
    return rc;
}

/* ---- the equations ---- */

/* Scores of query i of image b, head n: s (Tk); hidden keys -inf. Returns log of the sum of exponentials. */
static double ref_scores(double *s, const struct work *w, int64_t b, int64_t n, int64_t i)
{
    const struct shape *c = w->c;
    double top = -INFINITY, sum = 0;

    for (int64_t j = 0; j < c->Tk; j++) {
        s[j] = 0;
        for (int64_t d = 0; d < c->D; d++)
            s[j] += side_v(&w->q, b * c->Tq + i, n * c->D + d) * side_v(&w->k, b * c->Tk + j, n * c->D + d);
        s[j] = c->causal && j > i ? -INFINITY : s[j] * w->scale;
        top = fmax(top, s[j]);
    }
    for (int64_t j = 0; j < c->Tk; j++)
        sum += exp(s[j] - top);
    return top + log(sum);
}

/* o (B,Tq,N,D), lse (B,N,Tq) */
static void ref_forward(double *o, double *lse, const struct work *w)
{
    const struct shape *c = w->c;
    double *s = malloc(sizeof *s * (size_t)c->Tk);

    for (int64_t b = 0; b < c->B; b++)
        for (int64_t n = 0; n < c->N; n++)
            for (int64_t i = 0; i < c->Tq; i++) {
                double *y = o + ((b * c->Tq + i) * c->N + n) * c->D;
                const double l = lse[(b * c->N + n) * c->Tq + i] = ref_scores(s, w, b, n, i);
                memset(y, 0, sizeof *y * (size_t)c->D);
                for (int64_t j = 0; j < c->Tk; j++) {
                    const double p = exp(s[j] - l);
                    for (int64_t d = 0; d < c->D; d++)
                        y[d] += p * side_v(&w->v, b * c->Tk + j, n * c->D + d);
                }
            }
    free(s);
}

/* dq (B,Tq,N,D), dk, dv (B,Tk,N,D), from o and lse as stored. */
static void ref_backward(double *dq, double *dk, double *dv, const struct work *w)
{
    const struct shape *c = w->c;
    const int64_t D = c->D, row = c->N * D;
    double *s = malloc(sizeof *s * (size_t)c->Tk);

    memset(dq, 0, sizeof *dq * (size_t)(c->B * c->Tq * row));
    memset(dk, 0, sizeof *dk * (size_t)(c->B * c->Tk * row));
    memset(dv, 0, sizeof *dv * (size_t)(c->B * c->Tk * row));
    for (int64_t b = 0; b < c->B; b++)
        for (int64_t n = 0; n < c->N; n++)
            for (int64_t i = 0; i < c->Tq; i++) {
                const int64_t qi = b * c->Tq + i;
                const double l = w->lse.v[(b * c->N + n) * c->Tq + i];
                double delta = 0;

                ref_scores(s, w, b, n, i);
                for (int64_t d = 0; d < D; d++)
                    delta += side_v(&w->d_o, qi, n * D + d) * side_v(&w->o, qi, n * D + d);
                for (int64_t j = 0; j < c->Tk; j++) {
                    const int64_t kj = b * c->Tk + j;
                    const double p = exp(s[j] - l);
                    double dp = 0, ds;

                    for (int64_t d = 0; d < D; d++)
                        dp += side_v(&w->d_o, qi, n * D + d) * side_v(&w->v, kj, n * D + d);
                    ds = p * (dp - delta) * w->scale;
                    for (int64_t d = 0; d < D; d++) {
                        dv[kj * row + n * D + d] += p * side_v(&w->d_o, qi, n * D + d);
                        dk[kj * row + n * D + d] += ds * side_v(&w->q, qi, n * D + d);
                        dq[qi * row + n * D + d] += ds * side_v(&w->k, kj, n * D + d);
                    }
                }
            }
    free(s);
}

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

static void poison_side(struct side *s)
{
    buf_poison(&s->b);
}

static bool one_shape(const struct shape *c, enum dtype type)
{
    struct work w = work_new(c, type, 1);
    const int64_t nq = c->B * c->Tq * c->N * c->D, nk = c->B * c->Tk * c->N * c->D;
    double *o = doubles(nq), *lse = doubles(w.lse.n), *dq = doubles(nq), *dk = doubles(nk), *dv = doubles(nk);
    const struct kern *kern;
    bool ok = true;

    ref_forward(o, lse, &w);
    for (int i = 0; (kern = kit_twin(i)); i++) {
        struct kattn a = call_of(&w, true);
        poison_side(&w.o);
        buf_poison(&w.lse);
        ok &= kern->attn(kit_ctx(kern, 2), &a) == K_OK && forward_near(&w, o, lse, 1, kern->name);
    }
    buf_read(&w.o.b);
    buf_read(&w.lse);
    ref_backward(dq, dk, dv, &w);
    for (int i = 0; (kern = kit_twin(i)); i++) {
        poison_side(&w.dq);
        poison_side(&w.dk);
        poison_side(&w.dv);
        ok &= run_back(kern, 2, &w) == K_OK;
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
                struct kattn a = call_of(&w, true);
                poison_side(&w.o);
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
        struct kattn a = call_of(&w, true);

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
                struct kattn a = call_of(&w, true);
                ok &= kern->attn(kit_ctx(kern, 1), &a) == K_OK && forward_near(&w, o, lse, 2, kern->name);
                buf_read(&w.o.b);
                ref_backward(dq, dk, dv, &w);
                ok &= run_back(kern, 1, &w) == K_OK && grads_near(&w, dq, dk, dv, kern->name);
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
        struct kattn a = call_of(&w, true);
        for (size_t i = 0; i < LEN(out); i++)
            poison_side(out[i]);
        buf_poison(&w.lse);
        ok &= kern->attn(kit_ctx(kern, n), &a) == K_OK && run_back(kern, n, &w) == K_OK;
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
    struct kattn a = call_of(&w, true), a1 = call_of(&u, true);
    bool ok = true;

    for (size_t i = 0; i < LEN(in); i++)
        memcpy(in1[i]->b.p, (char *)in[i]->b.p + (size_t)in1[i]->b.n * size, (size_t)in1[i]->b.n * size);
    ok &= kern->attn(kit_ctx(kern, 2), &a) == K_OK && run_back(kern, 2, &w) == K_OK;
    ok &= kern->attn(kit_ctx(kern, 1), &a1) == K_OK && run_back(kern, 1, &u) == K_OK;
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
            struct kattn a = call_of(&w, true), b = call_of(&u, true);
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
        struct kattn a = call_of(&w, true), x;
        struct kattn_back g = { .f = a, .ldd_o = 16, .lddq = 16, .lddk = 16, .lddv = 16 };
        struct buf o;

        bad &= kern->attn(k, &a) == K_OK;
        o = buf_copy(&w.o.b);
        poison_side(&w.o);
        x = call_of(&w, false);
        null &= kern->attn(k, &x) == K_OK && buf_same(&o, &w.o.b, "lse NULL on %s", kern->name);
        for (int s = 0; s < 5; s++) {
            x = a;
            *(int64_t *[]){ &x.B, &x.N, &x.Tq, &x.Tk, &x.D }[s] = 0;
            poison_side(&w.o);
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
            struct kattn a = call_of(&w, true);
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
    test_scale();
    test_same_bits();
    test_lanes();
    test_arguments();
    test_nan();
    return tap_done();
}
