/* tests/t_norm.c: group and layer norm, forward and backward, against loops in doubles. The double backward is itself
 * held against central differences of the double forward. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/kit.h"
#include "tests/tap.h"

static const struct shape {
    const char *why;
    int64_t B, HW, C, G, gap;           /* gap: elements between pixels of x, y and dy */
} shapes[] = {
    { "one element", 1, 1, 1, 1, 0 },
    { "one pixel, one group", 1, 1, 4, 1, 3 },
    { "a channel per group", 2, 9, 5, 5, 0 },
    { "odd everything", 3, 33, 21, 3, 5 },
    { "one group, shorter than a vector", 2, 130, 3, 1, 1 },
    { "C/G = 10 and a cut image", 2, 203, 320, 32, 0 },
    { "channels in three column blocks, groups across them", 1, 37, 1300, 26, 11 },
    { "more blocks than tasks", 1, 70000, 4, 2, 0 },
    { "first block of the 1.5 denoiser, 256 px", 1, 1024, 320, 32, 0 },
};

static const double eps = 1e-5;

/* ---- the equations ---- */

static double silu(double z) { return z / (1 + exp(-z)); }

static double silu_slope(double z)
{
    const double s = 1 / (1 + exp(-z));

    return s * (1 + z * (1 - s));
}

/* A map: image b, pixel t, channel c. */
static int64_t at(const struct shape *s, int64_t ld, int64_t b, int64_t t, int64_t c)
{
    return (b * s->HW + t) * ld + c;
}

/* Statistics of x (B,HW,ld) by two passes; one entry per image and group. */
static void stats_ref(double *mean, double *rstd, const double *x, const struct shape *s, int64_t ld)
{
    const int64_t size = s->C / s->G;
    const double n = (double)(s->HW * size);

    for (int64_t i = 0; i < s->B * s->G; i++) {
        const int64_t b = i / s->G, first = i % s->G * size;
        double sum = 0, squares = 0;
        for (int64_t t = 0; t < s->HW; t++)
            for (int64_t c = first; c < first + size; c++)
                sum += x[at(s, ld, b, t, c)];
        mean[i] = sum / n;
        for (int64_t t = 0; t < s->HW; t++)
            for (int64_t c = first; c < first + size; c++)
                squares += pow(x[at(s, ld, b, t, c)] - mean[i], 2);
        rstd[i] = 1 / sqrt(squares / n + eps);
    }
}

/* y (B,HW,C) dense */
static void norm_ref(double *y, const double *x, const double *mean, const double *rstd, const double *gamma,
                     const double *beta, const struct shape *s, int64_t ld, bool act)
{
    for (int64_t b = 0; b < s->B; b++)
        for (int64_t t = 0; t < s->HW; t++)
            for (int64_t c = 0; c < s->C; c++) {
                const int64_t g = b * s->G + c / (s->C / s->G);
                const double z = (x[at(s, ld, b, t, c)] - mean[g]) * rstd[g] * gamma[c] + beta[c];
                y[at(s, s->C, b, t, c)] = act ? silu(z) : z;
            }
}

struct grads {
    double *dx;                         /* (B,HW,C) dense */
    double *dgamma, *dbeta;             /* (C) */
    double *dgamma_size, *dbeta_size;   /* sums of magnitudes */
};

static void norm_back_ref(struct grads *d, const double *dy, const double *x, const double *mean, const double *rstd,
                          const double *gamma, const double *beta, const struct shape *s, int64_t ld, bool act)
{
    const int64_t size = s->C / s->G;
    const double n = (double)(s->HW * size);

    for (int64_t c = 0; c < s->C; c++)
        d->dgamma[c] = d->dbeta[c] = d->dgamma_size[c] = d->dbeta_size[c] = 0;
    for (int64_t g = 0; g < s->B * s->G; g++) {
        const int64_t b = g / s->G, first = g % s->G * size;
        double sum = 0, sum_x = 0;
        for (int pass = 0; pass < 2; pass++)
            for (int64_t t = 0; t < s->HW; t++)
                for (int64_t c = first; c < first + size; c++) {
                    const double xhat = (x[at(s, ld, b, t, c)] - mean[g]) * rstd[g], z = xhat * gamma[c] + beta[c];
                    const double dz = dy[at(s, ld, b, t, c)] * (act ? silu_slope(z) : 1);
                    if (pass) {
                        d->dx[at(s, s->C, b, t, c)] = rstd[g] * (gamma[c] * dz - sum / n - xhat * sum_x / n);
                        continue;
                    }
                    sum += gamma[c] * dz;
                    sum_x += gamma[c] * dz * xhat;
                    d->dgamma[c] += dz * xhat;
                    d->dbeta[c] += dz;
                    d->dgamma_size[c] += fabs(dz * xhat);
                    d->dbeta_size[c] += fabs(dz);
                }
    }
}

