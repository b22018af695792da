/* tests/t_cuda_elem.c: element by element, on the device as on the CPU. */
#include "tests/cuda_kit.h"

#include <math.h>
#include <stdlib.h>

#include "core/tensor.h"

/* What one rounding on the way out may cost; f32 differs by fused multiply-adds at most. */
static const double rounding[N_DTYPE] = { 1e-6, 0x1p-11, 0x1p-8 };

/* Around one vector of 16 bytes, around a block's share, and many blocks with a rest. */
static const int64_t sizes[] = { 1, 3, 4, 7, 8, 9, 31, 255, 257, 2047, 2049, 5003, 12288 };

/* Like x, to be worked on in place. */
static struct mirror copy_of(const struct mirror *x)
{
    return mirror_of(x->type, x->n, x->f);
}

static void fill(enum dtype t)
{
    for (size_t i = 0; i < LEN(sizes); i++) {
        struct mirror y = mirror_new(t, sizes[i]);
        bool ok = kit_cpu->fill(kit_cpu_ctx(), y.f, F32, y.n, 2.5f) == K_OK;

        CUDA_TWICE(&y, ok &= kit_cuda->fill(kit_cuda_ctx(), y.dev, t, y.n, 2.5f) == K_OK);
        tap_ok(mirror_near(&y, 0, "fill") && ok, "fill %s %d", dtype_name(t), (int)y.n);
        cuda_kit_release();
    }
}

/* y.f is rounded as the device rounds: casts are exact. */
static void cast(enum dtype to, enum dtype from)
{
    for (size_t i = 0; i < LEN(sizes); i++) {
        struct mirror x = mirror_random(from, sizes[i], i, 3), y = mirror_of(to, x.n, x.f);
        bool ok = true;

        CUDA_TWICE(&y, ok &= kit_cuda->cast(kit_cuda_ctx(), y.dev, to, x.dev, from, x.n) == K_OK);
        tap_ok(mirror_near(&y, 0, "cast") && ok, "cast %s to %s %d", dtype_name(from), dtype_name(to), (int)x.n);
        cuda_kit_release();
    }
}

/* Ties, overflow, subnormals and infinities, which random numbers rarely meet. */
static void cast_edges(void)
{
    static const float x0[] = {
        0, -0.0f, 1, 0x1.002p0f, 0x1.006p0f, 0x1.01p0f, 0x1.03p0f, 65504, 65519.996f, 65520, -65520, 0x1p-24f, 0x1p-25f,
        0x1.8p-24f, 0x1.ffcp-15f, INFINITY, -INFINITY, 0x1.fffffep127f, 0x1.fep127f, 0x1.feffp127f, 0x1p-133f, 0x1p-149f
    };
    struct mirror x = mirror_of(F32, LEN(x0), x0);

    for (int t = F16; t < N_DTYPE; t++) {
        struct mirror y = mirror_of((enum dtype)t, x.n, x0);
        bool ok = true;

        CUDA_TWICE(&y, ok &= kit_cuda->cast(kit_cuda_ctx(), y.dev, y.type, x.dev, F32, x.n) == K_OK);
        tap_ok(mirror_near(&y, 0, "edges") && ok, "cast at the edges of %s", dtype_name(y.type));
    }
    cuda_kit_release();
}

