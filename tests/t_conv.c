/* tests/t_conv.c: packs, convolutions, linear layers and their gradients, on every twin, against loops in doubles
 * (conv_plan.c): geometries, storage types, epilogues, sums of parts, and the sizes of Stable Diffusion 1.5. */
#include "tests/conv_plan.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/tap.h"

/* ---- shapes ---- */

static const struct shape shapes[] = {
    /* why                                 B     H   W   Ci  Ho  Wo   Co  KH KW s pt pl up */
    { "3x3, odd map",                      2, {  5,  7,   5,  5,  7,  33, 3, 3, 1, 1, 1, 1 } },
    { "3x3, one pixel",                    3, {  1,  1,   3,  1,  1,  40, 3, 3, 1, 1, 1, 1 } },
    { "3x3, one line",                     2, {  1,  9,   4,  1,  9,  31, 3, 3, 1, 1, 1, 1 } },
    { "3x3, one column",                   1, { 13,  1,   3, 13,  1,   4, 3, 3, 1, 1, 1, 1 } },
    { "3x3, tall",                         3, { 13,  3,  33, 13,  3,   4, 3, 3, 1, 1, 1, 1 } },
    { "3x3, single channels",              2, {  4,  3,   1,  4,  3,   1, 3, 3, 1, 1, 1, 1 } },
    { "3x3, blocks of depth within a tap", 1, {  3,  4, 101,  3,  4, 101, 3, 3, 1, 1, 1, 1 } },
    { "3x3, blocks of columns",            1, {  2,  3,   8,  2,  3, 345, 3, 3, 1, 1, 1, 1 } },
    { "3x3, blocks of rows",               2, { 21, 23,   7, 21, 23,  17, 3, 3, 1, 1, 1, 1 } },
    { "3x3, not padded",                   2, {  6,  7,   5,  4,  5,  17, 3, 3, 1, 0, 0, 1 } },
    { "3x3 stride 2, even",                2, {  8,  6,   5,  4,  3,  33, 3, 3, 2, 1, 1, 1 } },
    { "3x3 stride 2, odd",                 2, {  7,  9,  33,  4,  5,   5, 3, 3, 2, 1, 1, 1 } },
    { "3x3 stride 2, one pixel",           2, {  1,  1,   4,  1,  1,   3, 3, 3, 2, 1, 1, 1 } },
    { "3x3 stride 2, pads 0 1 0 1, even",  2, {  8,  6,   5,  4,  3,  33, 3, 3, 2, 0, 0, 1 } },
    { "3x3 stride 2, pads 0 1 0 1, odd",   1, {  7,  9,   4,  3,  4,   8, 3, 3, 2, 0, 0, 1 } },
    { "3x3 stride 2, last pixel unseen",   1, {  8,  8,   4,  3,  3,   8, 3, 3, 2, 0, 0, 1 } },
    { "5x5",                               1, {  6,  5,  17,  6,  5,  12, 5, 5, 1, 2, 2, 1 } },
    { "5x5 stride 2",                      2, {  7,  6,   5,  4,  3,  12, 5, 5, 2, 2, 2, 1 } },
    { "7x7 stride 2",                      1, {  9, 10,   3,  5,  5,  10, 7, 7, 2, 3, 3, 1 } },
    { "8x8 stride 2",                      1, { 10, 11,   3,  4,  5,   9, 8, 8, 2, 3, 3, 1 } },
    { "2x2",                               2, {  4,  5,   5,  3,  4,  20, 2, 2, 1, 0, 0, 1 } },
    { "2x2, padded above and left",        2, {  4,  5,   5,  4,  5,  20, 2, 2, 1, 1, 1, 1 } },
    { "2x2 stride 2",                      1, {  6,  4,   7,  3,  2,  20, 2, 2, 2, 0, 0, 1 } },
    { "4x4 stride 2",                      1, {  6,  8,   3,  3,  4,   6, 4, 4, 2, 1, 1, 1 } },
    { "1x7",                               1, {  4,  9,  10,  4,  9,  10, 1, 7, 1, 0, 3, 1 } },
    { "3x1, pads that differ",             1, {  5,  4,   6,  7,  4,   6, 3, 1, 1, 2, 0, 1 } },
    { "1x1 stride 2, even",                2, {  4,  6,   5,  2,  3,  18, 1, 1, 2, 0, 0, 1 } },
    { "1x1 stride 2, odd",                 2, {  5,  7,   5,  3,  4,  18, 1, 1, 2, 0, 0, 1 } },
    { "up, 3x3",                           2, {  3,  5,   5,  6, 10,  33, 3, 3, 1, 1, 1, 2 } },
    { "up, 3x3, one pixel",                2, {  1,  1,  33,  2,  2,   4, 3, 3, 1, 1, 1, 2 } },
    { "up, 3x3, blocks of depth",          1, {  2,  3, 201,  4,  6,  40, 3, 3, 1, 1, 1, 2 } },
    { "up, 3x3, blocks of rows",           1, { 14, 15,   4, 28, 30,   5, 3, 3, 1, 1, 1, 2 } },
    { "up, 3x3, odd target",               2, {  3,  5,   5,  5,  9,  33, 3, 3, 1, 1, 1, 2 } },
    { "up, 3x3, one side odd",             1, {  4,  2,   3,  8,  3,  17, 3, 3, 1, 1, 1, 2 } },
    { "up, 3x3, one pixel to one",         1, {  1,  1,   3,  1,  1,   7, 3, 3, 1, 1, 1, 2 } },
    { "up, 5x5",                           1, {  3,  2,   4,  6,  4,   7, 5, 5, 1, 2, 2, 2 } },
};

