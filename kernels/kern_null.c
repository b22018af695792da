/* kernels/kern_null.c: the twin that computes nothing. It refuses what the other twins refuse and adds up what they
 * would do: FLOPs of products and attention (1 multiply-add = 2; taps on zero padding count, as in published figures; a
 * backward product counts as its forward one), bytes of every operand read or written once (workspaces excepted; what
 * accumulates is both read and written), and one call. A call with a size of 0 is not counted. */
#include "kernels/kern.h"

static bool type_ok(enum dtype type)
{
    return type == F32 || type == F16 || type == BF16;
}

static int64_t bytes_of(enum dtype type, int64_t n)
{
    return (int64_t)dtype_bytes(type) * n;
}

static int64_t f32s(int64_t n)
{
    return bytes_of(F32, n);
}

static int add(struct kctx *k, int64_t flops, int64_t bytes)
{
    if (k->count) {
        k->count->flops += flops;
        k->count->bytes += bytes;
        k->count->calls++;
    }
    return K_OK;
}

/* For kernels over n elements of one type, `operands` of them, and nothing else. */
static int add_flat(struct kctx *k, enum dtype type, int64_t n, int operands)
{
    if (n < 0 || !type_ok(type))
        return K_ARG;
    return n ? add(k, 0, bytes_of(type, n) * operands) : K_OK;
}

/* ---- products ---- */

/* Weights per (Co,Ci) pair of a pack: four phases of 2x2 taps, or 4x4, for the up-sampling kinds. */
static int64_t pack_taps(enum kpack_kind kind, int KH, int KW)
{
    return kind == K_PACK_UP || kind == K_PACK_UP_DX ? 16 : (int64_t)KH * KW;
}

static bool pack_ok(const struct kpack *p)
{
    const bool up = p->kind == K_PACK_UP || p->kind == K_PACK_UP_DX;

    return p->kind >= 0 && p->kind < K_N_PACK && type_ok(p->src) && type_ok(p->dst) && p->Co >= 0 && p->Ci >= 0
        && p->KH >= 1 && p->KW >= 1 && p->ci_first >= 0 && p->ci_first <= p->ci_total
        && p->Ci <= p->ci_total - p->ci_first && (!up || (p->KH == 3 && p->KW == 3))
        && (!p->glu || (p->kind == K_PACK_FWD && p->Co % 2 == 0));
}

static int n_pack(struct kctx *k, void *dst, const struct kpack *p, const void *w)
{
    const int64_t pairs = p->Co * p->Ci;

    (void)dst;
    (void)w;
    if (!pack_ok(p))
        return K_ARG;
    if (!pairs)
        return K_OK;
    return add(k, 0, bytes_of(p->src, pairs * p->KH * p->KW)
               + bytes_of(p->dst, pairs * pack_taps(p->kind, p->KH, p->KW)));
}

static bool geom_ok(const struct kgeom *g)
{
    if (g->H < 0 || g->W < 0 || g->Ci < 0 || g->Ho < 0 || g->Wo < 0 || g->Co < 0 || g->KH < 1 || g->KW < 1
        || g->KH * g->KW > K_MAX_TAPS
        || (g->stride != 1 && g->stride != 2) || g->pad_t < 0 || g->pad_l < 0 || (g->up != 1 && g->up != 2))
        return false;
    if (g->up == 1)
        return true;
    return g->stride == 1 && g->Ho <= 2 * g->H && g->Wo <= 2 * g->W && g->KH == 2 * g->pad_t + 1
        && g->KW == 2 * g->pad_l + 1;
}

/* Does the pack serve this direction and geometry? */
static bool kind_ok(enum kdir dir, enum kpack_kind kind, const struct kgeom *g)
{
    const bool up = kind == K_PACK_UP || kind == K_PACK_UP_DX;

    if (dir == K_FWD ? kind != K_PACK_FWD && kind != K_PACK_UP : kind != K_PACK_DX && kind != K_PACK_UP_DX)
        return false;
    if (up)
        return g->up == 2 && g->KH == 3 && g->KW == 3 && g->Ho == 2 * g->H && g->Wo == 2 * g->W;
    return kind == K_PACK_FWD || g->up == 1;
}

/* What a product's parts have to agree on: its output. */
struct out_size {
    int64_t H, W, C;
};

