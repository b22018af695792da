/* kernels/conv_cpu.c: convolutions and linear layers, forward and with respect to their input, as one product
 * (product.h) over gathered rows (gather.h). What differs between the cases is only a list of taps:
 *
 *   forward          out(i,j)      reads in(i*s + a - pad)                     K*K taps
 *   up, packed UP    out(2i+p,2j+q) reads in(i + p-1 .. i + p)                 4 phases of 2x2 taps
 *   up, packed FWD   out(i,j)      reads in((i + a - 1) / 2)                   3x3 taps; odd targets too
 *   dx, stride 1     in(i,j)       reads dout(i + pad - a)                     K*K taps
 *   dx, stride 2     in(2i+p,..)   reads dout(i + (p + pad - a)/2)             4 phases, the taps of that parity
 *   dx of up         in(i,j)       reads dout(2i-1 .. 2i+2)                    4x4 taps at stride 2                */
#include "kernels/gather.h"

#include "kernels/isa.h"

struct epilogue {
    const struct kconv *c;
    int64_t N;                          /* channels of y */
    int64_t Gh, Gw;                     /* grid of this phase */
    int64_t Hy, Wy;                     /* y as stored */
    int step, oy, ox;                   /* grid (i,j) is pixel (i*step + oy, j*step + ox) of y */
};

/* ---- left operand ---- */

/* How many columns from q on (at most `left`) lie side by side in memory: the rest of q's tap, and the taps after it
 * that read the next pixels of the same line. */
static int64_t span(const struct gather *g, const struct pixel *p, int tap, int64_t in_tap, int64_t left)
{
    int64_t n = g->C - in_tap;

    if (g->ld != g->C || g->depth != g->C || g->shift)
        return n < left ? n : left;
    for (int t = tap + 1; n < left && t < g->n_tap && g->dy[t] == g->dy[tap] && g->dx[t] == g->dx[t - 1] + 1
                          && p->j * g->stride + g->dx[t] < g->Wb; t++)
        n += g->C;
    return n < left ? n : left;
}

/* Row of p, columns [k, k+kc), to d. t and dot are constants at each call. */
INLINE void fill_row(const struct gather *g, enum dtype t, bool dot, float *d, const struct pixel *p, int64_t k,
                     int64_t kc)
{
    int tap = (int)(k / g->depth);
    int64_t c = k - tap * g->depth, q = 0;

    while (q < kc) {
        const int64_t at = gather_at(g, p, tap), left = lesser(kc - q, g->depth - c);
        const int64_t n = at < 0 ? left : span(g, p, tap, c, kc - q);

        if (dot && at < 0)
            memset((uint16_t *)(void *)d + q, 0, (size_t)n * 2);
        else if (dot)
            memcpy((uint16_t *)(void *)d + q, (const uint16_t *)g->x + at + c, (size_t)n * 2);
        else if (at < 0)
            memset(d + q, 0, (size_t)n * 4);
        else
            widen(d + q, g->x, at + c, t, n);
        q += n;
        c += n;
        if (q < kc && c < g->depth && c >= g->C) {      /* the padding of an odd tap */
            if (dot)
                ((uint16_t *)(void *)d)[q] = 0;
            else
                d[q] = 0;
            q++;
            c++;
        }
        tap += (int)(c / g->depth);
        c %= g->depth;
    }
}

static void fill_taps(const void *a, void *tile, int64_t row, int mr, int64_t k, int64_t kc)
{
    const struct gather *g = a;
    struct pixel p = pixel_at(row, g->Gh, g->Gw);

    for (int r = 0; r < mr; r++, pixel_next(&p, g->Gh, g->Gw)) {
        float *d = (float *)tile + r * LDA;

        if (g->dot)
            fill_row(g, BF16, true, d, &p, k, kc);
        else if (g->type == F32)
            fill_row(g, F32, false, d, &p, k, kc);
        else if (g->type == F16)
            fill_row(g, F16, false, d, &p, k, kc);
        else
            fill_row(g, BF16, false, d, &p, k, kc);
    }
}

/* ---- right operand ---- */