/* Forward, both gradients, and the up-sampling packs where they apply; pixels side by side and with gaps. */
static bool check_shape(const struct shape *s, const struct types *t)
{
    static const enum kpack_kind plain[] = { K_PACK_FWD, K_PACK_DX }, up[] = { K_PACK_FWD, K_PACK_UP, K_PACK_UP_DX };
    const bool phases = shape_has_up_pack(&s->g);
    const size_t n = phases ? LEN(up) : s->g.up == 2 ? 1 : LEN(plain);
    bool ok = true;

    for (int dense = 0; dense < 2; dense++) {
        ok &= dw_check(s, dense, t->x, t->y);
        for (size_t i = 0; i < n; i++) {
            const struct plan p = plan_of(s, phases ? up[i] : plain[i], t, dense);
            ok &= plan_check(&p, s->why);
        }
    }
    return ok;
}

static void test_shapes(void)
{
    for (size_t i = 0; i < LEN(shapes); i++) {
        bool ok = true;

        for (int t = 0; t < N_USUAL; t++)
            ok &= check_shape(&shapes[i], &usual[t]);
        tap_ok(ok, "%s", shapes[i].why);
    }
}

static void test_linear(void)
{
    static const int64_t rows[] = { 1, 2, 13, 14, 15, 77 }, Ci[] = { 1, 3, 5, 16, 40, 77, 320, 401, 800 };
    static const int64_t Co[] = { 1, 4, 31, 32, 33, 40, 65, 320 };
    char why[80];

    for (size_t r = 0; r < LEN(rows); r++) {
        bool ok = true;

        for (size_t i = 0; i < LEN(Ci); i++)
            for (size_t o = 0; o < LEN(Co); o++) {
                struct shape s = shape_linear(rows[r], Ci[i], Co[o]);

                snprintf(why, sizeof why, "linear %lld to %lld", (long long)Ci[i], (long long)Co[o]);
                s.why = why;
                ok &= check_shape(&s, &usual[(r + i + o) % N_USUAL]);
            }
        tap_ok(ok, "linear layers of %lld rows", (long long)rows[r]);
    }
}

static void test_types(void)
{
    const struct shape some[] = { shapes[0], shapes[11], shape_linear(15, 37, 33) };
    bool ok = true;

    for (size_t i = 0; i < LEN(some); i++)
        for (int t = 0; t < 27; t++) {
            const struct types all = { (enum dtype)(t % 3), (enum dtype)((t + t / 9) % 3), (enum dtype)(t / 3 % 3),
                                       (enum dtype)(t / 9) };
            ok &= check_shape(&some[i], &all);
        }
    tap_ok(ok, "x, pack and y in all types, packs from all types");
}