static struct out_size out_size(enum kdir dir, const struct kgeom *g)
{
    return dir == K_FWD ? (struct out_size){ g->Ho, g->Wo, g->Co } : (struct out_size){ g->H, g->W, g->Ci };
}

static bool part_ok(const struct kconv *c, const struct kpart *p)
{
    const struct out_size o = out_size(c->dir, &p->g), first = out_size(c->dir, &c->part[0].g);

    return type_ok(p->type) && type_ok(p->pack_type) && geom_ok(&p->g) && kind_ok(c->dir, p->pack_kind, &p->g)
        && p->ldx >= (c->dir == K_FWD ? p->g.Ci : p->g.Co) && p->glu == (c->act == K_ACT_GEGLU)
        && (!p->glu || p->pack_kind == K_PACK_FWD) && o.H == first.H
        && o.W == first.W && o.C == first.C;
}

static bool conv_ok(const struct kconv *c)
{
    int64_t C;

    if ((c->dir != K_FWD && c->dir != K_DX) || c->B < 0 || c->n_part < 1 || c->n_part > 3 || !type_ok(c->y_type)
        || c->act < K_ACT_NONE || c->act > K_ACT_GEGLU)
        return false;
    if (c->dir == K_DX && (c->bias || c->row_add || c->act != K_ACT_NONE))
        return false;
    for (int i = 0; i < c->n_part; i++)
        if (!part_ok(c, &c->part[i]))
            return false;
    C = out_size(c->dir, &c->part[0].g).C;
    if (c->row_add && c->row_add_ld < C)
        return false;
    if (c->act == K_ACT_GEGLU) {
        if (C % 2)
            return false;
        C /= 2;
    }
    return c->ldy >= C && (!c->residual || c->residual_ld >= C);
}

/* Products of one image: 2x2 taps per output pixel through K_PACK_UP, and as many back through K_PACK_UP_DX. */
static int64_t part_flops(const struct kpart *p)
{
    const struct kgeom *g = &p->g;
    const bool up = p->pack_kind == K_PACK_UP || p->pack_kind == K_PACK_UP_DX;

    return 2 * g->Ho * g->Wo * g->Co * g->Ci * (up ? 4 : (int64_t)g->KH * g->KW);
}

static int n_conv(struct kctx *k, const struct kconv *c)
{
    struct out_size o;
    int64_t flops = 0, bytes = 0, n;

    if (!conv_ok(c))
        return K_ARG;
    o = out_size(c->dir, &c->part[0].g);
    if (!c->B || !o.H || !o.W || !o.C)
        return K_OK;
    for (int i = 0; i < c->n_part; i++) {
        const struct kpart *p = &c->part[i];
        const struct kgeom *g = &p->g;
        flops += c->B * part_flops(p);
        bytes += bytes_of(p->type, c->B * (c->dir == K_FWD ? g->H * g->W * g->Ci : g->Ho * g->Wo * g->Co));
        bytes += bytes_of(p->pack_type, g->Co * g->Ci * pack_taps(p->pack_kind, g->KH, g->KW));
    }
    n = c->B * o.H * o.W * (c->act == K_ACT_GEGLU ? o.C / 2 : o.C);
    bytes += bytes_of(c->y_type, n) * (c->residual ? 2 : 1);
    bytes += (c->bias ? f32s(o.C) : 0) + (c->row_add ? bytes_of(c->y_type, c->B * o.C) : 0);
    return add(k, flops, bytes);
}

static int n_conv_dw(struct kctx *k, float *dw, float beta, const struct kgeom *g, int64_t B, const void *x,
                     enum dtype x_type, int64_t ldx, const void *dy, enum dtype dy_type, int64_t lddy)
{
    int64_t weights, out;

    (void)dw;
    (void)x;
    (void)dy;
    if (!geom_ok(g) || B < 0 || (beta != 0 && beta != 1) || !type_ok(x_type) || !type_ok(dy_type) || ldx < g->Ci
        || lddy < g->Co)
        return K_ARG;
    weights = g->Co * g->Ci * g->KH * g->KW;
    out = B * g->Ho * g->Wo;
    if (!weights || !out)
        return K_OK;
    return add(k, 2 * out * weights, f32s(weights) * (beta != 0 ? 2 : 1) + bytes_of(x_type, B * g->H * g->W * g->Ci)
               + bytes_of(dy_type, out * g->Co));
}