/* kc x NR of a panel to f32. */
static void expand(float *dst, const char *src, const struct panels *s, int64_t k, int64_t kc)
{
    if (pack_pairs(s->type)) {
        const char *pair = src + (size_t)(k / 2 * NR) * 4;
        for (int64_t i = 0; i < kc; i += 2)
            for (int c = 0; c < NR; c += VL) {
                vu u;
                memcpy(&u, pair + (size_t)(i / 2 * NR + c) * 4, sizeof u);
                v_storef(dst + i * NR + c, (vf)(u << 16));
                v_storef(dst + (i + 1) * NR + c, (vf)(u & 0xffff0000u));
            }
    } else if (s->type == F16) {
        widen(dst, src, k * NR, F16, kc * NR);
    } else {
        widen(dst, src, k * NR, BF16, kc * NR);
    }
}

static const float *get_panels(const void *b, float *buf, int64_t panel, int n, int64_t k, int64_t kc, int64_t *stride)
{
    const struct panels *s = b;
    const size_t panel_bytes = (size_t)(s->depth * NR) * dtype_bytes(s->type);

    if (s->type == F32 || s->dot) {
        *stride = (int64_t)(panel_bytes / 4);
        return (const float *)(const void *)(s->pack + (size_t)panel * panel_bytes
                                             + (size_t)((s->k0 + k) * NR) * dtype_bytes(s->type));
    }
    *stride = KC * NR;
    for (int j = 0; j < n; j++)
        expand(buf + j * *stride, s->pack + (size_t)(panel + j) * panel_bytes, s, s->k0 + k, kc);
    return buf;
}

/* ---- epilogue ---- */

INLINE vf activate(vf x, enum kact act)
{
    switch (act) {
    case K_ACT_SILU: return v_silu(x);
    case K_ACT_GELU: return v_gelu(x);
    case K_ACT_QUICK_GELU: return v_quick_gelu(x);
    case K_ACT_RELU: return v_relu(x);
    default: return x;
    }
}

/* One vector of one row: channels [n, n+have) of pixel `at`, image b. `column` is that of bias. */
INLINE vf finish(const struct kconv *c, enum dtype t, vf sum, int64_t b, int64_t column, int64_t have)
{
    vf x = sum * v_set(c->alpha);

    if (c->bias)
        x += v_load_upto(c->bias, column, F32, have);
    if (c->row_add)
        x += v_load_upto(c->row_add, b * c->row_add_ld + column, t, have);
    return x;
}

/* Pixel of y that grid pixel p is, as an index. */
INLINE int64_t y_pixel(const struct epilogue *e, const struct pixel *p)
{
    return (p->b * e->Hy + p->i * e->step + e->oy) * e->Wy + p->j * e->step + e->ox;
}

/* A whole panel with nothing but alpha, bias and residual, which most layers are. */
INLINE void write_plain(const struct epilogue *e, enum dtype t, int64_t row, int mr, int64_t n, const float *tile)
{
    const struct kconv *c = e->c;
    const vf alpha = v_set(c->alpha), b0 = c->bias ? v_loadf(c->bias + n) : v_zero();
    const vf b1 = c->bias ? v_loadf(c->bias + n + VL) : v_zero();
    struct pixel p = pixel_at(row, e->Gh, e->Gw);

    for (int r = 0; r < mr; r++, pixel_next(&p, e->Gh, e->Gw)) {
        const int64_t px = y_pixel(e, &p), at = px * c->ldy + n, res = px * c->residual_ld + n;
        vf x0 = v_loadf(tile + r * NR) * alpha + b0, x1 = v_loadf(tile + r * NR + VL) * alpha + b1;

        if (c->residual) {
            x0 += v_load(c->residual, res, t);
            x1 += v_load(c->residual, res + VL, t);
        }
        v_store(c->y, at, t, x0);
        v_store(c->y, at + VL, t, x1);
    }
}