/* Few columns take another way than many: 1 to 9 of them, over depths around the ends of vectors. */
static void test_narrow(void)
{
    static const int64_t K[] = { 3, 15, 31, 32, 33, 77 };

    for (int64_t n = 1; n <= 9; n++) {
        bool ok = true;

        for (size_t i = 0; i < LEN(K); i++) {
            const struct shape some[] = {
                { "narrow", 1, { 7, 9, K[i], 7, 9, n, 3, 3, 1, 1, 1, 1 } },
                { "narrow dx", 1, { 7, 9, n, 7, 9, K[i], 3, 3, 1, 1, 1, 1 } },
                { "narrow stride 2", 2, { 7, 9, K[i], 4, 5, n, 3, 3, 2, 1, 1, 1 } },
                { "narrow stride 2 dx", 2, { 7, 9, n, 4, 5, K[i], 3, 3, 2, 1, 1, 1 } },
                { "narrow up", 2, { 3, 2, K[i], 6, 4, n, 3, 3, 1, 1, 1, 2 } },
                { "narrow up dx", 2, { 3, 2, n, 6, 4, K[i], 3, 3, 1, 1, 1, 2 } },
            };
            for (size_t s = 0; s < LEN(some); s++)
                for (int t = 0; t < N_USUAL; t++)
                    ok &= check_shape(&some[s], &usual[t]);
        }
        tap_ok(ok, "%lld columns", (long long)n);
    }
}

/* ---- epilogues ---- */

static void test_epilogues(void)
{
    static const int64_t Co[] = { 1, 4, 7, 8, 15, 16, 17, 24, 31, 32, 33, 40, 65 };

    for (int e = 0; e < N_EPILOGUES; e++) {
        bool ok = true;

        for (size_t i = 0; i < LEN(Co); i++)
            for (int y = 0; y < N_DTYPE; y++) {
                const struct shape s = { "", 3, { 2, 3, 6, 2, 3, Co[i], 1, 1, 1, 0, 0, 1 } };
                struct plan p = plan_of(&s, K_PACK_FWD, &(struct types){ F32, F32, F32, (enum dtype)y }, true);

                plan_take_epilogue(&p, &epilogues[e]);
                p.gap = (int64_t)(i % 3);
                ok &= plan_check(&p, epilogues[e].why);
            }
        tap_ok(ok, "epilogue: %s", epilogues[e].why);
    }
}

/* Backward takes alpha and a residual. Where no tap falls on a pixel its gradient is zero, plus the residual. */
static void test_epilogues_dx(void)
{
    bool ok = true;

    for (size_t i = 0; i < LEN(shapes); i++)
        for (size_t e = 0; e < N_EPILOGUES; e++) {
            struct plan p = plan_of(&shapes[i], shape_has_up_pack(&shapes[i].g) ? K_PACK_UP_DX : K_PACK_DX,
                                    &usual[(i + e) % N_USUAL], e % 2);

            plan_take_epilogue(&p, &epilogues[e]);
            if (p.bias || p.row_add || p.act || (shapes[i].g.up == 2 && p.kind == K_PACK_DX))
                continue;
            ok &= plan_check(&p, epilogues[e].why);
        }
    tap_ok(ok, "epilogues of dx");
}

static void test_geglu(void)
{
    static const int64_t half[] = { 1, 3, 4, 8, 15, 16, 17, 40, 170 };

    for (size_t i = 0; i < LEN(half); i++) {
        bool ok = true;

        for (int t = 0; t < N_USUAL; t++)
            for (int full = 0; full < 3; full++) {
                const struct shape s = { "", 3, { 1, 5, 19, 1, 5, 2 * half[i], 1, 1, 1, 0, 0, 1 } };
                struct plan p = plan_of(&s, K_PACK_FWD, &usual[t], false);

                if (full)
                    plan_take_epilogue(&p, &epilogues[full == 1 ? EPILOGUE_ALL : EPILOGUE_ALL_IN_PLACE]);
                p.act = K_ACT_GEGLU;
                ok &= plan_check(&p, full ? "geglu with everything" : "geglu");
            }
        tap_ok(ok, "geglu to %lld channels", (long long)half[i]);
    }
}

