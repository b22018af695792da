/* kernels/reduce_cpu.c: sums and losses, in an order that the sizes alone decide.
 *
 * Elements are cut into chunks and threads take chunks. Inside a chunk a leaf of 64 vectors is added in f32, eight by a
 * tree and eight trees in a row; from there every lane goes on in double, and so do the chunks, in order. A term thus
 * meets at most 11 f32 roundings whatever n is: a sum of positive numbers is within 11 * 2^-24 = 6.6e-7 of the
 * truth. */
#include "kernels/simd.h"

#include "kernels/isa.h"

enum {
    TREE = 8,                   /* vectors, or rows, added by a tree */
    LEAF = 8 * TREE * VL,       /* elements added in f32 before their lanes go to double */
    MIN_CHUNK = 16384,          /* elements; a multiple of every LEAF */
    FORK = 8 * MIN_CHUNK,       /* elements from which threads pay: some ten microseconds */
    MAX_CHUNKS = 512,           /* of one call's partial sums, which lie on the stack */
    IMAGE_CHUNKS = 64,          /* of one image's loss */
    COL_CHUNKS = 32,            /* of a column sum's rows */
    COL_BLOCK = 64              /* columns of an image that one task adds up */
};

/* What is added up: x, x^2, x z, (x-z)^2, m (x-z)^2. */
enum form { SUM, SQUARES, DOT, DISTANCE, MASKED };

INLINE vf term(enum form f, vf x, vf z)
{
    if (f == SUM)
        return x;
    if (f == SQUARES)
        return x * x;
    if (f == DOT)
        return x * z;
    return (x - z) * (x - z);
}

/* VL terms from element i on; m holds their masks for MASKED. */
INLINE vf terms(enum form f, enum dtype T, const void *x, const void *z, const float *m, int64_t i)
{
    const vf t = term(f, v_load(x, i, T), f >= DOT ? v_load(z, i, T) : v_zero());

    return f == MASKED ? v_loadf(m) * t : t;
}

/* The last n < VL of them, zeros behind. */
INLINE vf terms_n(enum form f, enum dtype T, const void *x, const void *z, const float *m, int64_t i, int64_t n)
{
    const vf t = term(f, v_load_n(x, i, T, n), f >= DOT ? v_load_n(z, i, T, n) : v_zero());

    return f == MASKED ? v_load_n(m, 0, F32, n) * t : t;
}

INLINE vf tree(const vf v[TREE])
{
    return ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]));
}

INLINE vf leaf_sum(enum form f, enum dtype T, const void *x, const void *z, const float *m, int64_t i)
{
    vf v[TREE], s = v_zero();

    for (int64_t at = 0; at < LEAF; at += TREE * VL) {
        for (int j = 0; j < TREE; j++)
            v[j] = terms(f, T, x, z, m + at + j * VL, i + at + j * VL);
        s += tree(v);
    }
    return s;
}

/* acc[0..VL) += lanes of v */
INLINE void add_lanes(double *acc, vf v)
{
    float t[VL];

    v_storef(t, v);
    for (int l = 0; l < VL; l++)
        acc[l] += (double)t[l];
}

/* m[i..i+n) of a mask that holds one value for every C elements. */
static void mask_expand(float *out, const float *m, int64_t C, int64_t i, int64_t n)
{
    int64_t p = i / C, c = i % C;

    for (int64_t j = 0; j < n; j++) {
        out[j] = m[p];
        if (++c == C) {
            c = 0;
            p++;
        }
    }
}

/* The sum over elements [i,end). m, C: the mask, one value for C elements. */
INLINE double chunk_sum(enum form f, enum dtype T, const void *x, const void *z, const float *m, int64_t C, int64_t i,
                        int64_t end)
{
    float mask[LEAF];
    double acc[VL] = { 0 };
    int64_t at;

    for (; i < end; i += LEAF) {
        const int64_t n = end - i < LEAF ? end - i : LEAF;
        if (f == MASKED)
            mask_expand(mask, m, C, i, n);
        if (n == LEAF) {
            add_lanes(acc, leaf_sum(f, T, x, z, mask, i));
            continue;
        }
        for (at = 0; at + VL <= n; at += VL)
            add_lanes(acc, terms(f, T, x, z, mask + at, i + at));
        if (at < n)
            add_lanes(acc, terms_n(f, T, x, z, mask + at, i + at, n - at));
    }
    for (int h = VL / 2; h; h /= 2)
        for (int l = 0; l < h; l++)
            acc[l] += acc[l + h];
    return acc[0];
}