static void axpby(enum dtype t)
{
    for (size_t i = 0; i < LEN(sizes); i++) {
        const int64_t n = sizes[i];
        struct mirror x = mirror_random(t, n, i, 1), z = mirror_random(t, n, i + 50, 1), y = mirror_new(t, n);
        struct mirror s = mirror_new(t, n), u = copy_of(&x), v = copy_of(&z), w = copy_of(&x);
        bool ok = kit_cpu->axpby(kit_cpu_ctx(), y.f, 1.25f, x.f, -0.7f, z.f, F32, n) == K_OK
               && kit_cpu->axpby(kit_cpu_ctx(), s.f, 0.3f, x.f, 0.1f, NULL, F32, n) == K_OK;

        CUDA_TWICE(&y, ok &= kit_cuda->axpby(kit_cuda_ctx(), y.dev, 1.25f, x.dev, -0.7f, z.dev, t, n) == K_OK);
        CUDA_TWICE(&s, ok &= kit_cuda->axpby(kit_cuda_ctx(), s.dev, 0.3f, x.dev, 0.1f, NULL, t, n) == K_OK);
        ok &= kit_cuda->axpby(kit_cuda_ctx(), u.dev, 1.25f, u.dev, -0.7f, z.dev, t, n) == K_OK;
        ok &= kit_cuda->axpby(kit_cuda_ctx(), v.dev, 1.25f, x.dev, -0.7f, v.dev, t, n) == K_OK;
        ok &= kit_cuda->axpby(kit_cuda_ctx(), w.dev, 0.3f, w.dev, 0.1f, NULL, t, n) == K_OK;
        u.f = v.f = y.f;
        w.f = s.f;
        ok &= mirror_near(&y, rounding[t], "a x + b z") && mirror_near(&s, rounding[t], "a x + b")
            && mirror_near(&u, rounding[t], "y is x") && mirror_near(&v, rounding[t], "y is z")
            && mirror_near(&w, rounding[t], "y is x, no z");
        tap_ok(ok, "axpby %s %d", dtype_name(t), (int)n);
        cuda_kit_release();
    }
}

static void mul(enum dtype t)
{
    for (size_t i = 0; i < LEN(sizes); i++) {
        const int64_t n = sizes[i];
        struct mirror x = mirror_random(t, n, i, 1), z = mirror_random(t, n, i + 50, 1), y = mirror_new(t, n);
        struct mirror u = copy_of(&x), v = copy_of(&z);
        bool ok = kit_cpu->mul(kit_cpu_ctx(), y.f, x.f, z.f, F32, n) == K_OK;

        CUDA_TWICE(&y, ok &= kit_cuda->mul(kit_cuda_ctx(), y.dev, x.dev, z.dev, t, n) == K_OK);
        ok &= kit_cuda->mul(kit_cuda_ctx(), u.dev, u.dev, z.dev, t, n) == K_OK;
        ok &= kit_cuda->mul(kit_cuda_ctx(), v.dev, x.dev, v.dev, t, n) == K_OK;
        u.f = v.f = y.f;
        ok &= mirror_near(&y, rounding[t], "x z") && mirror_near(&u, rounding[t], "y is x")
            && mirror_near(&v, rounding[t], "y is z");
        tap_ok(ok, "mul %s %d", dtype_name(t), (int)n);
        cuda_kit_release();
    }
}

static void row_axpby_one(enum dtype t, int64_t B, int64_t n)
{
    const int64_t all = B * n;
    struct mirror a = mirror_random(F32, B, 1, 1), c = mirror_random(F32, B, 2, 1), y = mirror_new(t, all);
    struct mirror x = mirror_random(t, all, 3, 1), z = mirror_random(t, all, 4, 1), s = mirror_new(t, all);
    struct mirror u = copy_of(&x), v = copy_of(&z);
    bool ok = kit_cpu->row_axpby(kit_cpu_ctx(), y.f, a.f, x.f, c.f, z.f, F32, B, n) == K_OK
           && kit_cpu->row_axpby(kit_cpu_ctx(), s.f, a.f, x.f, NULL, NULL, F32, B, n) == K_OK;

    CUDA_TWICE(&y, ok &= kit_cuda->row_axpby(kit_cuda_ctx(), y.dev, a.dev, x.dev, c.dev, z.dev, t, B, n) == K_OK);
    CUDA_TWICE(&s, ok &= kit_cuda->row_axpby(kit_cuda_ctx(), s.dev, a.dev, x.dev, NULL, NULL, t, B, n) == K_OK);
    ok &= kit_cuda->row_axpby(kit_cuda_ctx(), u.dev, a.dev, u.dev, c.dev, z.dev, t, B, n) == K_OK;
    ok &= kit_cuda->row_axpby(kit_cuda_ctx(), v.dev, a.dev, x.dev, c.dev, v.dev, t, B, n) == K_OK;
    u.f = v.f = y.f;
    ok &= mirror_near(&y, rounding[t], "a x + c z") && mirror_near(&s, rounding[t], "a x")
        && mirror_near(&u, rounding[t], "y is x") && mirror_near(&v, rounding[t], "y is z");
    tap_ok(ok, "row_axpby %s %dx%d", dtype_name(t), (int)B, (int)n);
    cuda_kit_release();
}

