/* kernels/elem_cuda.cu: element by element arithmetic, conversion between storage types, copies, permutations, tables.
 *
 * All of it waits for memory: threads take 16 bytes of each operand at a time where addresses and sizes allow, and one
 * element otherwise. What an element becomes does not depend on which. */
#include "kernels/cuda_vec.cuh"
extern "C" {
#include "kernels/view.h"
}

enum { THREADS = 256 };

static bool bad(enum dtype type, int64_t a, int64_t b)
{
    return (unsigned)type >= N_DTYPE || a < 0 || b < 0;
}

/* ---- fill, sums and products: y = f(x, z) ---- */

enum map_kind { MAP_FILL, MAP_SCALE, MAP_ADD, MAP_MUL };

/* b; a x + b; a x + b z; x z */
template <enum map_kind M> static __device__ __forceinline__ float mapped(float a, float x, float b, float z)
{
    return M == MAP_FILL ? b : M == MAP_SCALE ? fmaf(a, x, b) : M == MAP_ADD ? fmaf(a, x, b * z) : x * z;
}

template <enum map_kind M, int V, typename T>
static __device__ __forceinline__ void map_vec(T *y, float a, const T *x, float b, const T *z)
{
    float v[V], w[V];

    for (int j = 0; j < V; j++)
        v[j] = w[j] = 0;
    if (M != MAP_FILL)
        load_vec<V>(v, x);
    if (M == MAP_ADD || M == MAP_MUL)
        load_vec<V>(w, z);
    for (int j = 0; j < V; j++)
        v[j] = mapped<M>(a, v[j], b, w[j]);
    store_vec<V>(y, v);
}

template <enum map_kind M, int V, typename T>
static __device__ __forceinline__ void map_run(T *y, float a, const T *x, float b, const T *z, int64_t n)
{
    const int64_t whole = n - n % V;

    CUDA_EACH_VEC(i, n, V)
        map_vec<M, V>(y + i, a, x + i, b, z + i);
    CUDA_EACH(i, n - whole)
        map_vec<M, 1>(y + whole + i, a, x + whole + i, b, z + whole + i);
}

template <enum map_kind M, int V, typename T>
static __global__ void map_kernel(T *y, float a, const T *x, float b, const T *z, int64_t n)
{
    map_run<M, V>(y, a, x, b, z, n);
}

template <enum map_kind M>
static int map(struct kctx *k, void *y, float a, const void *x, float b, const void *z, enum dtype type, int64_t n)
{
    if (bad(type, n, 0))
        return K_ARG;
    if (n > 0)
        CUDA_BY_TYPE(type, T, CUDA_BY_VEC(cuda_aligned(y, x, z), cuda_vec<T>, V,
                     LAUNCH(k, (map_kernel<M, V, T>), cuda_blocks((n + V - 1) / V, THREADS), THREADS, 0, (T *)y, a,
                            (const T *)x, b, (const T *)z, n)));
    return cuda_launched(k);
}

static int fill(struct kctx *k, void *y, enum dtype type, int64_t n, float value)
{
    return map<MAP_FILL>(k, y, 0, y, value, y, type, n);
}

static int axpby(struct kctx *k, void *y, float a, const void *x, float b, const void *z, enum dtype type, int64_t n)
{
    return z ? map<MAP_ADD>(k, y, a, x, b, z, type, n) : map<MAP_SCALE>(k, y, a, x, b, y, type, n);
}

static int mul(struct kctx *k, void *y, const void *x, const void *z, enum dtype type, int64_t n)
{
    return map<MAP_MUL>(k, y, 0, x, 0, z, type, n);
}

/* Rows of n by blockIdx.y; without z, c is not read. */
template <enum map_kind M, int V, typename T>
static __global__ void row_map_kernel(T *y, const float *a, const T *x, const float *c, const T *z, int64_t B,
                                      int64_t n)
{
    for (int64_t b = blockIdx.y; b < B; b += gridDim.y)
        map_run<M, V>(y + b * n, a[b], x + b * n, M == MAP_ADD ? c[b] : 0, z + b * n, n);
}

