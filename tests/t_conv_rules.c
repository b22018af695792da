/* tests/t_conv_rules.c: what holds for convolutions beside their values, on every twin: the same bits in any number of
 * threads, alone or in a batch; bad arguments refused by all twins alike, by the null twin too, and before anything is
 * written; too little scratch reported. */
#include "tests/conv_plan.h"

#include <math.h>
#include <string.h>

#include "tests/tap.h"

/* ---- the same bits ---- */

static const struct types bit_types[] = { { F32, F32, F32, F32 }, { BF16, BF16, BF16, BF16 }, { F32, F32, BF16, F16 } };
static const struct shape bit_shapes[] = {
    { "3x3", 3, { 9, 11, 13, 9, 11, 72, 3, 3, 1, 1, 1, 1 } },
    { "stride 2", 3, { 9, 11, 13, 5, 6, 72, 3, 3, 2, 1, 1, 1 } },
    { "up", 3, { 5, 6, 50, 10, 12, 72, 3, 3, 1, 1, 1, 2 } },
    { "linear", 3, { 1, 7, 801, 1, 7, 90, 1, 1, 1, 0, 0, 1 } },
    { "one pixel each", 3, { 1, 1, 40, 1, 1, 333, 1, 1, 1, 0, 0, 1 } },
    { "narrow", 3, { 9, 11, 50, 9, 11, 4, 3, 3, 1, 1, 1, 1 } },
    { "narrow dx", 3, { 9, 11, 3, 9, 11, 50, 3, 3, 1, 1, 1, 1 } },
};

/* Every kind of pack that a shape takes, i-th; false after the last. */
static bool kind_of(const struct shape *s, int i, enum kpack_kind *kind)
{
    *kind = (enum kpack_kind)i;
    if (i == K_PACK_DX && s->g.up == 2)
        *kind = K_PACK_UP;
    else if (i == K_PACK_UP)
        *kind = K_PACK_UP_DX;
    return i < (s->g.up == 2 ? 3 : 2);
}

static bool same_in_threads(const struct kern *kern, const struct plan *p, const char *why)
{
    static const int n_threads[] = { 2, 3, 5 };
    struct data d = data_make(p);
    struct buf one = plan_y(p, &d);
    bool ok = plan_run(kern, 1, p, &d, &one);

    for (size_t i = 0; i < LEN(n_threads); i++) {
        struct buf y = plan_y(p, &d);
        ok &= plan_run(kern, n_threads[i], p, &d, &y);
        ok &= buf_same(&y, &one, "%s, %s, kind %d, %d threads", why, kern->name, p->kind, n_threads[i]);
        buf_free(&y);
    }
    buf_free(&one);
    data_free(&d);
    return ok;
}

static bool dw_same_in_threads(const struct kern *kern, const struct shape *s, enum dtype t)
{
    const struct kgeom *g = &s->g;
    struct buf x = dw_x(s, t, false), dy = dw_dy(s, t, false), one = buf_new(F32, g->Co * g->KH * g->KW * g->Ci);
    bool ok = dw_run(kern, 1, s, false, 0, &x, &dy, &one);

    for (int n = 2; n <= 5; n++) {
        struct buf dw = buf_new(F32, one.n);
        ok &= dw_run(kern, n, s, false, 0, &x, &dy, &dw);
        ok &= buf_same(&dw, &one, "dw of %s, %s, %d threads", s->why, kern->name, n);
        buf_free(&dw);
    }
    buf_free(&x), buf_free(&dy), buf_free(&one);
    return ok;
}

