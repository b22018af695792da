/* kernels/gemm_cpu.c: products of two plain matrices, and the weight gradient of a convolution. Both operands change at
 * every call, so both are brought into product.h's layouts block by block on the way.
 *
 * What the micro-kernels read are words: one f32 of a step in k or, for dot products, the bf16 of two neighbouring
 * steps. A word is moved and transposed as if it were one float. */
#include "kernels/gather.h"

#include "kernels/isa.h"

/* A row-major or transposed matrix as either operand: element (r,c) at p[r*ld + c], or p[c*ld + r] if trans. */
struct matrix {
    const void *p;
    enum dtype type;
    bool trans, dot;
    int64_t ld;
    int64_t K;                          /* true depth: steps beyond are zero */
    int64_t columns;                    /* of a right operand: where padding begins */
};

enum { PANEL_STRIDE = KC * NR };

/* bf16 of step k (as f32) below those of step k + 1. */
INLINE vf pair(vf even, vf odd)
{
    return (vf)(((vu)even >> 16) | (vu)odd);
}

/* Words of n elements that lie side by side in each step: step k at `at`, the next ld further. */
INLINE vf words_across(const struct matrix *m, enum dtype t, bool dot, int64_t at, int64_t k, int64_t n)
{
    const vf even = k < m->K ? v_load_upto(m->p, at, t, n) : v_zero();

    if (!dot)
        return even;
    return pair(even, k + 1 < m->K ? v_load_upto(m->p, at + m->ld, t, n) : v_zero());
}

/* VL words along k of one row or column that is contiguous in k. */
INLINE vf words_along(const struct matrix *m, enum dtype t, bool dot, int64_t at, int64_t k)
{
    const int64_t left = m->K - k;

    if (left <= 0)
        return v_zero();
    if (!dot)
        return v_load_upto(m->p, at, t, left);
    if (left >= 2 * VL)
        return v_loadf((const float *)(const void *)((const uint16_t *)m->p + at));
    uint16_t h[2 * VL] = { 0 };
    memcpy(h, (const uint16_t *)m->p + at, 2 * (size_t)left);
    return v_loadf((const float *)(const void *)h);
}

/* ---- left operand: tile (mr,kc), row stride LDA words ---- */

INLINE void fill_tile(const struct matrix *m, enum dtype t, bool dot, float *tile, int64_t row, int mr, int64_t k,
                      int64_t kc)
{
    const int step = dot ? 2 : 1;
    vf w[VL];

    for (int64_t q = 0; q < kc; q += VL * step) {
        if (!m->trans) {
            for (int r = 0; r < mr; r++)
                v_storef(tile + r * LDA + q / step, words_along(m, t, dot, (row + r) * m->ld + k + q, k + q));
            continue;
        }
        for (int r0 = 0; r0 < mr; r0 += VL) {
            const int n = mr - r0 < VL ? mr - r0 : VL;

            for (int i = 0; i < VL; i++) {
                const int64_t kk = k + q + i * step;
                w[i] = words_across(m, t, dot, kk * m->ld + row + r0, kk, n);
            }
            v_transpose(w);
            for (int r = 0; r < n; r++)
                v_storef(tile + (r0 + r) * LDA + q / step, w[r]);
        }
    }
}

static void fill_rows(const void *a, void *tile, int64_t row, int mr, int64_t k, int64_t kc)
{
    const struct matrix *m = a;

    if (m->dot)
        fill_tile(m, BF16, true, tile, row, mr, k, kc);
    else if (m->type == F32)
        fill_tile(m, F32, false, tile, row, mr, k, kc);
    else if (m->type == F16)
        fill_tile(m, F16, false, tile, row, mr, k, kc);
    else
        fill_tile(m, BF16, false, tile, row, mr, k, kc);
}

/* ---- right operand: panels [step][NR] of words ---- */

INLINE void make_panel(float *d, const struct matrix *m, enum dtype t, bool dot, int64_t n0, int64_t k, int64_t kc)
{
    const int step = dot ? 2 : 1;
    vf w[VL];

    for (int c = 0; c < NR; c += VL) {
        const int64_t have = lesser(VL, m->columns - n0 - c);

        for (int64_t q = 0; q < kc; q += VL * step) {
            const int n_step = (int)lesser(VL, (kc - q + step - 1) / step);

            for (int i = 0; i < VL; i++)
                w[i] = m->trans ? i < have ? words_along(m, t, dot, (n0 + c + i) * m->ld + k + q, k + q) : v_zero()
                     : have > 0 ? words_across(m, t, dot, (k + q + i * step) * m->ld + n0 + c, k + q + i * step, have)
                                : v_zero();
            if (m->trans)
                v_transpose(w);
            for (int i = 0; i < n_step; i++)
                v_storef(d + (q / step + i) * NR + c, w[i]);
        }
    }
}

