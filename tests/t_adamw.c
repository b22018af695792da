/* tests/t_adamw.c: 20 steps of AdamW against the algorithm in doubles; the shadow copy bit for bit. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/kit.h"
#include "tests/tap.h"

enum { STEPS = 20 };

struct state {
    struct buf p, m, v;
};

static struct state state_new(int64_t n)
{
    struct state s = { buf_random(F32, n, 1, 0.5), buf_random(F32, n, 2, 0), buf_random(F32, n, 3, 0) };

    return s;
}

static void state_free(struct state *s)
{
    buf_free(&s->p);
    buf_free(&s->m);
    buf_free(&s->v);
}

static struct kadamw step_of(const struct kadamw *o, int t)
{
    struct kadamw s = *o;

    s.bias1 = 1 - pow(o->beta1, t);
    s.bias2 = 1 - pow(o->beta2, t);
    return s;
}

/* Loshchilov & Hutter 2019, algorithm 2, with PyTorch's parametrisation: the decay is lr * weight_decay and eps is
 * added to the corrected root. */
static void reference(double *p, double *m, double *v, const double *grad, int64_t n, const struct kadamw *o, int t)
{
    const double b1 = (double)o->beta1, b2 = (double)o->beta2, lr = (double)o->lr;

    for (int64_t i = 0; i < n; i++) {
        const double g = (double)o->grad_scale * grad[i];
        m[i] = b1 * m[i] + (1 - b1) * g;
        v[i] = b2 * v[i] + (1 - b2) * g * g;
        p[i] -= lr * (double)o->weight_decay * p[i];
        p[i] -= lr * (m[i] / (1 - pow(b1, t))) / (sqrt(v[i] / (1 - pow(b2, t))) + (double)o->eps);
    }
}

static struct buf grad_of(int64_t n, int t)
{
    struct buf g = buf_random(F32, n, 100 + (uint64_t)t, 1e-3);

    ((float *)g.p)[0] = 0;              /* a gradient that never comes: 0/(0 + eps) */
    buf_read(&g);
    return g;
}

/* p is about 0.5 and moves by less than lr a step: 20 steps of a few roundings each leave it within 20 * 2^-23 of the
 * doubles; m and v are sums of up to 20 terms, of mixed signs for m. */
static bool near_doubles(struct state *s, const double *p, const double *m, const double *v, const char *what)
{
    return buf_near(&s->p, p, 20 * 0x1p-23, 20 * 0x1p-24, "%s: p", what)
        && buf_near(&s->m, m, 20 * 0x1p-23, 1e-3 * 20 * 0x1p-23, "%s: m", what)
        && buf_near(&s->v, v, 20 * 0x1p-23, 1e-45, "%s: v", what) && buf_intact(&s->p) && buf_intact(&s->m)
        && buf_intact(&s->v);
}

static const struct { const char *why; int64_t n; struct kadamw o; } cases[] = {
    { "one number", 1, { 1e-3, 0.9, 0.999, 1e-8, 0.01, 0, 0, 1 } },
    { "below every vector", 3, { 1e-3, 0.9, 0.999, 1e-8, 0.01, 0, 0, 1 } },
    { "no decay", 37, { 1e-2, 0.9, 0.999, 1e-8, 0, 0, 0, 1 } },
    { "heavy decay, clipped", 4097, { 1e-2, 0.8, 0.99, 1e-6, 0.3, 0, 0, 0.125 } },
    { "large eps", 40001, { 1e-4, 0.9, 0.999, 0.5, 0.01, 0, 0, 3 } },
};

static void test_steps(const struct kern *kern)
{
    for (size_t c = 0; c < LEN(cases); c++) {
        const int64_t n = cases[c].n;
        struct state s = state_new(n);
        double *p = malloc(sizeof *p * (size_t)n), *m = calloc((size_t)n, sizeof *m), *v = calloc((size_t)n, sizeof *v);
        bool ok = true;

        memcpy(p, s.p.v, sizeof *p * (size_t)n);
        for (int t = 1; t <= STEPS; t++) {
            const struct kadamw o = step_of(&cases[c].o, t);
            struct buf g = grad_of(n, t);
            ok &= kern->adamw(kit_ctx(kern, 2), s.p.p, s.m.p, s.v.p, g.p, n, &o, NULL, F32) == K_OK && buf_intact(&g);
            reference(p, m, v, g.v, n, &cases[c].o, t);
            buf_free(&g);
        }
        ok = ok && near_doubles(&s, p, m, v, cases[c].why);
        tap_ok(ok, "%s: %d steps, %s", kern->name, STEPS, cases[c].why);
        state_free(&s);
        free(p);
        free(m);
        free(v);
    }
}