static void test_threads(void)
{
    const struct kern *kern;
    enum kpack_kind kind;

    for (int i = 0; (kern = kit_twin(i)); i++) {
        bool ok = true, ok_dw = true;

        for (size_t s = 0; s < LEN(bit_shapes); s++)
            for (size_t t = 0; t < LEN(bit_types); t++) {
                for (int n = 0; kind_of(&bit_shapes[s], n, &kind); n++) {
                    const struct plan p = plan_of(&bit_shapes[s], kind, &bit_types[t], false);
                    ok &= same_in_threads(kern, &p, bit_shapes[s].why);
                }
                ok_dw &= dw_same_in_threads(kern, &bit_shapes[s], bit_types[t].x);
            }
        tap_ok(ok, "%s: conv in 1, 2, 3 and 5 threads, same bits", kern->name);
        tap_ok(ok_dw, "%s: conv_dw in 1 to 5 threads, same bits", kern->name);
    }
}

/* The pixels of x and y from first_x and first_y on, image b, as `part` computes them alone, against those of y. */
static bool same_alone(const struct kern *kern, const struct plan *whole, const struct data *d, const struct buf *y,
                       const struct plan *part, int64_t b, int64_t first_x, int64_t first_y, const char *why)
{
    const int64_t N = plan_channels(part), n = part->B * plan_image_px(part), K = plan_depth(part, 0);
    const int64_t ldx = K + part->part[0].gap;
    struct data own = *d;
    struct buf alone, want = buf_view(y, first_y * (N + whole->gap), strided(n, N, whole->gap));
    bool ok;

    own.x[0] = buf_view(&d->x[0], first_x * ldx, strided(part->B * plan_x_px(part, 0), K, part->part[0].gap));
    own.residual = buf_view(&d->residual, first_y * (N + RES_GAP), strided(n, N, RES_GAP));
    own.row_add = buf_view(&d->row_add, b * (plan_width(part) + ROW_GAP), plan_width(part));
    alone = plan_y(part, &own);
    ok = plan_run(kern, 1, part, &own, &alone);
    ok &= buf_same(&alone, &want, "%s, %s, kind %d", why, kern->name, part->kind);
    buf_free(&alone);
    return ok;
}

static bool images_alone(const struct kern *kern, const struct shape *s, enum kpack_kind kind, const struct types *t)
{
    struct plan p = plan_of(s, kind, t, false), one;
    struct data d;
    struct buf y;
    bool ok;

    if (!plan_is_dx(&p))
        plan_take_epilogue(&p, &epilogues[EPILOGUE_ALL]);
    d = data_make(&p);
    y = plan_y(&p, &d);
    ok = plan_run(kern, 1, &p, &d, &y);
    one = p;
    one.B = 1;
    for (int64_t b = 0; b < p.B; b++)
        ok &= same_alone(kern, &p, &d, &y, &one, b, b * plan_x_px(&p, 0), b * plan_image_px(&p), s->why);
    buf_free(&y);
    data_free(&d);
    return ok;
}

/* Rows of a linear layer of 300 rows: 1, 8 and 15 of them alone. */
static bool rows_alone(const struct kern *kern, enum kpack_kind kind, int64_t columns, const struct types *t)
{
    const bool dx = kind == K_PACK_DX;
    const struct shape all = shape_linear(300, dx ? columns : 401, dx ? 401 : columns);
    struct plan p = plan_of(&all, kind, t, false);
    struct data d = data_make(&p);
    struct buf y = plan_y(&p, &d);
    bool ok = plan_run(kern, 1, &p, &d, &y);

    for (int64_t n = 1; n <= 15; n += 7)
        for (int64_t m = 0; m + n <= 300; m += 37) {
            struct plan few = p;
            few.part[0].g.W = few.part[0].g.Wo = n;
            ok &= same_alone(kern, &p, &d, &y, &few, 0, m, m, "rows alone");
        }
    buf_free(&y);
    data_free(&d);
    return ok;
}