static void row_axpby(enum dtype t)
{
    static const int64_t shape[][2] = { { 1, 1 }, { 3, 7 }, { 2, 2056 }, { 1, 4099 }, { 5, 16 }, { 17, 1 } };

    for (size_t i = 0; i < LEN(shape); i++)
        row_axpby_one(t, shape[i][0], shape[i][1]);
    if (!cuda_kit_small()) {
        row_axpby_one(t, 8, 4 * 64 * 64);
        row_axpby_one(t, 70001, 3);             /* more rows than a grid is high */
    }
}

static void lerp_one(enum dtype t, int64_t HW, int64_t C)
{
    const int64_t n = HW * C;
    struct mirror m = mirror_random(F32, HW, 1, 0.5), x = mirror_random(t, n, 2, 1), z = mirror_random(t, n, 3, 1);
    struct mirror y = mirror_new(t, n), u = copy_of(&x), v = copy_of(&z);
    bool ok = kit_cpu->lerp_mask(kit_cpu_ctx(), y.f, m.f, x.f, z.f, F32, HW, C) == K_OK;

    CUDA_TWICE(&y, ok &= kit_cuda->lerp_mask(kit_cuda_ctx(), y.dev, m.dev, x.dev, z.dev, t, HW, C) == K_OK);
    ok &= kit_cuda->lerp_mask(kit_cuda_ctx(), u.dev, m.dev, u.dev, z.dev, t, HW, C) == K_OK;
    ok &= kit_cuda->lerp_mask(kit_cuda_ctx(), v.dev, m.dev, x.dev, v.dev, t, HW, C) == K_OK;
    u.f = v.f = y.f;
    ok &= mirror_near(&y, rounding[t], "m x + (1-m) z") && mirror_near(&u, rounding[t], "y is x")
        && mirror_near(&v, rounding[t], "y is z");
    tap_ok(ok, "lerp_mask %s %dx%d", dtype_name(t), (int)HW, (int)C);
    cuda_kit_release();
}

static void lerp_mask(enum dtype t)
{
    static const int64_t shape[][2] = {
        { 1, 1 }, { 1, 13 }, { 13, 1 }, { 1023, 4 }, { 333, 3 }, { 7, 320 }, { 5, 33 }
    };

    for (size_t i = 0; i < LEN(shape); i++)
        lerp_one(t, shape[i][0], shape[i][1]);
    if (!cuda_kit_small())
        lerp_one(t, 8 * 64 * 64, 4);
}

/* The gaps between rows keep what was there. */
static void copy_rows_one(enum dtype t, int64_t rows, int64_t n, int64_t gap_y, int64_t gap_x, bool accumulate)
{
    const int64_t ldy = n + gap_y, ldx = n + gap_x;
    struct mirror x = mirror_random(t, rows * ldx, 1, 1), y = mirror_random(t, rows * ldy, 2, 1);
    bool ok = kit_cpu->copy_rows(kit_cpu_ctx(), y.f, ldy, x.f, ldx, F32, rows, n, accumulate) == K_OK;

    ok &= kit_cuda->copy_rows(kit_cuda_ctx(), y.dev, ldy, x.dev, ldx, t, rows, n, accumulate) == K_OK;
    ok &= mirror_near(&y, accumulate ? rounding[t] : 0, "rows");
    tap_ok(ok, "%s_rows %s %dx%d, ldy %d, ldx %d", accumulate ? "add" : "copy", dtype_name(t), (int)rows, (int)n,
           (int)ldy, (int)ldx);
    cuda_kit_release();
}

static void copy_rows(enum dtype t)
{
    static const int64_t shape[][4] = {
        { 1, 1, 0, 0 }, { 1, 5003, 7, 0 }, { 7, 320, 320, 0 }, { 7, 320, 0, 640 }, { 33, 4, 4, 4 }, { 9, 12, 4, 20 },
        { 50, 3, 1, 2 }, { 11, 40, 3, 8 }, { 11, 40, 8, 3 }, { 5, 77, 0, 0 }, { 6, 64, 0, 0 }, { 4, 34, 2, 6 }
    };

    for (size_t i = 0; i < LEN(shape); i++)
        for (int accumulate = 0; accumulate < 2; accumulate++)
            copy_rows_one(t, shape[i][0], shape[i][1], shape[i][2], shape[i][3], accumulate);
    if (!cuda_kit_small()) {
        copy_rows_one(t, 4 * 4096, 640, 320, 0, false);
        copy_rows_one(t, 4 * 4096, 640, 320, 0, true);
        copy_rows_one(t, 70001, 257, 3, 1, false);
    }
}