/* One function per form, so that form and type are constants inside. */
typedef int chunk_fn(double *out, enum dtype type, const void *x, const void *z, const float *m, int64_t C, int64_t i,
                     int64_t end);

#define CHUNK_FN(name, form)                                                                                       \
    static int name(double *out, enum dtype type, const void *x, const void *z, const float *m, int64_t C,         \
                    int64_t i, int64_t end)                                                                        \
    {                                                                                                              \
        BY_TYPE(type, *out = chunk_sum(form, T, x, z, m, C, i, end));                                              \
        return K_OK;                                                                                               \
    }

CHUNK_FN(chunk_plain, SUM)
CHUNK_FN(chunk_squares, SQUARES)
CHUNK_FN(chunk_dot, DOT)
CHUNK_FN(chunk_distance, DISTANCE)
CHUNK_FN(chunk_masked, MASKED)

static bool type_ok(enum dtype type)
{
    return type == F32 || type == F16 || type == BF16;
}

/* Elements per chunk where n are cut into at most `max`. */
static int64_t chunk_size(int64_t n, int64_t max)
{
    const int64_t c = (n - 1) / max / MIN_CHUNK + 1;

    return c * MIN_CHUNK;
}

static int reduce(struct kctx *k, float *out, chunk_fn *fn, const void *x, const void *z, enum dtype type, int64_t n)
{
    double part[MAX_CHUNKS], s = 0;
    int64_t size, n_chunk;

    if (n < 0 || !type_ok(type))
        return K_ARG;
    if (!n)
        return K_OK;
    size = chunk_size(n, MAX_CHUNKS);
    n_chunk = (n - 1) / size + 1;
#pragma omp parallel for num_threads(k->n_threads) schedule(static) if (n > FORK)
    for (int64_t c = 0; c < n_chunk; c++)
        fn(&part[c], type, x, z, NULL, 1, c * size, c + 1 < n_chunk ? (c + 1) * size : n);
    for (int64_t c = 0; c < n_chunk; c++)
        s += part[c];
    *out = (float)s;
    return K_OK;
}

static int k_sum(struct kctx *k, float *out, const void *x, enum dtype type, int64_t n)
{
    return reduce(k, out, chunk_plain, x, NULL, type, n);
}

static int k_sum_squares(struct kctx *k, float *out, const void *x, enum dtype type, int64_t n)
{
    return reduce(k, out, chunk_squares, x, NULL, type, n);
}

static int k_dot(struct kctx *k, float *out, const void *x, const void *z, enum dtype type, int64_t n)
{
    return reduce(k, out, chunk_dot, x, z, type, n);
}

/* ---- Inf and NaN ---- */

INLINE vi is_nonfinite(vf x)
{
    return ((vi)x & 0x7fffffff) >= 0x7f800000;
}

INLINE int64_t chunk_nonfinite(enum dtype T, const void *x, int64_t i, int64_t end)
{
    int32_t lane[VL];
    int64_t total = 0;
    vi n = { 0 };

    for (; i + VL <= end; i += VL)                    /* chunks are short: no lane overflows */
        n -= is_nonfinite(v_load(x, i, T));
    if (i < end)
        n -= is_nonfinite(v_load_n(x, i, T, end - i));
    memcpy(lane, &n, sizeof lane);
    for (int l = 0; l < VL; l++)
        total += lane[l];
    return total;
}

static int chunk_count(int64_t *out, enum dtype type, const void *x, int64_t i, int64_t end)
{
    BY_TYPE(type, *out = chunk_nonfinite(T, x, i, end));
    return K_OK;
}

static int k_count_nonfinite(struct kctx *k, int64_t *out, const void *x, enum dtype type, int64_t n)
{
    int64_t total = 0;

    if (n < 0 || !type_ok(type))
        return K_ARG;
    if (!n)
        return K_OK;
#pragma omp parallel for num_threads(k->n_threads) schedule(static) reduction(+ : total) if (n > FORK)
    for (int64_t i = 0; i < n; i += MIN_CHUNK) {
        int64_t some = 0;
        chunk_count(&some, type, x, i, n - i < MIN_CHUNK ? n : i + MIN_CHUNK);
        total += some;                              /* whole numbers: any order is the same */
    }
    *out = total;
    return K_OK;
}

/* ---- columns: TREE rows by a tree in f32, then double ---- */