static void test_alone(void)
{
    const struct kern *kern;
    enum kpack_kind kind;

    for (int i = 0; (kern = kit_twin(i)); i++) {
        bool ok = true, ok_rows = true;

        for (size_t t = 0; t < LEN(bit_types); t++) {
            for (size_t s = 0; s < LEN(bit_shapes); s++)
                for (int n = 0; kind_of(&bit_shapes[s], n, &kind); n++)
                    ok &= images_alone(kern, &bit_shapes[s], kind, &bit_types[t]);
            for (int64_t n = 4; n <= 72; n += 68)
                for (int dx = 0; dx < 2; dx++)
                    ok_rows &= rows_alone(kern, dx ? K_PACK_DX : K_PACK_FWD, n, &bit_types[t]);
        }
        tap_ok(ok, "%s: an image alone and in a batch, same bits", kern->name);
        tap_ok(ok_rows, "%s: a row among 1, 8, 15 or 300, same bits", kern->name);
    }
}

/* ---- bad arguments ---- */

/* Make a sound call unsound in the i-th way and name it; NULL after the last. It is 3x3, 4 to 40 channels, 6x6. */
static const char *spoil_forward(struct kconv *c, int i)
{
    struct kpart *p = c->part;
    struct kgeom *g = &p->g;

    switch (i) {
    case 0: return p->pack_kind = K_PACK_DX, "pack of dx";
    case 1: return p->pack_kind = K_PACK_UP_DX, "pack of dx of up";
    case 2: return p->pack_kind = K_PACK_UP, "pack of up without up";
    case 3: return p->pack_kind = K_N_PACK, "no such pack";
    case 4: return c->act = K_ACT_GEGLU, "geglu without its pack";
    case 5: return p->glu = true, "pack of geglu without geglu";
    case 6: return c->act = K_ACT_GEGLU, p->glu = true, g->Co = 39, "geglu of odd width";
    case 7: return c->act = (enum kact)(K_ACT_GEGLU + 1), "no such activation";
    case 8: return g->stride = 3, "stride 3";
    case 9: return g->stride = 0, "stride 0";
    case 10: return g->up = 3, "up 3";
    case 11: return g->up = 0, "up 0";
    case 12: return g->up = 2, g->stride = 2, "up with stride 2";
    case 13: return g->up = 2, g->H = g->W = 2, "up to more than twice";
    case 14: return g->up = 2, g->H = g->W = 3, g->pad_t = 0, "up with other padding";
    case 15: return g->up = 2, p->pack_kind = K_PACK_UP, g->H = 3, g->W = 3, g->Ho = 5, "pack of up, odd target";
    case 16: return g->up = 2, p->pack_kind = K_PACK_UP, g->KH = g->KW = 5, g->pad_t = g->pad_l = 2, "pack of up, 5x5";
    case 17: return g->KH = 0, "no rows of weights";
    case 18: return g->KW = -1, "negative columns of weights";
    case 19:
        g->up = 2;
        g->H = g->W = 3;
        p->pack_kind = K_PACK_UP;
        return p->glu = true, c->act = K_ACT_GEGLU, "geglu of up";
    case 20: return g->Ci = -1, "negative Ci";
    case 21: return g->Co = -1, "negative Co";
    case 22: return g->H = -1, "negative H";
    case 23: return g->W = -1, "negative W";
    case 24: return g->Ho = -1, "negative Ho";
    case 25: return g->Wo = -1, "negative Wo";
    case 26: return c->B = -1, "negative B";
    case 27: return c->n_part = 0, "no part";
    case 28: return c->n_part = 4, "four parts";
    case 29: return c->y_type = N_DTYPE, "no such type of y";
    case 30: return p->type = N_DTYPE, "no such type of x";
    case 31: return p->pack_type = N_DTYPE, "no such type of pack";
    case 32: return c->n_part = 2, p[1] = p[0], p[1].g.Co = 9, "parts of different Co";
    case 33: return c->n_part = 2, p[1] = p[0], p[1].g.Ho = 5, "parts of different Ho";
    case 34: return c->n_part = 2, p[1] = p[0], p[1].g.Wo = 5, "parts of different Wo";
    case 35: return c->dir = (enum kdir)2, "no such direction";
    case 36: return p->ldx = 3, "pixels of x that overlap";
    case 37: return c->ldy = 39, "pixels of y that overlap";
    case 38: return c->residual = p->x, c->residual_ld = 39, "pixels of the residual that overlap";
    case 39: return c->row_add = p->x, c->row_add_ld = 39, "rows of row_add that overlap";
    case 40: return g->pad_t = -1, "negative padding above";
    case 41: return g->pad_l = -1, "negative padding left";
    default: return NULL;
    }
}