static const float *get_matrix(const void *b, float *buf, int64_t panel, int n, int64_t k, int64_t kc, int64_t *stride)
{
    const struct matrix *m = b;

    *stride = PANEL_STRIDE;
    for (int j = 0; j < n; j++) {
        float *d = buf + j * PANEL_STRIDE;
        const int64_t n0 = (panel + j) * NR;

        if (m->dot)
            make_panel(d, m, BF16, true, n0, k, kc);
        else if (m->type == F32)
            make_panel(d, m, F32, false, n0, k, kc);
        else if (m->type == F16)
            make_panel(d, m, F16, false, n0, k, kc);
        else
            make_panel(d, m, BF16, false, n0, k, kc);
    }
    return buf;
}

/* Patches as the right operand: step k is a pixel (two for dot), column n is channel n % C of tap n / C. */
struct patches {
    struct gather g;
    int64_t K;                          /* pixels */
};

INLINE void make_patch_row(float *buf, const struct gather *g, enum dtype t, bool dot, const struct pixel *p0,
                           const struct pixel *p1, int64_t panel, int n)
{
    int64_t c = panel * NR, tap = -1, at0 = -1, at1 = -1;
    const int64_t end = lesser((panel + n) * NR, g->C * g->n_tap);

    while (c < end) {
        const int64_t in_panel = c % NR, in_tap = c % g->C;
        const int64_t len = lesser(lesser(g->C - in_tap, NR - in_panel), lesser(end - c, VL));
        float *d = buf + (c / NR - panel) * PANEL_STRIDE + in_panel;
        vf w = v_zero();

        if (c / g->C != tap) {
            tap = c / g->C;
            at0 = gather_at(g, p0, (int)tap);
            at1 = dot && p1 ? gather_at(g, p1, (int)tap) : -1;
        }
        if (at0 >= 0)
            w = v_load_upto(g->x, at0 + in_tap, t, len);
        if (dot)
            w = pair(w, at1 >= 0 ? v_load_upto(g->x, at1 + in_tap, t, len) : v_zero());
        v_store_upto(d, 0, F32, w, len);
        c += len;
    }
    for (; c < (panel + n) * NR; c++)
        buf[(c / NR - panel) * PANEL_STRIDE + c % NR] = 0;
}

INLINE void make_patches(float *buf, const struct patches *s, enum dtype t, bool dot, int64_t panel, int n, int64_t k,
                         int64_t kc)
{
    const struct gather *g = &s->g;
    struct pixel p = pixel_at(k, g->Gh, g->Gw), q;

    for (int64_t i = 0; i < kc; i += dot ? 2 : 1, buf += NR) {
        q = p;
        if (dot)
            pixel_next(&q, g->Gh, g->Gw);
        make_patch_row(buf, g, t, dot, &p, k + i + 1 < s->K ? &q : NULL, panel, n);
        p = q;
        pixel_next(&p, g->Gh, g->Gw);
    }
}

static const float *get_patches(const void *b, float *buf, int64_t panel, int n, int64_t k, int64_t kc, int64_t *stride)
{
    const struct patches *s = b;

    *stride = PANEL_STRIDE;
    if (s->g.dot)
        make_patches(buf, s, BF16, true, panel, n, k, kc);
    else if (s->g.type == F32)
        make_patches(buf, s, F32, false, panel, n, k, kc);
    else if (s->g.type == F16)
        make_patches(buf, s, F16, false, panel, n, k, kc);
    else
        make_patches(buf, s, BF16, false, panel, n, k, kc);
    return buf;
}

/* ---- epilogue: C = alpha * sum + beta * C ---- */

struct gemm_out {
    void *c;
    enum dtype type;
    int64_t ldc, N;
    float alpha, beta;
};

static void write_c(const void *e, int64_t row, int mr, int64_t panel, const float *tile)
{
    const struct gemm_out *o = e;

    for (int r = 0; r < mr; r++)
        for (int h = 0; h < 2; h++) {
            const int64_t n = panel * NR + h * VL, have = lesser(VL, o->N - n), at = (row + r) * o->ldc + n;
            vf x = v_loadf(tile + r * NR + h * VL) * v_set(o->alpha);

            if (have <= 0)
                break;
            if (o->beta != 0)
                x = v_fma(v_set(o->beta), v_load_upto(o->c, at, o->type, have), x);
            v_store_upto(o->c, at, o->type, x, have);
        }
}