INLINE void write_tile(const struct epilogue *e, enum dtype t, int64_t row, int mr, int64_t panel, const float *tile)
{
    const struct kconv *c = e->c;
    const bool glu = c->act == K_ACT_GEGLU;
    struct pixel p = pixel_at(row, e->Gh, e->Gw);

    if (c->act == K_ACT_NONE && !c->row_add && (panel + 1) * NR <= e->N) {
        write_plain(e, t, row, mr, panel * NR, tile);
        return;
    }
    for (int r = 0; r < mr; r++, pixel_next(&p, e->Gh, e->Gw)) {
        const int64_t px = y_pixel(e, &p);

        for (int h = 0; h < (glu ? 1 : 2); h++) {
            const int64_t n = glu ? panel * VL : panel * NR + h * VL, have = e->N - n;
            vf x;

            if (have <= 0)
                break;
            x = finish(c, t, v_loadf(tile + r * NR + h * VL), p.b, n, have);
            if (glu)
                x *= v_gelu(finish(c, t, v_loadf(tile + r * NR + VL), p.b, e->N + n, have));
            else
                x = activate(x, c->act);
            if (c->residual)
                x += v_load_upto(c->residual, px * c->residual_ld + n, t, have);
            v_store_upto(c->y, px * c->ldy + n, t, x, have);
        }
    }
}

static void write_soon(const void *epilogue, int64_t row, int mr, int64_t panel)
{
    const struct epilogue *e = epilogue;
    const size_t size = dtype_bytes(e->c->y_type);
    const int64_t n = panel * (e->c->act == K_ACT_GEGLU ? VL : NR);
    struct pixel p = pixel_at(row, e->Gh, e->Gw);

    for (int r = 0; r < mr; r++, pixel_next(&p, e->Gh, e->Gw)) {
        const char *y = (const char *)e->c->y + (size_t)(y_pixel(e, &p) * e->c->ldy + n) * size;

        __builtin_prefetch(y, 1);
        __builtin_prefetch(y + NR * size - 1, 1);
    }
}

static void write_f32(const void *e, int64_t row, int mr, int64_t panel, const float *tile)
{
    write_tile(e, F32, row, mr, panel, tile);
}

static void write_f16(const void *e, int64_t row, int mr, int64_t panel, const float *tile)
{
    write_tile(e, F16, row, mr, panel, tile);
}

static void write_bf16(const void *e, int64_t row, int mr, int64_t panel, const float *tile)
{
    write_tile(e, BF16, row, mr, panel, tile);
}

/* ---- taps ---- */

struct job {                            /* one product: a phase of a convolution */
    struct product p;
    struct gather gather[MAX_RUNS];
    struct panels panels[MAX_RUNS];
    struct epilogue epi;
};

/* Add a run whose taps are consecutive in the pack from tap `first_tap` on. */
static struct gather *add_run(struct job *j, const struct kpart *part, enum kdir dir, int64_t taps_in_pack,
                              int first_tap, int64_t phase_bytes)
{
    const struct kgeom *g = &part->g;
    const int i = j->p.n_run++;
    struct gather *a = &j->gather[i];
    struct panels *b = &j->panels[i];

    a->x = part->x;
    a->type = part->type;
    a->ld = part->ldx;
    a->C = dir == K_FWD ? g->Ci : g->Co;
    a->depth = pack_tap_depth(part->pack_type, a->C);
    a->H = a->Hb = dir == K_FWD ? g->H : g->Ho;
    a->W_px = a->Wb = dir == K_FWD ? g->W : g->Wo;
    a->shift = 0;
    a->stride = 1;
    a->n_tap = 0;
    a->Gh = j->epi.Gh;
    a->Gw = j->epi.Gw;
    a->dot = b->dot = pack_pairs(part->pack_type) && part->type == BF16;
    b->pack = (const char *)part->pack + phase_bytes;
    b->type = part->pack_type;
    b->depth = taps_in_pack * a->depth;
    b->k0 = first_tap * a->depth;
    b->first_tap = first_tap;
    j->p.run[i] = (struct run){ .dot = a->dot, .a = a, .b = b, .a_fill = fill_taps, .b_get = get_panels };
    return a;
}

static void add_tap(struct gather *a, int dy, int dx)
{
    a->dy[a->n_tap] = (int16_t)dy;
    a->dx[a->n_tap++] = (int16_t)dx;
}