/* ---- parts ---- */

static const struct {
    const char *why;
    enum kpack_kind kind;
    int n_part;
    enum kact act;
    int64_t B;
    struct part_plan part[3];
} sums[] = {
    { "halves of a skip connection", K_PACK_FWD, 2, K_ACT_NONE, 2,
      { { { 5, 4, 13, 5, 4, 33, 3, 3, 1, 1, 1, 1 }, F32, F32, F32, 3, 0, 20 },
        { { 5, 4, 20, 5, 4, 33, 3, 3, 1, 1, 1, 1 }, F32, F32, F32, 0, 13, 0 } } },
    { "skip connection and shortcut, types that differ", K_PACK_FWD, 3, K_ACT_SILU, 2,
      { { { 5, 4, 13, 5, 4, 33, 3, 3, 1, 1, 1, 1 }, BF16, F32, BF16, 3, 0, 20 },
        { { 5, 4, 20, 5, 4, 33, 3, 3, 1, 1, 1, 1 }, F32, F32, BF16, 0, 13, 0 },
        { { 5, 4, 7, 5, 4, 33, 1, 1, 1, 0, 0, 1 }, F16, F16, F32, 1, 0, 0 } } },
    { "three types of dot products", K_PACK_FWD, 3, K_ACT_NONE, 2,
      { { { 1, 9, 401, 1, 9, 33, 1, 1, 1, 0, 0, 1 }, BF16, F32, F16, 3, 0, 0 },
        { { 1, 9, 801, 1, 9, 33, 1, 1, 1, 0, 0, 1 }, BF16, F32, BF16, 0, 0, 0 },
        { { 1, 9, 5, 1, 9, 33, 1, 1, 1, 0, 0, 1 }, F32, F32, F32, 0, 0, 0 } } },
    { "low rank", K_PACK_FWD, 2, K_ACT_NONE, 1,
      { { { 1, 15, 40, 1, 15, 65, 1, 1, 1, 0, 0, 1 }, BF16, F32, BF16, 0, 0, 0 },
        { { 1, 15, 4, 1, 15, 65, 1, 1, 1, 0, 0, 1 }, F32, F32, F32, 0, 0, 0 } } },
    { "low rank under geglu", K_PACK_FWD, 2, K_ACT_GEGLU, 1,
      { { { 1, 15, 40, 1, 15, 66, 1, 1, 1, 0, 0, 1 }, F16, F16, F16, 0, 0, 0 },
        { { 1, 15, 4, 1, 15, 66, 1, 1, 1, 0, 0, 1 }, F32, F32, F32, 1, 0, 0 } } },
    { "stride 2 and shortcut", K_PACK_FWD, 2, K_ACT_NONE, 2,
      { { { 7, 6, 9, 4, 3, 20, 3, 3, 2, 1, 1, 1 }, F32, F32, F32, 0, 0, 0 },
        { { 4, 3, 6, 4, 3, 20, 1, 1, 1, 0, 0, 1 }, F32, F32, F32, 0, 0, 0 } } },
    { "dx of q, k and v", K_PACK_DX, 3, K_ACT_NONE, 1,
      { { { 1, 15, 37, 1, 15, 40, 1, 1, 1, 0, 0, 1 }, F32, F32, F32, 0, 0, 0 },
        { { 1, 15, 37, 1, 15, 33, 1, 1, 1, 0, 0, 1 }, BF16, F32, BF16, 2, 0, 0 },
        { { 1, 15, 37, 1, 15, 8, 1, 1, 1, 0, 0, 1 }, F32, F16, F16, 0, 0, 0 } } },
    { "dx of one half of a skip connection", K_PACK_DX, 1, K_ACT_NONE, 2,
      { { { 5, 4, 13, 5, 4, 33, 3, 3, 1, 1, 1, 1 }, F32, F32, F32, 0, 20, 3 } } },
    { "dx of stride 2 and shortcut", K_PACK_DX, 2, K_ACT_NONE, 2,
      { { { 7, 6, 9, 4, 3, 20, 3, 3, 2, 1, 1, 1 }, BF16, F32, F32, 0, 0, 0 },
        { { 7, 6, 9, 4, 3, 6, 1, 1, 2, 0, 0, 1 }, BF16, F32, BF16, 0, 0, 0 } } },
    { "dx of three 5x5 of stride 2", K_PACK_DX, 3, K_ACT_NONE, 1,
      { { { 7, 6, 9, 4, 3, 20, 5, 5, 2, 2, 2, 1 }, F32, F32, F32, 0, 0, 0 },
        { { 7, 6, 9, 4, 3, 3, 5, 5, 2, 2, 2, 1 }, F32, F32, F32, 0, 0, 0 },
        { { 7, 6, 9, 4, 3, 6, 5, 5, 2, 2, 2, 1 }, F32, F32, F32, 0, 0, 0 } } },
    { "narrow, types that differ", K_PACK_FWD, 3, K_ACT_SILU, 2,
      { { { 5, 4, 13, 5, 4, 2, 3, 3, 1, 1, 1, 1 }, BF16, F32, BF16, 3, 0, 20 },
        { { 5, 4, 20, 5, 4, 2, 3, 3, 1, 1, 1, 1 }, F32, F32, BF16, 0, 13, 0 },
        { { 5, 4, 37, 5, 4, 2, 1, 1, 1, 0, 0, 1 }, F16, BF16, F32, 1, 0, 0 } } },
    { "narrow, dx of stride 2 and shortcut", K_PACK_DX, 2, K_ACT_NONE, 2,
      { { { 7, 6, 4, 4, 3, 40, 3, 3, 2, 1, 1, 1 }, BF16, F32, F16, 0, 0, 0 },
        { { 7, 6, 4, 4, 3, 6, 1, 1, 2, 0, 0, 1 }, BF16, F32, BF16, 0, 2, 1 } } },
    { "up, two halves", K_PACK_UP, 2, K_ACT_RELU, 2,
      { { { 3, 4, 13, 6, 8, 33, 3, 3, 1, 1, 1, 2 }, F32, F32, F32, 0, 0, 20 },
        { { 3, 4, 20, 6, 8, 33, 3, 3, 1, 1, 1, 2 }, F32, F32, F32, 3, 13, 0 } } },
    { "up and a shortcut", K_PACK_FWD, 2, K_ACT_NONE, 2,
      { { { 3, 4, 13, 6, 7, 33, 3, 3, 1, 1, 1, 2 }, F32, F32, F32, 0, 0, 0 },
        { { 6, 7, 20, 6, 7, 33, 1, 1, 1, 0, 0, 1 }, F32, F32, F32, 3, 0, 0 } } },
    { "dx of up, twice", K_PACK_UP_DX, 2, K_ACT_NONE, 2,
      { { { 3, 4, 13, 6, 8, 33, 3, 3, 1, 1, 1, 2 }, F32, F32, F32, 0, 0, 20 },
        { { 3, 4, 13, 6, 8, 5, 3, 3, 1, 1, 1, 2 }, BF16, F32, F32, 3, 0, 0 } } },
};