/* n elements of x behind a view */
static void permute_one(enum dtype t, const char *what, struct kview4 v, int64_t n)
{
    struct mirror x = mirror_random(t, n, 1, 1);
    struct mirror y = mirror_new(t, v.dim[0] * v.dim[1] * v.dim[2] * v.dim[3]);
    bool ok = kit_cpu->permute(kit_cpu_ctx(), y.f, x.f, F32, &v) == K_OK;

    CUDA_TWICE(&y, ok &= kit_cuda->permute(kit_cuda_ctx(), y.dev, x.dev, t, &v) == K_OK);
    tap_ok(mirror_near(&y, 0, "%s", what) && ok, "permute %s %s", what, dtype_name(t));
    cuda_kit_release();
}

static void permute_image(enum dtype t, int64_t B, int64_t C, int64_t H, int64_t W)
{
    const int64_t n = B * C * H * W;

    permute_one(t, "NCHW to NHWC", (struct kview4){ { B, H, W, C }, { C * H * W, W, 1, H * W } }, n);
    permute_one(t, "NHWC to NCHW", (struct kview4){ { B, C, H, W }, { C * H * W, 1, W * C, C } }, n);
    permute_one(t, "a crop", (struct kview4){ { B, H / 2, W / 2, C }, { C * H * W, W * C, C, 1 } }, n);
}

static void permute(enum dtype t)
{
    permute_image(t, 2, 3, 13, 11);
    permute_image(t, 1, 4, 32, 24);
    permute_image(t, 1, 64, 6, 10);
    if (!cuda_kit_small()) {
        permute_image(t, 4, 3, 512, 512);
        permute_image(t, 2, 320, 64, 64);
    }
    permute_one(t, "one element", (struct kview4){ { 1, 1, 1, 1 }, { 5, 6, 7, 8 } }, 1);
    permute_one(t, "a repeated row", (struct kview4){ { 3, 5, 1, 24 }, { 0, 24, 0, 1 } }, 120);
    permute_one(t, "a repeated element", (struct kview4){ { 2, 3, 5, 7 }, { 105, 35, 7, 0 } }, 300);
    permute_one(t, "heads", (struct kview4){ { 2, 5, 9, 8 }, { 360, 8, 40, 1 } }, 720);
    permute_one(t, "all dense", (struct kview4){ { 2, 3, 5, 7 }, { 105, 35, 7, 1 } }, 210);
    permute_one(t, "backwards", (struct kview4){ { 2, 3, 5, 7 }, { 1, 2, 6, 30 } }, 210);
}

/* Ids -1, V and far beyond are rows of NaN and disturb no other. There are rows behind the table, too. */
static void gather_one(enum dtype to, enum dtype from, int64_t n, int64_t V, int64_t D)
{
    struct mirror table = mirror_random(from, (V + 1) * D, 1, 1), y = mirror_new(to, n * D);
    float *const got = malloc((size_t)(n * D) * sizeof *got);
    int32_t *const id = malloc((size_t)n * sizeof *id);
    bool ok = got && id;

    for (int64_t r = 0; ok && r < n; r++)
        id[r] = r % 5 != 3 ? (int32_t)(r * 7919 % V) : r % 2 ? 2 - (int32_t)r : r % 4 ? INT32_MAX : (int32_t)V;
    if (ok) {
        const int32_t *dev = mirror_bytes(id, (size_t)n * sizeof *id);
        CUDA_TWICE(&y, ok &= kit_cuda->gather(kit_cuda_ctx(), y.dev, to, table.dev, from, dev, n, V, D) == K_OK);
        mirror_read(&y, got);
    }
    for (int64_t r = 0; ok && r < n; r++)
        for (int64_t c = 0; c < D; c++) {
            const int64_t at = r * D + c;
            if (id[r] < 0 || id[r] >= V)
                ok &= isnan(got[at]);
            else
                ok &= fabs((double)got[at] - (double)table.f[id[r] * D + c])
                    <= (from == to ? 0 : rounding[to]) * fabs((double)table.f[id[r] * D + c]) + 1e-7;
        }
    tap_ok(ok, "gather %s from %s %dx%d of %d", dtype_name(to), dtype_name(from), (int)n, (int)D, (int)V);
    free(got);
    free(id);
    cuda_kit_release();
}

