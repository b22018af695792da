/* kernels/cuda_plan.c: how a kconv is cut into products for the device, and which way each of them takes. Nothing here
 * needs a device. */
#include "kernels/cuda_product.h"

#include "kernels/cuda_gemm.h"

int product_forced;

/* ---- predictions, for an H200; none of these has been measured ----
 * Other devices are taken to scale by their multiprocessors, which the ratios survive. */
static const double
    lt_rate = 600e12 / 132,             /* FLOP/s of a multiprocessor in cuBLASLt's (wgmma), tiles of 128 x 128 */
    byte_rate = 4e12,                   /* bytes/s of memory, all together */
    launch_s = 2e-6;                    /* one more kernel, with its ramp */

/* What tiles_cuda.cu has. `share` of the rate above: small tiles feed less arithmetic by a byte of shared memory. */
static const struct tile {
    int m, n;
    double share;
} tiles[] = { { 128, 160, 1 }, { 128, 128, 0.97 }, { 128, 64, 0.8 }, { 64, 64, 0.65 } };

/* How our kernel multiplies: depth of a tile, stages in flight, FLOP/s of a multiprocessor with tiles of 128 x 160. */
struct engine {
    int tile_k, stages;
    double rate;
};
static const struct engine mma_sync = { 32, 4, 400e12 / 132 }, wgmma = { 64, 3, 550e12 / 132 };

enum { N_TILE = sizeof tiles / sizeof *tiles, LT_TILE_K = 32, CC_OF_WGMMA = 90, STAGES_ALONE = 6 };

static const size_t scratch_used = (size_t)1 << 30;     /* at most, so that indices into it are 31 bits */

/* ---- cutting ---- */

static bool type_ok(enum dtype type)
{
    return type == F32 || type == F16 || type == BF16;
}

static bool doubling_ok(const struct kgeom *g)
{
    const bool same_padding = g->KH == 2 * g->pad_t + 1 && g->KW == 2 * g->pad_l + 1;

    return g->stride == 1 && same_padding && g->Ho <= 2 * g->H && g->Wo <= 2 * g->W;
}

static bool geometry_ok(const struct kgeom *g)
{
    const int64_t sizes[] = { g->H, g->W, g->Ci, g->Ho, g->Wo, g->Co, g->pad_t, g->pad_l };

    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        if (sizes[i] < 0)
            return false;
    if (g->KH < 1 || g->KW < 1 || g->KH * g->KW > K_MAX_TAPS || g->stride < 1 || g->stride > 2)
        return false;
    return g->up == 1 || (g->up == 2 && doubling_ok(g));
}

static bool in_phases(const struct kpart *p)
{
    return p->pack_kind == K_PACK_UP;
}

static bool part_ok(const struct kconv *c, const struct kpart *p)
{
    const struct kgeom *g = &p->g, *first = &c->part[0].g;

    if (!type_ok(p->type) || !type_ok(p->pack_type) || !geometry_ok(g) || p->ldx < g->Ci
        || (p->pack_kind != K_PACK_FWD && p->pack_kind != K_PACK_UP) || in_phases(p) != in_phases(&c->part[0]))
        return false;
    if (in_phases(p) && (g->up != 2 || g->KH != 3 || g->KW != 3 || g->Ho != 2 * g->H || g->Wo != 2 * g->W || p->glu))
        return false;
    return g->Ho == first->Ho && g->Wo == first->Wo && g->Co == first->Co && p->glu == (c->act == K_ACT_GEGLU);
}

static bool conv_ok(const struct kconv *c)
{
    const bool gated = c->act == K_ACT_GEGLU;
    const int64_t Co = c->part[0].g.Co, channels = gated ? Co / 2 : Co;

    if (c->B < 0 || c->n_part < 1 || c->n_part > 3 || !type_ok(c->y_type) || (int)c->act < K_ACT_NONE
        || c->act > K_ACT_GEGLU || (gated && Co % 2))
        return false;
    for (int i = 0; i < c->n_part; i++)
        if (!part_ok(c, &c->part[i]))
            return false;
    return c->ldy >= channels && (!c->residual || c->residual_ld >= channels) && (!c->row_add || c->row_add_ld >= Co);
}

/* Phase (py,px) of a doubling reads pixels i + py - 1 and i + py of the small image, for row 2i + py of the large. */
static struct product_part cut_part(const struct kpart *from, int py, int px)
{
    const struct kgeom *g = &from->g;
    struct product_part a = { .x = from->x, .ldx = from->ldx, .w = from->pack, .H = g->H, .W = g->W, .Ci = g->Ci,
                              .Cp = (g->Ci + 7) / 8 * 8, .KH = g->KH, .KW = g->KW, .stride = g->stride,
                              .pad_t = g->pad_t, .pad_l = g->pad_l, .up = g->up, .x_type = from->type,
                              .w_type = from->pack_type };