static int n_gemm(struct kctx *k, const struct kgemm *g)
{
    const int64_t n_a = g->stride_a ? g->n : 1, n_b = g->stride_b ? g->n : 1;

    if (g->M < 0 || g->N < 0 || g->K < 0 || g->n < 0 || !type_ok(g->a_type) || !type_ok(g->b_type)
        || !type_ok(g->c_type) || g->lda < (g->trans_a ? g->M : g->K) || g->ldb < (g->trans_b ? g->K : g->N)
        || g->ldc < g->N)
        return K_ARG;
    if (!g->M || !g->N || !g->K || !g->n)
        return K_OK;
    return add(k, 2 * g->M * g->N * g->K * g->n,
               bytes_of(g->a_type, n_a * g->M * g->K) + bytes_of(g->b_type, n_b * g->K * g->N)
               + bytes_of(g->c_type, g->n * g->M * g->N) * (g->beta != 0 ? 2 : 1));
}

/* ---- attention ---- */

static bool attn_ok(const struct kattn *a)
{
    return type_ok(a->type) && a->B >= 0 && a->N >= 0 && a->Tq >= 0 && a->Tk >= 0 && a->D >= 0
        && (!a->causal || a->Tq == a->Tk) && a->ldq >= a->N * a->D && a->ldk >= a->N * a->D
        && a->ldv >= a->N * a->D && a->ldo >= a->N * a->D;
}

/* Multiply-adds of one product over all pairs of a query and a key that it sees. */
static int64_t attn_madds(const struct kattn *a)
{
    return a->B * a->N * a->D * (a->causal ? a->Tq * (a->Tq + 1) / 2 : a->Tq * a->Tk);
}

static int n_attn(struct kctx *k, const struct kattn *a)
{
    int64_t rows;

    if (!attn_ok(a))
        return K_ARG;
    if (!attn_madds(a))
        return K_OK;
    rows = a->B * a->N * a->D;
    return add(k, 2 * 2 * attn_madds(a),                    /* q k^T and p v */
               bytes_of(a->type, rows * (2 * a->Tq + 2 * a->Tk)) + (a->lse ? f32s(a->B * a->N * a->Tq) : 0));
}

static int n_attn_back(struct kctx *k, const struct kattn_back *b)
{
    const struct kattn *a = &b->f;
    int64_t rows;

    if (!attn_ok(a) || b->ldd_o < a->N * a->D || b->lddq < a->N * a->D || b->lddk < a->N * a->D
        || b->lddv < a->N * a->D)
        return K_ARG;
    if (!attn_madds(a))
        return K_OK;
    rows = a->B * a->N * a->D;
    return add(k, 5 * 2 * attn_madds(a),                    /* q k^T again, dv, dp, dq, dk */
               bytes_of(a->type, rows * (4 * a->Tq + 4 * a->Tk)) + f32s(a->B * a->N * a->Tq));
}

/* ---- norms ---- */

static int n_group_norm(struct kctx *k, void *y, int64_t ldy, float *mean, float *rstd, const void *x, int64_t ldx,
                        enum dtype type, const float *gamma, const float *beta, int64_t B, int64_t HW, int64_t C,
                        int64_t G, float eps, bool silu)
{
    (void)mean, (void)rstd, (void)x, (void)gamma, (void)beta, (void)eps, (void)silu;
    if (B < 0 || HW < 0 || C < 0 || G < 1 || C % G || ldx < C || (y && ldy < C) || !type_ok(type))
        return K_ARG;
    if (!B || !HW || !C)
        return K_OK;
    return add(k, 0, y ? 2 * bytes_of(type, B * HW * C) + f32s(2 * C + 2 * B * G)
                       : bytes_of(type, B * HW * C) + f32s(2 * B * G));
}

