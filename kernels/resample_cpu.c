/* kernels/resample_cpu.c: nearest and bilinear resampling of channels-last maps, forward and backward.
 *
 * Source positions are exact fractions: q + rem/den, stepped along the row in integers, so that no pixel moves by
 * rounding. Forward kernels take tasks of output rows. Backward kernels take tasks of dx rows too: each gathers, in
 * order, the outputs that read it, so that nothing is added by two threads. */
#include "kernels/simd.h"

#include "kernels/isa.h"

enum {
    BIG = 32768,                /* elements from which threads pay */
    CHUNK = 512                 /* channels of dx that are summed up at a time, in L1 */
};

/* ---- positions ---- */

enum mode { NEAREST, CENTRES, CORNERS };

/* Where output i of n reads an input of m: at (first + i*step)/den, q whole and rem/den over. */
struct walk {
    int64_t first, step, den, m;
    int64_t q, rem;
};

static struct walk walk_new(enum mode mode, int64_t m, int64_t n)
{
    struct walk w = { 0, m, n, m, 0, 0 };       /* i m/n */

    if (mode == CENTRES) {                      /* (i + 1/2) m/n - 1/2 */
        w.first = m - n;
        w.step = 2 * m;
        w.den = 2 * n;
    } else if (mode == CORNERS) {               /* i (m-1)/(n-1); the first pixel where n = 1 */
        w.step = n > 1 ? m - 1 : 0;
        w.den = n > 1 ? n - 1 : 1;
    }
    return w;
}

INLINE void walk_to(struct walk *w, int64_t i)
{
    const int64_t at = w->first + i * w->step;

    w->q = at / w->den - (at % w->den < 0);
    w->rem = at - w->q * w->den;
}

INLINE void walk_on(struct walk *w)
{
    w->rem += w->step % w->den;
    w->q += w->step / w->den;
    if (w->rem >= w->den) {
        w->rem -= w->den;
        w->q++;
    }
}

/* The two pixels that bilinear reads and the share of the second; positions outside stay on the edge. */
struct tap {
    int64_t a, b;
    float share;
};

INLINE struct tap walk_tap(const struct walk *w)
{
    if (w->q < 0)
        return (struct tap){ 0, 0, 0.0f };
    return (struct tap){ lesser(w->q, w->m - 1), lesser(w->q + 1, w->m - 1),
                         (float)((double)w->rem / (double)w->den) };
}

/* The first of n outputs whose q is at least h. */
INLINE int64_t first_reaching(const struct walk *w, int64_t h, int64_t n)
{
    const int64_t missing = h * w->den - w->first;

    if (missing <= 0)
        return 0;
    return w->step ? lesser(n, (missing + w->step - 1) / w->step) : n;
}

/* ---- shapes ---- */

struct resample {
    void *y;                    /* written: (B,Ho,Wo,C), or dx (B,H,W,C) */
    const void *x;              /* read: (B,H,W,C), or dy (B,Ho,Wo,C) */
    enum dtype type;
    int64_t B, H, W, C, Ho, Wo;
    enum mode mode;
};

static bool bad(const struct resample *p)
{
    return (unsigned)p->type >= N_DTYPE || p->B < 0 || p->H < 0 || p->W < 0 || p->C < 0 || p->Ho < 0 || p->Wo < 0;
}

static bool empty(const struct resample *p)
{
    return !p->B || !p->H || !p->W || !p->C || !p->Ho || !p->Wo;
}

/* ---- forward ---- */

static void nearest_row(const struct resample *p, int64_t b, int64_t i)
{
    const size_t pixel = (size_t)p->C * dtype_bytes(p->type);
    struct walk rows = walk_new(NEAREST, p->H, p->Ho), w = walk_new(NEAREST, p->W, p->Wo);
    const char *x;
    char *y = (char *)p->y + (size_t)((b * p->Ho + i) * p->Wo) * pixel;

    walk_to(&rows, i);
    x = (const char *)p->x + (size_t)((b * p->H + rows.q) * p->W) * pixel;
    for (int64_t j = 0; j < p->Wo; j++, walk_on(&w))
        memcpy(y + (size_t)j * pixel, x + (size_t)w.q * pixel, pixel);
}

INLINE void bilinear_run(enum dtype T, const struct resample *p, int64_t b, int64_t i)
{
    struct walk rows = walk_new(p->mode, p->H, p->Ho), w = walk_new(p->mode, p->W, p->Wo);
    const int64_t C = p->C;
    struct tap t, u;
    int64_t top, low, y = (b * p->Ho + i) * p->Wo * C;

    walk_to(&rows, i);
    t = walk_tap(&rows);
    top = (b * p->H + t.a) * p->W * C;
    low = (b * p->H + t.b) * p->W * C;
    walk_to(&w, 0);
    for (int64_t j = 0; j < p->Wo; j++, walk_on(&w), y += C) {
        u = walk_tap(&w);
        for (int64_t c = 0; c < C; c += VL) {
            const int64_t a = u.a * C + c, d = u.b * C + c, n = C - c;
            const vf wa = v_set(1.0f - u.share), wb = v_set(u.share);
            const vf above = v_fma(wb, v_load_upto(p->x, top + d, T, n), wa * v_load_upto(p->x, top + a, T, n));
            const vf below = v_fma(wb, v_load_upto(p->x, low + d, T, n), wa * v_load_upto(p->x, low + a, T, n));
            v_store_upto(p->y, y + c, T, v_fma(v_set(t.share), below, v_set(1.0f - t.share) * above), n);
        }
    }
}

static int bilinear_row(const struct resample *p, int64_t b, int64_t i)
{
    BY_TYPE(p->type, bilinear_run(T, p, b, i));
    return K_OK;
}

