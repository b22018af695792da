/* tests/t_cuda_attn.c: attention on the device as on the CPU. */
#include "tests/cuda_kit.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/tensor.h"
#include "kernels/cuda_gemm.h"

/* q, k and v are thirds of one projection (fused), or have rows of their own, `gap` elements longer than needed. */
struct shape {
    int64_t B, N, Tq, Tk, D;
    bool causal, fused;
    int64_t gap;
    double size;                        /* of the scores, about */
    bool lse;
};

/* A score of 80 carries some 80 roundings of f32, which become P's relative error. */
static double near_of(const struct shape *c, enum dtype t)
{
    return t == F32 && c->size > 1 ? 5e-5 : kit_near[t];
}

struct sides {
    struct mirror q, k, v, o, lse;
    struct kattn cpu, cuda;
};

static struct kattn call_on(const struct shape *c, enum dtype type)
{
    const int64_t row = c->N * c->D, ld = c->fused ? 3 * row : row + c->gap;

    return (struct kattn){ .type = type, .B = c->B, .N = c->N, .Tq = c->Tq, .Tk = c->Tk, .D = c->D, .ldq = ld,
                           .ldk = ld, .ldv = ld, .ldo = row + c->gap, .causal = c->causal,
                           .scale = (float)(c->size / sqrt((double)c->D)) };
}

static const void *behind(const void *p, enum dtype t, int64_t n)
{
    return (const char *)p + (size_t)n * dtype_bytes(t);
}

static struct sides sides_new(const struct shape *c, enum dtype t)
{
    struct sides s = { .cpu = call_on(c, F32), .cuda = call_on(c, t) };
    const int64_t row = c->N * c->D, ld = s.cpu.ldq;

    s.q = mirror_random(t, c->B * c->Tq * ld, 1, 1);
    s.k = c->fused ? s.q : mirror_random(t, c->B * c->Tk * ld, 2, 1);
    s.v = c->fused ? s.q : mirror_random(t, c->B * c->Tk * ld, 3, 1);
    s.o = mirror_new(t, c->B * c->Tq * s.cpu.ldo);
    s.cpu.q = s.q.f, s.cuda.q = s.q.dev;
    s.cpu.k = behind(s.k.f, F32, c->fused ? row : 0), s.cuda.k = behind(s.k.dev, t, c->fused ? row : 0);
    s.cpu.v = behind(s.v.f, F32, c->fused ? 2 * row : 0), s.cuda.v = behind(s.v.dev, t, c->fused ? 2 * row : 0);
    s.cpu.o = s.o.f, s.cuda.o = s.o.dev;
    if (c->lse) {
        s.lse = mirror_new(F32, c->B * c->N * c->Tq);
        s.cpu.lse = s.lse.f, s.cuda.lse = s.lse.dev;
    }
    return s;
}

/* Gaps between rows stay as they were. */
static bool rows_near(struct mirror *o, const struct shape *c, double rel)
{
    const int64_t row = c->N * c->D, ld = row + c->gap;
    const size_t bytes = (size_t)o->n * dtype_bytes(o->type);
    double diff = 0, norm = 0;
    void *again;
    float *got;
    bool ok;

    if (!c->gap)
        return mirror_near(o, rel, "o");
    got = malloc((size_t)o->n * sizeof *got);
    again = malloc(bytes);
    mirror_read(o, got);
    ok = !dev_cuda_get(kit_queue, again, o->dev, bytes) && !memcmp(again, o->first, bytes);
    for (int64_t i = 0; i < o->n; i++)
        if (i % ld >= row) {
            ok &= isnan(got[i]) != 0;
        } else {
            diff += ((double)got[i] - (double)o->f[i]) * ((double)got[i] - (double)o->f[i]);
            norm += (double)o->f[i] * (double)o->f[i];
        }
    free(got);
    free(again);
    ok &= sqrt(diff) <= rel * sqrt(norm);
    if (!ok)
        tap_note("o: relative %.3g, or a gap was written, or other bits the second time", sqrt(diff / norm));
    return ok;
}

static bool one(const struct shape *c, enum dtype t)
{
    struct sides s = sides_new(c, t);
    bool ok = kit_cpu->attn(kit_cpu_ctx(), &s.cpu) == K_OK;

    CUDA_TWICE(&s.o, ok &= kit_cuda->attn(kit_cuda_ctx(), &s.cuda) == K_OK);
    ok &= rows_near(&s.o, c, near_of(c, t));
    if (c->lse)
        ok &= mirror_near(&s.lse, c->size > 1 ? 1e-5 : 2e-6, "lse");
    if (!ok)
        tap_note("%s B %d N %d Tq %d Tk %d D %d%s%s gap %d size %g", dtype_name(t), (int)c->B, (int)c->N, (int)c->Tq,
                 (int)c->Tk, (int)c->D, c->causal ? " causal" : "", c->fused ? " fused" : "", (int)c->gap, c->size);
    cuda_kit_release();
    return ok;
}