static double *doubles(int64_t n)
{
    double *p = calloc((size_t)n + 1, sizeof *p);

    if (!p)
        exit(1);
    return p;
}

static struct grads grads_new(const struct shape *s)
{
    return (struct grads){ doubles(s->B * s->HW * s->C), doubles(s->C), doubles(s->C), doubles(s->C), doubles(s->C) };
}

static void grads_free(struct grads *d)
{
    free(d->dx);
    free(d->dgamma);
    free(d->dbeta);
    free(d->dgamma_size);
    free(d->dbeta_size);
}

/* ---- one case: inputs and what the equations say ---- */

struct given {
    struct shape s;
    int64_t ld;
    bool act;
    struct buf x, dy, gamma, beta, mean, rstd;          /* mean, rstd: the true ones, rounded, for the backward pass */
    double *y, *m, *r;
    struct grads d;
};

static struct given given_new(const struct shape *s, enum dtype type, bool act, double offset)
{
    struct given g = { .s = *s, .ld = s->C + s->gap, .act = act, .d = grads_new(s) };
    const int64_t n = s->B * s->HW * g.ld;

    g.x = buf_random(type, n, 1, 1.5);
    g.dy = buf_random(type, n, 2, 1);
    g.gamma = buf_random(F32, s->C, 3, 1);
    g.beta = buf_random(F32, s->C, 4, 1);
    g.mean = buf_new(F32, s->B * s->G);
    g.rstd = buf_new(F32, s->B * s->G);
    if (offset != 0)
        for (int64_t i = 0; i < n; i++)
            buf_set(&g.x, i, g.x.v[i] + offset);
    g.y = doubles(s->B * s->HW * s->C);
    g.m = doubles(s->B * s->G);
    g.r = doubles(s->B * s->G);
    stats_ref(g.m, g.r, g.x.v, s, g.ld);
    norm_ref(g.y, g.x.v, g.m, g.r, g.gamma.v, g.beta.v, s, g.ld, act);
    norm_back_ref(&g.d, g.dy.v, g.x.v, g.m, g.r, g.gamma.v, g.beta.v, s, g.ld, act);
    for (int64_t i = 0; i < s->B * s->G; i++) {
        buf_set(&g.mean, i, g.m[i]);
        buf_set(&g.rstd, i, g.r[i]);
    }
    return g;
}

static void given_free(struct given *g)
{
    buf_free(&g->x);
    buf_free(&g->dy);
    buf_free(&g->gamma);
    buf_free(&g->beta);
    buf_free(&g->mean);
    buf_free(&g->rstd);
    free(g->y);
    free(g->m);
    free(g->r);
    grads_free(&g->d);
}

/* Elements of pixels, without the gaps between them. */
static struct buf without_gaps(const struct buf *b, int64_t pixels, int64_t C, int64_t ld)
{
    struct buf d = buf_new(b->type, pixels * C);
    const size_t size = dtype_bytes(b->type);

    for (int64_t t = 0; t < pixels; t++)
        memcpy((char *)d.p + (size_t)(t * C) * size, (char *)b->p + (size_t)(t * ld) * size, (size_t)C * size);
    return d;
}

static char *element(const struct buf *b, int64_t i)
{
    return (char *)b->p + (size_t)i * dtype_bytes(b->type);
}

/* ---- group norm ---- */

static int group_forward(const struct kern *kern, int threads, const struct given *g, struct buf *y, struct buf *mean,
                         struct buf *rstd)
{
    return kern->group_norm(kit_ctx(kern, threads), y->p, g->ld, mean->p, rstd->p, g->x.p, g->ld, g->x.type,
                            g->gamma.p, g->beta.p, g->s.B, g->s.HW, g->s.C, g->s.G, (float)eps, g->act);
}

/* The statistics carry a few f32 roundings; y those of x - mean, times rstd gamma, plus beta, all below 16 in size:
 * 4e-6 is four of them. Then it is rounded to its type. */