static int forward(struct kctx *k, const struct resample *p)
{
    if (bad(p))
        return K_ARG;
    if (empty(p))
        return K_OK;
#pragma omp parallel for collapse(2) num_threads(k->n_threads) schedule(static) if (p->B * p->Ho * p->Wo * p->C >= BIG)
    for (int64_t b = 0; b < p->B; b++)
        for (int64_t i = 0; i < p->Ho; i++) {
            if (p->mode == NEAREST)
                nearest_row(p, b, i);
            else
                bilinear_row(p, b, i);
        }
    return K_OK;
}

/* ---- backward ---- */

/* What the output at w takes of input h. */
INLINE float share_of(enum mode mode, const struct walk *w, int64_t h)
{
    struct tap t;

    if (mode == NEAREST)
        return 1.0f;
    t = walk_tap(w);
    return (t.a == h ? 1.0f - t.share : 0.0f) + (t.b == h ? t.share : 0.0f);
}

/* The outputs [*lo,*hi) that may read input h: nearest those with q = h, bilinear those with q = h-1 or h. q is never
 * below -1, where positions outside begin, nor above the last input. */
INLINE void readers(enum mode mode, const struct walk *w, int64_t h, int64_t n, int64_t *lo, int64_t *hi)
{
    *lo = first_reaching(w, mode == NEAREST ? h : h - 1, n);
    *hi = first_reaching(w, h + 1, n);
}

/* sum += weight * n channels of dy from element i on */
INLINE void add_weighted(enum dtype T, float *sum, float weight, const void *dy, int64_t i, int64_t n)
{
    for (int64_t c = 0; c < n; c += VL)
        v_storef(sum + c, v_fma(v_set(weight), v_load_upto(dy, i + c, T, n - c), v_loadf(sum + c)));
}

/* dx row h of image b: for every pixel its readers, row by row. */
INLINE void back_run(enum dtype T, enum mode mode, const struct resample *p, int64_t b, int64_t h)
{
    struct walk rows = walk_new(mode, p->H, p->Ho), cols = walk_new(mode, p->W, p->Wo);
    const int64_t dx = (b * p->H + h) * p->W * p->C, dy = b * p->Ho * p->Wo * p->C;
    int64_t i0, i1, j0, j1;
    float sum[CHUNK + VL];

    readers(mode, &rows, h, p->Ho, &i0, &i1);
    for (int64_t w = 0; w < p->W; w++) {
        readers(mode, &cols, w, p->Wo, &j0, &j1);
        for (int64_t c = 0; c < p->C; c += CHUNK) {
            const int64_t n = lesser(p->C - c, CHUNK);
            memset(sum, 0, sizeof *sum * (size_t)n + sizeof(vf));
            walk_to(&rows, i0);
            for (int64_t i = i0; i < i1; i++, walk_on(&rows)) {
                const float share = share_of(mode, &rows, h);
                walk_to(&cols, j0);
                for (int64_t j = j0; j < j1; j++, walk_on(&cols))
                    add_weighted(T, sum, share * share_of(mode, &cols, w), p->x, dy + (i * p->Wo + j) * p->C + c, n);
            }
            for (int64_t at = 0; at < n; at += VL)
                v_store_upto(p->y, dx + w * p->C + c + at, T, v_loadf(sum + at), n - at);
        }
    }
}

static int back_row(const struct resample *p, int64_t b, int64_t h)
{
    if (p->mode == NEAREST)
        BY_TYPE(p->type, back_run(T, NEAREST, p, b, h));
    else if (p->mode == CENTRES)
        BY_TYPE(p->type, back_run(T, CENTRES, p, b, h));
    else
        BY_TYPE(p->type, back_run(T, CORNERS, p, b, h));
    return K_OK;
}

static int backward(struct kctx *k, const struct resample *p)
{
    if (bad(p))
        return K_ARG;
    if (empty(p))
        return K_OK;
#pragma omp parallel for collapse(2) num_threads(k->n_threads) schedule(static) if (p->B * p->Ho * p->Wo * p->C >= BIG)
    for (int64_t b = 0; b < p->B; b++)
        for (int64_t h = 0; h < p->H; h++)
            back_row(p, b, h);
    return K_OK;
}

/* ---- the contract's functions ---- */

static int nearest(struct kctx *k, void *y, const void *x, enum dtype type, int64_t B, int64_t H, int64_t W, int64_t C,
                   int64_t Ho, int64_t Wo)
{
    return forward(k, &(struct resample){ y, x, type, B, H, W, C, Ho, Wo, NEAREST });
}

static int nearest_back(struct kctx *k, void *dx, const void *dy, enum dtype type, int64_t B, int64_t H, int64_t W,
                        int64_t C, int64_t Ho, int64_t Wo)
{
    return backward(k, &(struct resample){ dx, dy, type, B, H, W, C, Ho, Wo, NEAREST });
}

static int bilinear(struct kctx *k, void *y, const void *x, enum dtype type, int64_t B, int64_t H, int64_t W, int64_t C,
                    int64_t Ho, int64_t Wo, bool align_corners)
{
    return forward(k, &(struct resample){ y, x, type, B, H, W, C, Ho, Wo, align_corners ? CORNERS : CENTRES });
}

static int bilinear_back(struct kctx *k, void *dx, const void *dy, enum dtype type, int64_t B, int64_t H, int64_t W,
                         int64_t C, int64_t Ho, int64_t Wo, bool align_corners)
{
    return backward(k, &(struct resample){ dx, dy, type, B, H, W, C, Ho, Wo, align_corners ? CORNERS : CENTRES });
}

void ISA_NAME(fill_resample)(struct kern *k)
{
    k->nearest = nearest;
    k->nearest_back = nearest_back;
    k->bilinear = bilinear;
    k->bilinear_back = bilinear_back;
}
