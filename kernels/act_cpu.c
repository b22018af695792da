/* kernels/act_cpu.c: activations and softmax, forward and backward.
 *
 * Element by element work is cut into blocks, softmax and GEGLU into rows; threads take blocks or rows. No value
 * depends on its neighbours except through a row's maximum and sum, which are formed in a fixed order. */
#include "kernels/simd.h"

#include "kernels/isa.h"

enum {
    BLOCK = 8192,               /* elements of one task */
    BIG = 32768,                /* elements from which threads pay */
    LEAF = 32 * VL              /* elements of a row added in f32 before the sum goes on in double */
};

static const float inv_sqrt_2pi = 0.39894228f;

INLINE vf unary_of(enum kunary f, vf x)
{
    switch (f) {
    case K_SILU: return v_silu(x);
    case K_GELU: return v_gelu(x);
    case K_QUICK_GELU: return v_quick_gelu(x);
    default: return v_relu(x);
    }
}

/* gelu'(x) = Phi(x) + x phi(x) */
INLINE vf gelu_slope(vf x)
{
    vf a, e, tail = v_normal_tail(x, &a, &e), slope = v_fnma(a, e * v_set(inv_sqrt_2pi), tail);

    return v_select(x > v_zero(), v_set(1.0f) - slope, slope);
}

INLINE vf unary_slope(enum kunary f, vf x)
{
    switch (f) {
    case K_SILU: return v_silu_slope(x);
    case K_GELU: return gelu_slope(x);
    case K_QUICK_GELU: return v_silu_slope(v_set(1.702f) * x);
    default: return v_select(x > v_zero(), v_set(1.0f), v_zero());
    }
}

/* ---- unary ---- */

INLINE void unary_run(enum kunary f, enum dtype T, void *y, const void *x, int64_t i, int64_t end)
{
    for (; i + VL <= end; i += VL)
        v_store(y, i, T, unary_of(f, v_load(x, i, T)));
    if (i < end)
        v_store_n(y, i, T, unary_of(f, v_load_n(x, i, T, end - i)), end - i);
}

INLINE void unary_back_run(enum kunary f, enum dtype T, void *dx, const void *dy, const void *x, int64_t i, int64_t end)
{
    for (; i + VL <= end; i += VL)
        v_store(dx, i, T, v_load(dy, i, T) * unary_slope(f, v_load(x, i, T)));
    if (i < end)
        v_store_n(dx, i, T, v_load_n(dy, i, T, end - i) * unary_slope(f, v_load_n(x, i, T, end - i)), end - i);
}

static int unary_block(enum kunary f, void *y, const void *x, enum dtype type, int64_t i, int64_t end)
{
    switch (f) {
    case K_SILU: BY_TYPE(type, unary_run(K_SILU, T, y, x, i, end)); break;
    case K_GELU: BY_TYPE(type, unary_run(K_GELU, T, y, x, i, end)); break;
    case K_QUICK_GELU: BY_TYPE(type, unary_run(K_QUICK_GELU, T, y, x, i, end)); break;
    default: BY_TYPE(type, unary_run(K_RELU, T, y, x, i, end));
    }
    return K_OK;
}

static int unary_back_block(enum kunary f, void *dx, const void *dy, const void *x, enum dtype type, int64_t i,
                            int64_t end)
{
    switch (f) {
    case K_SILU: BY_TYPE(type, unary_back_run(K_SILU, T, dx, dy, x, i, end)); break;
    case K_GELU: BY_TYPE(type, unary_back_run(K_GELU, T, dx, dy, x, i, end)); break;
    case K_QUICK_GELU: BY_TYPE(type, unary_back_run(K_QUICK_GELU, T, dx, dy, x, i, end)); break;
    default: BY_TYPE(type, unary_back_run(K_RELU, T, dx, dy, x, i, end));
    }
    return K_OK;
}

static bool bad_unary(enum kunary f, enum dtype type, int64_t n)
{
    return (unsigned)f >= K_N_UNARY || (unsigned)type >= N_DTYPE || n < 0;
}

static int unary(struct kctx *k, enum kunary f, void *y, const void *x, enum dtype type, int64_t n)
{
    if (bad_unary(f, type, n))
        return K_ARG;
#pragma omp parallel for num_threads(k->n_threads) schedule(static) if (n >= BIG)
    for (int64_t i = 0; i < n; i += BLOCK)
        unary_block(f, y, x, type, i, n - i < BLOCK ? n : i + BLOCK);
    return K_OK;
}