static void test_sums(void)
{
    for (size_t i = 0; i < LEN(sums); i++) {
        struct plan p = { .kind = sums[i].kind, .B = sums[i].B, .n_part = sums[i].n_part, .act = sums[i].act,
                          .alpha = 1, .part = { sums[i].part[0], sums[i].part[1], sums[i].part[2] },
                          .residual = true };
        bool ok = true;

        for (int y = 0; y < N_DTYPE; y++) {
            p.y = (enum dtype)y;
            p.bias = p.row_add = !plan_is_dx(&p) && y == BF16;
            ok &= plan_check(&p, sums[i].why);
        }
        tap_ok(ok, "sum of parts: %s", sums[i].why);
    }
}

/* Two parts over channels [0,13) and [13,40) of one map are the whole. */
static void test_split(void)
{
    static const enum dtype type[][2] = { { F32, F32 }, { BF16, BF16 }, { F32, BF16 }, { F16, F16 } };
    bool ok = true;

    for (size_t t = 0; t < LEN(type); t++) {
        const struct types all = { type[t][0], F32, type[t][1], F32 };
        const struct shape s = { "", 2, { 5, 7, 40, 5, 7, 33, 3, 3, 1, 1, 1, 1 } };
        struct plan joined = plan_of(&s, K_PACK_FWD, &all, t % 2), split = joined;
        struct data whole = data_make(&joined), half = whole;

        split.n_part = 2;
        split.part[1] = split.part[0];
        for (int i = 0; i < 2; i++) {
            struct part_plan *q = &split.part[i];
            q->g.Ci = i ? 27 : 13;
            q->gap += 40 - q->g.Ci;
            *(i ? &q->ci_first : &q->ci_after) = 40 - q->g.Ci;
        }
        half.x[1] = buf_view(&whole.x[0], 13, whole.x[0].n - 13);
        half.w[1] = whole.w[0];
        ok &= plan_check_data(&joined, &whole, "joined") && plan_check_data(&split, &half, "split");
        data_free(&whole);
    }
    tap_ok(ok, "two parts over the channels of one map are the whole");
}