static bool forward_near(const struct given *g, struct buf *y, struct buf *mean, struct buf *rstd)
{
    struct buf dense = without_gaps(y, g->s.B * g->s.HW, g->s.C, g->ld);
    bool ok = buf_near(mean, g->m, 0x1p-23, 4e-7, "%s: mean", g->s.why);

    ok &= buf_near(rstd, g->r, 1e-6, 0, "%s: rstd", g->s.why);
    ok &= buf_near(&dense, g->y, kit_rel[y->type], 4e-6, "%s: y", g->s.why);
    ok &= buf_intact(y) && buf_intact(mean) && buf_intact(rstd) && buf_intact(&dense);
    buf_free(&dense);
    return ok;
}

/* Elements between pixels are nobody's: they stay poisoned. */
static bool gaps_poisoned(const struct given *g, const struct buf *y)
{
    for (int64_t t = 0; t < g->s.B * g->s.HW; t++)
        for (const unsigned char *p = (unsigned char *)element(y, t * g->ld + g->s.C),
                                 *end = (unsigned char *)element(y, (t + 1) * g->ld); p < end; p++)
            if (*p != 0xFF) {
                tap_note("%s: wrote between pixels", g->s.why);
                return false;
            }
    return true;
}

/* The last image alone gives the bits that it had in the batch. */
static bool forward_alone(const struct kern *kern, const struct given *g, const struct buf *y)
{
    const int64_t n = g->s.HW * g->ld, first = (g->s.B - 1) * n;
    struct buf one = buf_new(y->type, n), part = buf_new(y->type, n), mean = buf_new(F32, g->s.G),
               rstd = buf_new(F32, g->s.G);
    bool ok = kern->group_norm(kit_ctx(kern, 2), one.p, g->ld, mean.p, rstd.p, element(&g->x, first), g->ld, y->type,
                               g->gamma.p, g->beta.p, 1, g->s.HW, g->s.C, g->s.G, (float)eps, g->act) == K_OK;

    memcpy(part.p, element(y, first), (size_t)n * dtype_bytes(y->type));
    ok &= buf_same(&one, &part, "%s: an image alone", g->s.why);
    buf_free(&one);
    buf_free(&part);
    buf_free(&mean);
    buf_free(&rstd);
    return ok;
}

/* Statistics without a result are the same; applied to the pixels of an image in two parts they give the same bits. */
static bool forward_in_parts(const struct kern *kern, const struct given *g, const struct buf *y)
{
    const int64_t n = g->s.HW * g->ld, first = (g->s.B - 1) * n, cut = g->s.HW / 3;
    struct buf parts = buf_new(y->type, n), whole = buf_new(y->type, n), mean = buf_new(F32, g->s.G),
               rstd = buf_new(F32, g->s.G);
    bool ok = kern->group_norm(kit_ctx(kern, 2), NULL, 0, mean.p, rstd.p, element(&g->x, first), g->ld, y->type,
                               g->gamma.p, g->beta.p, 1, g->s.HW, g->s.C, g->s.G, (float)eps, g->act) == K_OK;

    for (int i = 0; i < 2; i++) {
        const int64_t at = i ? cut : 0, pixels = i ? g->s.HW - cut : cut;
        ok &= kern->group_norm_apply(kit_ctx(kern, 2), element(&parts, at * g->ld), g->ld, mean.p, rstd.p,
                                     element(&g->x, first + at * g->ld), g->ld, y->type, g->gamma.p, g->beta.p, 1,
                                     pixels, g->s.C, g->s.G, g->act) == K_OK;
    }
    memcpy(whole.p, element(y, first), (size_t)n * dtype_bytes(y->type));
    ok &= buf_same(&parts, &whole, "%s: in parts", g->s.why);
    buf_free(&parts);
    buf_free(&whole);
    buf_free(&mean);
    buf_free(&rstd);
    return ok;
}