static void part_forward(struct job *j, const struct kpart *part)
{
    const struct kgeom *g = &part->g;
    struct gather *a = add_run(j, part, K_FWD, (int64_t)g->KH * g->KW, 0, 0);

    a->stride = g->stride;
    if (g->up == 2) {
        a->shift = 1;
        a->Hb = g->Ho;
        a->Wb = g->Wo;
    }
    for (int y = 0; y < g->KH; y++)
        for (int x = 0; x < g->KW; x++)
            add_tap(a, y - g->pad_t, x - g->pad_l);
}

/* Phase (py,px) of doubling then 3x3: taps of 2x2 summed weights, see pack_cpu.c. */
static void part_up(struct job *j, const struct kpart *part, int py, int px)
{
    const int64_t columns = part->g.Co, channels = part->g.Ci;
    const int64_t tap = pack_is_narrow(columns, false)
        ? columns * pack_narrow_depth(channels)
        : ceil_div(columns, NR) * NR * pack_tap_depth(part->pack_type, channels);
    const int64_t phase_bytes = 4 * tap * (int64_t)dtype_bytes(part->pack_type);
    struct gather *a = add_run(j, part, K_FWD, 4, 0, (py * 2 + px) * phase_bytes);

    for (int y = 0; y < 2; y++)
        for (int x = 0; x < 2; x++)
            add_tap(a, y + py - 1, x + px - 1);
}

static void part_up_dx(struct job *j, const struct kpart *part)
{
    struct gather *a = add_run(j, part, K_DX, 16, 0, 0);

    a->stride = 2;
    for (int y = -1; y < 3; y++)
        for (int x = -1; x < 3; x++)
            add_tap(a, y, x);
}

/* Taps of parity (py,px) at stride s. Those that are neighbours in the pack share a run. */
static int part_dx(struct job *j, const struct kpart *part, int py, int px)
{
    const struct kgeom *g = &part->g;
    const int s = g->stride;
    struct gather *a = NULL;
    int before = -2;

    for (int y = 0; y < g->KH; y++)
        for (int x = 0; x < g->KW; x++) {
            const int dy = py + g->pad_t - y, dx = px + g->pad_l - x;

            if (dy % s || dx % s)
                continue;
            if (!a || before != y * g->KW + x - 1) {
                if (j->p.n_run == MAX_RUNS)
                    return K_ARG;
                a = add_run(j, part, K_DX, (int64_t)g->KH * g->KW, y * g->KW + x, 0);
            }
            add_tap(a, dy / s, dx / s);
            before = y * g->KW + x;
        }
    return K_OK;
}

/* ---- driving ---- */

/* Does a part fit the contract and the output that part 0 sets? */
static bool part_fits(const struct kconv *c, const struct kpart *p)
{
    const struct kgeom *g = &p->g, *o = &c->part[0].g;
    const bool up_pack = p->pack_kind == K_PACK_UP || p->pack_kind == K_PACK_UP_DX;
    const bool dx_pack = p->pack_kind == K_PACK_DX || p->pack_kind == K_PACK_UP_DX;

    if (p->type >= N_DTYPE || p->pack_type >= N_DTYPE || p->pack_kind >= K_N_PACK || dx_pack != (c->dir == K_DX)
        || (p->glu && p->pack_kind != K_PACK_FWD) || p->ldx < (c->dir == K_FWD ? g->Ci : g->Co))
        return false;
    if (g->Ci < 0 || g->Co < 0 || g->H < 0 || g->W < 0 || g->Ho < 0 || g->Wo < 0 || g->KH < 1 || g->KW < 1
        || g->pad_t < 0 || g->pad_l < 0 || g->KH * g->KW > K_MAX_TAPS || (g->stride != 1 && g->stride != 2)
        || (g->up != 1 && g->up != 2))
        return false;
    if (g->up == 2 && (g->stride != 1 || g->Ho > 2 * g->H || g->Wo > 2 * g->W || g->KH % 2 == 0 || g->KW % 2 == 0
                       || g->pad_t != g->KH / 2 || g->pad_l != g->KW / 2))
        return false;
    if (up_pack && (g->up != 2 || g->KH != 3 || g->KW != 3 || g->Ho != 2 * g->H || g->Wo != 2 * g->W))
        return false;
    if (g->up == 2 && c->dir == K_DX && !up_pack)
        return false;
    if (c->dir == K_DX && (g->H != o->H || g->W != o->W || g->Ci != o->Ci || g->stride != o->stride))
        return false;
    if (c->dir == K_FWD && (g->Ho != o->Ho || g->Wo != o->Wo || g->Co != o->Co))
        return false;
    return p->glu == (c->act == K_ACT_GEGLU) && up_pack == (c->part[0].pack_kind == K_PACK_UP
                                                            || c->part[0].pack_kind == K_PACK_UP_DX);
}

