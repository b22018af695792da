/* tests/t_cuda_plan.c: how convolutions are cut into products for the device, what fits the scratch, and how well tiles
 * fill an H200. No device is asked. */
#include "kernels/cuda_product.h"

#include <math.h>
#include <string.h>

#include "kernels/cuda_gemm.h"
#include "tests/kit.h"
#include "tests/tap.h"

enum { N_SM = 132 };

static void *const at = (void *)(uintptr_t)4096;        /* never read */

static struct kconv conv_of(const struct kgeom *g, enum kpack_kind kind, enum dtype type, int64_t B)
{
    return (struct kconv){ .dir = K_FWD, .B = B, .n_part = 1, .alpha = 1, .y = at, .y_type = type, .ldy = g->Co,
                           .part = { { at, type, g->Ci, at, type, kind, false, *g } } };
}

static struct kgeom geom(int64_t side, int64_t Ci, int64_t Co, int K, int stride)
{
    return (struct kgeom){ side, side, Ci, (side + stride - 1) / stride, (side + stride - 1) / stride, Co, K, K, stride,
                           K / 2, K / 2, 1 };
}

/* ---- cutting ---- */

/* What a product reads: pixel of x (or -1) for an output pixel and a tap of the part, written from the header. */
static int64_t reads(const struct product *p, const struct product_part *a, int64_t i, int64_t j, int tap)
{
    const int64_t y = i * a->stride - a->pad_t + tap / a->KW, x = j * a->stride - a->pad_l + tap % a->KW;

    if (y < 0 || x < 0 || y >= (a->up == 2 ? p->Ho : a->H) || x >= (a->up == 2 ? p->Wo : a->W))
        return -1;
    return y / a->up * a->W + x / a->up;
}

/* Raw taps that meet in tap t of a phase, along one axis. */
static bool meets(int phase, int t, int raw)
{
    return phase == 0 ? (t == 0 ? raw == 0 : raw > 0) : (t == 0 ? raw < 2 : raw == 2);
}

/* Every raw tap of every pixel of y is in one product's tap that reads the same pixel. */
static bool phases_cover(const struct product p[4], const struct kgeom *g)
{
    for (int64_t i = 0; i < g->Ho; i++)
        for (int64_t j = 0; j < g->Wo; j++)
            for (int raw = 0; raw < 9; raw++) {
                const struct product *q = &p[i % 2 * 2 + j % 2];
                const int64_t y = i - 1 + raw / 3, x = j - 1 + raw % 3;
                const int64_t want = y < 0 || x < 0 || y >= g->Ho || x >= g->Wo ? -1 : y / 2 * g->W + x / 2;

                for (int tap = 0; tap < 4; tap++)
                    if (meets(q->y_i, tap / 2, raw / 3) && meets(q->y_j, tap % 2, raw % 3)
                        && reads(q, &q->part[0], i / 2, j / 2, tap) != want)
                        return false;
            }
    return true;
}

static void test_phases(void)
{
    const struct kgeom g = { 3, 5, 13, 6, 10, 24, 3, 3, 1, 1, 1, 2 };
    struct kconv c = conv_of(&g, K_PACK_UP, BF16, 2);
    struct product p[4];
    bool ok;

    c.n_part = 2;
    c.part[1] = c.part[0];
    ok = product_cut(p, &c) == 4;
    for (int i = 0; i < 4 && ok; i++) {
        ok &= p[i].y_step == 2 && p[i].y_i == i / 2 && p[i].y_j == i % 2 && p[i].Hy == 6 && p[i].Wy == 10
            && p[i].Ho == 3 && p[i].Wo == 5 && p[i].B == 2 && p[i].type == BF16 && !product_dense(&p[i])
            && p[i].n_part == 2 && p[i].part[1].KH == 2 && p[i].part[1].KW == 2 && p[i].part[1].up == 1;
        ok &= p[i].part[0].Cp == 16 && (char *)p[i].part[0].w == (char *)at + (size_t)i * 4 * 24 * 16 * 2;
    }
    tap_ok(ok, "an up-sampling pack becomes four products of 2x2 taps");
    tap_ok(ok && phases_cover(p, &g), "their taps read what the 3x3 taps would");
}