static int gemm_one(struct kctx *k, const struct kgemm *g, int64_t i)
{
    const bool dot = HAS_BF16_DOT && g->a_type == BF16 && g->b_type == BF16;
    const struct matrix a = { (const char *)g->a + (size_t)(i * g->stride_a) * dtype_bytes(g->a_type), g->a_type,
                              g->trans_a, dot, g->lda, g->K, 0 };
    const struct matrix b = { (const char *)g->b + (size_t)(i * g->stride_b) * dtype_bytes(g->b_type), g->b_type,
                              g->trans_b, dot, g->ldb, g->K, g->N };
    const struct gemm_out out = { (char *)g->c + (size_t)(i * g->stride_c) * dtype_bytes(g->c_type), g->c_type, g->ldc,
                                  g->N, g->alpha, g->beta };
    const struct product p = {
        .M = g->M, .n_panel = ceil_div(g->N, NR), .n_run = 1, .max_tiles = MAX_TILES_MADE,
        .run = { { .K = dot ? (g->K + 1) / 2 * 2 : g->K, .dot = dot, .a = &a, .b = &b, .a_fill = fill_rows,
                   .b_get = get_matrix } },
        .epilogue = &out, .out = write_c,
    };

    return ISA_NAME(product_run)(k, &p);
}

static int gemm(struct kctx *k, const struct kgemm *g)
{
    int rc = K_OK;

    if (g->M < 0 || g->N < 0 || g->K < 0 || g->n < 0 || g->a_type >= N_DTYPE || g->b_type >= N_DTYPE
        || g->c_type >= N_DTYPE || g->ldc < g->N || g->lda < (g->trans_a ? g->M : g->K)
        || g->ldb < (g->trans_b ? g->K : g->N))
        return K_ARG;
    for (int64_t i = 0; i < g->n && !rc; i++)
        rc = gemm_one(k, g, i);
    return rc;
}

static bool dw_fits(const struct kgeom *g, float beta, int64_t B, enum dtype x_type, enum dtype dy_type)
{
    return B >= 0 && g->KH > 0 && g->KW > 0 && g->KH * g->KW <= K_MAX_TAPS && x_type < N_DTYPE && dy_type < N_DTYPE
        && g->pad_t >= 0 && g->pad_l >= 0 && (g->stride == 1 || g->stride == 2)
        && (g->up == 1 || (g->up == 2 && g->stride == 1 && g->Ho <= 2 * g->H && g->Wo <= 2 * g->W
                           && g->KH == 2 * g->pad_t + 1 && g->KW == 2 * g->pad_l + 1))
        && (beta == 0 || beta == 1) && g->Ci >= 0 && g->Co >= 0 && g->H >= 0 && g->W >= 0 && g->Ho >= 0 && g->Wo >= 0;
}

/* dw (Co, taps*Ci) = dy^T (Co, pixels) times patches (pixels, taps*Ci). */
static int conv_dw(struct kctx *k, float *dw, float beta, const struct kgeom *g, int64_t B, const void *x,
                   enum dtype x_type, int64_t ldx, const void *dy, enum dtype dy_type, int64_t lddy)
{
    const bool dot = HAS_BF16_DOT && x_type == BF16 && dy_type == BF16;
    const int64_t N = g->KH * g->KW * g->Ci, K = B * g->Ho * g->Wo;
    const struct matrix a = { dy, dy_type, true, dot, lddy, K, 0 };
    const struct gemm_out out = { dw, F32, N, N, 1, beta };
    struct patches s = { .K = K, .g = { .x = x, .type = x_type, .dot = dot, .ld = ldx, .H = g->H, .W_px = g->W,
                                        .Hb = g->up == 2 ? g->Ho : g->H, .Wb = g->up == 2 ? g->Wo : g->W,
                                        .shift = g->up == 2, .stride = g->stride, .Gh = g->Ho, .Gw = g->Wo, .C = g->Ci,
                                        .depth = g->Ci } };
    const struct product p = {
        .M = g->Co, .n_panel = ceil_div(N, NR), .n_run = 1, .max_tiles = MAX_TILES_MADE,
        .run = { { .K = dot ? (K + 1) / 2 * 2 : K, .dot = dot, .a = &a, .b = &s, .a_fill = fill_rows,
                   .b_get = get_patches } },
        .epilogue = &out, .out = write_c,
    };

    if (!dw_fits(g, beta, B, x_type, dy_type) || ldx < g->Ci || lddy < g->Co)
        return K_ARG;
    for (int y = 0; y < g->KH; y++)
        for (int c = 0; c < g->KW; c++) {
            s.g.dy[s.g.n_tap] = (int16_t)(y - g->pad_t);
            s.g.dx[s.g.n_tap++] = (int16_t)(c - g->pad_l);
        }
    return ISA_NAME(product_run)(k, &p);
}

void ISA_NAME(fill_gemm)(struct kern *k)
{
    k->gemm = gemm;
    k->conv_dw = conv_dw;
}