static int n_group_norm_apply(struct kctx *k, void *y, int64_t ldy, const float *mean, const float *rstd, const void *x,
                              int64_t ldx, enum dtype type, const float *gamma, const float *beta, int64_t B,
                              int64_t HW, int64_t C, int64_t G, bool silu)
{
    (void)y, (void)mean, (void)rstd, (void)x, (void)gamma, (void)beta, (void)silu;
    if (B < 0 || HW < 0 || C < 0 || G < 1 || C % G || ldx < C || ldy < C || !type_ok(type))
        return K_ARG;
    if (!B || !HW || !C)
        return K_OK;
    return add(k, 0, 2 * bytes_of(type, B * HW * C) + f32s(2 * C + 2 * B * G));
}

static int n_group_norm_back(struct kctx *k, void *dx, float *dgamma, float *dbeta, const void *dy, int64_t lddy,
                             const void *x, int64_t ldx, const float *mean, const float *rstd, enum dtype type,
                             const float *gamma, const float *beta, int64_t B, int64_t HW, int64_t C, int64_t G,
                             bool silu, void *work)
{
    (void)dx, (void)dy, (void)x, (void)mean, (void)rstd, (void)gamma, (void)beta, (void)silu, (void)work;
    if (B < 0 || HW < 0 || C < 0 || G < 1 || C % G || ldx < C || lddy < C || !type_ok(type) || !dgamma != !dbeta)
        return K_ARG;
    if (!B || !HW || !C)
        return K_OK;
    return add(k, 0, 3 * bytes_of(type, B * HW * C) + f32s(2 * C + 2 * B * G + (dgamma ? 4 * C : 0)));
}

static int n_layer_norm(struct kctx *k, void *y, float *mean, float *rstd, const void *x, enum dtype type,
                        const float *gamma, const float *beta, int64_t rows, int64_t D, float eps)
{
    (void)y, (void)x, (void)gamma, (void)beta, (void)eps;
    if (rows < 0 || D < 0 || !type_ok(type) || !mean != !rstd)
        return K_ARG;
    if (!rows || !D)
        return K_OK;
    return add(k, 0, 2 * bytes_of(type, rows * D) + f32s(2 * D + (mean ? 2 * rows : 0)));
}

static int n_layer_norm_back(struct kctx *k, void *dx, float *dgamma, float *dbeta, const void *dy, const void *x,
                             const float *mean, const float *rstd, enum dtype type, const float *gamma, int64_t rows,
                             int64_t D, void *work)
{
    (void)dx, (void)dy, (void)x, (void)mean, (void)rstd, (void)gamma, (void)work;
    if (rows < 0 || D < 0 || !type_ok(type) || !dgamma != !dbeta)
        return K_ARG;
    if (!rows || !D)
        return K_OK;
    return add(k, 0, 3 * bytes_of(type, rows * D) + f32s(D + 2 * rows + (dgamma ? 4 * D : 0)));
}

/* ---- activations ---- */

static int n_unary(struct kctx *k, enum kunary f, void *y, const void *x, enum dtype type, int64_t n)
{
    (void)y, (void)x;
    return f < 0 || f >= K_N_UNARY ? K_ARG : add_flat(k, type, n, 2);
}

static int n_unary_back(struct kctx *k, enum kunary f, void *dx, const void *dy, const void *x, enum dtype type,
                        int64_t n)
{
    (void)dx, (void)dy, (void)x;
    return f < 0 || f >= K_N_UNARY ? K_ARG : add_flat(k, type, n, 3);
}

static int n_geglu(struct kctx *k, void *y, const void *x, enum dtype type, int64_t rows, int64_t D)
{
    (void)y, (void)x;
    return rows < 0 || D < 0 ? K_ARG : add_flat(k, type, rows * D, 3);
}

static int n_geglu_back(struct kctx *k, void *dx, const void *dy, const void *x, enum dtype type, int64_t rows,
                        int64_t D)
{
    (void)dx, (void)dy, (void)x;
    return rows < 0 || D < 0 ? K_ARG : add_flat(k, type, rows * D, 5);
}

static int n_softmax(struct kctx *k, void *y, const void *x, enum dtype type, int64_t rows, int64_t D)
{
    (void)y, (void)x;
    return rows < 0 || D < 0 ? K_ARG : add_flat(k, type, rows * D, 2);
}

static int n_softmax_back(struct kctx *k, void *dx, const void *dy, const void *y, enum dtype type, int64_t rows,
                          int64_t D)
{
    (void)dx, (void)dy, (void)y;
    return rows < 0 || D < 0 ? K_ARG : add_flat(k, type, rows * D, 3);
}

