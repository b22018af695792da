/* kernels/reduce_cuda.cu: sums and losses, in an order that the sizes alone decide.
 *
 * Eight neighbouring elements are added by a tree in f32; from there a thread goes on in double, and so do its block
 * and the blocks. Doubles are few enough not to matter where a device is slow at them. Blocks leave their sums in
 * scratch, a second kernel adds these up. */
#include "kernels/cuda_rows.cuh"

enum {
    LEAF = 8,                   /* elements added in f32 */
    THREADS = 256,
    LEAVES = 4,                 /* of a thread, before more blocks do the work */
    MAX_BLOCKS = 1024,          /* of one row */
    COL_CHUNKS = 256,           /* of a column sum's rows at most */
    CHUNK = 32768,              /* elements of such a chunk at least */
    ROWS = 4,                   /* rows of columns added in f32 */
    SCRATCH = 4 << 20
};

/* ---- rows of n elements ---- */

enum form { SUM, SQUARES, DOT, DISTANCE, NONFINITE };

struct rows {
    const void *x, *z;
    const float *m;             /* DISTANCE: a factor for every C elements, or NULL */
    int64_t n, C;
    int n_block;                /* of a row */
    double *part;               /* (row, block) */
};

/* n of the leaf's elements, zeros behind */
template <bool ALIGNED, typename T> static __device__ __forceinline__ void load_leaf(float *v, const T *p, int n)
{
    for (int j = 0; j < LEAF; j += cuda_vec<T>) {
        if (ALIGNED && n >= LEAF)
            load_vec<cuda_vec<T>>(v + j, p + j);
        else
            load_some<false>(v + j, p + j, n - j);
    }
}

/* Rounded step by step, never fused: the same bits wherever the compiler puts it. */
static __device__ __forceinline__ float term(enum form f, float x, float z)
{
    switch (f) {
    case SQUARES: return __fmul_rn(x, x);
    case DOT: return __fmul_rn(x, z);
    case DISTANCE: return __fmul_rn(__fsub_rn(x, z), __fsub_rn(x, z));
    case NONFINITE: return (__float_as_uint(x) & 0x7fffffffu) >= 0x7f800000u ? 1 : 0;
    default: return x;
    }
}

/* The leaf of n elements from element i of row r on. */
template <enum form F, bool ALIGNED, typename T>
static __device__ __forceinline__ float leaf_sum(const struct rows *p, int64_t r, int64_t i)
{
    const int n = (int)min(p->n - i, (int64_t)LEAF);
    float x[LEAF], z[LEAF] = { 0 };

    load_leaf<ALIGNED>(x, (const T *)p->x + r * p->n + i, n);
    if (F == DOT || F == DISTANCE)
        load_leaf<ALIGNED>(z, (const T *)p->z + r * p->n + i, n);
    for (int j = 0; j < LEAF; j++)
        x[j] = term(F, x[j], z[j]);
    if (F == DISTANCE && p->m) {
        int64_t pixel = i / p->C, c = i - pixel * p->C;
        const float *m = p->m + r * (p->n / p->C);

        for (int j = 0; j < LEAF; j++) {
            x[j] = j < n ? __fmul_rn(m[pixel], x[j]) : 0;
            if (++c == p->C) {
                c = 0;
                pixel++;
            }
        }
    }
    return ((x[0] + x[1]) + (x[2] + x[3])) + ((x[4] + x[5]) + (x[6] + x[7]));
}

/* In all lanes of a warp */
static __device__ __forceinline__ double warp_sum_double(double v)
{
    for (int d = 16; d > 0; d /= 2)
        v += __shfl_xor_sync(0xffffffffu, v, d);
    return v;
}

