/* tests/t_cuda_pack.c: packs of the device, from weights of the host and of the device, against their definition
 * (kernels/cuda_product.h): rows of taps of channels, channels padded with zeros to 8. */
#include "tests/cuda_kit.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/tensor.h"

static const struct pack_case {
    const char *why;
    enum kpack_kind kind;
    int64_t Co, Ci;
    int KH, KW;
    int64_t ci_first, ci_after;
    bool glu;
} cases[] = {
    { "linear",                K_PACK_FWD, 24, 40, 1, 1, 0, 0, false },
    { "linear, odd",           K_PACK_FWD, 13, 37, 1, 1, 0, 0, false },
    { "one weight",            K_PACK_FWD, 1, 1, 1, 1, 0, 0, false },
    { "3x3",                   K_PACK_FWD, 33, 16, 3, 3, 0, 0, false },
    { "3x3, latents",          K_PACK_FWD, 16, 4, 3, 3, 0, 0, false },
    { "2x5",                   K_PACK_FWD, 7, 9, 2, 5, 0, 0, false },
    { "a range of channels",   K_PACK_FWD, 12, 16, 3, 3, 8, 5, false },
    { "the last channels",     K_PACK_FWD, 12, 16, 1, 1, 8, 0, false },
    { "gated",                 K_PACK_FWD, 34, 24, 1, 1, 0, 0, true },
    { "gated 3x3, a range",    K_PACK_FWD, 10, 11, 3, 3, 1, 2, true },
    { "phases",                K_PACK_UP, 24, 16, 3, 3, 0, 0, false },
    { "phases, a range, odd",  K_PACK_UP, 9, 13, 3, 3, 3, 4, false },
};

static struct kpack kpack_of(const struct pack_case *s, enum dtype src, enum dtype dst)
{
    return (struct kpack){ s->kind, src, dst, s->Co, s->Ci, s->KH, s->KW, s->ci_first,
                           s->ci_first + s->Ci + s->ci_after, s->glu };
}

/* ---- definition ---- */

/* Weights of 3x3 that meet in tap t (0, 1) of a phase, along one axis: first and how many. */
static void met(int phase, int t, int *first, int *n)
{
    *first = phase == 0 ? t : 2 * t;
    *n = phase == t ? 1 : 2;
}

static float weight(const struct kpack *p, const float *w, int phase, int64_t co, int tap, int64_t c)
{
    int y0 = tap / p->KW, x0 = tap % p->KW, ny = 1, nx = 1;
    float sum = 0;

    if (p->kind == K_PACK_UP) {
        met(phase / 2, tap / 2, &y0, &ny);
        met(phase % 2, tap % 2, &x0, &nx);
    }
    for (int y = y0; y < y0 + ny; y++)
        for (int x = x0; x < x0 + nx; x++)
            sum += w[(co * p->KH * p->KW + y * p->KW + x) * p->ci_total + p->ci_first + c];
    return sum;
}

/* Value at `at` of a pack, in f32. */
static float defined(const struct kpack *p, const float *w, int64_t at)
{
    const int64_t Cp = (p->Ci + 7) / 8 * 8, taps = p->kind == K_PACK_UP ? 4 : p->KH * p->KW, c = at % Cp;
    const int64_t row = at / Cp / taps % p->Co;
    const int64_t co = !p->glu ? row : row % 2 ? p->Co / 2 + row / 2 : row / 2;

    return c < p->Ci ? weight(p, w, (int)(at / Cp / taps / p->Co), co, (int)(at / Cp % taps), c) : 0;
}

/* ---- running ---- */

/* From the host (0), through little scratch (1), from the device (2). The host's weights change when pack returns. */
static bool pack_from(int way, void *dst, const struct kpack *p, const struct mirror *w)
{
    struct kctx k = *kit_cuda_ctx();
    const size_t bytes = (size_t)w->n * dtype_bytes(p->src);
    void *typed;
    bool ok;

    if (way == 2)
        return kit_cuda->pack(&k, dst, p, w->dev) == K_OK;
    typed = malloc(bytes);
    dtype_from_f32(typed, p->src, w->f, w->n);
    if (way == 1)
        k.scratch_bytes = (size_t)(2 * p->KH * p->KW * p->ci_total) * dtype_bytes(p->src);
    ok = kit_cuda->pack(&k, dst, p, typed) == K_OK;
    memset(typed, 0xff, bytes);
    free(typed);
    return ok;
}

