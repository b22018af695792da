/* tests/conv_plan.c: the loops in doubles, written from the equations of kernels/kern.h, and how far a twin may be off:
 *
 *   sums      A chain of K products in f32 rounds K times, each by 2^-24 of a partial sum and so of `mag`, the sum of
 *             |products|. Signs of roundings vary, so that they add up as sqrt(K): min(K, 8 + 2 sqrt(K)), and one more
 *             for the products where there is no fused multiply-add.
 *   weights   are rounded to the pack's type before the reference sees them. Only the up-sampling packs round after
 *             weights were added: one unit roundoff of the pack's type, of mag.
 *   epilogue  a few roundings of its terms, the error of the activation, one rounding to the type of y.
 *
 * Gaps between pixels hold NaN, outputs are poisoned, and inputs end where a page begins that cannot be read. */
#include "tests/conv_plan.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "tests/tap.h"

enum { FENCE_BYTES = 1 << 20, PAGE = 4096, N_FENCES = 9 };    /* x 0..2, bias, row_add, residual, weights 6..8 */

const char *const type_name[N_DTYPE] = { "f32", "f16", "bf16" };
const struct types usual[N_USUAL] = {
    { F32, F32, F32, F32 },  { F16, F16, F16, F16 },   { BF16, BF16, BF16, BF16 },
    { F32, F32, BF16, F32 }, { BF16, F32, F32, BF16 }, { F16, F32, F32, F16 },
};

const struct epilogue_case epilogues[N_EPILOGUES] = {
    { "alpha",        0.3f, K_ACT_NONE,       false, false, false, false },
    { "bias",            1, K_ACT_NONE,       true,  false, false, false },
    { "row_add",         1, K_ACT_NONE,       false, true,  false, false },
    { "silu, wide",      8, K_ACT_SILU,       true,  false, false, false },
    { "gelu, wide",      8, K_ACT_GELU,       true,  false, false, false },
    { "quick gelu",     -8, K_ACT_QUICK_GELU, true,  false, false, false },
    { "relu",            1, K_ACT_RELU,       false, true,  false, false },
    { "residual",        1, K_ACT_NONE,       false, false, true,  false },
    { "accumulation",    1, K_ACT_NONE,       false, false, true,  true  },
    { "all of it",   -0.7f, K_ACT_SILU,       true,  true,  true,  false },
    { "all in place", 0.7f, K_ACT_GELU,       true,  true,  true,  true  },
    { "alpha 0",         0, K_ACT_NONE,       true,  false, true,  false },
};

static uint64_t seed;                   /* every buffer takes the next */

/* ---- sizes ---- */

bool plan_is_dx(const struct plan *p)
{
    return p->kind == K_PACK_DX || p->kind == K_PACK_UP_DX;
}

int64_t in_px(const struct kgeom *g)
{
    return g->H * g->W;
}

int64_t out_px(const struct kgeom *g)
{
    return g->Ho * g->Wo;
}

int64_t plan_depth(const struct plan *p, int i)
{
    return plan_is_dx(p) ? p->part[i].g.Co : p->part[i].g.Ci;
}

int64_t plan_width(const struct plan *p)
{
    return plan_is_dx(p) ? p->part[0].g.Ci : p->part[0].g.Co;
}

int64_t plan_channels(const struct plan *p)
{
    return p->act == K_ACT_GEGLU ? plan_width(p) / 2 : plan_width(p);
}

int64_t plan_image_px(const struct plan *p)
{
    return plan_is_dx(p) ? in_px(&p->part[0].g) : out_px(&p->part[0].g);
}

int64_t plan_x_px(const struct plan *p, int i)
{
    return plan_is_dx(p) ? out_px(&p->part[i].g) : in_px(&p->part[i].g);
}

int64_t strided(int64_t pixels, int64_t n, int64_t gap)
{
    return pixels ? pixels * (n + gap) - gap : 0;
}

/* ---- reference ---- */