/* ---- element by element ---- */

static int n_fill(struct kctx *k, void *y, enum dtype type, int64_t n, float value)
{
    (void)y, (void)value;
    return add_flat(k, type, n, 1);
}

static int n_cast(struct kctx *k, void *y, enum dtype y_type, const void *x, enum dtype x_type, int64_t n)
{
    (void)y, (void)x;
    if (n < 0 || !type_ok(y_type) || !type_ok(x_type))
        return K_ARG;
    return n ? add(k, 0, bytes_of(y_type, n) + bytes_of(x_type, n)) : K_OK;
}

static int n_axpby(struct kctx *k, void *y, float a, const void *x, float b, const void *z, enum dtype type, int64_t n)
{
    (void)y, (void)a, (void)x, (void)b;
    return add_flat(k, type, n, z ? 3 : 2);
}

static int n_mul(struct kctx *k, void *y, const void *x, const void *z, enum dtype type, int64_t n)
{
    (void)y, (void)x, (void)z;
    return add_flat(k, type, n, 3);
}

static int n_row_axpby(struct kctx *k, void *y, const float *a, const void *x, const float *c, const void *z,
                       enum dtype type, int64_t B, int64_t n)
{
    (void)y, (void)a, (void)x, (void)c;
    if (B < 0 || n < 0 || !type_ok(type))
        return K_ARG;
    if (!B || !n)
        return K_OK;
    return add(k, 0, bytes_of(type, B * n) * (z ? 3 : 2) + f32s(z ? 2 * B : B));
}

static int n_lerp_mask(struct kctx *k, void *y, const float *m, const void *x, const void *z, enum dtype type,
                       int64_t BHW, int64_t C)
{
    (void)y, (void)m, (void)x, (void)z;
    if (BHW < 0 || C < 0 || !type_ok(type))
        return K_ARG;
    if (!BHW || !C)
        return K_OK;
    return add(k, 0, bytes_of(type, BHW * C) * 3 + f32s(BHW));
}

static int n_copy_rows(struct kctx *k, void *y, int64_t ldy, const void *x, int64_t ldx, enum dtype type, int64_t rows,
                       int64_t n, bool accumulate)
{
    (void)y, (void)x;
    if (rows < 0 || n < 0 || ldx < n || ldy < n)
        return K_ARG;
    return add_flat(k, type, rows * n, accumulate ? 3 : 2);
}

static int n_permute(struct kctx *k, void *y, const void *x, enum dtype type, const struct kview4 *v)
{
    int64_t n = 1, distinct = 1;

    (void)y, (void)x;
    if (!type_ok(type))
        return K_ARG;
    for (int i = 0; i < 4; i++) {
        if (v->dim[i] < 0 || v->stride[i] < 0)
            return K_ARG;
        n *= v->dim[i];
        distinct *= v->stride[i] ? v->dim[i] : 1;
    }
    return n ? add(k, 0, bytes_of(type, n) + bytes_of(type, distinct)) : K_OK;
}

static int n_gather(struct kctx *k, void *y, enum dtype y_type, const void *table, enum dtype table_type,
                    const int32_t *id, int64_t n, int64_t V, int64_t D)
{
    (void)y, (void)table, (void)id;
    if (n < 0 || V < 0 || D < 0 || !type_ok(y_type) || !type_ok(table_type))
        return K_ARG;
    if (!n || !D)
        return K_OK;
    return add(k, 0, bytes_of(y_type, n * D) + bytes_of(table_type, n * D) + (int64_t)sizeof *id * n);
}

static int n_gather_back(struct kctx *k, float *dtable, const void *dy, enum dtype type, const int32_t *id, int64_t n,
                         int64_t V, int64_t D)
{
    (void)dtable, (void)dy, (void)id;
    if (n < 0 || V < 0 || D < 0 || !type_ok(type))
        return K_ARG;
    if (!n || !D)
        return K_OK;
    return add(k, 0, 2 * f32s(n * D) + bytes_of(type, n * D) + (int64_t)sizeof *id * n);
}