static bool fits(const struct kconv *c)
{
    const int64_t columns = c->dir == K_FWD ? c->part[0].g.Co : c->part[0].g.Ci;
    const int64_t N = c->act == K_ACT_GEGLU ? columns / 2 : columns;

    if ((c->dir != K_FWD && c->dir != K_DX) || c->n_part < 1 || c->n_part > 3 || c->y_type >= N_DTYPE || c->B < 0
        || c->act > K_ACT_GEGLU)
        return false;
    if (c->ldy < N || (c->residual && c->residual_ld < N) || (c->row_add && c->row_add_ld < columns))
        return false;
    if (c->dir == K_DX && (c->bias || c->row_add || c->act != K_ACT_NONE))
        return false;
    if (c->act == K_ACT_GEGLU && c->part[0].g.Co % 2)
        return false;
    for (int i = 0; i < c->n_part; i++)
        if (!part_fits(c, &c->part[i]))
            return false;
    return true;
}

/* One product: phase (py,px) of `step` by `step`. */
static int run_phase(struct kctx *k, const struct kconv *c, int step, int py, int px)
{
    const struct kgeom *g = &c->part[0].g;
    const int64_t Hy = c->dir == K_FWD ? g->Ho : g->H, Wy = c->dir == K_FWD ? g->Wo : g->W;
    const bool glu = c->act == K_ACT_GEGLU;
    struct job j = { .epi = { .c = c, .N = c->dir == K_DX ? g->Ci : glu ? g->Co / 2 : g->Co, .Hy = Hy, .Wy = Wy,
                              .Gh = (Hy - py + step - 1) / step, .Gw = (Wy - px + step - 1) / step, .step = step,
                              .oy = py, .ox = px } };
    int rc = K_OK;

    for (int i = 0; i < c->n_part && !rc; i++) {
        const struct kpart *p = &c->part[i];

        if (p->pack_kind == K_PACK_UP_DX)
            part_up_dx(&j, p);
        else if (p->pack_kind == K_PACK_UP)
            part_up(&j, p, py, px);
        else if (c->dir == K_FWD)
            part_forward(&j, p);
        else
            rc = part_dx(&j, p, py, px);
    }
    if (rc)
        return rc;
    for (int i = 0; i < j.p.n_run; i++)
        j.p.run[i].K = j.gather[i].n_tap * j.gather[i].depth;
    j.p.max_tiles = MAX_TILES;
    j.p.M = c->B * j.epi.Gh * j.epi.Gw;
    j.p.n_panel = glu ? ceil_div(j.epi.N, VL) : ceil_div(j.epi.N, NR);
    j.p.epilogue = &j.epi;
    j.p.out_soon = write_soon;
    j.p.out = c->y_type == F32 ? write_f32 : c->y_type == F16 ? write_f16 : write_bf16;
    if (pack_is_narrow(j.epi.N, glu))
        return ISA_NAME(narrow_run)(k, &j.p, (int)j.epi.N);
    return ISA_NAME(product_run)(k, &j.p);
}

static int conv(struct kctx *k, const struct kconv *c)
{
    int step, rc = K_OK;

    if (!fits(c))
        return K_ARG;
    step = c->part[0].pack_kind == K_PACK_UP || (c->dir == K_DX && c->part[0].g.stride == 2) ? 2 : 1;
    for (int py = 0; py < step && !rc; py++)
        for (int px = 0; px < step && !rc; px++)
            rc = run_phase(k, c, step, py, px);
    return rc;
}

void ISA_NAME(fill_conv)(struct kern *k)
{
    k->conv = conv;
}