static void test_whole(void)
{
    const struct kgeom up = { 3, 5, 16, 5, 9, 24, 3, 3, 1, 1, 1, 2 }, down = { 7, 9, 16, 4, 5, 24, 3, 3, 2, 1, 1, 1 };
    struct kconv c = conv_of(&up, K_PACK_FWD, F16, 2);
    struct product p[4];

    tap_ok(product_cut(p, &c) == 1 && p[0].part[0].up == 2 && p[0].Ho == 5 && p[0].Wo == 9 && p[0].y_step == 1
               && product_dense(&p[0]) && product_rows(&p[0]) == 90 && product_depth(&p[0].part[0]) == 144,
           "up-sampling by a plain pack stays one product");
    c = conv_of(&down, K_PACK_FWD, F32, 3);
    c.bias = at, c.row_add = at, c.row_add_ld = 24, c.residual = at, c.residual_ld = 30;
    c.alpha = 2, c.act = K_ACT_SILU;
    tap_ok(product_cut(p, &c) == 1 && p[0].part[0].stride == 2 && p[0].bias == at && p[0].row_add == at
               && p[0].residual_ld == 30 && p[0].alpha == 2 && p[0].act == K_ACT_SILU && p[0].y == at && p[0].Co == 24,
           "everything that the epilogue needs is carried over");
}

static void test_types(void)
{
    const struct kgeom g = geom(4, 16, 8, 1, 1);
    struct kconv c = conv_of(&g, K_PACK_FWD, F16, 1);
    struct product p[4];
    struct product_plan plan;

    tap_ok(product_cut(p, &c) == 1 && p[0].type == F16 && product_tiles_can(&p[0]), "one 16-bit type: tiles can");
    c.part[0].pack_type = BF16;
    tap_ok(product_cut(p, &c) == 1 && p[0].type == N_DTYPE && !product_tiles_can(&p[0]), "two: tiles cannot");
    product_forced = 1 + PRODUCT_TILES;
    product_choose(&plan, &p[0], 80, N_SM, product_scratch_bytes());
    tap_ok(plan.way == PRODUCT_LT && plan.rows == 16, "and are not forced to");
    c = conv_of(&g, K_PACK_FWD, F16, 1);
    product_cut(p, &c);
    product_choose(&plan, &p[0], 80, N_SM, product_scratch_bytes());
    tap_ok(plan.way == PRODUCT_TILES, "where they can, they are");
    product_forced = 1 + PRODUCT_LT;
    product_choose(&plan, &p[0], 80, N_SM, product_scratch_bytes());
    tap_ok(plan.way == PRODUCT_LT, "and so is cuBLASLt");
    product_forced = 0;
    c = conv_of(&g, K_PACK_FWD, F32, 1);
    product_cut(p, &c);
    product_choose(&plan, &p[0], 80, N_SM, product_scratch_bytes());
    tap_ok(plan.way == PRODUCT_LT, "f32 goes through cuBLASLt");
    for (int i = 0; i < 3; i++) {
        c = conv_of(&g, K_PACK_FWD, F16, 1);
        if (i == 0)
            c.part[0].x = (char *)at + 8;
        else if (i == 1)
            c.part[0].ldx = 20;
        else
            c.part[0].g.Ci = 12;
        tap_ok(product_cut(p, &c) == 1 && !product_tiles_can(&p[0]) && !product_part_in_place(&p[0], 0),
               "pixels that are no whole vectors: neither tiles nor in place, %d", i);
    }
}

/* Predictions decide: which way may change when they have been measured, but not by chance. */
static enum product_way way_of(const struct kgeom *g, enum dtype type, int64_t B, int cc)
{
    const struct kconv c = conv_of(g, K_PACK_FWD, type, B);
    struct product p[4];
    struct product_plan plan;

    product_cut(p, &c);
    product_choose(&plan, &p[0], cc, N_SM, product_scratch_bytes());
    return plan.way;
}