static int n_time_embed(struct kctx *k, void *y, enum dtype type, const float *t, int64_t B, int64_t dim)
{
    (void)y, (void)t;
    if (B < 0 || dim < 0 || dim % 2 || !type_ok(type))
        return K_ARG;
    if (!B || !dim)
        return K_OK;
    return add(k, 0, bytes_of(type, B * dim) + f32s(B));
}

/* ---- resampling: both maps once ---- */

static int resample(struct kctx *k, enum dtype type, int64_t B, int64_t H, int64_t W, int64_t C, int64_t Ho, int64_t Wo)
{
    if (B < 0 || H < 0 || W < 0 || C < 0 || Ho < 0 || Wo < 0 || !type_ok(type))
        return K_ARG;
    if (!B || !C || !H || !W || !Ho || !Wo)
        return K_OK;
    return add(k, 0, bytes_of(type, B * C * (H * W + Ho * Wo)));
}

static int n_nearest(struct kctx *k, void *y, const void *x, enum dtype type, int64_t B, int64_t H, int64_t W,
                     int64_t C, int64_t Ho, int64_t Wo)
{
    (void)y, (void)x;
    return resample(k, type, B, H, W, C, Ho, Wo);
}

static int n_nearest_back(struct kctx *k, void *dx, const void *dy, enum dtype type, int64_t B, int64_t H, int64_t W,
                          int64_t C, int64_t Ho, int64_t Wo)
{
    (void)dx, (void)dy;
    return resample(k, type, B, H, W, C, Ho, Wo);
}

static int n_bilinear(struct kctx *k, void *y, const void *x, enum dtype type, int64_t B, int64_t H, int64_t W,
                      int64_t C, int64_t Ho, int64_t Wo, bool align_corners)
{
    (void)y, (void)x, (void)align_corners;
    return resample(k, type, B, H, W, C, Ho, Wo);
}

static int n_bilinear_back(struct kctx *k, void *dx, const void *dy, enum dtype type, int64_t B, int64_t H, int64_t W,
                           int64_t C, int64_t Ho, int64_t Wo, bool align_corners)
{
    (void)dx, (void)dy, (void)align_corners;
    return resample(k, type, B, H, W, C, Ho, Wo);
}

/* ---- reductions ---- */

static int reduce(struct kctx *k, enum dtype type, int64_t n, int operands, size_t out_bytes)
{
    if (n < 0 || !type_ok(type))
        return K_ARG;
    return n ? add(k, 0, bytes_of(type, n) * operands + (int64_t)out_bytes) : K_OK;
}

static int n_sum(struct kctx *k, float *out, const void *x, enum dtype type, int64_t n)
{
    (void)x;
    return reduce(k, type, n, 1, sizeof *out);
}

static int n_dot(struct kctx *k, float *out, const void *x, const void *z, enum dtype type, int64_t n)
{
    (void)x, (void)z;
    return reduce(k, type, n, 2, sizeof *out);
}

static int n_count_nonfinite(struct kctx *k, int64_t *out, const void *x, enum dtype type, int64_t n)
{
    (void)x;
    return reduce(k, type, n, 1, sizeof *out);
}

static int n_col_sum(struct kctx *k, float *out, bool accumulate, const void *x, int64_t ldx, enum dtype type,
                     int64_t rows, int64_t C, void *work)
{
    (void)out, (void)x, (void)work;
    if (rows < 0 || C < 0 || ldx < C || !type_ok(type))
        return K_ARG;
    if (!rows || !C)
        return K_OK;
    return add(k, 0, bytes_of(type, rows * C) + f32s(accumulate ? 2 * C : C));
}

static int n_image_sum(struct kctx *k, void *out, const void *x, int64_t ldx, enum dtype type, int64_t B, int64_t HW,
                       int64_t C)
{
    (void)out, (void)x;
    if (B < 0 || HW < 0 || C < 0 || ldx < C || !type_ok(type))
        return K_ARG;
    if (!B || !HW || !C)
        return K_OK;
    return add(k, 0, bytes_of(type, B * HW * C + B * C));
}

static int n_mse(struct kctx *k, float *out, const void *x, const void *z, enum dtype type, const float *w,
                 const float *m, int64_t B, int64_t HW, int64_t C)
{
    (void)out, (void)x, (void)z, (void)w;
    if (B < 0 || HW < 0 || C < 0 || !type_ok(type))
        return K_ARG;
    if (!B || !HW || !C)
        return K_OK;
    return add(k, 0, bytes_of(type, 2 * B * HW * C) + f32s(2 * B + (m ? B * HW : 0)));
}