    if (in_phases(from)) {
        const int64_t values = 4 * g->Co * a.Cp;        /* of one phase */

        a.w = (const char *)a.w + (py * 2 + px) * values * (int64_t)dtype_bytes(a.w_type);
        a.KH = a.KW = 2;
        a.pad_t = 1 - py;
        a.pad_l = 1 - px;
        a.up = 1;
    }
    return a;
}

static enum dtype common_type(const struct product *p)
{
    const enum dtype type = p->part[0].x_type;

    for (int i = 0; i < p->n_part; i++)
        if (p->part[i].x_type != type || p->part[i].w_type != type)
            return N_DTYPE;
    return type;
}

static struct product cut_phase(const struct kconv *c, int step, int py, int px)
{
    const struct kgeom *g = &c->part[0].g;
    struct product p = { .B = c->B, .Ho = g->Ho / step, .Wo = g->Wo / step, .Co = g->Co, .n_part = c->n_part,
                         .alpha = c->alpha, .bias = c->bias, .row_add = c->row_add, .row_add_ld = c->row_add_ld,
                         .act = c->act, .residual = c->residual, .residual_ld = c->residual_ld, .y = c->y,
                         .y_type = c->y_type, .ldy = c->ldy, .Hy = g->Ho, .Wy = g->Wo, .y_step = step, .y_i = py,
                         .y_j = px };

    for (int i = 0; i < c->n_part; i++)
        p.part[i] = cut_part(&c->part[i], py, px);
    p.type = common_type(&p);
    return p;
}

int product_cut(struct product out[4], const struct kconv *c)
{
    const int step = c->n_part > 0 && in_phases(&c->part[0]) ? 2 : 1;

    if (c->dir != K_FWD)
        return c->dir == K_DX ? K_MISSING : K_ARG;
    if (!conv_ok(c))
        return K_ARG;
    for (int i = 0; i < step * step; i++)
        out[i] = cut_phase(c, step, i / step, i % step);
    return step * step;
}

/* ---- what a product is like ---- */

static int64_t ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

static bool aligned(const void *p, int64_t ld, enum dtype type)
{
    return (uintptr_t)p % 16 == 0 && ld * (int64_t)dtype_bytes(type) % 16 == 0;
}

int64_t product_rows(const struct product *p)
{
    return p->B * p->Ho * p->Wo;
}

int64_t product_depth(const struct product_part *a)
{
    return (int64_t)a->KH * a->KW * a->Cp;
}

bool product_dense(const struct product *p)
{
    return p->y_step == 1 && p->Hy == p->Ho && p->Wy == p->Wo;
}

bool product_tiles_can(const struct product *p)
{
    for (int i = 0; i < p->n_part; i++)
        if (!aligned(p->part[i].x, p->part[i].ldx, p->type) || p->part[i].Ci % 8 || p->part[i].Ci == 0)
            return false;
    return p->type == F16 || p->type == BF16;
}

bool product_part_in_place(const struct product *p, int part)
{
    const struct product_part *a = &p->part[part];

    return a->KH == 1 && a->KW == 1 && a->stride == 1 && !a->pad_t && !a->pad_l && a->up == 1 && a->H == p->Ho
        && a->W == p->Wo && (a->x_type == F32 || (aligned(a->x, a->ldx, a->x_type) && a->Ci % 8 == 0));
}

/* cuBLASLt adds a bias of the type of its result, and residual by beta. */
static bool direct(const struct product *p)
{
    return p->n_part == 1 && p->act == K_ACT_NONE && !p->row_add && product_dense(p)
        && (p->y_type == F32 || (p->y_type == p->type && aligned(p->y, p->ldy, p->y_type)))
        && (!p->bias || (p->y_type == F32 && aligned(p->bias, 0, F32)))
        && (!p->residual || ((p->residual != p->y || p->residual_ld == p->ldy)
                             && (p->y_type == F32 || aligned(p->residual, p->residual_ld, p->y_type))));
}

/* ---- PRODUCT_LT ---- */

/* Bytes of a row of the widest im2col block. */
static int64_t widest(const struct product *p)
{
    int64_t most = 0;

    for (int i = 0; i < p->n_part; i++) {
        const int64_t bytes = product_depth(&p->part[i]) * (int64_t)dtype_bytes(p->part[i].x_type);

        if (!product_part_in_place(p, i) && bytes > most)
            most = bytes;
    }
    return most;
}

size_t product_columns_bytes(const struct product *p, int64_t rows)
{
    return (size_t)ceil_div(rows * widest(p), 256) * 256;
}

size_t product_scratch_bytes(void)
{
    return (size_t)256 << 20;
}