template <enum form F, bool ALIGNED, typename T>
static __global__ void __launch_bounds__(THREADS) rows_kernel(struct rows p)
{
    CUDA_SHARED(double, space, THREADS / 32);
    const int64_t r = blockIdx.x / (unsigned)p.n_block, block = blockIdx.x % (unsigned)p.n_block;
    double sum = 0;

    for (int64_t i = (block * THREADS + threadIdx.x) * LEAF; i < p.n; i += (int64_t)p.n_block * THREADS * LEAF)
        sum += (double)leaf_sum<F, ALIGNED, T>(&p, r, i);
    sum = warp_sum_double(sum);
    if (threadIdx.x % 32 == 0)
        space[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x)
        return;
    for (int w = 1; w < THREADS / 32; w++)
        sum += space[w];
    p.part[blockIdx.x] = sum;
}

/* A warp for each row: the sum of its blocks', times w[r]/n if there is a w. Out is a float or a count. */
template <typename Out> static __global__ void rows_join_kernel(Out *out, struct rows p, const float *w, int64_t n_row)
{
    const int64_t r = (int64_t)blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
    double sum = 0;

    if (r >= n_row)
        return;
    for (int i = (int)threadIdx.x % 32; i < p.n_block; i += 32)
        sum += p.part[r * p.n_block + i];
    sum = warp_sum_double(sum);
    if (threadIdx.x % 32 == 0)
        out[r] = (Out)(w ? (double)w[r] / (double)p.n * sum : sum);
}

static const void *row_of(const void *x, int64_t elements, size_t bytes)
{
    return x ? (const char *)x + (size_t)elements * bytes : NULL;
}

/* out[r] for B rows of p.n elements, as many rows at a time as scratch has room for. */
template <enum form F, typename Out>
static int sum_rows(struct kctx *k, Out *out, struct rows p, enum dtype type, const float *w, int64_t B)
{
    const struct rows all = p;
    int64_t at_once;
    bool aligned;

    if (B < 0 || p.n < 0 || (unsigned)type >= N_DTYPE)
        return K_ARG;
    if (!B || !p.n)
        return cuda_launched(k);
    if (k->scratch_bytes < SCRATCH)
        return K_SCRATCH;
    p.part = (double *)k->scratch;
    p.n_block = (int)lesser(divide_up(p.n, THREADS * LEAF * LEAVES), MAX_BLOCKS);
    at_once = SCRATCH / (int64_t)sizeof *p.part / p.n_block;
    for (int64_t b = 0; b < B; b += at_once) {
        const int64_t n = lesser(at_once, B - b);

        p.x = row_of(all.x, b * p.n, dtype_bytes(type));
        p.z = row_of(all.z, b * p.n, dtype_bytes(type));
        p.m = (const float *)row_of(all.m, b * (p.n / p.C), sizeof *p.m);
        aligned = cuda_aligned(p.x) && cuda_aligned(p.z) && (n == 1 || p.n % LEAF == 0);
        CUDA_BY_TYPE(type, T, CUDA_BY_ALIGNMENT(aligned, A,
                     LAUNCH(k, (rows_kernel<F, A, T>), (unsigned)(n * p.n_block), THREADS, 0, p)));
        LAUNCH(k, rows_join_kernel<Out>, (unsigned)divide_up(n, THREADS / 32), THREADS, 0, out + b, p, w ? w + b : NULL,
               n);
    }
    return cuda_launched(k);
}

static int sum(struct kctx *k, float *out, const void *x, enum dtype type, int64_t n)
{
    const struct rows p = { x, NULL, NULL, n, 1, 0, NULL };

    return sum_rows<SUM>(k, out, p, type, NULL, 1);
}

static int sum_squares(struct kctx *k, float *out, const void *x, enum dtype type, int64_t n)
{
    const struct rows p = { x, NULL, NULL, n, 1, 0, NULL };

    return sum_rows<SQUARES>(k, out, p, type, NULL, 1);
}

static int dot(struct kctx *k, float *out, const void *x, const void *z, enum dtype type, int64_t n)
{
    const struct rows p = { x, z, NULL, n, 1, 0, NULL };

    return sum_rows<DOT>(k, out, p, type, NULL, 1);
}