static void test_ways(void)
{
    const struct kgeom conv = geom(64, 320, 320, 3, 1), linear = geom(64, 1280, 1280, 1, 1);

    tap_ok(way_of(&conv, F16, 4, 80) == PRODUCT_TILES && way_of(&linear, BF16, 4, 89) == PRODUCT_TILES,
           "before Hopper 16 bits go through tiles");
    tap_ok(way_of(&conv, BF16, 4, 90) == PRODUCT_TILES, "on Hopper what would need im2col does");
    tap_ok(way_of(&linear, BF16, 16, 90) == PRODUCT_LT, "and large plain matrices go through cuBLASLt");
}

static const char *spoil(struct kconv *c, int i)
{
    struct kgeom *g = &c->part[0].g;

    switch (i) {
    case 0: return c->n_part = 0, "no parts";
    case 1: return c->n_part = 4, "four parts";
    case 2: return c->part[0].glu = true, "a gated pack without a gate";
    case 3: return g->Ho = -1, "a negative size";
    case 4: return g->KH = 9, g->KW = 8, "72 taps";
    case 5: return c->part[0].pack_kind = K_PACK_UP, "phases of no up-sampling";
    case 6: return g->up = 2, g->Ho = 2 * g->H + 1, "more than doubled";
    case 7: return c->act = K_ACT_GEGLU, c->part[0].glu = true, g->Co = 7, "half a gate";
    case 8: return c->residual = at, c->residual_ld = 3, "residual's pixels overlap";
    default: return NULL;
    }
}

static void test_arguments(void)
{
    const struct kgeom g = geom(4, 16, 8, 3, 1);
    struct product p[4];
    struct kconv c;

    for (int i = 0;; i++) {
        const char *what;

        c = conv_of(&g, K_PACK_FWD, F32, 1);
        what = spoil(&c, i);
        if (!what)
            break;
        tap_ok(product_cut(p, &c) == K_ARG, "refused: %s", what);
    }
    c = conv_of(&g, K_PACK_FWD, F32, 1);
    c.dir = K_DX;
    tap_ok(product_cut(p, &c) == K_MISSING, "gradients are missing");
}

/* ---- cuBLASLt ---- */

static bool is_direct(const struct kconv *c)
{
    struct product p[4];
    struct product_plan plan;

    product_cut(p, c);
    product_choose(&plan, &p[0], 90, N_SM, product_scratch_bytes());
    return plan.direct;
}

static void test_direct(void)
{
    const struct kgeom g = geom(4, 16, 8, 1, 1);
    struct kconv c = conv_of(&g, K_PACK_FWD, F16, 1);
    struct product p[4];
    struct product_plan plan;

    product_cut(p, &c);
    product_choose(&plan, &p[0], 90, N_SM, product_scratch_bytes());
    tap_ok(plan.direct && plan.in_place && plan.rows == 16, "1x1: x in place, y directly");
    product_choose(&plan, &p[0], 90, N_SM, CUDA_WORKSPACE + 256);
    tap_ok(plan.rows == 16, "which needs the workspace only");
    c.residual = at, c.residual_ld = 8;
    tap_ok(is_direct(&c), "a residual is beta");
    c.bias = at;
    tap_ok(!is_direct(&c), "a bias of f32 is not for 16-bit results");
    c.y_type = F32;
    tap_ok(is_direct(&c), "but for f32");
    c.act = K_ACT_SILU;
    tap_ok(!is_direct(&c), "an activation is not");
    c.act = K_ACT_NONE, c.row_add = at, c.row_add_ld = 8;
    tap_ok(!is_direct(&c), "nor a row to add");
    c.row_add = NULL, c.y_type = BF16, c.bias = NULL;
    tap_ok(!is_direct(&c), "nor a result of the other 16-bit type");
    c.y_type = F16, c.y = (char *)at + 2;
    tap_ok(!is_direct(&c), "nor one that begins anywhere");
}