static const char *spoil_dx(struct kconv *c, int i)
{
    struct kpart *p = c->part;

    c->dir = K_DX;
    p->pack_kind = K_PACK_DX;
    c->ldy = 4;
    p->ldx = 40;
    if (i != 1)
        c->bias = NULL;
    switch (i) {
    case 0: return p->pack_kind = K_PACK_FWD, "dx with a forward pack";
    case 1: return "dx with bias";
    case 2: return c->row_add = p->x, c->row_add_ld = 40, "dx with row_add";
    case 3: return c->act = K_ACT_SILU, "dx with an activation";
    case 4: return p->g.up = 2, p->g.H = p->g.W = 3, "dx of up with the pack of dx";
    case 5: return p->g.up = 2, p->g.H = p->g.W = 3, p->g.Ho = 5, p->pack_kind = K_PACK_UP_DX, "dx of up, odd target";
    case 6: return p->pack_kind = K_PACK_UP_DX, "pack of dx of up without up";
    case 7: return c->n_part = 2, p[1] = p[0], p[1].g.Ci = 5, "dx of parts of different Ci";
    case 8: return c->n_part = 2, p[1] = p[0], p[1].g.H = 5, "dx of parts of different H";
    case 9: return p->ldx = 39, "pixels of dy that overlap";
    case 10: return c->ldy = 3, "pixels of dx that overlap";
    case 11: return p->glu = true, "dx with a geglu pack";
    default: return NULL;
    }
}

enum { Y_FLOATS = 6 * 6 * 40 + 64 };

/* A call that is sound as it stands, over plenty of zeros. */
static struct kconv sound(const struct buf *y)
{
    static _Alignas(64) float zero[1 << 16];
    const struct kpart part = { zero, F32, 4, zero, F32, K_PACK_FWD, false, { 6, 6, 4, 6, 6, 40, 3, 3, 1, 1, 1, 1 } };

    return (struct kconv){ .dir = K_FWD, .B = 1, .n_part = 1, .part = { part }, .alpha = 1, .bias = zero, .y = y->p,
                           .y_type = F32, .ldy = 40 };
}

static bool refuses(const struct kern *kern, struct kctx *k, const char *(*spoil)(struct kconv *c, int i))
{
    bool ok = true;

    for (int i = 0;; i++) {
        struct buf y = buf_new(F32, Y_FLOATS), fresh = buf_new(F32, Y_FLOATS);
        struct kconv c = sound(&y);
        const char *what = spoil(&c, i);
        int rc;

        if (what) {
            rc = kern->conv(k, &c);
            if (rc != K_ARG)
                tap_note("%s: conv returns %d for: %s", kern->name, rc, what);
            ok &= rc == K_ARG && buf_same(&y, &fresh, "%s wrote y, refusing: %s", kern->name, what);
        }
        buf_free(&y), buf_free(&fresh);
        if (!what)
            return ok;
    }
}

