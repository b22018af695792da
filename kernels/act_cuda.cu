/* kernels/act_cuda.cu: activations and softmax, forward.
 *
 * Activations wait for memory: 16 bytes of each operand a thread where addresses and sizes allow. A row's softmax is
 * a warp's work, or a block's where the row is long: maximum, sum, quotient, each reading the row again, which is in
 * the first cache by then. */
#include "kernels/cuda_vec.cuh"
#include "kernels/cuda_act.cuh"

enum { THREADS = 256, LONG_ROW = 1024 };

static bool bad(enum dtype type, int64_t a, int64_t b)
{
    return (unsigned)type >= N_DTYPE || a < 0 || b < 0;
}

/* ---- unary ---- */

template <enum kunary F> static __device__ __forceinline__ float unary_of(float x)
{
    return F == K_SILU ? act_silu(x) : F == K_GELU ? act_gelu(x) : F == K_QUICK_GELU ? act_quick_gelu(x) : act_relu(x);
}

template <enum kunary F, int V, typename T> static __global__ void unary_kernel(T *y, const T *x, int64_t n)
{
    const int64_t whole = n - n % V;

    CUDA_EACH_VEC(i, n, V) {
        float v[V];

        load_vec<V>(v, x + i);
        for (int j = 0; j < V; j++)
            v[j] = unary_of<F>(v[j]);
        store_vec<V>(y + i, v);
    }
    CUDA_EACH(i, n - whole)
        store(&y[whole + i], unary_of<F>(load(&x[whole + i])));
}

template <enum kunary F> static int unary_as(struct kctx *k, void *y, const void *x, enum dtype type, int64_t n)
{
    CUDA_BY_TYPE(type, T, CUDA_BY_VEC(cuda_aligned(y, x), cuda_vec<T>, V,
                 LAUNCH(k, (unary_kernel<F, V, T>), cuda_blocks((n + V - 1) / V, THREADS), THREADS, 0, (T *)y,
                        (const T *)x, n)));
    return cuda_launched(k);
}

static int unary(struct kctx *k, enum kunary f, void *y, const void *x, enum dtype type, int64_t n)
{
    if ((unsigned)f >= K_N_UNARY || bad(type, n, 0))
        return K_ARG;
    if (!n)
        return K_OK;
    switch (f) {
    case K_SILU: return unary_as<K_SILU>(k, y, x, type, n);
    case K_GELU: return unary_as<K_GELU>(k, y, x, type, n);
    case K_QUICK_GELU: return unary_as<K_QUICK_GELU>(k, y, x, type, n);
    default: return unary_as<K_RELU>(k, y, x, type, n);
    }
}

/* ---- GEGLU: h at [0,D) and g at [D,2D) of a row ---- */

template <int V, typename T> static __global__ void geglu_kernel(T *y, const T *x, int64_t rows, int64_t D)
{
    const int64_t per_row = D / V;

    CUDA_EACH(i, rows * per_row) {
        const int64_t r = i / per_row, at = i * V;              /* of y; x has come r rows of D further */
        float h[V], g[V];

        load_vec<V>(h, x + at + r * D);
        load_vec<V>(g, x + at + r * D + D);
        for (int j = 0; j < V; j++)
            h[j] *= act_gelu(g[j]);
        store_vec<V>(y + at, h);
    }
}

static int geglu(struct kctx *k, void *y, const void *x, enum dtype type, int64_t rows, int64_t D)
{
    if (bad(type, rows, D))
        return K_ARG;
    if (rows > 0 && D > 0)
        CUDA_BY_TYPE(type, T, CUDA_BY_VEC(cuda_aligned(y, x) && D % cuda_vec<T> == 0, cuda_vec<T>, V,
                     LAUNCH(k, (geglu_kernel<V, T>), cuda_blocks(rows * (D / V), THREADS), THREADS, 0, (T *)y,
                            (const T *)x, rows, D)));
    return cuda_launched(k);
}

/* ---- softmax ---- */

