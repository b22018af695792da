#include "tests/attn_case.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/tap.h"

static void *side_p(const struct side *s)
{
    return (char *)s->b.p + (size_t)s->first * dtype_bytes(s->b.type);
}

double side_v(const struct side *s, int64_t row, int64_t i)
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

struct buf side_dense(const struct side *s)
{
    const size_t size = dtype_bytes(s->b.type);
    struct buf d = buf_new(s->b.type, s->rows * s->n);

    for (int64_t r = 0; r < s->rows; r++)
        memcpy((char *)d.p + (size_t)(r * s->n) * size, (char *)side_p(s) + (size_t)(r * s->ld) * size,
               (size_t)s->n * size);
    return d;
}

bool side_intact(const struct side *s)
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

void side_poison(struct side *s)
{
    buf_poison(&s->b);
}

struct work work_new(const struct shape *c, enum dtype type, double size)
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

void work_free(struct work *w)
{
    struct side *s[] = { &w->q, &w->k, &w->v, &w->o, &w->d_o, &w->dq, &w->dk, &w->dv };

    for (size_t i = 0; i < LEN(s); i++)
        buf_free(&s[i]->b);
    buf_free(&w->lse);
}

struct kattn work_call(const struct work *w, bool with_lse)
{
    const struct shape *c = w->c;

    return (struct kattn){
        .type = w->type, .B = c->B, .N = c->N, .Tq = c->Tq, .Tk = c->Tk, .D = c->D,
        .q = side_p(&w->q), .k = side_p(&w->k), .v = side_p(&w->v), .o = side_p(&w->o),
        .ldq = w->q.ld, .ldk = w->k.ld, .ldv = w->v.ld, .ldo = w->o.ld,
        .lse = with_lse ? w->lse.p : NULL, .scale = (float)w->scale, .causal = c->causal,
    };
}

int work_back(const struct kern *kern, int n_threads, struct work *w)
{
    struct kattn_back g = {
        .f = work_call(w, true), .d_o = side_p(&w->d_o), .ldd_o = w->d_o.ld,
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

void ref_forward(double *o, double *lse, const struct work *w)
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

void ref_backward(double *dq, double *dk, double *dv, const struct work *w)
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