/* ---- full sizes ----
 * Values are multiples of 1/64 in [-1,1): every type holds them, and sums of their products are exact in f32 in any
 * order, so that a sample of results must be equal, not near. */

struct full {
    const char *why;
    enum kpack_kind kind;
    bool bf16, every_twin;
    enum kact act;
    struct kgeom g;
};

static const struct full fulls[] = {
    /* why                     kind          bf16   twins  activation    H    W   Ci   Ho   Wo   Co KH KW s pt pl up */
    { "64x64, 320 to 320",     K_PACK_FWD,   false, false, K_ACT_NONE, { 64, 64, 320, 64, 64, 320, 3, 3, 1, 1, 1, 1 } },
    { "64x64, 320 to 320",     K_PACK_FWD,   true,  false, K_ACT_NONE, { 64, 64, 320, 64, 64, 320, 3, 3, 1, 1, 1, 1 } },
    { "8x8, 2560 to 1280",     K_PACK_FWD,   false, false, K_ACT_NONE, { 8, 8, 2560, 8, 8, 1280, 3, 3, 1, 1, 1, 1 } },
    { "8x8, 2560 to 1280",     K_PACK_FWD,   true,  false, K_ACT_NONE, { 8, 8, 2560, 8, 8, 1280, 3, 3, 1, 1, 1, 1 } },
    { "8x8, 2560 to 1280, dx", K_PACK_DX,    false, false, K_ACT_NONE, { 8, 8, 2560, 8, 8, 1280, 3, 3, 1, 1, 1, 1 } },
    { "64x64, 320 to 4",       K_PACK_FWD,   true,  true,  K_ACT_NONE, { 64, 64, 320, 64, 64, 4, 3, 3, 1, 1, 1, 1 } },
    { "64x64, 4 to 320",       K_PACK_FWD,   false, true,  K_ACT_NONE, { 64, 64, 4, 64, 64, 320, 3, 3, 1, 1, 1, 1 } },
    { "gated, 320 to 2560",    K_PACK_FWD,   false, false, K_ACT_GEGLU,
      { 1, 4096, 320, 1, 4096, 2560, 1, 1, 1, 0, 0, 1 } },
    { "gated, 320 to 2560",    K_PACK_FWD,   true,  false, K_ACT_GEGLU,
      { 1, 4096, 320, 1, 4096, 2560, 1, 1, 1, 0, 0, 1 } },
    { "77 tokens, 768 to 320", K_PACK_FWD,   true,  true,  K_ACT_NONE, { 1, 77, 768, 1, 77, 320, 1, 1, 1, 0, 0, 1 } },
    { "64x64 to 32x32",        K_PACK_FWD,   false, true,  K_ACT_NONE, { 64, 64, 320, 32, 32, 320, 3, 3, 2, 1, 1, 1 } },
    { "64x64 to 32x32, dx",    K_PACK_DX,    true,  true,  K_ACT_NONE, { 64, 64, 320, 32, 32, 320, 3, 3, 2, 1, 1, 1 } },
    { "8x8 to 16x16",          K_PACK_UP,    false, false, K_ACT_NONE, { 8, 8, 1280, 16, 16, 1280, 3, 3, 1, 1, 1, 2 } },
    { "8x8 to 16x16, dx",      K_PACK_UP_DX, false, false, K_ACT_NONE, { 8, 8, 1280, 16, 16, 1280, 3, 3, 1, 1, 1, 2 } },
    { "512x512, 128 to 128",   K_PACK_FWD,   true,  false, K_ACT_NONE,
      { 512, 512, 128, 512, 512, 128, 3, 3, 1, 1, 1, 1 } },
};