static bool pack_refuses(const struct kern *kern, struct kctx *k)
{
    static const struct kpack bad[] = {
        /* kind           src      dst      Co Ci KH KW first total glu */
        { K_N_PACK,       F32,     F32,     8, 4, 3, 3, 0, 4, false },
        { K_PACK_FWD,     N_DTYPE, F32,     8, 4, 3, 3, 0, 4, false },
        { K_PACK_FWD,     F32,     N_DTYPE, 8, 4, 3, 3, 0, 4, false },
        { K_PACK_FWD,     F32,     F32,    -8, 4, 3, 3, 0, 4, false },
        { K_PACK_FWD,     F32,     F32,     8, 4, 0, 3, 0, 4, false },
        { K_PACK_FWD,     F32,     F32,     8, 4, 3, 3, 1, 4, false },
        { K_PACK_FWD,     F32,     F32,     8, 4, 3, 3, -1, 4, false },
        { K_PACK_FWD,     F32,     F32,     7, 4, 3, 3, 0, 4, true },
        { K_PACK_DX,      F32,     F32,     8, 4, 3, 3, 0, 4, true },
        { K_PACK_UP,      F32,     F32,     8, 4, 3, 3, 0, 4, true },
        { K_PACK_UP,      F32,     F32,     8, 4, 5, 5, 0, 4, false },
        { K_PACK_UP_DX,   F32,     F32,     8, 4, 3, 1, 0, 4, false },
    };
    static const float w[8 * 25 * 4];
    struct buf dst = buf_new(F32, 1 << 14), fresh = buf_new(F32, 1 << 14);
    bool ok = true;

    for (size_t i = 0; i < LEN(bad); i++)
        if (kern->pack(k, dst.p, &bad[i], w) != K_ARG || !buf_same(&dst, &fresh, "a refused pack")) {
            tap_note("%s: pack takes bad pack %zu", kern->name, i);
            ok = false;
        }
    buf_free(&dst), buf_free(&fresh);
    return ok;
}

static int call_dw(const struct kern *kern, struct kctx *k, struct buf *dw, float beta, const struct kgeom *g,
                   int64_t B, int x_type, int64_t ldx, int64_t lddy)
{
    static const float zero[1 << 12];

    return kern->conv_dw(k, dw->p, beta, g, B, zero, (enum dtype)x_type, ldx, zero, F32, lddy);
}

static bool dw_refuses(const struct kern *kern, struct kctx *k)
{
    static const struct { struct kgeom g; float beta; int64_t B; int x_type; int64_t ldx, lddy; int rc; } calls[] = {
        { { 6, 6, 4, 6, 6, 8, 3, 3, 1, 1, 1, 1 }, 0,  1, F32, 4, 8, K_OK },
        { { 6, 6, 4, 6, 6, 8, 3, 3, 1, 1, 1, 1 }, 0.5f, 1, F32, 4, 8, K_ARG },
        { { 6, 6, 4, 6, 6, 8, 3, 3, 3, 1, 1, 1 }, 0,  1, F32, 4, 8, K_ARG },
        { { 6, 6, 4, 6, 6, 8, 3, 3, 2, 1, 1, 2 }, 0,  1, F32, 4, 8, K_ARG },
        { { 6, 6, 4, 6, 6, 8, 3, 3, 1, 1, 1, 3 }, 0,  1, F32, 4, 8, K_ARG },
        { { 2, 2, 4, 6, 6, 8, 3, 3, 1, 1, 1, 2 }, 0,  1, F32, 4, 8, K_ARG },
        { { 3, 3, 4, 6, 6, 8, 3, 3, 1, 0, 1, 2 }, 0,  1, F32, 4, 8, K_ARG },
        { { 6, 6, 4, -6, 6, 8, 3, 3, 1, 1, 1, 1 }, 0, 1, F32, 4, 8, K_ARG },
        { { 6, 6, -4, 6, 6, 8, 3, 3, 1, 1, 1, 1 }, 0, 1, F32, 4, 8, K_ARG },
        { { 6, 6, 4, 6, 6, 8, 3, 3, 1, -1, 1, 1 }, 0, 1, F32, 4, 8, K_ARG },
        { { 6, 6, 4, 6, 6, 8, 0, 3, 1, 1, 1, 1 }, 0,  1, F32, 4, 8, K_ARG },
        { { 6, 6, 4, 6, 6, 8, 3, 3, 1, 1, 1, 1 }, 0, -1, F32, 4, 8, K_ARG },
        { { 6, 6, 4, 6, 6, 8, 3, 3, 1, 1, 1, 1 }, 0,  1, N_DTYPE, 4, 8, K_ARG },
        { { 6, 6, 4, 6, 6, 8, 3, 3, 1, 1, 1, 1 }, 0,  1, F32, 3, 8, K_ARG },
        { { 6, 6, 4, 6, 6, 8, 3, 3, 1, 1, 1, 1 }, 0,  1, F32, 4, 7, K_ARG },
    };
    struct buf dw = buf_new(F32, 8 * 81 * 4);
    bool ok = true;

    for (size_t i = 0; i < LEN(calls); i++) {
        const int rc = call_dw(kern, k, &dw, calls[i].beta, &calls[i].g, calls[i].B, calls[i].x_type,
                               calls[i].ldx, calls[i].lddy);
        if (rc != calls[i].rc)
            tap_note("%s: conv_dw returns %d for call %zu", kern->name, rc, i);
        ok &= rc == calls[i].rc;
    }
    ok &= buf_intact(&dw);
    buf_free(&dw);
    return ok;
}