/* The shadow is the new p rounded once, and does not change what p becomes. */
static void test_shadow(const struct kern *kern)
{
    const struct kadamw o = step_of(&cases[3].o, 1);
    const int64_t n = 20011;

    for (int t = 0; t < N_DTYPE; t++) {
        struct state s = state_new(n), plain = state_new(n);
        struct buf g = grad_of(n, 1), shadow = buf_new(t, n);
        bool ok = kern->adamw(kit_ctx(kern, 2), s.p.p, s.m.p, s.v.p, g.p, n, &o, shadow.p, t) == K_OK
            && kern->adamw(kit_ctx(kern, 1), plain.p.p, plain.m.p, plain.v.p, g.p, n, &o, NULL, F32) == K_OK;
        buf_read(&s.p);
        buf_read(&shadow);
        for (int64_t i = 0; i < n; i++)
            ok &= shadow.v[i] == kit_round(t, s.p.v[i]);
        ok = ok && buf_intact(&shadow) && buf_same(&s.p, &plain.p, "p with and without a shadow")
            && buf_same(&s.v, &plain.v, "v with and without a shadow");
        tap_ok(ok, "%s: shadow of type %d is p rounded", kern->name, t);
        state_free(&s);
        state_free(&plain);
        buf_free(&g);
        buf_free(&shadow);
    }
}

static void test_threads(const struct kern *kern)
{
    const struct kadamw o = step_of(&cases[0].o, 3);
    const int64_t n = 70001;
    struct buf g = grad_of(n, 1);
    struct state one = state_new(n);
    bool ok = kern->adamw(kit_ctx(kern, 1), one.p.p, one.m.p, one.v.p, g.p, n, &o, NULL, F32) == K_OK;

    for (int threads = 2; threads <= 3; threads++) {
        struct state s = state_new(n);
        ok &= kern->adamw(kit_ctx(kern, threads), s.p.p, s.m.p, s.v.p, g.p, n, &o, NULL, F32) == K_OK;
        ok = ok && buf_same(&one.p, &s.p, "%d threads", threads);
        state_free(&s);
    }
    for (int64_t cut = 1; cut < 40; cut += 13) {        /* an element does not know its place */
        struct state s = state_new(n);
        ok &= kern->adamw(kit_ctx(kern, 1), s.p.p, s.m.p, s.v.p, g.p, cut, &o, NULL, F32) == K_OK;
        ok &= kern->adamw(kit_ctx(kern, 1), (float *)s.p.p + cut, (float *)s.m.p + cut, (float *)s.v.p + cut,
                          (float *)g.p + cut, n - cut, &o, NULL, F32) == K_OK;
        ok = ok && buf_same(&one.p, &s.p, "cut at %lld", (long long)cut);
        state_free(&s);
    }
    tap_ok(ok, "%s: same bits by 1, 2 or 3 threads and in two pieces", kern->name);
    state_free(&one);
    buf_free(&g);
}

static void test_refused(const struct kern *kern)
{
    const struct kadamw o = step_of(&cases[0].o, 1);
    float p = 1, m = 2, v = 3, g = 4, shadow = 5;
    struct kctx *k = kit_ctx(kern, 1);

    tap_ok(kern->adamw(k, &p, &m, &v, &g, 0, &o, &shadow, F32) == K_OK
           && kern->adamw(k, &p, &m, &v, &g, -1, &o, NULL, F32) == K_ARG
           && kern->adamw(k, &p, &m, &v, &g, 1, &o, &shadow, N_DTYPE) == K_ARG && p == 1 && m == 2 && v == 3
           && shadow == 5, "%s: nothing to do, and what is refused", kern->name);
}

int main(void)
{
    const struct kern *kern;

    for (int i = 0; (kern = kit_twin(i)); i++) {
        test_steps(kern);
        test_shadow(kern);
        test_threads(kern);
        test_refused(kern);
    }
    return tap_done();
}