static int unary_back(struct kctx *k, enum kunary f, void *dx, const void *dy, const void *x, enum dtype type,
                      int64_t n)
{
    if (bad_unary(f, type, n))
        return K_ARG;
#pragma omp parallel for num_threads(k->n_threads) schedule(static) if (n >= BIG)
    for (int64_t i = 0; i < n; i += BLOCK)
        unary_back_block(f, dx, dy, x, type, i, n - i < BLOCK ? n : i + BLOCK);
    return K_OK;
}

/* ---- GEGLU: h at [0,D) and g at [D,2D) of a row ---- */

INLINE void geglu_run(enum dtype T, void *y, const void *x, int64_t r, int64_t D)
{
    const int64_t h = 2 * r * D, g = h + D;
    int64_t i = 0;

    for (; i + VL <= D; i += VL)
        v_store(y, r * D + i, T, v_load(x, h + i, T) * v_gelu(v_load(x, g + i, T)));
    if (i < D)
        v_store_n(y, r * D + i, T, v_load_n(x, h + i, T, D - i) * v_gelu(v_load_n(x, g + i, T, D - i)), D - i);
}

INLINE void geglu_back_run(enum dtype T, void *dx, const void *dy, const void *x, int64_t r, int64_t D)
{
    const int64_t h = 2 * r * D, g = h + D;
    int64_t i = 0;

    for (; i + VL <= D; i += VL) {
        const vf d = v_load(dy, r * D + i, T), xh = v_load(x, h + i, T), xg = v_load(x, g + i, T);
        v_store(dx, h + i, T, d * v_gelu(xg));
        v_store(dx, g + i, T, d * xh * gelu_slope(xg));
    }
    if (i < D) {
        const int64_t n = D - i;
        const vf d = v_load_n(dy, r * D + i, T, n), xh = v_load_n(x, h + i, T, n), xg = v_load_n(x, g + i, T, n);
        v_store_n(dx, h + i, T, d * v_gelu(xg), n);
        v_store_n(dx, g + i, T, d * xh * gelu_slope(xg), n);
    }
}

static int geglu_row(void *y, const void *x, enum dtype type, int64_t r, int64_t D)
{
    BY_TYPE(type, geglu_run(T, y, x, r, D));
    return K_OK;
}

static int geglu_back_row(void *dx, const void *dy, const void *x, enum dtype type, int64_t r, int64_t D)
{
    BY_TYPE(type, geglu_back_run(T, dx, dy, x, r, D));
    return K_OK;
}

static bool bad_rows(enum dtype type, int64_t rows, int64_t D)
{
    return (unsigned)type >= N_DTYPE || rows < 0 || D < 0;
}

/* The sizes of input and output differ, so one may not be the other. */
static int geglu(struct kctx *k, void *y, const void *x, enum dtype type, int64_t rows, int64_t D)
{
    if (bad_rows(type, rows, D))
        return K_ARG;
#pragma omp parallel for num_threads(k->n_threads) schedule(static) if (rows * D >= BIG)
    for (int64_t r = 0; r < rows; r++)
        geglu_row(y, x, type, r, D);
    return K_OK;
}

static int geglu_back(struct kctx *k, void *dx, const void *dy, const void *x, enum dtype type, int64_t rows, int64_t D)
{
    if (bad_rows(type, rows, D))
        return K_ARG;
#pragma omp parallel for num_threads(k->n_threads) schedule(static) if (rows * D >= BIG)
    for (int64_t r = 0; r < rows; r++)
        geglu_back_row(dx, dy, x, type, r, D);
    return K_OK;
}

/* ---- softmax ---- */

/* The largest of x[i..i+D). A NaN may go unseen here; the sum of exponentials sees it. */
INLINE float row_max(enum dtype T, const void *x, int64_t i, int64_t D)
{
    const int64_t end = i + D;
    float m = s_load(x, i, T);

    if (D >= VL) {
        vf v = v_load(x, end - VL, T);
        for (; i + VL <= end; i += VL)
            v = v_max(v, v_load(x, i, T));
        return v_max_lane(v);
    }
    for (; i < end; i++)
        m = s_load(x, i, T) > m ? s_load(x, i, T) : m;
    return m;
}