/* acc[0..cols) = sums over rows of x, whose first element is at `at`. */
INLINE void col_run(double *acc, enum dtype T, const void *x, int64_t at, int64_t ldx, int64_t rows, int64_t cols)
{
    vf v[TREE];
    int64_t r, c;

    for (c = 0; c < cols; c++)
        acc[c] = 0;
    for (r = 0; r + TREE <= rows; r += TREE, at += TREE * ldx) {
        for (c = 0; c + VL <= cols; c += VL) {
            for (int j = 0; j < TREE; j++)
                v[j] = v_load(x, at + j * ldx + c, T);
            add_lanes(acc + c, tree(v));
        }
        for (; c < cols; c++) {                     /* the same tree on one column */
            float s[TREE];
            for (int j = 0; j < TREE; j++)
                s[j] = s_load(x, at + j * ldx + c, T);
            acc[c] += (double)(((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7])));
        }
    }
    for (; r < rows; r++, at += ldx) {
        for (c = 0; c + VL <= cols; c += VL)
            add_lanes(acc + c, v_load(x, at + c, T));
        for (; c < cols; c++)
            acc[c] += (double)s_load(x, at + c, T);
    }
}

static int col_part(double *acc, enum dtype type, const void *x, int64_t at, int64_t ldx, int64_t rows, int64_t cols)
{
    BY_TYPE(type, col_run(acc, T, x, at, ldx, rows, cols));
    return K_OK;
}

/* Rows per chunk: at least 2 MIN_CHUNK elements, whole trees, at most COL_CHUNKS chunks. */
static int64_t col_chunk_rows(int64_t rows, int64_t C)
{
    const int64_t few = (rows - 1) / COL_CHUNKS + 1, big = 2 * MIN_CHUNK / C + 1;
    const int64_t r = few > big ? few : big;

    return (r + TREE - 1) / TREE * TREE;
}

/* Doubles per chunk: whole cache lines. */
static int64_t col_stride(int64_t C)
{
    return (C + 7) / 8 * 8;
}

static size_t k_col_sum_bytes(int64_t rows, int64_t C)
{
    if (rows <= 0 || C <= 0)
        return 0;
    return sizeof(double) * (size_t)((rows - 1) / col_chunk_rows(rows, C) + 1) * (size_t)col_stride(C);
}

static int k_col_sum(struct kctx *k, float *out, bool accumulate, const void *x, int64_t ldx, enum dtype type,
                     int64_t rows, int64_t C, void *work)
{
    double *part = work;
    int64_t step, n_chunk, ld;

    if (rows < 0 || C < 0 || ldx < C || !type_ok(type))
        return K_ARG;
    if (!rows || !C)
        return K_OK;
    step = col_chunk_rows(rows, C);
    n_chunk = (rows - 1) / step + 1;
    ld = col_stride(C);
#pragma omp parallel for num_threads(k->n_threads) schedule(static) if (rows * C > FORK)
    for (int64_t i = 0; i < n_chunk; i++)
        col_part(part + i * ld, type, x, i * step * ldx, ldx, i + 1 < n_chunk ? step : rows - i * step, C);
    for (int64_t i = 1; i < n_chunk; i++)
        for (int64_t c = 0; c < C; c++)
            part[c] += part[i * ld + c];
    for (int64_t c = 0; c < C; c++)
        out[c] = (float)(accumulate ? (double)out[c] + part[c] : part[c]);
    return K_OK;
}

static void image_sum_block(void *out, const void *x, int64_t ldx, enum dtype type, int64_t b, int64_t HW, int64_t C,
                            int64_t c0)
{
    const int64_t cols = C - c0 < COL_BLOCK ? C - c0 : COL_BLOCK;
    double acc[COL_BLOCK];

    col_part(acc, type, x, b * HW * ldx + c0, ldx, HW, cols);
    for (int64_t c = 0; c < cols; c++)
        s_store(out, b * C + c0 + c, type, (float)acc[c]);
}

static int k_image_sum(struct kctx *k, void *out, const void *x, int64_t ldx, enum dtype type, int64_t B, int64_t HW,
                       int64_t C)
{
    int64_t n_block;

    if (B < 0 || HW < 0 || C < 0 || ldx < C || !type_ok(type))
        return K_ARG;
    if (!B || !HW || !C)
        return K_OK;
    n_block = (C - 1) / COL_BLOCK + 1;
#pragma omp parallel for num_threads(k->n_threads) schedule(static) collapse(2) if (B * HW * C > FORK)
    for (int64_t b = 0; b < B; b++)
        for (int64_t i = 0; i < n_block; i++)
            image_sum_block(out, x, ldx, type, b, HW, C, i * COL_BLOCK);
    return K_OK;
}

/* ---- weighted mean squared error ---- */

static const void *row_of(const void *x, enum dtype type, int64_t i)
{
    return (const char *)x + (size_t)i * dtype_bytes(type);
}