static bool group_forward_case(const struct kern *kern, const struct given *g)
{
    const int64_t n = g->s.B * g->s.HW * g->ld;
    struct buf y = buf_new(g->x.type, n), mean = buf_new(F32, g->s.B * g->s.G), rstd = buf_new(F32, g->s.B * g->s.G);
    bool ok = group_forward(kern, 1, g, &y, &mean, &rstd) == K_OK;

    ok &= gaps_poisoned(g, &y) && forward_near(g, &y, &mean, &rstd) && forward_alone(kern, g, &y)
        && forward_in_parts(kern, g, &y);
    for (int threads = 2; threads <= 3; threads++) {
        struct buf z = buf_new(g->x.type, n), m = buf_new(F32, mean.n), r = buf_new(F32, rstd.n);
        ok &= group_forward(kern, threads, g, &z, &m, &r) == K_OK && buf_same(&y, &z, "%s: threads", g->s.why)
            && buf_same(&mean, &m, "%s: threads", g->s.why) && buf_same(&rstd, &r, "%s: threads", g->s.why);
        buf_free(&z);
        buf_free(&m);
        buf_free(&r);
    }
    if (!g->s.gap) {                                    /* in place */
        struct buf z = buf_copy(&g->x);
        struct given here = *g;
        here.x = z;
        ok &= group_forward(kern, 2, &here, &z, &mean, &rstd) == K_OK && buf_same(&y, &z, "%s: in place", g->s.why);
        buf_free(&z);
    }
    buf_free(&y);
    buf_free(&mean);
    buf_free(&rstd);
    return ok;
}

static bool params_near(const struct buf *got, const struct buf *before, const double *want, const double *size,
                        const char *what, const char *why)
{
    for (int64_t c = 0; c < got->n; c++) {
        /* f32 sums of at most 1024 pixels, four at a time, then doubles: 256 roundings that mostly cancel */
        const double sum = before->v[c] + want[c], allowed = 2e-6 * (size[c] + fabs(before->v[c])) + 1e-6;
        if (!(fabs(got->v[c] - sum) <= allowed)) {
            tap_note("%s: %s[%lld] is %.9g, want %.9g +- %.2g", why, what, (long long)c, got->v[c], sum, allowed);
            return false;
        }
    }
    return buf_intact(got);
}

static int group_backward(const struct kern *kern, int threads, const struct given *g, void *dx, void *dgamma,
                          void *dbeta, const void *dy)
{
    struct buf work = buf_raw(kern->group_norm_back_bytes(g->s.B, g->s.HW, g->s.C, g->s.G));
    int rc = kern->group_norm_back(kit_ctx(kern, threads), dx, dgamma, dbeta, dy, g->ld, g->x.p, g->ld, g->mean.p,
                                   g->rstd.p, g->x.type, g->gamma.p, g->beta.p, g->s.B, g->s.HW, g->s.C, g->s.G,
                                   g->act, work.p);

    if (!buf_intact(&work))
        rc = K_ARG;
    buf_free(&work);
    return rc;
}

/* dx: rstd times a handful of terms below 16, each rounded in f32; rstd is at most 1/sqrt(eps) = 316 where a group
 * holds one value, and then every term but dz - mean(dz) is zero. */
static bool group_backward_case(const struct kern *kern, const struct given *g)
{
    const int64_t n = g->s.B * g->s.HW * g->s.C;
    struct buf dx = buf_new(g->x.type, n), before[2] = { buf_random(F32, g->s.C, 5, 1), buf_random(F32, g->s.C, 6, 1) };
    struct buf dgamma = buf_copy(&before[0]), dbeta = buf_copy(&before[1]);
    double largest = 0;
    bool ok = group_backward(kern, 1, g, dx.p, dgamma.p, dbeta.p, g->dy.p) == K_OK;

    for (int64_t i = 0; i < g->s.B * g->s.G; i++)
        largest = fmax(largest, g->r[i]);
    buf_read(&dgamma);
    buf_read(&dbeta);
    ok &= buf_near(&dx, g->d.dx, kit_rel[g->x.type], 5e-6 * largest, "%s: dx", g->s.why) && buf_intact(&dx);
    ok &= params_near(&dgamma, &before[0], g->d.dgamma, g->d.dgamma_size, "dgamma", g->s.why);
    ok &= params_near(&dbeta, &before[1], g->d.dbeta, g->d.dbeta_size, "dbeta", g->s.why);
    for (int threads = 2; threads <= 3; threads++) {
        struct buf d = buf_new(g->x.type, n), a = buf_copy(&before[0]), b = buf_copy(&before[1]);
        ok &= group_backward(kern, threads, g, d.p, a.p, b.p, g->dy.p) == K_OK
            && buf_same(&dx, &d, "%s: threads", g->s.why) && buf_same(&dgamma, &a, "%s: threads", g->s.why)
            && buf_same(&dbeta, &b, "%s: threads", g->s.why);
        buf_free(&d);
        buf_free(&a);
        buf_free(&b);
    }
    if (!g->s.gap) {                                    /* in place of dy, without parameters */
        struct buf d = buf_copy(&g->dy);
        ok &= group_backward(kern, 2, g, d.p, NULL, NULL, d.p) == K_OK && buf_same(&dx, &d, "%s: in place", g->s.why);
        buf_free(&d);
    }
    if (g->s.B > 1) {                                   /* the first image alone */
        struct buf d = buf_new(g->x.type, n / g->s.B), part = buf_new(g->x.type, n / g->s.B);
        struct given one = *g;
        one.s.B = 1;
        memcpy(part.p, dx.p, (size_t)part.n * dtype_bytes(part.type));
        ok &= group_backward(kern, 3, &one, d.p, NULL, NULL, g->dy.p) == K_OK
            && buf_same(&part, &d, "%s: an image alone", g->s.why);
        buf_free(&d);
        buf_free(&part);
    }
    buf_free(&dx);
    buf_free(&dgamma);
    buf_free(&dbeta);
    buf_free(&before[0]);
    buf_free(&before[1]);
    return ok;
}