/* Convolutions of SD 1.5 at 512x512 and of its decoder. */
static const struct layer {
    int64_t side, Ci, Co;
    int K, stride, count;
} unet[] = {
    { 64, 320, 320, 3, 1, 7 },   { 64, 640, 320, 3, 1, 2 },   { 64, 960, 320, 3, 1, 1 },   { 64, 640, 640, 3, 1, 1 },
    { 64, 320, 320, 3, 2, 1 },   { 32, 320, 640, 3, 1, 1 },   { 32, 640, 640, 3, 1, 6 },   { 32, 960, 640, 3, 1, 1 },
    { 32, 1280, 640, 3, 1, 1 },  { 32, 1920, 640, 3, 1, 1 },  { 32, 1280, 1280, 3, 1, 1 }, { 32, 640, 640, 3, 2, 1 },
    { 16, 640, 1280, 3, 1, 1 },  { 16, 1280, 1280, 3, 1, 7 }, { 16, 1920, 1280, 3, 1, 1 }, { 16, 2560, 1280, 3, 1, 2 },
    { 16, 1280, 1280, 3, 2, 1 }, { 8, 1280, 1280, 3, 1, 11 }, { 8, 2560, 1280, 3, 1, 3 },
}, rest[] = {
    { 64, 4, 320, 3, 1, 1 },     { 64, 320, 4, 3, 1, 1 },     { 512, 128, 128, 3, 1, 5 },  { 512, 256, 256, 3, 1, 1 },
    { 512, 512, 512, 3, 1, 1 },  { 512, 256, 128, 1, 1, 1 },  { 512, 128, 3, 3, 1, 1 },    { 256, 512, 512, 3, 1, 1 },
    { 64, 512, 512, 3, 1, 10 },  { 1, 768, 3072, 1, 1, 1 },
};

/* All rows in portions that fit: the im2col block, sums, workspace. */
static bool fits(const struct layer *l, enum dtype type, int64_t B, size_t scratch)
{
    const struct kgeom g = geom(l->side, l->Ci, l->Co, l->K, l->stride);
    struct kconv c = conv_of(&g, K_PACK_FWD, type, B);
    struct product p[4];
    struct product_plan plan;
    int64_t rows;

    c.bias = at;
    c.act = K_ACT_SILU;
    product_cut(p, &c);
    product_choose(&plan, &p[0], 90, N_SM, scratch);
    rows = product_rows(&p[0]);
    return plan.rows > 0 && plan.rows <= rows && (plan.rows == rows || plan.rows % 128 == 0 || plan.rows < 128)
        && product_columns_bytes(&p[0], plan.rows) + (size_t)(plan.rows * l->Co) * 4 + CUDA_WORKSPACE <= scratch;
}

static bool all_fit(const struct layer *l, size_t n, size_t scratch)
{
    static const int64_t B[] = { 1, 3, 4, 64 };
    bool ok = true;

    for (size_t i = 0; i < n; i++)
        for (int t = 0; t < N_DTYPE; t++)
            for (size_t b = 0; b < LEN(B); b++)
                if (!fits(&l[i], (enum dtype)t, B[b], scratch)) {
                    tap_note("%lld: %lld to %lld, %lld images", (long long)l[i].side, (long long)l[i].Ci,
                             (long long)l[i].Co, (long long)B[b]);
                    ok = false;
                }
    return ok;
}

static void test_scratch(void)
{
    tap_ok(all_fit(unet, LEN(unet), product_scratch_bytes()), "the denoiser's layers fit the scratch");
    tap_ok(all_fit(rest, LEN(rest), product_scratch_bytes()), "the decoder's, and small ones");
    tap_ok(all_fit(unet, LEN(unet), CUDA_WORKSPACE + ((size_t)1 << 20)), "and 1 MiB, in more portions");
    tap_ok(all_fit(unet, LEN(unet), (size_t)8 << 30), "and more than 32 bits count");
    tap_ok(!fits(&unet[0], F32, 1, CUDA_WORKSPACE) && !fits(&unet[0], F32, 1, 0), "less than one row is none");
}

/* ---- tiles ---- */