int64_t tap_pixel(const struct kgeom *g, int64_t i, int64_t j, int a, int b)
{
    const int64_t y = i * g->stride - g->pad_t + a, x = j * g->stride - g->pad_l + b;

    if (y < 0 || x < 0 || y >= (g->up == 2 ? g->Ho : g->H) || x >= (g->up == 2 ? g->Wo : g->W))
        return -1;
    return y / g->up * g->W + x / g->up;
}

static bool sums_weights(const struct plan *p)
{
    return p->kind == K_PACK_UP || p->kind == K_PACK_UP_DX;
}

/* The part's weights as [tap][channel of x][column], rounded to the pack's type. */
static double *weights_used(const struct plan *p, int i, const struct data *d)
{
    const struct part_plan *q = &p->part[i];
    const int64_t taps = q->g.KH * q->g.KW, Ci = q->g.Ci, Co = q->g.Co;
    double *w = malloc(sizeof *w * (size_t)(taps * Ci * Co)), *to;

    for (int64_t tap = 0; tap < taps; tap++)
        for (int64_t co = 0; co < Co; co++)
            for (int64_t ci = 0; ci < Ci; ci++) {
                const double v = d->w[i].v[(co * taps + tap) * (q->ci_first + Ci + q->ci_after) + q->ci_first + ci];

                to = &w[tap * Ci * Co + (plan_is_dx(p) ? co * Ci + ci : ci * Co + co)];
                *to = sums_weights(p) ? v : kit_round(q->pack, v);
            }
    return w;
}

/* s(n) += sum over k of x(k) w(k,n); mag sums what has no sign. */
static void multiply(double *s, double *mag, const double *x, const double *w, int64_t K, int64_t N)
{
    for (int64_t k = 0; k < K; k++)
        for (int64_t n = 0; n < N; n++) {
            const double t = x[k] * w[k * N + n];
            s[n] += t;
            mag[n] += fabs(t);
        }
}

static void add_part(double *sum, double *mag, const struct plan *p, int part, const struct data *d)
{
    const struct kgeom *g = &p->part[part].g;
    const int64_t K = plan_depth(p, part), N = plan_width(p), ld = K + p->part[part].gap;
    double *w = weights_used(p, part, d);

    for (int64_t m = 0; m < p->B * out_px(g); m++)
        for (int a = 0; a < g->KH; a++)
            for (int b = 0; b < g->KW; b++) {
                const int64_t i = m % out_px(g), in = tap_pixel(g, i / g->Wo, i % g->Wo, a, b);
                const int64_t at = m / out_px(g) * in_px(g) + in;
                const int64_t from = plan_is_dx(p) ? m : at, to = plan_is_dx(p) ? at : m;

                if (in >= 0)
                    multiply(sum + to * N, mag + to * N, d->x[part].v + from * ld, w + (a * g->KW + b) * K * N, K, N);
            }
    free(w);
}

double activation(enum kact act, double z)
{
    switch (act) {
    case K_ACT_SILU: return z / (1 + exp(-z));
    case K_ACT_GEGLU:
    case K_ACT_GELU: return 0.5 * z * (1 + erf(z * sqrt(0.5)));
    case K_ACT_QUICK_GELU: return z / (1 + exp(-1.702 * z));
    case K_ACT_RELU: return z > 0 ? z : 0;
    default: return z;
    }
}

/* No slope exceeds 1.2; erf is good to 2e-7, and 1 + erf
 * rounds; exp(a z) carries the rounding of its argument, relative to the result. */
double activation_error(enum kact act, double z, double dz)
{
    if (act == K_ACT_NONE || act == K_ACT_RELU)
        return dz;
    if (act == K_ACT_GELU || act == K_ACT_GEGLU)
        return 1.2 * dz + 3e-7 * fabs(z);
    return 1.2 * dz + (8 + 2 * fabs(z)) * U * fabs(activation(act, z));
}