/* Portions of about equal size that fit, whole tiles where there are several. */
static int64_t rows_at_once(const struct product *p, bool is_direct, size_t scratch)
{
    const int64_t bytes = widest(p) + (is_direct ? 0 : p->Co * 4), all = product_rows(p);
    const int64_t most = (int64_t)(scratch < scratch_used ? scratch : scratch_used) - CUDA_WORKSPACE - 256;
    int64_t fit, rows;

    if (most < 0 || (bytes && most < bytes))
        return 0;
    fit = bytes ? most / bytes : all;
    if (fit >= all)
        return all;
    rows = ceil_div(ceil_div(all, ceil_div(all, fit)), 128) * 128;
    return rows <= fit ? rows : fit > 128 ? fit / 128 * 128 : fit;
}

/* ---- how long it takes ---- */

/* Blocks of K: one holds channels of one tap of one part. */
static int64_t blocks_of_k(const struct product *p, int tile_k)
{
    int64_t n = 0;

    for (int i = 0; i < p->n_part; i++)
        n += p->part[i].KH * p->part[i].KW * ceil_div(p->part[i].Ci, tile_k);
    return n;
}

/* Waves of blocks, each of which runs through its share of K. */
static double tile_seconds(const struct product *p, int m, int n, int tile_k, int split, int n_sm, double rate)
{
    const int64_t blocks = ceil_div(product_rows(p), m) * ceil_div(p->Co, n) * split;
    const int64_t steps = ceil_div(blocks_of_k(p, tile_k), split);

    return (double)(ceil_div(blocks, n_sm) * steps * tile_k) * 2.0 * m * n / rate;
}

/* Sums of the parts of K are written in f32 and read again. */
static double split_seconds(const struct product *p, int split)
{
    return split == 1 ? 0 : launch_s + (double)(product_rows(p) * p->Co * split) * 8 / byte_rate;
}

static bool split_fits(const struct product *p, int tile_k, int split, size_t scratch)
{
    return split == 1 || (split <= blocks_of_k(p, tile_k)
                          && product_rows(p) * p->Co * split <= (int64_t)(scratch / 4));
}

static double choose_tile(struct product_plan *out, const struct product *p, const struct engine *with, int n_sm,
                          size_t scratch)
{
    const int tk = with->tile_k;
    double best = -1;

    out->tile_k = tk;
    out->stages = with->stages;
    for (int i = 0; i < N_TILE; i++)
        for (int split = 1; split <= PRODUCT_SPLITS && split_fits(p, tk, split, scratch); split++) {
            const double s = tile_seconds(p, tiles[i].m, tiles[i].n, tk, split, n_sm, with->rate * tiles[i].share)
                + split_seconds(p, split);

            if (best >= 0 && s >= best)
                continue;
            best = s;
            out->tile_m = tiles[i].m;
            out->tile_n = tiles[i].n;
            out->split = split;
        }
    return best;
}

/* cuBLASLt splits K as it likes; on top of it come the im2col blocks and the sums in f32, written and read. */
static double lt_seconds(const struct product *p, const struct product_plan *plan, int n_sm)
{
    const int64_t rows = product_rows(p);
    double best = tile_seconds(p, 128, 128, LT_TILE_K, 1, n_sm, lt_rate), bytes = 0, kernels = p->n_part;

    for (int split = 2; split <= PRODUCT_SPLITS; split++) {
        const double s = tile_seconds(p, 128, 128, LT_TILE_K, split, n_sm, lt_rate) + split_seconds(p, split);

        best = s < best ? s : best;
    }
    for (int i = 0; i < p->n_part; i++)
        if (!product_part_in_place(p, i)) {
            bytes += (double)(rows * product_depth(&p->part[i])) * 2 * (double)dtype_bytes(p->part[i].x_type);
            kernels++;
        }
    if (!plan->direct) {
        bytes += (double)(rows * p->Co) * 4 * 2 * p->n_part;
        kernels++;
    }
    return best + bytes / byte_rate + (kernels - 1) * launch_s;
}

void product_choose(struct product_plan *out, const struct product *p, int cc, int n_sm, size_t scratch)
{
    const bool can = product_tiles_can(p), by_wgmma = cc == CC_OF_WGMMA && product_forced != PRODUCT_BY_MMA_SYNC;
    double seconds;

    *out = (struct product_plan){ .way = PRODUCT_LT, .direct = direct(p), .in_place = true };
    for (int i = 0; i < p->n_part; i++)
        out->in_place = out->in_place && product_part_in_place(p, i);
    out->rows = rows_at_once(p, out->direct, scratch);
    seconds = choose_tile(out, p, by_wgmma ? &wgmma : &mma_sync, n_sm, scratch);
    /* a block that has a multiprocessor to itself has more in flight */
    if (by_wgmma
        && ceil_div(product_rows(p), out->tile_m) * ceil_div(p->Co, out->tile_n) * out->split <= n_sm)
        out->stages = STAGES_ALONE;
    if (product_forced)
        out->way = can && product_forced != 1 + PRODUCT_LT ? PRODUCT_TILES : PRODUCT_LT;
    else if (can && (cc < CC_OF_WGMMA || seconds < lt_seconds(p, out, n_sm)))
        out->way = PRODUCT_TILES;
}