template <enum map_kind M>
static int row_map(struct kctx *k, void *y, const float *a, const void *x, const float *c, const void *z,
                   enum dtype type, int64_t B, int64_t n)
{
    const unsigned rows = (unsigned)(B < 65535 ? B : 65535);

    CUDA_BY_TYPE(type, T, CUDA_BY_VEC(cuda_aligned(y, x, z) && (n % cuda_vec<T> == 0 || B == 1), cuda_vec<T>,
                                       V,
                 LAUNCH(k, (row_map_kernel<M, V, T>), dim3(cuda_blocks((n + V - 1) / V, THREADS), rows), THREADS, 0,
                        (T *)y, a, (const T *)x, c, (const T *)z, B, n)));
    return cuda_launched(k);
}

static int row_axpby(struct kctx *k, void *y, const float *a, const void *x, const float *c, const void *z,
                     enum dtype type, int64_t B, int64_t n)
{
    if (bad(type, B, n))
        return K_ARG;
    if (!B || !n)
        return K_OK;
    return z ? row_map<MAP_ADD>(k, y, a, x, c, z, type, B, n) : row_map<MAP_SCALE>(k, y, a, x, c, y, type, B, n);
}

/* V elements from element i on; the pixel, and with it m, may change between them. */
template <int V, typename T>
static __device__ __forceinline__ void lerp_vec(T *y, const float *m, const T *x, const T *z, int64_t i, int64_t C)
{
    int64_t pixel = i / C, c = i - pixel * C;
    float v[V], w[V];

    load_vec<V>(v, x + i);
    load_vec<V>(w, z + i);
    for (int j = 0; j < V; j++, c++) {
        if (c == C) {
            c = 0;
            pixel++;
        }
        v[j] = fmaf(m[pixel], v[j], (1.0f - m[pixel]) * w[j]);
    }
    store_vec<V>(y + i, v);
}

template <int V, typename T>
static __global__ void lerp_kernel(T *y, const float *m, const T *x, const T *z, int64_t n, int64_t C)
{
    const int64_t whole = n - n % V;

    CUDA_EACH_VEC(i, n, V)
        lerp_vec<V>(y, m, x, z, i, C);
    CUDA_EACH(i, n - whole)
        lerp_vec<1>(y, m, x, z, whole + i, C);
}

static int lerp_mask(struct kctx *k, void *y, const float *m, const void *x, const void *z, enum dtype type,
                     int64_t BHW, int64_t C)
{
    const int64_t n = BHW * C;

    if (bad(type, BHW, C))
        return K_ARG;
    if (n > 0)
        CUDA_BY_TYPE(type, T, CUDA_BY_VEC(cuda_aligned(y, x, z), cuda_vec<T>, V,
                     LAUNCH(k, (lerp_kernel<V, T>), cuda_blocks((n + V - 1) / V, THREADS), THREADS, 0, (T *)y, m,
                            (const T *)x, (const T *)z, n, C)));
    return cuda_launched(k);
}

/* ---- copies: bits, in units as wide as every address and stride allows ---- */

/* The widest unit of 16, 8, 4 or 2 bytes of which all of the ORed sizes and addresses are multiples. */
static int unit_of(uint64_t ored)
{
    return ored % 16 == 0 ? 16 : ored % 8 == 0 ? 8 : ored % 4 == 0 ? 4 : 2;
}

#define BY_UNIT(bytes, U, ...)                                                                                      \
    do {                                                                                                            \
        switch (bytes) {                                                                                            \
        case 16: { typedef uint4 U; __VA_ARGS__; break; }                                                           \
        case 8: { typedef uint2 U; __VA_ARGS__; break; }                                                            \
        case 4: { typedef uint32_t U; __VA_ARGS__; break; }                                                         \
        default: { typedef uint16_t U; __VA_ARGS__; break; }                                                        \
        }                                                                                                           \
    } while (0)

template <typename U>
static __global__ void copy_kernel(U *y, int64_t ldy, const U *x, int64_t ldx, int64_t rows, int64_t n)
{
    CUDA_EACH(i, rows * n) {
        const int64_t r = i / n, c = i - r * n;

        y[r * ldy + c] = x[r * ldx + c];
    }
}