static bool all_types(const struct shape *c)
{
    bool ok = true;

    for (int t = 0; t < N_DTYPE; t++)
        ok &= one(c, (enum dtype)t);
    return ok;
}

/* Every D, with lengths that change from one to the next. */
static void widths(void)
{
    static const int64_t odd[] = { 1, 3, 33, 512 };
    static const int64_t T[] = { 65, 7, 77, 64, 130, 1, 63 };

    for (int i = 0; i < 24; i++) {
        const int64_t D = i < 20 ? 8 * i + 8 : odd[i - 20];
        const struct shape c = { 1, 1, T[i % 7], T[(i + i / 7 + 2) % 7], D, false, false, i % 3 * 8, 1, i % 2 };
        const struct shape causal = { 1, 2, T[i % 7] / 2 + 33, T[i % 7] / 2 + 33, D, true, true, 0, 1, i % 2 == 0 };

        tap_ok(all_types(&c) && all_types(&causal), "D = %d", (int)D);
    }
}

/* Every pair of lengths. */
static void lengths(void)
{
    static const int64_t T[] = { 1, 7, 63, 64, 65, 77, 128, 200 };
    bool ok;

    for (size_t i = 0; i < LEN(T); i++) {
        ok = true;
        for (size_t j = 0; j < LEN(T); j++) {
            const struct shape c = { 1, 1, T[i], T[j], 40, false, false, 0, 1, true };
            ok &= one(&c, (i + j) % 2 ? F16 : BF16);
        }
        tap_ok(ok, "%d queries", (int)T[i]);
    }
    for (size_t i = 0; i < LEN(T); i++) {
        const struct shape c = { 1, 1, T[i], T[i], i % 2 ? 64 : 160, true, true, 0, 1, true };
        tap_ok(one(&c, F16) && one(&c, BF16), "%d queries, causal", (int)T[i]);
    }
}

static void others(void)
{
    static const struct {
        const char *why;
        struct shape c;
    } cases[] = {
        { "images and heads, one projection", { 2, 3, 65, 65, 40, false, true, 0, 1, true } },
        { "images and heads, longer rows", { 3, 2, 70, 35, 80, false, false, 16, 1, true } },
        { "rows that are no multiple of 16 bytes", { 2, 2, 33, 35, 40, false, false, 3, 1, true } },
        { "sharp, D = 40", { 1, 2, 65, 200, 40, false, false, 0, 16, true } },
        { "sharp, D = 160", { 1, 1, 64, 130, 160, false, false, 0, 16, true } },
        { "sharp, D = 64, causal", { 1, 1, 130, 130, 64, true, true, 0, 16, true } },
        { "sharp, odd D", { 1, 1, 20, 70, 13, false, false, 0, 16, true } },
        { "flat", { 1, 1, 65, 77, 40, false, false, 0, 1e-30, true } },
        { "scale 0", { 1, 1, 33, 40, 40, false, false, 0, 0, true } },
        { "negative scale", { 1, 1, 33, 40, 40, false, false, 0, -1, true } },
    };

    for (size_t i = 0; i < LEN(cases); i++)
        tap_ok(all_types(&cases[i].c), "%s", cases[i].why);
}

/* An image of a batch has the bits that it has alone. So has a query among others, if not by products. */
static void alone(void)
{
    static const int64_t D[] = { 40, 160, 33, 13, 413 };

    for (size_t i = 0; i < LEN(D); i++) {
        const struct shape c = { 2, 2, 70, 90, D[i], false, false, 0, 4, false };
        struct sides s = sides_new(&c, F16);
        const int64_t n = D[i] == 413 ? 70 : 10;
        struct mirror few = mirror_new(F16, n * s.cuda.ldo);
        struct kattn a = s.cuda;
        float *all = malloc((size_t)s.o.n * sizeof *all);
        float *some = malloc((size_t)few.n * sizeof *some);
        bool ok = kit_cuda->attn(kit_cuda_ctx(), &a) == K_OK;

        a.B = 1;
        a.Tq = n;
        a.q = behind(a.q, F16, (140 - n) * a.ldq);
        a.k = behind(a.k, F16, 90 * a.ldk);
        a.v = behind(a.v, F16, 90 * a.ldv);
        a.o = few.dev;
        ok &= kit_cuda->attn(kit_cuda_ctx(), &a) == K_OK;
        mirror_read(&s.o, all);
        mirror_read(&few, some);
        tap_ok(ok && !memcmp(some, all + (140 - n) * a.ldo, (size_t)few.n * sizeof *some),
               "alone, D = %d", (int)D[i]);
        free(all);
        free(some);
        cuda_kit_release();
    }
}