/* ---- layer norm: a row is an image of one pixel and one group ---- */

static const struct shape rows[] = {
    { "one element", 1, 1, 1, 1, 0 },
    { "shorter than a vector", 5, 1, 3, 1, 0 },
    { "one more than a vector", 4, 1, 17, 1, 0 },
    { "odd rows", 77, 1, 769, 1, 0 },
    { "more than a leaf", 3, 1, 2500, 1, 0 },
    { "two tasks and one row", 65, 1, 320, 1, 0 },
    { "first block of the 1.5 denoiser, 256 px", 1024, 1, 320, 1, 0 },
    { "more rows than 256 tasks of 32", 8300, 1, 8, 1, 0 },
};

static int layer_forward(const struct kern *kern, int threads, const struct given *g, void *y, void *mean, void *rstd,
                         const void *x)
{
    return kern->layer_norm(kit_ctx(kern, threads), y, mean, rstd, x, g->x.type, g->gamma.p, g->beta.p, g->s.B, g->s.C,
                            (float)eps);
}

static bool layer_forward_case(const struct kern *kern, const struct given *g)
{
    const int64_t n = g->s.B * g->s.C;
    struct buf y = buf_new(g->x.type, n), mean = buf_new(F32, g->s.B), rstd = buf_new(F32, g->s.B);
    struct buf z = buf_copy(&g->x), row = buf_new(g->x.type, g->s.C), part = buf_new(g->x.type, g->s.C);
    bool ok = layer_forward(kern, 1, g, y.p, mean.p, rstd.p, g->x.p) == K_OK && forward_near(g, &y, &mean, &rstd);

    ok &= layer_forward(kern, 3, g, z.p, NULL, NULL, z.p) == K_OK
        && buf_same(&y, &z, "%s: in place, three threads, no statistics", g->s.why);
    ok &= kern->layer_norm(kit_ctx(kern, 1), row.p, NULL, NULL, element(&g->x, n - g->s.C), row.type, g->gamma.p,
                           g->beta.p, 1, g->s.C, (float)eps) == K_OK;
    memcpy(part.p, element(&y, n - g->s.C), (size_t)row.n * dtype_bytes(row.type));
    ok &= buf_same(&row, &part, "%s: a row alone", g->s.why);
    buf_free(&y);
    buf_free(&mean);
    buf_free(&rstd);
    buf_free(&z);
    buf_free(&row);
    buf_free(&part);
    return ok;
}

static int layer_backward(const struct kern *kern, int threads, const struct given *g, void *dx, void *dgamma,
                          void *dbeta, const void *dy)
{
    struct buf work = buf_raw(kern->layer_norm_back_bytes(g->s.B, g->s.C));
    int rc = kern->layer_norm_back(kit_ctx(kern, threads), dx, dgamma, dbeta, dy, g->x.p, g->mean.p, g->rstd.p,
                                   g->x.type, g->gamma.p, g->s.B, g->s.C, work.p);

    if (!buf_intact(&work))
        rc = K_ARG;
    buf_free(&work);
    return rc;
}