/* n, ldy, ldx in elements of `size` bytes */
static void copy(struct kctx *k, void *y, int64_t ldy, const void *x, int64_t ldx, int64_t size, int64_t rows,
                 int64_t n)
{
    const int unit = unit_of((uintptr_t)y | (uintptr_t)x | (uint64_t)((n | ldy | ldx) * size));

    ldy = ldy * size / unit;
    ldx = ldx * size / unit;
    n = n * size / unit;
    BY_UNIT(unit, U, LAUNCH(k, copy_kernel<U>, cuda_blocks(rows * n, THREADS), THREADS, 0, (U *)y, ldy, (const U *)x,
                            ldx, rows, n));
}

template <int V, typename T>
static __global__ void add_rows_kernel(T *y, int64_t ldy, const T *x, int64_t ldx, int64_t rows, int64_t n)
{
    const int64_t per_row = n / V;

    CUDA_EACH(i, rows * per_row) {
        const int64_t r = i / per_row, c = (i - r * per_row) * V;

        map_vec<MAP_ADD, V>(y + r * ldy + c, 1, x + r * ldx + c, 1, y + r * ldy + c);
    }
}

static int copy_rows(struct kctx *k, void *y, int64_t ldy, const void *x, int64_t ldx, enum dtype type, int64_t rows,
                     int64_t n, bool accumulate)
{
    if (bad(type, rows, n) || ldy < n || ldx < n)
        return K_ARG;
    if (!rows || !n)
        return K_OK;
    if (rows == 1 || (ldy == n && ldx == n)) {
        ldy = ldx = n *= rows;
        rows = 1;
    }
    if (accumulate)
        CUDA_BY_TYPE(type, T, CUDA_BY_VEC(cuda_aligned(y, x) && (n | ldy | ldx) % cuda_vec<T> == 0, cuda_vec<T>, V,
                     LAUNCH(k, (add_rows_kernel<V, T>), cuda_blocks(rows * (n / V), THREADS), THREADS, 0, (T *)y, ldy,
                            (const T *)x, ldx, rows, n)));
    else
        copy(k, y, ldy, x, ldx, (int64_t)dtype_bytes(type), rows, n);
    return cuda_launched(k);
}

/* 8 elements at once: 16 bytes of the narrower type. */
template <int V, typename TY, typename TX> static __global__ void cast_kernel(TY *y, const TX *x, int64_t n)
{
    const int64_t whole = n - n % V;

    CUDA_EACH_VEC(i, n, V) {
        float v[V];

        load_vec<V>(v, x + i);
        store_vec<V>(y + i, v);
    }
    CUDA_EACH(i, n - whole)
        store(&y[whole + i], load(&x[whole + i]));
}

static int cast(struct kctx *k, void *y, enum dtype y_type, const void *x, enum dtype x_type, int64_t n)
{
    if (bad(y_type, n, 0) || bad(x_type, n, 0))
        return K_ARG;
    if (y_type == x_type)
        return copy_rows(k, y, n, x, n, y_type, 1, n, false);
    if (n > 0)
        CUDA_BY_TYPE(y_type, TY, CUDA_BY_TYPE(x_type, TX, CUDA_BY_VEC(cuda_aligned(y, x), 8, V,
                     LAUNCH(k, (cast_kernel<V, TY, TX>), cuda_blocks((n + V - 1) / V, THREADS), THREADS, 0, (TY *)y,
                            (const TX *)x, n))));
    return cuda_launched(k);
}

/* Writes are dense. Reads may be strided: what a warp leaves of a line is for its neighbours to find in the caches. */
template <typename U> static __global__ void permute_kernel(U *y, const U *x, struct kview4 v, int64_t n)
{
    CUDA_EACH(i, n) {
        int64_t rest = i, at = 0;

        for (int d = 3; d > 0; d--) {
            if (v.dim[d] > 1) {
                const int64_t up = rest / v.dim[d];
                at += (rest - up * v.dim[d]) * v.stride[d];
                rest = up;
            }
        }
        y[i] = x[at + rest * v.stride[0]];
    }
}