/* Too little scratch is said, not used; where there is nothing to do, nothing is done. */
static bool edges(const struct kern *kern)
{
    struct buf y = buf_new(F32, Y_FLOATS), fresh = buf_new(F32, Y_FLOATS);
    struct kctx small = *kit_ctx(kern, 1);
    struct kconv c = sound(&y);
    bool ok;

    small.scratch_bytes = 4096;
    ok = kern->conv(&small, &c) == K_SCRATCH;
    ok &= call_dw(kern, &small, &y, 0, &c.part[0].g, 1, F32, 4, 40) == K_SCRATCH;
    c.B = 0;
    ok &= kern->conv(kit_ctx(kern, 1), &c) == K_OK;
    c.B = 1;
    c.part[0].g.Co = 0;
    ok &= kern->conv(kit_ctx(kern, 1), &c) == K_OK;
    c.part[0].g.Co = 40;
    c.part[0].g.Ho = 0;
    ok &= kern->conv(kit_ctx(kern, 1), &c) == K_OK;
    ok &= buf_same(&y, &fresh, "%s: nothing to do", kern->name);
    ok &= kern->conv(kit_ctx(kern, 1), &(struct kconv){ 0 }) == K_ARG;
    c = sound(&y);
    ok &= kern->conv(kit_ctx(kern, 1), &c) == K_OK;
    buf_read(&y);
    ok &= y.v[0] == 0 && isnan(y.v[6 * 6 * 40]);                /* what the refused calls were made from is sound */
    buf_free(&y), buf_free(&fresh);
    return ok;
}

static void test_refusals(const struct kern *kern, struct kctx *k)
{
    tap_ok(refuses(kern, k, spoil_forward), "%s: conv refuses what the contract does not allow", kern->name);
    tap_ok(refuses(kern, k, spoil_dx), "%s: the same for dx", kern->name);
    tap_ok(dw_refuses(kern, k), "%s: the same for conv_dw", kern->name);
    tap_ok(pack_refuses(kern, k), "%s: the same for pack", kern->name);
}

static void test_arguments(void)
{
    const struct kern *kern;
    struct kern null;

    kern_null(&null, kern_cpu(NULL));
    for (int i = 0; (kern = kit_twin(i)); i++) {
        test_refusals(kern, kit_ctx(kern, 1));
        tap_ok(edges(kern), "%s: little scratch, nothing to do", kern->name);
    }
    test_refusals(&null, kit_ctx(kern_cpu(NULL), 1));
}


int main(void)
{
    test_threads();
    test_alone();
    test_arguments();
    return tap_done();
}