/* Roundings of the sums of a plan, as a share of mag. */
static double chain_error(const struct plan *p)
{
    double K = 0, c, of_weights = 0;

    for (int i = 0; i < p->n_part; i++) {
        K += (double)(p->part[i].g.KH * p->part[i].g.KW * plan_depth(p, i));
        if (p->part[i].pack != F32)
            of_weights = fmax(of_weights, kit_rel[p->part[i].pack]);
    }
    c = 1 + fmin(K, 8 + 2 * sqrt(K));
    return U * c + (sums_weights(p) ? of_weights + 3 * U : 0);
}

/* z = alpha * sum + bias + row_add of a column, with its error. */
static double column_value(const struct plan *p, const struct data *d, int64_t px, int64_t n, double *err)
{
    const int64_t at = px * plan_width(p) + n;
    const double s = p->alpha * d->want[at], b = p->bias ? d->bias.v[n] : 0;
    const double r = p->row_add ? d->row_add.v[px / plan_image_px(p) * (plan_width(p) + ROW_GAP) + n] : 0;

    *err = fabs(p->alpha) * d->tol[at] + 3 * U * (fabs(s) + fabs(b) + fabs(r));
    return s + b + r;
}

/* Turn sums and errors in d->want and d->tol into the values of y; GEGLU halves the columns on the way. */
static void finish_reference(const struct plan *p, struct data *d)
{
    const int64_t N = plan_channels(p);

    for (int64_t px = 0; px < p->B * plan_image_px(p); px++)
        for (int64_t n = 0; n < N; n++) {
            const bool glu = p->act == K_ACT_GEGLU;
            double dz, dv, z = column_value(p, d, px, glu ? N + n : n, &dz), err = activation_error(p->act, z, dz);
            double y = activation(p->act, z);

            if (glu) {
                const double v = column_value(p, d, px, n, &dv);
                err = fabs(v) * err + fabs(y) * dv + dv * err;
                y *= v;
            }
            if (p->residual)
                y += d->residual.v[px * (N + RES_GAP) + n];
            err += 3 * U * (fabs(y) + (p->residual ? fabs(d->residual.v[px * (N + RES_GAP) + n]) : 0));
            d->want[px * N + n] = y;
            d->tol[px * N + n] = err + kit_rel[p->y] * (fabs(y) + err) + (p->y == F16 ? 0x1p-25 : 0);
        }
}

/* ---- operands ---- */

static void poison_gaps(struct buf *b, int64_t n, int64_t gap)
{
    const size_t size = dtype_bytes(b->type);

    for (int64_t i = n; i < b->n; i += n + gap)
        memset((char *)b->p + (size_t)i * size, 0xFF, (size_t)gap * size);
}

struct data data_make(const struct plan *p)
{
    const int64_t N = plan_width(p), pixels = p->B * plan_image_px(p);
    struct data d = { .want = calloc((size_t)(pixels * N + 1), sizeof(double)) };
    double *mag = calloc((size_t)(pixels * N + 1), sizeof *mag);
    const double c = chain_error(p);

    for (int i = 0; i < p->n_part; i++) {
        const struct part_plan *q = &p->part[i];
        const int64_t taps = q->g.KH * q->g.KW, ci = q->ci_first + q->g.Ci + q->ci_after;

        d.x[i] = buf_random(q->x, strided(p->B * plan_x_px(p, i), plan_depth(p, i), q->gap), ++seed, 1);
        poison_gaps(&d.x[i], plan_depth(p, i), q->gap);
        d.w[i] = buf_random(q->src, q->g.Co * taps * ci, ++seed, 1 / sqrt((double)(taps * plan_depth(p, i))));
        add_part(d.want, mag, p, i, &d);
    }
    d.bias = buf_random(F32, N, ++seed, 1);
    d.row_add = buf_random(p->y, strided(p->B, N, ROW_GAP), ++seed, 1);
    d.residual = buf_random(p->y, strided(pixels, plan_channels(p), RES_GAP), ++seed, 1);
    for (int64_t i = 0; i < pixels * N; i++)
        mag[i] *= c;
    d.tol = mag;
    finish_reference(p, &d);
    return d;
}