/* The first n lanes, zeros behind. */
INLINE vf first_n(vf x, int64_t n)
{
    float t[VL];

    v_storef(t, x);
    return v_load_n(t, 0, F32, n);
}

INLINE double row_exp_sum(enum dtype T, const void *x, float m, int64_t i, int64_t D)
{
    const int64_t end = i + D;
    double sum = 0;

    while (i < end) {
        const int64_t stop = end - i < LEAF ? end : i + LEAF;
        vf s = v_zero();
        for (; i + VL <= stop; i += VL)
            s += v_exp_neg(v_load(x, i, T) - v_set(m));
        if (i < stop)
            s += first_n(v_exp_neg(v_load_n(x, i, T, stop - i) - v_set(m)), stop - i);
        i = stop;
        sum += (double)v_sum(s);
    }
    return sum;
}

INLINE void softmax_run(enum dtype T, void *y, const void *x, int64_t i, int64_t D)
{
    const int64_t end = i + D;
    const float m = row_max(T, x, i, D);
    const vf max = v_set(m), scale = v_set((float)(1 / row_exp_sum(T, x, m, i, D)));

    for (; i + VL <= end; i += VL)
        v_store(y, i, T, v_exp_neg(v_load(x, i, T) - max) * scale);
    if (i < end)
        v_store_n(y, i, T, v_exp_neg(v_load_n(x, i, T, end - i) - max) * scale, end - i);
}

INLINE double row_dot(enum dtype T, const void *x, const void *z, int64_t i, int64_t D)
{
    const int64_t end = i + D;
    double sum = 0;

    while (i < end) {
        const int64_t stop = end - i < LEAF ? end : i + LEAF;
        vf s = v_zero();
        for (; i + VL <= stop; i += VL)
            s = v_fma(v_load(x, i, T), v_load(z, i, T), s);
        if (i < stop)
            s = v_fma(v_load_n(x, i, T, stop - i), v_load_n(z, i, T, stop - i), s);
        i = stop;
        sum += (double)v_sum(s);
    }
    return sum;
}

INLINE void softmax_back_run(enum dtype T, void *dx, const void *dy, const void *y, int64_t i, int64_t D)
{
    const int64_t end = i + D;
    const vf s = v_set((float)row_dot(T, dy, y, i, D));

    for (; i + VL <= end; i += VL)
        v_store(dx, i, T, v_load(y, i, T) * (v_load(dy, i, T) - s));
    if (i < end)
        v_store_n(dx, i, T, v_load_n(y, i, T, end - i) * (v_load_n(dy, i, T, end - i) - s), end - i);
}

static int softmax_row(void *y, const void *x, enum dtype type, int64_t i, int64_t D)
{
    BY_TYPE(type, softmax_run(T, y, x, i, D));
    return K_OK;
}

static int softmax_back_row(void *dx, const void *dy, const void *y, enum dtype type, int64_t i, int64_t D)
{
    BY_TYPE(type, softmax_back_run(T, dx, dy, y, i, D));
    return K_OK;
}

static int softmax(struct kctx *k, void *y, const void *x, enum dtype type, int64_t rows, int64_t D)
{
    if (bad_rows(type, rows, D))
        return K_ARG;
    if (D == 0)
        return K_OK;
#pragma omp parallel for num_threads(k->n_threads) schedule(static) if (rows * D >= BIG)
    for (int64_t r = 0; r < rows; r++)
        softmax_row(y, x, type, r * D, D);
    return K_OK;
}

static int softmax_back(struct kctx *k, void *dx, const void *dy, const void *y, enum dtype type, int64_t rows,
                        int64_t D)
{
    if (bad_rows(type, rows, D))
        return K_ARG;
#pragma omp parallel for num_threads(k->n_threads) schedule(static) if (rows * D >= BIG)
    for (int64_t r = 0; r < rows; r++)
        softmax_back_row(dx, dy, y, type, r * D, D);
    return K_OK;
}

void ISA_NAME(fill_act)(struct kern *k)
{
    k->unary = unary;
    k->unary_back = unary_back;
    k->geglu = geglu;
    k->geglu_back = geglu_back;
    k->softmax = softmax;
    k->softmax_back = softmax_back;
}