/* By products: one head of 512, as many rows at a time as scratch holds. */
static void chunks(void)
{
    static const struct shape shapes[] = {
        { 1, 1, 70, 90, 512, false, false, 0, 1, true },
        { 2, 3, 65, 65, 512, true, true, 0, 4, true },
        { 2, 2, 50, 33, 801, false, false, 3, 1, true },
        { 1, 3, 70, 1100, 27, false, false, 1, 1, true },
    };
    struct kctx *k = kit_cuda_ctx();
    const size_t all = k->scratch_bytes, few[] = { 0, 7000, 20000, 300000 };

    for (size_t i = 0; i < LEN(shapes); i++)
        for (size_t j = 0; j < LEN(few); j++) {
            if (few[j])
                k->scratch_bytes = CUDA_WORKSPACE + few[j] / 16 * 16;
            tap_ok(j ? one(&shapes[i], (enum dtype)(j - 1)) : all_types(&shapes[i]), "D = %d with %d bytes of scratch",
                   (int)shapes[i].D, (int)few[j]);
            k->scratch_bytes = all;
        }
}

/* Stable Diffusion 1.5 at 512 x 512: the denoiser's levels, text behind them, text encoder, autoencoder;
 * more images and more heads than a grid has. */
static void full(void)
{
    static const struct shape shapes[] = {
        { 2, 8, 4096, 4096, 40, false, true, 0, 1, true },
        { 2, 8, 1024, 1024, 80, false, true, 0, 1, true },
        { 2, 8, 256, 256, 160, false, true, 0, 1, true },
        { 2, 8, 64, 64, 160, false, true, 0, 1, true },
        { 2, 8, 4096, 77, 40, false, false, 0, 1, false },
        { 2, 8, 1024, 77, 80, false, false, 0, 1, false },
        { 2, 8, 256, 77, 160, false, false, 0, 1, false },
        { 2, 12, 77, 77, 64, true, true, 0, 1, false },
        { 1, 1, 4096, 4096, 512, false, false, 0, 1, false },
        { 1, 8, 4081, 4081, 40, false, true, 0, 4, true },
        { 65540, 1, 1, 2, 8, false, false, 0, 1, true },
        { 1, 65540, 2, 1, 8, false, false, 0, 1, true },
    };

    for (size_t i = 0; i < LEN(shapes); i++)
        tap_ok(all_types(&shapes[i]), "full size: %d x %d, D = %d", (int)shapes[i].Tq, (int)shapes[i].Tk,
               (int)shapes[i].D);
}

static void refused(void)
{
    const struct shape c = { 1, 1, 8, 8, 8, false, false, 0, 1, false };
    struct sides s = sides_new(&c, F16);
    struct kattn a = s.cuda;
    struct kctx k = *kit_cuda_ctx();
    bool ok = true;

    a.ldk = 7;
    ok &= kit_cuda->attn(kit_cuda_ctx(), &a) == K_ARG;
    a = s.cuda, a.Tq = -1;
    ok &= kit_cuda->attn(kit_cuda_ctx(), &a) == K_ARG;
    a = s.cuda, a.causal = true, a.Tq = 7;
    ok &= kit_cuda->attn(kit_cuda_ctx(), &a) == K_ARG;
    a = s.cuda, a.type = N_DTYPE;
    ok &= kit_cuda->attn(kit_cuda_ctx(), &a) == K_ARG;
    a = s.cuda, a.Tk = 0;
    ok &= kit_cuda->attn(kit_cuda_ctx(), &a) == K_OK;
    a = s.cuda, a.D = a.ldq = a.ldk = a.ldv = a.ldo = 1000, a.Tk = a.Tq = 9;
    k.scratch_bytes = CUDA_WORKSPACE + 16;
    ok &= kit_cuda->attn(&k, &a) == K_SCRATCH;
    tap_ok(ok, "sizes that the contract does not allow, and none");
    cuda_kit_release();
}

int main(void)
{
    if (!cuda_kit_begin())
        return 0;
    widths();
    lengths();
    others();
    alone();
    chunks();
    refused();
    if (!cuda_kit_small())
        full();
    cuda_kit_odd = true;
    others();
    return cuda_kit_end();
}