static int permute(struct kctx *k, void *y, const void *x, enum dtype type, const struct kview4 *v)
{
    const int64_t size = (int64_t)dtype_bytes(type);
    struct kview4 m;
    uint64_t ored;
    int unit = (int)size;
    int64_t n;

    if (bad(type, 0, 0))
        return K_ARG;
    for (int d = 0; d < 4; d++)
        if (v->dim[d] < 0 || v->stride[d] < 0)
            return K_ARG;
    n = v->dim[0] * v->dim[1] * v->dim[2] * v->dim[3];
    if (!n)
        return K_OK;
    m = view_merged(v);
    if (m.stride[3] == 1) {                     /* runs of x are runs of y */
        ored = (uint64_t)((m.dim[3] | m.stride[0] | m.stride[1] | m.stride[2]) * size);
        unit = unit_of((uintptr_t)y | (uintptr_t)x | ored);
        m.dim[3] = m.dim[3] * size / unit;
        for (int d = 0; d < 3; d++)
            m.stride[d] = m.stride[d] * size / unit;
        n = n * size / unit;
    }
    BY_UNIT(unit, U, LAUNCH(k, permute_kernel<U>, cuda_blocks(n, THREADS), THREADS, 0, (U *)y, (const U *)x, m, n));
    return cuda_launched(k);
}

/* ---- tables ---- */

template <int V, typename TY, typename TX>
static __global__ void gather_kernel(TY *y, const TX *table, const int32_t *id, int64_t n, int64_t rows, int64_t D)
{
    const int64_t per_row = D / V;

    CUDA_EACH(i, n * per_row) {
        const int64_t r = i / per_row, c = (i - r * per_row) * V;
        float v[V];

        if (id[r] >= 0 && id[r] < rows)
            load_vec<V>(v, table + id[r] * D + c);
        else
            for (int j = 0; j < V; j++)
                v[j] = NAN;
        store_vec<V>(y + r * D + c, v);
    }
}

static int gather(struct kctx *k, void *y, enum dtype y_type, const void *table, enum dtype table_type,
                  const int32_t *id, int64_t n, int64_t rows, int64_t D)
{
    if (bad(y_type, n, rows) || bad(table_type, D, 0))
        return K_ARG;
    if (n > 0 && D > 0)
        CUDA_BY_TYPE(y_type, TY, CUDA_BY_TYPE(table_type, TX, CUDA_BY_VEC(cuda_aligned(y, table) && D % 8 == 0, 8, V,
                     LAUNCH(k, (gather_kernel<V, TY, TX>), cuda_blocks(n * (D / V), THREADS), THREADS, 0, (TY *)y,
                            (const TX *)table, id, n, rows, D))));
    return cuda_launched(k);
}

/* Frequencies and angles are rounded to f32 where the models' own code rounds them; what comes before and after is
 * double, so that nothing else is lost. */
template <typename T> static __global__ void time_embed_kernel(T *y, const float *t, int64_t B, int64_t half)
{
    CUDA_EACH(at, B * half) {
        const int64_t b = at / half, i = at - b * half;
        const float power = __fdiv_rn(__fmul_rn(-9.210340371976184f, (float)i), (float)half);      /* ln 10000 */
        const float angle = __fmul_rn(t[b], (float)exp((double)power));

        store(&y[2 * b * half + i], (float)cos((double)angle));
        store(&y[2 * b * half + half + i], (float)sin((double)angle));
    }
}

static int time_embed(struct kctx *k, void *y, enum dtype type, const float *t, int64_t B, int64_t dim)
{
    if (bad(type, B, dim) || dim % 2)
        return K_ARG;
    if (B > 0 && dim > 0)
        CUDA_BY_TYPE(type, T, LAUNCH(k, time_embed_kernel<T>, cuda_blocks(B * (dim / 2), THREADS), THREADS, 0, (T *)y,
                                     t, B, dim / 2));
    return cuda_launched(k);
}

void cuda_fill_elem(struct kern *k)
{
    k->fill = fill;
    k->cast = cast;
    k->axpby = axpby;
    k->mul = mul;
    k->row_axpby = row_axpby;
    k->lerp_mask = lerp_mask;
    k->copy_rows = copy_rows;
    k->permute = permute;
    k->gather = gather;
    k->time_embed = time_embed;
}