static void gather(enum dtype to)
{
    for (int from = 0; from < N_DTYPE; from++) {
        gather_one(to, (enum dtype)from, 5, 3, 1);
        gather_one(to, (enum dtype)from, 21, 50, 13);
        gather_one(to, (enum dtype)from, 33, 100, 40);
        gather_one(to, (enum dtype)from, 77, 1000, cuda_kit_small() ? 24 : 768);
    }
}

static void time_embed(enum dtype t)
{
    static const float times[] = { 0, 1, 999, 501, 2, 998.5f, 0.25f, 250 };
    static const int64_t dims[] = { 2, 6, 320, 34 };

    for (size_t i = 0; i < LEN(dims); i++)
        for (int64_t B = 1; B <= (int64_t)LEN(times); B += 7) {
            struct mirror at = mirror_of(F32, B, times), y = mirror_new(t, B * dims[i]);
            bool ok = kit_cpu->time_embed(kit_cpu_ctx(), y.f, F32, at.f, B, dims[i]) == K_OK;

            CUDA_TWICE(&y, ok &= kit_cuda->time_embed(kit_cuda_ctx(), y.dev, t, at.dev, B, dims[i]) == K_OK);
            ok &= mirror_near(&y, rounding[t], "sinusoids");
            tap_ok(ok, "time_embed %s %dx%d", dtype_name(t), (int)B, (int)dims[i]);
            cuda_kit_release();
        }
}

/* Grids end at a few waves; what is beyond is walked in strides, by vectors as by elements. */
static void long_run(int64_t n)
{
    struct mirror x = mirror_random(BF16, n, 1, 1), y = mirror_new(BF16, n);
    bool ok = kit_cpu->axpby(kit_cpu_ctx(), y.f, 2, x.f, 1, NULL, F32, n) == K_OK;

    CUDA_TWICE(&y, ok &= kit_cuda->axpby(kit_cuda_ctx(), y.dev, 2, x.dev, 1, NULL, BF16, n) == K_OK);
    tap_ok(mirror_near(&y, rounding[BF16], "2 x + 1") && ok, "axpby %d", (int)n);
    cuda_kit_release();
}

static void wrong_arguments(void)
{
    const struct kern *c = kit_cuda;
    const struct kview4 short_dim = { { 1, -1, 1, 1 }, { 1, 1, 1, 1 } }, back = { { 1, 1, 1, 1 }, { 1, 1, -1, 1 } };
    struct kctx *k = kit_cuda_ctx();
    float *y = mirror_space(64);
    int32_t *id = mirror_space(64);

    tap_ok(c->fill(k, y, N_DTYPE, 1, 0) == K_ARG && c->fill(k, y, F32, -1, 0) == K_ARG, "fill refuses");
    tap_ok(c->cast(k, y, N_DTYPE, y, F32, 1) == K_ARG && c->cast(k, y, F32, y, N_DTYPE, 1) == K_ARG
           && c->cast(k, y, F32, y, F32, -1) == K_ARG, "cast refuses");
    tap_ok(c->axpby(k, y, 1, y, 1, y, F32, -1) == K_ARG && c->axpby(k, y, 1, y, 1, NULL, N_DTYPE, 1) == K_ARG
           && c->mul(k, y, y, y, F32, -1) == K_ARG && c->mul(k, y, y, y, N_DTYPE, 1) == K_ARG, "axpby, mul refuse");
    tap_ok(c->row_axpby(k, y, y, y, y, y, F32, -1, 1) == K_ARG && c->row_axpby(k, y, y, y, y, y, F32, 1, -1) == K_ARG
           && c->row_axpby(k, y, y, y, y, NULL, N_DTYPE, 1, 1) == K_ARG
           && c->lerp_mask(k, y, y, y, y, F32, -1, 1) == K_ARG && c->lerp_mask(k, y, y, y, y, F32, 1, -1) == K_ARG
           && c->lerp_mask(k, y, y, y, y, N_DTYPE, 1, 1) == K_ARG, "row_axpby, lerp_mask refuse");
    tap_ok(c->copy_rows(k, y, 1, y, 2, F32, 1, 2, false) == K_ARG
           && c->copy_rows(k, y, 2, y, 1, F32, 1, 2, true) == K_ARG
           && c->copy_rows(k, y, 2, y, 2, N_DTYPE, 1, 2, false) == K_ARG
           && c->copy_rows(k, y, 2, y, 2, F32, -1, 2, false) == K_ARG, "copy_rows refuses");
    tap_ok(c->permute(k, y, y, F32, &short_dim) == K_ARG && c->permute(k, y, y, F32, &back) == K_ARG
           && c->permute(k, y, y, N_DTYPE, &short_dim) == K_ARG, "permute refuses");
    tap_ok(c->gather(k, y, F32, y, F32, id, -1, 1, 1) == K_ARG && c->gather(k, y, F32, y, F32, id, 1, 1, -1) == K_ARG
           && c->gather(k, y, F32, y, F32, id, 1, -1, 1) == K_ARG
           && c->gather(k, y, F32, y, N_DTYPE, id, 1, 1, 1) == K_ARG, "gather refuses");
    tap_ok(c->time_embed(k, y, F32, y, 1, 3) == K_ARG && c->time_embed(k, y, F32, y, -1, 2) == K_ARG
           && c->time_embed(k, y, N_DTYPE, y, 1, 2) == K_ARG, "time_embed refuses");
    cuda_kit_release();
}