static int n_mse_back(struct kctx *k, void *dx, const float *d_out, const void *x, const void *z, enum dtype type,
                      const float *w, const float *m, int64_t B, int64_t HW, int64_t C)
{
    (void)dx, (void)d_out, (void)x, (void)z, (void)w;
    if (B < 0 || HW < 0 || C < 0 || !type_ok(type))
        return K_ARG;
    if (!B || !HW || !C)
        return K_OK;
    return add(k, 0, bytes_of(type, 3 * B * HW * C) + f32s(2 * B + (m ? B * HW : 0)));
}

/* ---- optimizer and random numbers ---- */

static int n_adamw(struct kctx *k, float *p, float *m, float *v, const float *g, int64_t n, const struct kadamw *o,
                   void *shadow, enum dtype shadow_type)
{
    (void)p, (void)m, (void)v, (void)g, (void)o;
    if (n < 0 || (shadow && !type_ok(shadow_type)))
        return K_ARG;
    return n ? add(k, 0, f32s(7 * n) + (shadow ? bytes_of(shadow_type, n) : 0)) : K_OK;
}

static int draw(struct kctx *k, enum dtype type, int64_t n, uint64_t first)
{
    const uint64_t max_elements = (uint64_t)1 << 34;

    if (n < 0 || first > max_elements || (uint64_t)n > max_elements - first)
        return K_ARG;
    return add_flat(k, type, n, 1);
}

static int n_random_bits(struct kctx *k, uint32_t *y, int64_t n, const struct krng *r, uint64_t first)
{
    (void)y, (void)r;
    return draw(k, F32, n, first);
}

static int n_random_uniform(struct kctx *k, float *y, int64_t n, const struct krng *r, uint64_t first)
{
    (void)y, (void)r;
    return draw(k, F32, n, first);
}

static int n_random_normal(struct kctx *k, void *y, enum dtype type, int64_t n, const struct krng *r, uint64_t first)
{
    (void)y, (void)r;
    return draw(k, type, n, first);
}

void kern_null(struct kern *out, const struct kern *like)
{
    *out = (struct kern){
        .name = "null", .isa = like->isa, .scratch_bytes = like->scratch_bytes, .computes = false,
        .pack_bytes = like->pack_bytes, .pack = n_pack, .conv = n_conv, .conv_dw = n_conv_dw, .gemm = n_gemm,
        .attn = n_attn, .attn_back_bytes = like->attn_back_bytes, .attn_back = n_attn_back,
        .group_norm = n_group_norm, .group_norm_apply = n_group_norm_apply,
        .group_norm_back_bytes = like->group_norm_back_bytes,
        .group_norm_back = n_group_norm_back, .layer_norm = n_layer_norm,
        .layer_norm_back_bytes = like->layer_norm_back_bytes, .layer_norm_back = n_layer_norm_back,
        .unary = n_unary, .unary_back = n_unary_back, .geglu = n_geglu, .geglu_back = n_geglu_back,
        .softmax = n_softmax, .softmax_back = n_softmax_back,
        .fill = n_fill, .cast = n_cast, .axpby = n_axpby, .mul = n_mul, .row_axpby = n_row_axpby,
        .lerp_mask = n_lerp_mask, .copy_rows = n_copy_rows, .permute = n_permute, .gather = n_gather,
        .gather_back = n_gather_back, .time_embed = n_time_embed,
        .nearest = n_nearest, .nearest_back = n_nearest_back, .bilinear = n_bilinear,
        .bilinear_back = n_bilinear_back,
        .sum = n_sum, .sum_squares = n_sum, .dot = n_dot, .count_nonfinite = n_count_nonfinite,
        .col_sum_bytes = like->col_sum_bytes, .col_sum = n_col_sum, .image_sum = n_image_sum, .mse = n_mse,
        .mse_back = n_mse_back,
        .adamw = n_adamw,
        .random_bits = n_random_bits, .random_uniform = n_random_uniform, .random_normal = n_random_normal,
    };
}