static int count_nonfinite(struct kctx *k, int64_t *out, const void *x, enum dtype type, int64_t n)
{
    const struct rows p = { x, NULL, NULL, n, 1, 0, NULL };

    return sum_rows<NONFINITE>(k, out, p, type, NULL, 1);
}

static int mse(struct kctx *k, float *out, const void *x, const void *z, enum dtype type, const float *w,
               const float *m, int64_t B, int64_t HW, int64_t C)
{
    const struct rows p = { x, z, m, HW * C, C, 0, NULL };

    if (HW < 0 || C < 0)
        return K_ARG;
    return sum_rows<DISTANCE>(k, out, p, type, w, B);
}

/* ---- columns ----
 * A block adds up a tile of an image's columns over a chunk of its rows, and leaves doubles of the columns' sums; a
 * second kernel adds the chunks. */

struct cols {
    const void *x;
    int64_t ldx, rows, C, n_image;      /* rows of an image */
    struct cuda_tile tile;
    int64_t chunk_rows;
    int n_chunk;
    double *part;               /* (image, chunk, C) */
};

/* Sums of n rows of a vector of columns, ROWS by a tree. x is at the first, the next is `step` elements on. */
template <bool ALIGNED, typename T>
static __device__ __forceinline__ void add_cols(double *sum, const T *x, int64_t n, int64_t step, int left)
{
    for (int j = 0; j < cuda_vec<T>; j++)
        sum[j] = 0;
    for (; n > 0; n -= ROWS, x += ROWS * step) {
        float v[ROWS][cuda_vec<T>];

        for (int u = 0; u < ROWS; u++) {
            for (int j = 0; j < cuda_vec<T>; j++)
                v[u][j] = 0;
            if (u < n)
                load_some<ALIGNED>(v[u], x + u * step, left);
        }
        for (int j = 0; j < cuda_vec<T>; j++)
            sum[j] += (double)((v[0][j] + v[1][j]) + (v[2][j] + v[3][j]));
    }
}

template <bool ALIGNED, typename T>
static __global__ void __launch_bounds__(CUDA_TILE_THREADS) cols_kernel(struct cols p)
{
    CUDA_SHARED_BYTES(bytes);
    const int V = cuda_vec<T>, row = (int)threadIdx.x / p.tile.lanes, lane = (int)threadIdx.x % p.tile.lanes;
    const int64_t image = blockIdx.x / (unsigned)p.n_chunk, chunk = blockIdx.x % (unsigned)p.n_chunk;
    const int64_t first = chunk * p.chunk_rows, n = min(p.chunk_rows, p.rows - first);
    const int64_t c = ((int64_t)blockIdx.y * p.tile.lanes + lane) * V, left = p.C - c;
    const T *x = (const T *)p.x + (image * p.rows + first + row) * p.ldx + c;
    double *space = (double *)bytes, sum[cuda_vec<T>];

    if (row < p.tile.rows && left > 0) {
        add_cols<ALIGNED>(sum, x, n > row ? (n - row + p.tile.rows - 1) / p.tile.rows : 0, p.tile.rows * p.ldx,
                          (int)min(left, (int64_t)V));
        for (int j = 0; j < V; j++)
            space[(row * V + j) * p.tile.lanes + lane] = sum[j];
    }
    __syncthreads();
    if (row || left <= 0)
        return;
    for (int r = 1; r < p.tile.rows; r++)
        for (int j = 0; j < V; j++)
            sum[j] += space[(r * V + j) * p.tile.lanes + lane];
    for (int j = 0; j < V; j++)
        if (j < left)
            p.part[(image * p.n_chunk + chunk) * p.C + c + j] = sum[j];
}

template <typename T> static __global__ void cols_join_kernel(T *out, bool accumulate, struct cols p)
{
    CUDA_EACH(i, p.n_image * p.C)
    {
        const int64_t image = i / p.C, c = i - image * p.C;
        double s = accumulate ? (double)load(&out[i]) : 0;

        for (int64_t chunk = 0; chunk < p.n_chunk; chunk++)
            s += p.part[(image * p.n_chunk + chunk) * p.C + c];
        store(&out[i], (float)s);
    }
}