static void nothing_to_do(void)
{
    const struct kview4 empty = { { 1, 0, 1, 1 }, { 1, 1, 1, 1 } };
    const struct kern *c = kit_cuda;
    struct kctx *k = kit_cuda_ctx();
    struct dev_cuda_counts before, after;
    bool ok;

    dev_cuda_counts(kit_queue, &before);
    ok = !c->fill(k, NULL, F32, 0, 0) && !c->cast(k, NULL, F16, NULL, F32, 0) && !c->cast(k, NULL, F16, NULL, F16, 0)
      && !c->axpby(k, NULL, 1, NULL, 1, NULL, F32, 0) && !c->mul(k, NULL, NULL, NULL, F32, 0)
      && !c->row_axpby(k, NULL, NULL, NULL, NULL, NULL, F32, 0, 3)
      && !c->row_axpby(k, NULL, NULL, NULL, NULL, NULL, F32, 3, 0)
      && !c->lerp_mask(k, NULL, NULL, NULL, NULL, F32, 0, 3) && !c->lerp_mask(k, NULL, NULL, NULL, NULL, F32, 3, 0)
      && !c->copy_rows(k, NULL, 3, NULL, 3, F32, 0, 3, false) && !c->copy_rows(k, NULL, 3, NULL, 3, F32, 3, 0, true)
      && !c->permute(k, NULL, NULL, F32, &empty) && !c->gather(k, NULL, F32, NULL, F32, NULL, 0, 3, 3)
      && !c->gather(k, NULL, F32, NULL, F32, NULL, 3, 3, 0) && !c->time_embed(k, NULL, F32, NULL, 0, 2)
      && !c->time_embed(k, NULL, F32, NULL, 2, 0);
    dev_cuda_counts(kit_queue, &after);
    tap_ok(ok && after.launches == before.launches, "sizes of 0 launch nothing");
}

static void all_of(enum dtype t)
{
    fill(t);
    for (int from = 0; from < N_DTYPE; from++)
        cast(t, (enum dtype)from);
    axpby(t);
    mul(t);
    row_axpby(t);
    lerp_mask(t);
    copy_rows(t);
    permute(t);
    gather(t);
    time_embed(t);
}

int main(void)
{
    if (!cuda_kit_begin())
        return 0;
    for (int odd = 0; odd < 2; odd++) {
        cuda_kit_odd = odd;
        for (int t = 0; t < N_DTYPE; t++)
            all_of((enum dtype)t);
        cast_edges();
    }
    long_run(1200007);
    cuda_kit_odd = false;
    long_run(9000007);
    wrong_arguments();
    nothing_to_do();
    return cuda_kit_end();
}