static bool layer_backward_case(const struct kern *kern, const struct given *g)
{
    const int64_t n = g->s.B * g->s.C;
    struct buf dx = buf_new(g->x.type, n), before[2] = { buf_random(F32, g->s.C, 5, 1), buf_random(F32, g->s.C, 6, 1) };
    struct buf dgamma = buf_copy(&before[0]), dbeta = buf_copy(&before[1]), d = buf_copy(&g->dy);
    double largest = 0;
    bool ok = layer_backward(kern, 1, g, dx.p, dgamma.p, dbeta.p, g->dy.p) == K_OK;

    for (int64_t i = 0; i < g->s.B; i++)
        largest = fmax(largest, g->r[i]);
    buf_read(&dgamma);
    buf_read(&dbeta);
    ok &= buf_near(&dx, g->d.dx, kit_rel[g->x.type], 5e-6 * largest, "%s: dx", g->s.why) && buf_intact(&dx);
    ok &= params_near(&dgamma, &before[0], g->d.dgamma, g->d.dgamma_size, "dgamma", g->s.why);
    ok &= params_near(&dbeta, &before[1], g->d.dbeta, g->d.dbeta_size, "dbeta", g->s.why);
    ok &= layer_backward(kern, 2, g, d.p, NULL, NULL, d.p) == K_OK && buf_same(&dx, &d, "%s: in place", g->s.why);
    for (int threads = 2; threads <= 3; threads++) {
        struct buf a = buf_copy(&before[0]), b = buf_copy(&before[1]);
        ok &= layer_backward(kern, threads, g, d.p, a.p, b.p, g->dy.p) == K_OK
            && buf_same(&dx, &d, "%s: threads", g->s.why) && buf_same(&dgamma, &a, "%s: threads", g->s.why)
            && buf_same(&dbeta, &b, "%s: threads", g->s.why);
        buf_free(&a);
        buf_free(&b);
    }
    buf_free(&dx);
    buf_free(&dgamma);
    buf_free(&dbeta);
    buf_free(&d);
    buf_free(&before[0]);
    buf_free(&before[1]);
    return ok;
}

/* ---- the tests ---- */

/* sum(dy y) in doubles: what the differences are taken of */
static double objective(const struct given *g)
{
    double *y = doubles(g->s.B * g->s.HW * g->s.C), sum = 0;

    stats_ref(g->m, g->r, g->x.v, &g->s, g->ld);
    norm_ref(y, g->x.v, g->m, g->r, g->gamma.v, g->beta.v, &g->s, g->ld, g->act);
    for (int64_t i = 0; i < g->s.B * g->s.HW * g->s.C; i++)
        sum += g->dy.v[i] * y[i];
    free(y);
    return sum;
}

static bool slope_is(const struct given *g, double *v, double want, const char *what)
{
    const double h = 1e-5, was = *v;
    double up, down;

    *v = was + h;
    up = objective(g);
    *v = was - h;
    down = objective(g);
    *v = was;
    if (fabs((up - down) / (2 * h) - want) <= 1e-7 * (1 + fabs(want)))  /* h^2 and 1e-16/h of the objective's size */
        return true;
    tap_note("%s: difference %.9g, formula %.9g", what, (up - down) / (2 * h), want);
    return false;
}

static void test_reference(bool act)
{
    static const struct shape s = { "differences", 2, 5, 6, 3, 0 };
    struct given g = given_new(&s, F32, act, 0);
    bool ok = true;

    for (int64_t i = 0; i < g.x.n; i += 7)
        ok &= slope_is(&g, &g.x.v[i], g.d.dx[i], "dx");
    for (int64_t c = 0; c < s.C; c++) {
        ok &= slope_is(&g, &g.gamma.v[c], g.d.dgamma[c], "dgamma");
        ok &= slope_is(&g, &g.beta.v[c], g.d.dbeta[c], "dbeta");
    }
    tap_ok(ok, "the backward reference agrees with differences%s", act ? ", SiLU" : "");
    given_free(&g);
}