/* Element i of the operand `which`. */
static double exact_value(uint64_t which, int64_t i)
{
    uint64_t z = (uint64_t)i + which * 0x9E3779B97F4A7C15u;

    z = (z ^ (z >> 31)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 29)) * 0x94D049BB133111EBu;
    return ((double)(z >> 57) - 64) / 64;
}

static void *exact_map(uint64_t which, bool bf16, int64_t n)
{
    char *p = aligned_alloc(64, ((size_t)n * (bf16 ? 2 : 4) + 63) / 64 * 64);

    for (int64_t i = 0; p && i < n; i++) {
        const float f = (float)exact_value(which, i);
        if (bf16)
            memcpy(p + 2 * i, (const char *)&f + 2, 2);         /* the upper half, little-endian; exact */
        else
            memcpy(p + 4 * i, &f, 4);
    }
    return p;
}

enum { OF_X = 1, OF_W = 2, N_SAMPLES = 200 };

/* The sum that pixel px, column n of a product stands for. */
static double exact_sum(const struct full *f, int64_t px, int64_t n)
{
    const struct kgeom *g = &f->g;
    const bool dx = f->kind == K_PACK_DX || f->kind == K_PACK_UP_DX;
    const int64_t K = dx ? g->Co : g->Ci, taps = g->KH * g->KW;
    const int64_t r = g->up * (g->KH / 2 + 2), y = px / g->W * g->up / g->stride, x = px % g->W * g->up / g->stride;
    double s = 0;

    for (int64_t m = 0; m < (dx ? out_px(g) : 1); m++) {
        const int64_t i = dx ? m / g->Wo : px / g->Wo, j = dx ? m % g->Wo : px % g->Wo;

        if (dx && (labs(i - y) > r || labs(j - x) > r))         /* too far from the pixel for any tap */
            continue;
        for (int64_t tap = 0; tap < taps; tap++) {
            const int64_t in = tap_pixel(g, i, j, (int)(tap / g->KW), (int)(tap % g->KW));

            for (int64_t k = 0; in >= 0 && (!dx || in == px) && k < K; k++)
                s += exact_value(OF_X, (dx ? m : in) * K + k)
                    * exact_value(OF_W, dx ? (k * taps + tap) * g->Ci + n : (n * taps + tap) * g->Ci + k);
        }
    }
    return s;
}

static bool sample_is_right(const struct full *f, const void *y, enum dtype t, int64_t pixels, int64_t N,
                            const char *isa)
{
    uint64_t at = 12345;

    for (int i = 0; i < N_SAMPLES; i++) {
        struct buf got = buf_new(t, 1);
        double want, tol = 0, gate;
        int64_t px, n;

        at = at * 6364136223846793005u + 1442695040888963407u;
        px = i ? (int64_t)(at >> 33) % pixels : pixels - 1;
        n = i ? (int64_t)(at >> 13 & 0xfffff) % N : N - 1;
        want = exact_sum(f, px, n);
        if (f->act == K_ACT_GEGLU) {
            gate = exact_sum(f, px, N + n);
            tol = fabs(want) * activation_error(K_ACT_GEGLU, gate, 0);
            want *= activation(K_ACT_GEGLU, gate);
            tol += (kit_rel[t] + 3 * U) * (fabs(want) + tol);
        } else {
            want = kit_round(t, want);
        }
        memcpy(got.p, (const char *)y + (size_t)(px * N + n) * dtype_bytes(t), dtype_bytes(t));
        buf_read(&got);
        if (!(fabs(got.v[0] - want) <= tol)) {
            tap_note("%s, %s: pixel %lld, channel %lld is %.9g, want %.9g", f->why, isa, (long long)px, (long long)n,
                     got.v[0], want);
            buf_free(&got);
            return false;
        }
        buf_free(&got);
    }
    return true;
}