/* Chunks of an image of `rows` rows. */
static int64_t col_chunks(int64_t rows, int64_t C)
{
    return lesser(lesser(divide_up(rows, CHUNK / lesser(C, CHUNK)), COL_CHUNKS), rows);
}

static int launch_cols(struct kctx *k, struct cols *p, enum dtype type)
{
    const int V = 16 / (int)dtype_bytes(type);
    const bool aligned = cuda_aligned(p->x) && p->C % V == 0 && p->ldx % V == 0;

    p->tile = cuda_tile_of(divide_up(p->C, V), p->chunk_rows, 0);
    CUDA_BY_TYPE(type, T, CUDA_BY_ALIGNMENT(aligned, A,
                 LAUNCH(k, (cols_kernel<A, T>), dim3((unsigned)(p->n_image * p->n_chunk), (unsigned)p->tile.n_col),
                        p->tile.threads, sizeof(double) * (size_t)(p->tile.rows * p->tile.lanes * V), *p)));
    return K_OK;
}

static struct cols cols_of(const void *x, int64_t ldx, int64_t n_image, int64_t rows, int64_t C, void *part)
{
    struct cols p = { x, ldx, rows, C, n_image, { 0, 0, 0, 0 }, 0, 0, (double *)part };

    p.chunk_rows = divide_up(rows, col_chunks(rows, C));
    p.n_chunk = (int)divide_up(rows, p.chunk_rows);
    return p;
}

static size_t col_sum_bytes(int64_t rows, int64_t C)
{
    if (rows <= 0 || C <= 0)
        return 0;
    return sizeof(double) * (size_t)(col_chunks(rows, C) * C);
}

static int col_sum(struct kctx *k, float *out, bool accumulate, const void *x, int64_t ldx, enum dtype type,
                   int64_t rows, int64_t C, void *work)
{
    struct cols p;

    if (rows < 0 || C < 0 || ldx < C || (unsigned)type >= N_DTYPE)
        return K_ARG;
    if (!rows || !C)
        return cuda_launched(k);
    p = cols_of(x, ldx, 1, rows, C, work);
    launch_cols(k, &p, type);
    LAUNCH(k, cols_join_kernel<float>, cuda_blocks(C, 64), 64, 0, out, accumulate, p);
    return cuda_launched(k);
}

static int image_sum(struct kctx *k, void *out, const void *x, int64_t ldx, enum dtype type, int64_t B, int64_t HW,
                     int64_t C)
{
    int64_t at_once;

    if (B < 0 || HW < 0 || C < 0 || ldx < C || (unsigned)type >= N_DTYPE)
        return K_ARG;
    if (!B || !HW || !C)
        return cuda_launched(k);
    at_once = SCRATCH / (int64_t)col_sum_bytes(HW, C);
    if (k->scratch_bytes < SCRATCH || at_once < 1)
        return K_SCRATCH;
    for (int64_t b = 0; b < B; b += at_once) {
        const void *some = row_of(x, b * HW * ldx, dtype_bytes(type));
        struct cols p = cols_of(some, ldx, lesser(at_once, B - b), HW, C, k->scratch);

        launch_cols(k, &p, type);
        CUDA_BY_TYPE(type, T, LAUNCH(k, cols_join_kernel<T>, cuda_blocks(p.n_image * C, 64), 64, 0, (T *)out + b * C,
                                     false, p));
    }
    return cuda_launched(k);
}

void cuda_fill_reduce(struct kern *k)
{
    k->sum = sum;
    k->sum_squares = sum_squares;
    k->dot = dot;
    k->count_nonfinite = count_nonfinite;
    k->col_sum_bytes = col_sum_bytes;
    k->col_sum = col_sum;
    k->image_sum = image_sum;
    k->mse = mse;
    if (k->scratch_bytes < SCRATCH)
        k->scratch_bytes = SCRATCH;
}