/* Elements [i,i+N) of a row of D, `other` behind its end. N is the same for either V, and with it which thread has
 * what: sums do not depend on where a row lies. */
template <int N, int V, typename T>
static __device__ __forceinline__ void row_part(float v[N], const T *x, int64_t i, int64_t D, float other)
{
    if constexpr (V == N)
        load_vec<N>(v, x + i);
    else
        for (int j = 0; j < N; j++)
            v[j] = i + j < D ? load(&x[i + j]) : other;
}

template <int V, typename T, int N = cuda_vec<T>>
static __device__ __forceinline__ float part_max(const T *x, int64_t D, int64_t first, int64_t step)
{
    float v[N], max = -INFINITY;

    for (int64_t i = first; i < D; i += step) {
        row_part<N, V>(v, x, i, D, -INFINITY);
        for (int j = 0; j < N; j++)
            max = fmaxf(max, v[j]);
    }
    return max;
}

template <int V, typename T, int N = cuda_vec<T>>
static __device__ __forceinline__ float part_sum(const T *x, float max, int64_t D, int64_t first, int64_t step)
{
    float v[N], sum = 0;

    for (int64_t i = first; i < D; i += step) {
        row_part<N, V>(v, x, i, D, 0);
        for (int j = 0; j < N; j++)
            sum += i + j < D ? expf(v[j] - max) : 0;
    }
    return sum;
}

template <int V, typename T, int N = cuda_vec<T>>
static __device__ __forceinline__ void part_write(T *y, const T *x, float max, float scale, int64_t D, int64_t first,
                                                  int64_t step)
{
    float v[N];

    for (int64_t i = first; i < D; i += step) {
        row_part<N, V>(v, x, i, D, 0);
        for (int j = 0; j < N; j++)
            v[j] = expf(v[j] - max) * scale;
        if constexpr (V == N)
            store_vec<N>(y + i, v);
        else
            for (int j = 0; j < N && i + j < D; j++)
                store(&y[i + j], v[j]);
    }
}

/* TEAM threads a row: a warp or the block. */
template <int TEAM, int V, typename T>
static __global__ void softmax_kernel(T *y, const T *x, int64_t rows, int64_t D)
{
    CUDA_SHARED(float, space, 32);
    constexpr int N = cuda_vec<T>, teams = THREADS / TEAM;
    const int team = (int)threadIdx.x / TEAM;
    const int64_t first = (int64_t)(threadIdx.x % TEAM) * N, step = TEAM * N;

    for (int64_t r = (int64_t)blockIdx.x * teams + team; r < rows; r += (int64_t)gridDim.x * teams) {
        float max = part_max<V>(x + r * D, D, first, step), sum;

        max = TEAM == 32 ? warp_max(max) : block_max(max, space);
        sum = part_sum<V>(x + r * D, max, D, first, step);
        sum = TEAM == 32 ? warp_sum(sum) : block_sum(sum, space);
        part_write<V>(y + r * D, x + r * D, max, 1.0f / sum, D, first, step);
    }
}

template <int TEAM>
static int softmax_by(struct kctx *k, void *y, const void *x, enum dtype type, int64_t rows, int64_t D)
{
    CUDA_BY_TYPE(type, T, CUDA_BY_VEC(cuda_aligned(y, x) && D % cuda_vec<T> == 0, cuda_vec<T>, V,
                 LAUNCH(k, (softmax_kernel<TEAM, V, T>), cuda_blocks(rows, THREADS / TEAM), THREADS, 0, (T *)y,
                        (const T *)x, rows, D)));
    return cuda_launched(k);
}

static int softmax(struct kctx *k, void *y, const void *x, enum dtype type, int64_t rows, int64_t D)
{
    if (bad(type, rows, D))
        return K_ARG;
    if (!rows || !D)
        return K_OK;
    return D < LONG_ROW ? softmax_by<32>(k, y, x, type, rows, D) : softmax_by<THREADS>(k, y, x, type, rows, D);
}

void cuda_fill_act(struct kern *k)
{
    k->unary = unary;
    k->geglu = geglu;
    k->softmax = softmax;
}