static bool run_full(const struct kern *kern, const struct full *f)
{
    const enum dtype t = f->bf16 ? BF16 : F32;
    const struct kgeom *g = &f->g;
    const struct plan p = plan_of(&(struct shape){ f->why, 1, *g }, f->kind, &(struct types){ t, t, t, t }, true);
    const bool glu = f->act == K_ACT_GEGLU;
    const int64_t pixels = plan_image_px(&p), N = plan_width(&p) / (glu ? 2 : 1), K = plan_depth(&p, 0);
    const struct kpack spec = { f->kind, t, t, g->Co, g->Ci, g->KH, g->KW, 0, g->Ci, glu };
    struct buf pack = buf_raw(kern->pack_bytes(&spec));
    void *x = exact_map(OF_X, f->bf16, plan_x_px(&p, 0) * K);
    void *w = exact_map(OF_W, f->bf16, g->Co * g->KH * g->KW * g->Ci);
    void *y = malloc((size_t)(pixels * N) * dtype_bytes(t));
    struct kctx *k = kit_ctx(kern, 2);
    const struct kconv c = { .dir = plan_is_dx(&p) ? K_DX : K_FWD, .B = 1, .n_part = 1, .alpha = 1, .act = f->act,
                             .y = y, .y_type = t, .ldy = N,
                             .part = { { .x = x, .type = t, .ldx = K, .pack = pack.p, .pack_type = t,
                                         .pack_kind = f->kind, .glu = glu, .g = *g } } };
    const bool ok = x && w && y && kern->pack(k, pack.p, &spec, w) == K_OK && kern->conv(k, &c) == K_OK
        && buf_intact(&pack) && sample_is_right(f, y, t, pixels, N, kern->name);

    free(x), free(w), free(y);
    buf_free(&pack);
    return ok;
}

/* dw of 640 to 640 at 32x32, exact as well. */
static bool run_full_dw(const struct kern *kern)
{
    const struct kgeom g = { 32, 32, 640, 32, 32, 640, 3, 3, 1, 1, 1, 1 };
    const int64_t n = g.Co * 9 * g.Ci;
    void *x = exact_map(OF_X, true, in_px(&g) * g.Ci), *dy = exact_map(OF_W, false, out_px(&g) * g.Co);
    float *dw = malloc(sizeof *dw * (size_t)n);
    bool ok = x && dy && dw
        && kern->conv_dw(kit_ctx(kern, 2), dw, 0, &g, 1, x, BF16, g.Ci, dy, F32, g.Co) == K_OK;

    for (int64_t i = 0; ok && i < N_SAMPLES; i++) {
        const int64_t at = i ? i * 1000003 * 7 % n : n - 1, ci = at % g.Ci, tap = at / g.Ci % 9, co = at / g.Ci / 9;
        double s = 0;

        for (int64_t m = 0; m < out_px(&g); m++) {
            const int64_t in = tap_pixel(&g, m / g.Wo, m % g.Wo, (int)(tap / 3), (int)(tap % 3));
            if (in >= 0)
                s += exact_value(OF_X, in * g.Ci + ci) * exact_value(OF_W, m * g.Co + co);
        }
        ok = dw[at] == s;
        if (!ok)
            tap_note("%s: dw element %lld is %.9g, want %.9g", kern->name, (long long)at, dw[at], s);
    }
    free(x), free(dy), free(dw);
    return ok;
}

static void test_full(void)
{
    const struct kern *kern, *best = NULL;

    for (int i = 0; (kern = kit_twin(i)); i++)
        best = kern;
    for (size_t i = 0; i < LEN(fulls); i++) {
        bool ok = true;

        for (int t = 0; (kern = kit_twin(t)); t++)
            if (fulls[i].every_twin || kern == best)
                ok &= run_full(kern, &fulls[i]);
        tap_ok(ok, "%s, %s", fulls[i].why, fulls[i].bf16 ? "bf16" : "f32");
    }
    tap_ok(run_full_dw(best), "32x32, 640 to 640, 3x3, dw");
}


int main(void)
{
    test_shapes();
    test_linear();
    test_narrow();
    test_types();
    test_epilogues();
    test_epilogues_dx();
    test_geglu();
    test_sums();
    test_split();
    test_full();
    return tap_done();
}