static bool check(const struct pack_case *s, enum dtype src, enum dtype dst)
{
    const struct kpack p = kpack_of(s, src, dst);
    const struct mirror w = mirror_random(src, s->Co * s->KH * s->KW * p.ci_total, 1, 1);
    const int64_t n = (int64_t)(kit_cuda->pack_bytes(&p) / dtype_bytes(dst));
    float *want = malloc(sizeof *want * (size_t)(n + 1));
    bool ok = n == (s->kind == K_PACK_UP ? 16 : s->KH * s->KW) * s->Co * ((s->Ci + 7) / 8 * 8);

    for (int64_t i = 0; i < n; i++)
        want[i] = defined(&p, w.f, i);
    for (int way = 0; way < 3; way++) {
        struct mirror got = mirror_of(dst, n, want);

        CUDA_TWICE(&got, ok &= pack_from(way, got.dev, &p, &w));
        ok &= mirror_near(&got, 0, "%s, %s to %s, way %d", s->why, dtype_name(src), dtype_name(dst), way);
    }
    free(want);
    cuda_kit_release();
    return ok;
}

/* ---- arguments ---- */

static const char *spoil(struct kpack *p, int i)
{
    switch (i) {
    case 0: return p->Co = -1, "negative Co";
    case 1: return p->Ci = -1, "negative Ci";
    case 2: return p->src = N_DTYPE, "no such type";
    case 3: return p->dst = N_DTYPE, "no such type of pack";
    case 4: return p->kind = K_N_PACK, "no such kind";
    case 5: return p->ci_first = 1, "more channels than there are";
    case 6: return p->kind = K_PACK_UP, p->KH = 5, "phases of 5x3";
    case 7: return p->glu = true, p->Co = 7, "half a gate";
    case 8: return p->kind = K_PACK_UP, p->glu = true, "gated phases";
    case 9: return p->KH = 0, "no taps";
    default: return NULL;
    }
}

static void test_arguments(void)
{
    static const float w[8 * 9 * 8];
    struct kpack p;
    struct kctx small = *kit_cuda_ctx();
    bool ok = true;

    for (int i = 0;; i++) {
        const char *what;

        p = (struct kpack){ K_PACK_FWD, F32, F32, 8, 8, 3, 3, 0, 8, false };
        what = spoil(&p, i);
        if (!what)
            break;
        if (kit_cuda->pack(kit_cuda_ctx(), NULL, &p, w) != K_ARG || kit_cuda->pack_bytes(&p)) {
            tap_note("takes: %s", what);
            ok = false;
        }
    }
    tap_ok(ok, "what is wrong is refused");
    p = (struct kpack){ K_PACK_DX, F32, F32, 8, 8, 3, 3, 0, 8, false };
    ok = kit_cuda->pack(kit_cuda_ctx(), NULL, &p, w) == K_MISSING && !kit_cuda->pack_bytes(&p);
    p.kind = K_PACK_UP_DX;
    tap_ok(ok && kit_cuda->pack(kit_cuda_ctx(), NULL, &p, w) == K_MISSING && !kit_cuda->pack_bytes(&p),
           "packs for gradients are missing, which is said");
    p = (struct kpack){ K_PACK_FWD, F32, F16, 8, 0, 3, 3, 0, 8, false };
    ok = kit_cuda->pack(kit_cuda_ctx(), NULL, &p, w) == K_OK;
    p.Ci = 8, p.Co = 0;
    tap_ok(ok && kit_cuda->pack(kit_cuda_ctx(), NULL, &p, w) == K_OK, "empty packs");
    p.Co = 8;
    small.scratch_bytes = 64;
    tap_ok(kit_cuda->pack(&small, small.scratch, &p, w) == K_SCRATCH, "too little scratch is said");
}

int main(void)
{
    if (!cuda_kit_begin())
        return 0;
    for (size_t i = 0; i < LEN(cases); i++) {
        bool ok = true;

        for (int t = 0; t < N_DTYPE * N_DTYPE; t++)
            ok &= check(&cases[i], (enum dtype)(t % N_DTYPE), (enum dtype)(t / N_DTYPE));
        tap_ok(ok, "%s, from and to all types", cases[i].why);
    }
    test_arguments();
    return cuda_kit_end();
}