/* The share of the multiplications that blocks on n_sm multiprocessors do for y, in whole waves. */
static double wave_efficiency(const struct layer *l, int64_t B, double *flops)
{
    const struct kgeom g = geom(l->side, l->Ci, l->Co, l->K, l->stride);
    const struct kconv c = conv_of(&g, K_PACK_FWD, BF16, B);
    struct product p[4];
    struct product_plan plan;
    double blocks, steps;

    product_cut(p, &c);
    product_choose(&plan, &p[0], 90, N_SM, product_scratch_bytes());
    blocks = ceil((double)product_rows(&p[0]) / plan.tile_m) * ceil((double)l->Co / plan.tile_n) * plan.split;
    steps = ceil(ceil((double)product_depth(&p[0].part[0]) / plan.tile_k) / plan.split);
    *flops = (double)(product_rows(&p[0]) * l->Co * product_depth(&p[0].part[0]));
    return *flops / (ceil(blocks / N_SM) * N_SM * plan.tile_m * plan.tile_n * steps * plan.tile_k);
}

static void test_waves(void)
{
    /* what the best tiles of 128x160 reach with any split, by counting */
    static const struct { int64_t B; double least; } want[] = { { 2, 0.89 }, { 4, 0.95 }, { 8, 0.97 }, { 64, 0.97 } };

    for (size_t i = 0; i < LEN(want); i++) {
        double sum = 0, all = 0;

        for (size_t l = 0; l < LEN(unet); l++) {
            double flops;
            const double e = wave_efficiency(&unet[l], want[i].B, &flops);

            sum += e * flops * unet[l].count;
            all += flops * unet[l].count;
        }
        tap_ok(sum / all >= want[i].least - 0.005, "%d images fill %.3f of 132 multiprocessors, at least %.2f",
               (int)want[i].B, sum / all, want[i].least);
    }
}

/* Whatever the shape, a plan is one that the tile kernel has, and its sums fit. */
static void test_plans(void)
{
    static const int64_t sizes[] = { 1, 2, 7, 63, 64, 65, 320, 1280, 5120 };
    static const int64_t depths[] = { 1, 8, 40, 1280, 23040 };
    bool ok = true;

    for (size_t m = 0; m < LEN(sizes); m++)
        for (size_t n = 0; n < LEN(sizes); n++)
            for (size_t q = 0; q < LEN(depths); q++) {
                const struct kgeom g = { 1, sizes[m], depths[q], 1, sizes[m], sizes[n], 1, 1, 1, 0, 0, 1 };
                const struct kconv c = conv_of(&g, K_PACK_FWD, F16, 1);
                const size_t scratch = (size_t)64 << 20;
                const int cc = (m + n) % 2 ? 90 : 80, tile_k = cc == 90 ? 64 : 32;
                struct product_plan plan, again;
                struct product p[4];

                memset(&again, 0xff, sizeof again);
                product_cut(p, &c);
                product_choose(&plan, &p[0], cc, N_SM, scratch);
                product_choose(&again, &p[0], cc, N_SM, scratch);
                ok &= (plan.tile_m == 128 && (plan.tile_n == 160 || plan.tile_n == 128 || plan.tile_n == 64))
                    || (plan.tile_m == 64 && plan.tile_n == 64);
                ok &= plan.tile_k == tile_k && (cc == 90 ? plan.stages == 3 || plan.stages == 6 : plan.stages == 4)
                    && plan.split >= 1 && plan.split <= PRODUCT_SPLITS
                    && (plan.split == 1 || plan.split <= (product_depth(&p[0].part[0]) + tile_k - 1) / tile_k)
                    && (plan.split == 1 || (size_t)(plan.split * sizes[m] * sizes[n]) * 4 <= scratch)
                    && again.way == plan.way && again.tile_m == plan.tile_m && again.split == plan.split;
            }
    tap_ok(ok, "plans of all sizes");
}

int main(void)
{
    test_phases();
    test_whole();
    test_types();
    test_ways();
    test_arguments();
    test_direct();
    test_scratch();
    test_waves();
    test_plans();
    return tap_done();
}