static void test_group_norm(enum dtype type, bool act)
{
    const struct kern *kern;
    bool ok[8] = { 0 }, ok_back[8] = { 0 };

    memset(ok, true, sizeof ok);
    memset(ok_back, true, sizeof ok_back);
    for (size_t i = 0; i < LEN(shapes); i++) {
        struct given g = given_new(&shapes[i], type, act, 0);
        for (int t = 0; (kern = kit_twin(t)); t++) {
            ok[t] &= group_forward_case(kern, &g);
            ok_back[t] &= group_backward_case(kern, &g);
        }
        given_free(&g);
    }
    for (int t = 0; (kern = kit_twin(t)); t++) {
        tap_ok(ok[t], "%s: group_norm, type %d%s", kern->name, type, act ? ", SiLU" : "");
        tap_ok(ok_back[t], "%s: group_norm_back, type %d%s", kern->name, type, act ? ", SiLU" : "");
    }
}

static void test_layer_norm(enum dtype type)
{
    const struct kern *kern;
    bool ok[8], ok_back[8];

    memset(ok, true, sizeof ok);
    memset(ok_back, true, sizeof ok_back);
    for (size_t i = 0; i < LEN(rows); i++) {
        struct given g = given_new(&rows[i], type, false, 0);
        for (int t = 0; (kern = kit_twin(t)); t++) {
            ok[t] &= layer_forward_case(kern, &g);
            ok_back[t] &= layer_backward_case(kern, &g);
        }
        given_free(&g);
    }
    for (int t = 0; (kern = kit_twin(t)); t++) {
        tap_ok(ok[t], "%s: layer_norm, type %d", kern->name, type);
        tap_ok(ok_back[t], "%s: layer_norm_back, type %d", kern->name, type);
    }
}

/* A mean of 100 standard deviations over groups of 163840 elements, and over rows: one-pass sums of squares would lose
 * the variance's fourth digit, a running f32 sum the mean's fifth. x - mean is exact but for the mean's own rounding,
 * half an f32 unit of 150: 8e-6, which rstd = 2/3 and |gamma| < 4 carry into y. */
static void test_far_mean(const struct kern *kern)
{
    static const struct shape s[] = { { "group", 1, 4096, 80, 2, 0 }, { "row", 2, 1, 163840, 1, 0 } };

    for (size_t i = 0; i < LEN(s); i++) {
        struct given g = given_new(&s[i], F32, false, 150);
        struct buf y = buf_new(F32, g.x.n), mean = buf_new(F32, 2), rstd = buf_new(F32, 2);
        bool ok = i ? layer_forward(kern, 2, &g, y.p, mean.p, rstd.p, g.x.p) == K_OK
                    : group_forward(kern, 2, &g, &y, &mean, &rstd) == K_OK;
        ok &= buf_near(&mean, g.m, 0x1p-24, 0, "mean") && buf_near(&rstd, g.r, 1.5e-7, 0, "rstd");
        ok &= buf_near(&y, g.y, 0, 4 * 8e-6, "y");
        tap_ok(ok, "%s: a %s of 163840 elements, mean 100 times their deviation", kern->name, s[i].why);
        buf_free(&y);
        buf_free(&mean);
        buf_free(&rstd);
        given_free(&g);
    }
}

/* More images than scratch holds sums of: they come in rounds. */
static void test_rounds(void)
{
    static const struct shape s = { "rounds", 200, 8, 1024, 1024, 0 };
    struct given g = given_new(&s, F32, false, 0);
    const struct kern *kern;

    for (int i = 0; (kern = kit_twin(i)); i++)
        tap_ok(group_forward_case(kern, &g), "%s: 200 images of 1024 groups", kern->name);
    given_free(&g);
}

/* A constant has no variance at all: rstd is 1/sqrt(eps) to the last bit and y is beta. */
static void test_constant(const struct kern *kern)
{
    static const struct shape s = { "constant", 1, 1000, 20, 2, 0 };
    struct given g = given_new(&s, F32, false, 0);
    struct buf y = buf_new(F32, g.x.n), mean = buf_new(F32, 2), rstd = buf_new(F32, 2);
    bool ok;

    for (int64_t i = 0; i < g.x.n; i++)
        buf_set(&g.x, i, 12345.678);
    stats_ref(g.m, g.r, g.x.v, &s, g.ld);
    norm_ref(g.y, g.x.v, g.m, g.r, g.gamma.v, g.beta.v, &s, g.ld, false);
    ok = group_forward(kern, 1, &g, &y, &mean, &rstd) == K_OK && buf_near(&rstd, g.r, 0x1p-23, 0, "rstd")
        && buf_near(&y, g.y, 0x1p-23, 0, "y");
    tap_ok(ok, "%s: a constant map", kern->name);
    buf_free(&y);
    buf_free(&mean);
    buf_free(&rstd);
    given_free(&g);
}