/* An image is cut by its own size, so that its loss does not know its neighbours. As many images at a time as have room
 * for their partial sums. */
static int k_mse(struct kctx *k, float *out, const void *x, const void *z, enum dtype type, const float *w,
                 const float *m, int64_t B, int64_t HW, int64_t C)
{
    const int64_t n = HW * C;
    chunk_fn *fn = m ? chunk_masked : chunk_distance;
    double part[MAX_CHUNKS];
    int64_t size, n_chunk, group;

    if (B < 0 || HW < 0 || C < 0 || !type_ok(type))
        return K_ARG;
    if (!B || !n)
        return K_OK;
    size = chunk_size(n, IMAGE_CHUNKS);
    n_chunk = (n - 1) / size + 1;
    group = MAX_CHUNKS / n_chunk;
    for (int64_t b0 = 0; b0 < B; b0 += group) {
        const int64_t images = B - b0 < group ? B - b0 : group;
#pragma omp parallel for num_threads(k->n_threads) schedule(static) if (images * n > FORK)
        for (int64_t i = 0; i < images * n_chunk; i++) {
            const int64_t b = b0 + i / n_chunk, c = i % n_chunk;
            fn(&part[i], type, row_of(x, type, b * n), row_of(z, type, b * n), m ? m + b * HW : NULL, C, c * size,
               c + 1 < n_chunk ? (c + 1) * size : n);
        }
        for (int64_t i = 0; i < images; i++) {
            double s = 0;
            for (int64_t c = 0; c < n_chunk; c++)
                s += part[i * n_chunk + c];
            out[b0 + i] = (float)((double)w[b0 + i] / (double)n * s);
        }
    }
    return K_OK;
}

/* dx[i..end) = a * m * (x - z) */
INLINE void mse_back_run(void *dx, enum dtype T, const void *x, const void *z, float a, const float *m, int64_t C,
                         int64_t i, int64_t end)
{
    float mask[LEAF];
    int64_t at;

    for (at = 0; !m && at < LEAF; at++)
        mask[at] = 1;
    for (; i < end; i += LEAF) {
        const int64_t n = end - i < LEAF ? end - i : LEAF;
        if (m)
            mask_expand(mask, m, C, i, n);
        for (at = 0; at + VL <= n; at += VL)
            v_store(dx, i + at, T, v_set(a) * v_loadf(mask + at) * (v_load(x, i + at, T) - v_load(z, i + at, T)));
        if (at < n)
            v_store_n(dx, i + at, T, v_set(a) * v_load_n(mask, at, F32, n - at)
                      * (v_load_n(x, i + at, T, n - at) - v_load_n(z, i + at, T, n - at)), n - at);
    }
}

static int mse_back_part(void *dx, enum dtype type, const void *x, const void *z, float a, const float *m, int64_t C,
                         int64_t i, int64_t end)
{
    BY_TYPE(type, mse_back_run(dx, T, x, z, a, m, C, i, end));
    return K_OK;
}

static int k_mse_back(struct kctx *k, void *dx, const float *d_out, const void *x, const void *z, enum dtype type,
                      const float *w, const float *m, int64_t B, int64_t HW, int64_t C)
{
    const int64_t n = HW * C;
    int64_t n_chunk;

    if (B < 0 || HW < 0 || C < 0 || !type_ok(type))
        return K_ARG;
    if (!B || !n)
        return K_OK;
    n_chunk = (n - 1) / MIN_CHUNK + 1;
#pragma omp parallel for num_threads(k->n_threads) schedule(static) collapse(2) if (B * n > FORK)
    for (int64_t b = 0; b < B; b++)
        for (int64_t c = 0; c < n_chunk; c++) {
            const float a = (float)(2.0 * (double)d_out[b] * (double)w[b] / (double)n);
            mse_back_part((char *)dx + (size_t)(b * n) * dtype_bytes(type), type, row_of(x, type, b * n),
                          row_of(z, type, b * n), a, m ? m + b * HW : NULL, C, c * MIN_CHUNK,
                          c + 1 < n_chunk ? (c + 1) * MIN_CHUNK : n);
        }
    return K_OK;
}

void ISA_NAME(fill_reduce)(struct kern *k)
{
    k->sum = k_sum;
    k->sum_squares = k_sum_squares;
    k->dot = k_dot;
    k->count_nonfinite = k_count_nonfinite;
    k->col_sum_bytes = k_col_sum_bytes;
    k->col_sum = k_col_sum;
    k->image_sum = k_image_sum;
    k->mse = k_mse;
    k->mse_back = k_mse_back;
}