void data_free(struct data *d)
{
    for (int i = 0; i < 3; i++) {
        buf_free(&d->x[i]);
        buf_free(&d->w[i]);
    }
    buf_free(&d->bias);
    buf_free(&d->row_add);
    buf_free(&d->residual);
    free(d->want);
    free(d->tol);
}

const void *fenced(int slot, const struct buf *b)
{
    static char *fence[N_FENCES];
    const size_t bytes = (size_t)b->n * dtype_bytes(b->type);
    char *at;

    if (bytes > FENCE_BYTES - PAGE)
        return b->p;
    if (!fence[slot]) {
        fence[slot] = mmap(NULL, FENCE_BYTES + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (fence[slot] == MAP_FAILED || mprotect(fence[slot] + FENCE_BYTES, PAGE, PROT_NONE))
            exit(1);
    }
    at = fence[slot] + FENCE_BYTES - bytes;
    memcpy(at, b->p, bytes);
    memset(at - 256, 0xFF, 256);
    return at;
}

struct buf plan_y(const struct plan *p, const struct data *d)
{
    const int64_t N = plan_channels(p), pixels = p->B * plan_image_px(p);
    const size_t size = dtype_bytes(p->y);
    struct buf y = buf_new(p->y, strided(pixels, N, p->gap));

    for (int64_t i = 0; p->in_place && i < pixels; i++)
        memcpy((char *)y.p + (size_t)(i * (N + p->gap)) * size,
               (const char *)d->residual.p + (size_t)(i * (N + RES_GAP)) * size, (size_t)N * size);
    return y;
}

static struct kconv conv_of(const struct plan *p, const struct data *d, const struct buf *y)
{
    struct kconv c = { .dir = plan_is_dx(p) ? K_DX : K_FWD, .B = p->B, .n_part = p->n_part, .alpha = p->alpha,
                       .act = p->act, .y = y->p, .y_type = p->y, .ldy = plan_channels(p) + p->gap };

    for (int i = 0; i < p->n_part; i++) {
        const struct part_plan *q = &p->part[i];
        c.part[i] = (struct kpart){ .x = fenced(i, &d->x[i]), .type = q->x, .ldx = plan_depth(p, i) + q->gap,
                                    .pack_type = q->pack, .pack_kind = p->kind, .glu = p->act == K_ACT_GEGLU,
                                    .g = q->g };
    }
    if (p->bias)
        c.bias = fenced(3, &d->bias);
    if (p->row_add) {
        c.row_add = fenced(4, &d->row_add);
        c.row_add_ld = plan_width(p) + ROW_GAP;
    }
    if (p->residual) {
        c.residual = p->in_place ? y->p : fenced(5, &d->residual);
        c.residual_ld = p->in_place ? c.ldy : plan_channels(p) + RES_GAP;
    }
    return c;
}

bool plan_run(const struct kern *kern, int n_threads, const struct plan *p, const struct data *d, struct buf *y)
{
    struct kctx *k = kit_ctx(kern, n_threads);
    struct kconv c = conv_of(p, d, y);
    struct buf pack[3];
    bool ok = true;

    for (int i = 0; i < p->n_part; i++) {
        const struct part_plan *q = &p->part[i];
        const struct kpack spec = { .kind = p->kind, .src = q->src, .dst = q->pack, .Co = q->g.Co, .Ci = q->g.Ci,
                                    .KH = q->g.KH, .KW = q->g.KW, .ci_first = q->ci_first,
                                    .ci_total = q->ci_first + q->g.Ci + q->ci_after, .glu = p->act == K_ACT_GEGLU };

        pack[i] = buf_raw(kern->pack_bytes(&spec));
        ok &= kern->pack(k, pack[i].p, &spec, fenced(6 + i, &d->w[i])) == K_OK && buf_intact(&pack[i]);
        c.part[i].pack = pack[i].p;
    }
    ok = ok && kern->conv(k, &c) == K_OK && buf_intact(y);
    for (int i = 0; i < p->n_part; i++)
        buf_free(&pack[i]);
    return ok;
}

/* y (pixels, N of N + gap) within tol of want; gaps still NaN. */
static bool within(struct buf *y, int64_t N, int64_t gap, const double *want, const double *tol, const char *what)
{
    buf_read(y);
    for (int64_t i = 0; i < y->n; i++) {
        const int64_t n = i % (N + gap), at = i / (N + gap) * N + n;

        if (n < N ? fabs(y->v[i] - want[at]) <= tol[at] : isnan(y->v[i]))
            continue;
        if (n < N)
            tap_note("%s: pixel %lld, channel %lld is %.9g, want %.9g within %.3g", what, (long long)(i / (N + gap)),
                     (long long)n, y->v[i], want[at], tol[at]);
        else
            tap_note("%s: the gap behind pixel %lld was written", what, (long long)(i / (N + gap)));
        return false;
    }
    return true;
}

bool plan_check_data(const struct plan *p, const struct data *d, const char *why)
{
    static const char *const kind_name[K_N_PACK] = { "fwd", "dx", "up", "up dx" };
    const struct kern *kern;
    bool ok = true;
    char what[160];

    for (int i = 0; (kern = kit_twin(i)); i++) {
        struct buf y = plan_y(p, d);
        const bool ran = plan_run(kern, 1, p, d, &y);

        snprintf(what, sizeof what, "%s, %s, %s, x %s, pack %s, y %s", why, kern->name, kind_name[p->kind],
                 type_name[p->part[0].x], type_name[p->part[0].pack], type_name[p->y]);
        if (!ran)
            tap_note("%s: did not run", what);
        ok &= ran && within(&y, plan_channels(p), p->gap, d->want, d->tol, what);
        buf_free(&y);
    }
    return ok;
}

bool plan_check(const struct plan *p, const char *why)
{
    struct data d = data_make(p);
    const bool ok = plan_check_data(p, &d, why);

    data_free(&d);
    return ok;
}

/* Gaps of x and y, or of x and dy: some are none, even where pixels are not meant to be dense. */
static int64_t x_gap(const struct kgeom *g, bool dense)
{
    return dense ? 0 : (g->Co + 1) % 4;
}

static int64_t y_gap(const struct kgeom *g, bool dense)
{
    return dense ? 0 : g->Ci % 3;
}

struct plan plan_of(const struct shape *s, enum kpack_kind kind, const struct types *t, bool dense)
{
    const bool dx = kind == K_PACK_DX || kind == K_PACK_UP_DX;
    const int64_t of_x = x_gap(&s->g, dense), of_y = y_gap(&s->g, dense);

    return (struct plan){ .kind = kind, .B = s->B, .n_part = 1, .y = t->y, .gap = dx ? of_x : of_y, .alpha = 1,
                          .part = { { .g = s->g, .x = t->x, .src = t->src, .pack = t->pack,
                                      .gap = dx ? of_y : of_x } } };
}

/* ---- gradients of weights ---- */

/* dw(co,a,b,ci) = sum over images and pixels of dy(i,j,co) x(the pixel that (i,j) reads through tap (a,b), ci). */
static void dw_reference(double *sum, double *mag, const struct shape *s, const struct buf *x, const struct buf *dy,
                         bool dense)
{
    const struct kgeom *g = &s->g;
    const int64_t taps = g->KH * g->KW, ldx = g->Ci + x_gap(g, dense), lddy = g->Co + y_gap(g, dense);

    for (int64_t m = 0; m < s->B * out_px(g); m++)
        for (int64_t tap = 0; tap < taps; tap++) {
            const int64_t i = m % out_px(g);
            const int64_t in = tap_pixel(g, i / g->Wo, i % g->Wo, (int)(tap / g->KW), (int)(tap % g->KW));
            const double *xp = x->v + (m / out_px(g) * in_px(g) + in) * ldx;

            for (int64_t co = 0; in >= 0 && co < g->Co; co++)
                multiply(sum + (co * taps + tap) * g->Ci, mag + (co * taps + tap) * g->Ci, dy->v + m * lddy + co, xp, 1,
                         g->Ci);
        }
}

bool dw_run(const struct kern *kern, int n_threads, const struct shape *s, bool dense, float beta, const struct buf *x,
                   const struct buf *dy, struct buf *dw)
{
    const struct kgeom *g = &s->g;

    return kern->conv_dw(kit_ctx(kern, n_threads), dw->p, beta, g, s->B, fenced(0, x), x->type, g->Ci + x_gap(g, dense),
                         fenced(1, dy), dy->type, g->Co + y_gap(g, dense)) == K_OK
        && buf_intact(dw);
}

static struct buf map_make(enum dtype t, int64_t pixels, int64_t n, int64_t gap)
{
    struct buf b = buf_random(t, strided(pixels, n, gap), ++seed, 1);

    poison_gaps(&b, n, gap);
    return b;
}

struct buf dw_x(const struct shape *s, enum dtype t, bool dense)
{
    return map_make(t, s->B * in_px(&s->g), s->g.Ci, x_gap(&s->g, dense));
}

struct buf dw_dy(const struct shape *s, enum dtype t, bool dense)
{
    return map_make(t, s->B * out_px(&s->g), s->g.Co, y_gap(&s->g, dense));
}

bool dw_check(const struct shape *s, bool dense, enum dtype x_type, enum dtype dy_type)
{
    const struct kgeom *g = &s->g;
    const int64_t n = g->Co * g->KH * g->KW * g->Ci;
    const double K = (double)(s->B * out_px(g)), c = U * (1 + fmin(K, 8 + 2 * sqrt(K)));
    struct buf x = dw_x(s, x_type, dense), dy = dw_dy(s, dy_type, dense), start = buf_random(F32, n, ++seed, 3);
    double *sum = calloc((size_t)n, sizeof *sum), *mag = calloc((size_t)n, sizeof *mag);
    const struct kern *kern;
    bool ok = true;
    char what[160];

    dw_reference(sum, mag, s, &x, &dy, dense);
    for (int64_t i = 0; i < n; i++)
        mag[i] = c * mag[i] + 2 * U * (fabs(sum[i]) + fabs(start.v[i]));
    for (int beta = 0; beta < 2; beta++) {
        for (int64_t i = 0; beta && i < n; i++)
            sum[i] += start.v[i];
        for (int i = 0; (kern = kit_twin(i)); i++) {
            struct buf dw = beta ? buf_copy(&start) : buf_new(F32, n);
            const bool ran = dw_run(kern, 1, s, dense, (float)beta, &x, &dy, &dw);

            snprintf(what, sizeof what, "dw beta %d of %s%s, %s, x %s, dy %s", beta, s->why, dense ? ", dense" : "",
                     kern->name, type_name[x_type], type_name[dy_type]);
            if (!ran)
                tap_note("%s: did not run", what);
            ok &= ran && within(&dw, g->Ci, 0, sum, mag, what);
            buf_free(&dw);
        }
    }
    buf_free(&x), buf_free(&dy), buf_free(&start);
    free(sum), free(mag);
    return ok;
}

bool shape_has_up_pack(const struct kgeom *g)
{
    return g->up == 2 && g->KH == 3 && g->KW == 3 && g->Ho == 2 * g->H && g->Wo == 2 * g->W;
}

/* Forward, both gradients, and the up-sampling packs where they apply. */
struct shape shape_linear(int64_t rows, int64_t Ci, int64_t Co)
{
    return (struct shape){ "linear", 1, { 1, rows, Ci, 1, rows, Co, 1, 1, 1, 0, 0, 1 } };
}

void plan_take_epilogue(struct plan *p, const struct epilogue_case *e)
{
    p->alpha = e->alpha;
    p->act = e->act;
    p->bias = e->bias;
    p->row_add = e->row_add;
    p->residual = e->residual;
    p->in_place = e->in_place;
}

struct buf buf_view(const struct buf *b, int64_t first, int64_t n)
{
    struct buf v = *b;

    v.p = (char *)b->p + (size_t)first * dtype_bytes(b->type);
    v.v = b->v + first;
    v.n = n;
    return v;
}