/* An infinity or NaN must reach the output: it is how a training step learns that it overflowed. */
static void test_nan(const struct kern *kern)
{
    static const struct shape s = { "nan", 1, 50, 20, 2, 0 };
    struct given g = given_new(&s, F32, true, 0);
    struct buf y = buf_new(F32, g.x.n), mean = buf_new(F32, 2), rstd = buf_new(F32, 2);
    const float nan = NAN;
    int64_t n_nan = 0;

    memcpy(element(&g.x, 25 * 20 + 3), &nan, sizeof nan);
    group_forward(kern, 1, &g, &y, &mean, &rstd);
    buf_read(&y);
    buf_read(&mean);
    buf_read(&rstd);
    for (int64_t i = 0; i < y.n; i++)
        n_nan += isnan(y.v[i]) && i % 20 < 10;
    for (int64_t i = 0; i < y.n; i++)
        n_nan -= isnan(y.v[i]) && i % 20 >= 10;
    tap_ok(n_nan == 500 && isnan(mean.v[0]) && isnan(rstd.v[0]) && isfinite(rstd.v[1]),
           "%s: a NaN spoils its group and no other", kern->name);
    buf_free(&y);
    buf_free(&mean);
    buf_free(&rstd);
    given_free(&g);
}

static void test_arguments(const struct kern *kern)
{
    struct kctx *k = kit_ctx(kern, 1), small = *k;
    float p[64] = { 0 };
    bool ok = kern->group_norm(k, p, 4, p, p, p, 4, F32, p, p, 1, 4, 4, 3, 1e-5f, false) == K_ARG;

    small.scratch_bytes = 64;
    ok &= kern->group_norm(&small, p, 4, p, p, p, 4, F32, p, p, 1, 4, 4, 2, 1e-5f, false) == K_SCRATCH;
    ok &= kern->group_norm(k, p, 3, p, p, p, 4, F32, p, p, 1, 4, 4, 2, 1e-5f, false) == K_ARG;
    ok &= kern->group_norm(k, p, 4, p, p, p, 3, F32, p, p, 1, 4, 4, 2, 1e-5f, false) == K_ARG;
    ok &= kern->group_norm(k, p, 4, p, p, p, 4, N_DTYPE, p, p, 1, 4, 4, 2, 1e-5f, false) == K_ARG;
    ok &= kern->group_norm(k, NULL, 4, NULL, NULL, NULL, 4, F32, NULL, NULL, 0, 4, 4, 2, 1e-5f, false) == K_OK;
    ok &= kern->group_norm_back(k, p, p, NULL, p, 4, p, 4, p, p, F32, p, p, 1, 4, 4, 2, false, p) == K_ARG;
    ok &= kern->group_norm_back(k, p, NULL, NULL, p, 4, p, 4, p, p, F32, p, p, 1, 0, 4, 2, false, p) == K_OK;
    ok &= kern->layer_norm(k, p, p, NULL, p, F32, p, p, 1, 4, 1e-5f) == K_ARG;
    ok &= kern->layer_norm(k, p, p, p, p, F32, p, p, -1, 4, 1e-5f) == K_ARG;
    ok &= kern->layer_norm(k, NULL, NULL, NULL, NULL, F32, NULL, NULL, 0, 4, 1e-5f) == K_OK;
    ok &= kern->layer_norm_back(k, p, NULL, p, p, p, p, p, F32, p, 1, 4, p) == K_ARG;
    ok &= kern->layer_norm_back(k, p, NULL, NULL, p, p, p, p, F32, p, 4, 0, p) == K_OK;
    tap_ok(ok, "%s: bad arguments are refused, sizes of 0 do nothing", kern->name);
}

int main(void)
{
    const struct kern *kern;

    test_reference(false);
    test_reference(true);
    for (int t = 0; t < N_DTYPE; t++) {
        test_group_norm((enum dtype)t, false);
        test_group_norm((enum dtype)t, true);
        test_layer_norm((enum dtype)t);
    }
    test_rounds();
    for (int i = 0; (kern = kit_twin(i)); i++) {
        test_far_mean(kern);
        test_constant(kern);
        test_nan(kern);
        test_arguments(kern);
    }
    return tap_done();
}
