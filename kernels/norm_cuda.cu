/* kernels/norm_cuda.cu: group and layer normalisation.
 *
 * A group of C/G channels is no multiple of 16 bytes, so nothing strides along groups: threads take vectors of channels
 * down the pixels, with a mean and a sum of squared distances for each channel. Two of these are joined by the formula
 * of Chan, Golub and LeVeque (1979), which cancels nothing: first a thread's pixels, then the threads on a channel,
 * then a group's channels, and at last an image's blocks. Where a group's pixels are few, one block has them all and
 * goes on to apply what it found. How an image is cut depends on its own size alone. */
#include "kernels/cuda_act.cuh"
#include "kernels/cuda_rows.cuh"

enum {
    AT_ONCE = 4,                /* pixels that a thread reads before it uses them */
    BLOCKS = 64,                /* of an image: from here on blocks get longer ... */
    LONGEST = 4,                /* ... up to so many times AT_ONCE ... */
    MAX_BLOCKS = 1024,          /* ... and beyond only as this demands */
    WHOLE = 32768,              /* elements that one block may have to itself */
    APPLY_LONGEST = 8,          /* AT_ONCE pixels: how many times a thread of the apply pass reads them at most */
    SCRATCH = 4 << 20,
    WARPS = 8
};

/* n values: their mean and the sum of their squared distances from it */
struct part {
    float n, mean, m2;
};

/* a takes n values more in; n = 0 is nothing. Here as elsewhere what is fused and what is not is said, so that kernels
 * for aligned operands and for others agree. */
static __device__ __forceinline__ void part_join(struct part *a, float n, float mean, float m2)
{
    const float all = a->n + n, share = __fdividef(n, fmaxf(all, 1)), d = mean - a->mean;

    a->mean = fmaf(d, share, a->mean);
    a->m2 += fmaf(d, __fmul_rn(d, __fmul_rn(a->n, share)), m2);
    a->n = all;
}

/* Over L neighbouring lanes, L a power of 2; the first of them has the result. */
static __device__ __forceinline__ void part_join_lanes(struct part *a, int L)
{
    for (int d = L / 2; d > 0; d /= 2) {
        const float n = __shfl_xor_sync(0xffffffffu, a->n, d), mean = __shfl_xor_sync(0xffffffffu, a->mean, d);

        part_join(a, n, mean, __shfl_xor_sync(0xffffffffu, a->m2, d));
    }
}

/* How many lanes each of n items gets in a block. */
static __device__ __forceinline__ int lanes_each(int n)
{
    int L = 32;

    while (L > 1 && L * n > (int)blockDim.x)
        L /= 2;
    return L;
}

/* ---- group norm ---- */

struct gn {
    void *y;                    /* NULL: statistics alone */
    const void *x;
    float *new_mean, *new_rstd; /* where statistics go */
    const float *mean, *rstd, *gamma, *beta;
    int64_t ldy, ldx, HW, n_image;
    int C, G, size;             /* size: channels of a group */
    bool silu, backwards;       /* backwards: the last pixels first, which a pass before has left in the cache */
    float eps;
    struct cuda_tile tile;
    int64_t block_rows;         /* pixels of a block */
    int n_block;                /* blocks of an image, one below the other */
    int col_slot;               /* groups that a tile may touch */
    bool whole;                 /* a tile has all of its groups: no parts */
    float2 *part;               /* (image, tile, slot, block): means and m2 of the blocks' parts of the groups */
};

/* Where a thread is. */
struct place {
    int64_t image, block, first, rows;  /* first: the block's first pixel, counted through all images */
    int c, n_c;                 /* the tile's channels */
    int lane, row, width;       /* this thread in the tile; width: channels of a whole tile */
    bool idle;
};

template <typename T> static __device__ __forceinline__ struct place place_in(const struct gn *p)
{
    const unsigned at = p->backwards ? gridDim.x - 1 - blockIdx.x : blockIdx.x;
    struct place a;

    a.image = at / (unsigned)p->n_block;
    a.block = at % (unsigned)p->n_block;
    a.first = a.image * p->HW + a.block * p->block_rows;
    a.rows = min(p->block_rows, p->HW - a.block * p->block_rows);
    a.width = p->tile.lanes * cuda_vec<T>;
    a.c = (int)blockIdx.y * a.width;
    a.n_c = min(a.width, p->C - a.c);
    a.row = (int)threadIdx.x / p->tile.lanes;
    a.lane = (int)threadIdx.x - a.row * p->tile.lanes;
    a.idle = a.row >= p->tile.rows || a.lane * cuda_vec<T> >= a.n_c;
    return a;
}

/* Where channel c of a tile lies in shared memory: threads that stand side by side read side by side. */
template <typename T> static __device__ __forceinline__ int spot(int c, int lanes)
{
    return c % cuda_vec<T> * lanes + c / cuda_vec<T>;
}

/* What statistics of a group are taken relative to: its first element. So a mean a thousand times the spread costs no
 * digits. Values of 16 bits have too few for that to matter. */
template <typename T> static __device__ __forceinline__ float origin(const struct gn *p, int64_t image, int g)
{
    return sizeof(T) == 4 ? load((const T *)p->x + image * p->HW * p->ldx + g * p->size) : 0;
}

/* This thread's pixels of its channels: n of them, which it returns, and per channel their mean and m2. */
template <bool ALIGNED, typename T>
static __device__ __forceinline__ float add_rows(const struct gn *p, const struct place *a, float *mean, float *m2)
{
    const int V = cuda_vec<T>, left = a->n_c - a->lane * V;
    const T *x = (const T *)p->x + (a->first + a->row) * p->ldx + a->c + a->lane * V;
    const int64_t step = p->tile.rows * p->ldx;
    float n = 0, v[AT_ONCE][cuda_vec<T>], o[cuda_vec<T>];

    for (int j = 0; j < V; j++) {
        mean[j] = m2[j] = 0;
        o[j] = j < left ? origin<T>(p, a->image, (a->c + a->lane * V + j) / p->size) : 0;
    }
    for (int64_t r = a->row; !a->idle && r < a->rows; r += AT_ONCE * p->tile.rows, x += AT_ONCE * step) {
        float few = 0;

        for (int u = 0; u < AT_ONCE; u++) {
            for (int j = 0; j < V; j++)
                v[u][j] = 0;
            if (r + u * p->tile.rows < a->rows) {
                load_some<ALIGNED>(v[u], x + u * step, left);
                for (int j = 0; j < V; j++)
                    v[u][j] -= o[j];
                few += 1;
            }
        }
        const float each = 1 / few, share = few / (n + few), weight = n * share;
        for (int j = 0; j < V; j++) {
            const float m = __fmul_rn((v[0][j] + v[1][j]) + (v[2][j] + v[3][j]), each), d = m - mean[j];
            float q = 0;

            for (int u = 0; u < AT_ONCE; u++)
                if (u < few)
                    q = fmaf(v[u][j] - m, v[u][j] - m, q);
            mean[j] = fmaf(d, share, mean[j]);
            m2[j] += fmaf(d, __fmul_rn(d, weight), q);
        }
        n += few;
    }
    return n;
}

/* mean and m2 of the tile's channels over the block's pixels, at their spots in space; space + 2 * tile.rows * width
 * holds the numbers of pixels of the rows of threads. */
template <bool ALIGNED, typename T>
static __device__ __forceinline__ void tile_channels(const struct gn *p, const struct place *a, float *space)
{
    const int all = p->tile.rows * a->width, L = lanes_each(a->width), at = a->row * a->width + a->lane;
    float *mean = space, *m2 = space + all, *n = m2 + all;

    if (a->row < p->tile.rows) {
        float m[cuda_vec<T>], q[cuda_vec<T>];
        const float few = add_rows<ALIGNED, T>(p, a, m, q);

        for (int j = 0; j < cuda_vec<T>; j++) {
            mean[at + j * p->tile.lanes] = m[j];
            m2[at + j * p->tile.lanes] = q[j];
        }
        if (a->lane == 0)
            n[a->row] = few;
    }
    __syncthreads();
    for (int c0 = 0; c0 < a->width; c0 += (int)blockDim.x / L) {
        const int c = c0 + (int)threadIdx.x / L;
        struct part s = { 0, 0, 0 };

        for (int r = (int)threadIdx.x % L; c < a->width && r < p->tile.rows; r += L)
            part_join(&s, n[r], mean[r * a->width + c], m2[r * a->width + c]);
        part_join_lanes(&s, L);
        if (c < a->width && threadIdx.x % L == 0) {
            mean[c] = s.mean;
            m2[c] = s.m2;
        }
    }
    __syncthreads();
}

template <typename T>
static __device__ __forceinline__ void put_stats(const struct gn *p, int64_t image, int g, const struct part *s)
{
    p->new_mean[image * p->G + g] = origin<T>(p, image, g) + s->mean;
    p->new_rstd[image * p->G + g] = 1 / sqrtf(s->m2 / s->n + p->eps);
}

/* From the tile's channels its parts of groups: into p->part, or if they are whole, as they stay. */
template <bool IS_WHOLE, typename T>
static __device__ __forceinline__ void tile_groups(const struct gn *p, const struct place *a, const float *space)
{
    const float *mean = space, *m2 = space + p->tile.rows * a->width;
    const int g0 = a->c / p->size, n_g = (a->c + a->n_c - 1) / p->size - g0 + 1, L = lanes_each(n_g);

    for (int i0 = 0; i0 < n_g; i0 += (int)blockDim.x / L) {
        const int i = i0 + (int)threadIdx.x / L, from = max((g0 + i) * p->size - a->c, 0);
        const int to = i < n_g ? min((g0 + i + 1) * p->size - a->c, a->n_c) : 0;
        struct part s = { 0, 0, 0 };

        for (int c = from + (int)threadIdx.x % L; c < to; c += L) {
            const int at = spot<T>(c, p->tile.lanes);
            part_join(&s, (float)a->rows, mean[at], m2[at]);
        }
        part_join_lanes(&s, L);
        if (i >= n_g || threadIdx.x % L)
            continue;
        if (IS_WHOLE)
            put_stats<T>(p, a->image, g0 + i, &s);
        else
            p->part[((a->image * gridDim.y + blockIdx.y) * p->col_slot + i) * p->n_block + a->block] =
                make_float2(s.mean, s.m2);
    }
}

/* One warp for each group of each image: join what its blocks found. */
template <typename T> static __global__ void group_join_kernel(struct gn p)
{
    const int64_t at = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32, image = at / p.G;
    const int g = (int)(at - image * p.G), lane = (int)threadIdx.x % 32, width = p.tile.lanes * cuda_vec<T>;
    struct part s = { 0, 0, 0 };

    if (image >= p.n_image)
        return;
    for (int col = g * p.size / width; col <= ((g + 1) * p.size - 1) / width; col++) {
        const int n_c = min((g + 1) * p.size, (col + 1) * width) - max(g * p.size, col * width);
        const int64_t slot = (image * p.tile.n_col + col) * p.col_slot + g - col * width / p.size;
        const float2 *part = p.part + slot * p.n_block;

        for (int64_t i = lane; i < p.n_block; i += 32)
            part_join(&s, (float)(min(p.block_rows, p.HW - i * p.block_rows) * n_c), part[i].x, part[i].y);
    }
    part_join_lanes(&s, 32);
    if (lane == 0)
        put_stats<T>(&p, image, g, &s);
}

/* y = act((x - mean) rstd gamma + beta) over the tile. One way of rounding, whichever kernel this is in. */
template <bool ALIGNED, typename T>
static __device__ __forceinline__ void apply_rows(const struct gn *p, const struct place *a, float *space)
{
    const int V = cuda_vec<T>, lanes = p->tile.lanes, left = a->n_c - a->lane * V;
    const int64_t step = p->tile.rows;
    const T *x = (const T *)p->x + (a->first + a->row) * p->ldx + a->c + a->lane * V;
    T *y = (T *)p->y + (a->first + a->row) * p->ldy + a->c + a->lane * V;
    float mean[cuda_vec<T>], scale[cuda_vec<T>], beta[cuda_vec<T>], v[AT_ONCE][cuda_vec<T>];

    for (int c = (int)threadIdx.x; c < a->n_c; c += (int)blockDim.x) {
        const int64_t g = a->image * p->G + (a->c + c) / p->size;
        const int at = spot<T>(c, lanes);

        space[at] = p->mean[g];
        space[a->width + at] = __fmul_rn(p->rstd[g], p->gamma[a->c + c]);
        space[2 * a->width + at] = p->beta[a->c + c];
    }
    __syncthreads();
    if (a->idle)
        return;
    for (int j = 0; j < V; j++) {
        mean[j] = space[j * lanes + a->lane];
        scale[j] = space[a->width + j * lanes + a->lane];
        beta[j] = space[2 * a->width + j * lanes + a->lane];
    }
    for (int64_t r = a->row; r < a->rows; r += AT_ONCE * step) {
        for (int u = 0; u < AT_ONCE; u++)
            if (r + u * step < a->rows)
                load_some<ALIGNED>(v[u], x + u * step * p->ldx, left);
        for (int u = 0; u < AT_ONCE; u++) {
            if (r + u * step >= a->rows)
                break;
            for (int j = 0; j < V; j++)
                v[u][j] = fmaf(__fsub_rn(v[u][j], mean[j]), scale[j], beta[j]);
            if (p->silu)
                for (int j = 0; j < V; j++)
                    v[u][j] = act_silu(v[u][j]);
            store_some<ALIGNED>(y + u * step * p->ldy, v[u], left);
        }
        x += AT_ONCE * step * p->ldx;
        y += AT_ONCE * step * p->ldy;
    }
}

template <bool IS_WHOLE, bool ALIGNED, typename T>
static __global__ void __launch_bounds__(CUDA_TILE_THREADS, 2) group_stats_kernel(struct gn p)
{
    CUDA_SHARED_BYTES(space);
    const struct place a = place_in<T>(&p);

    tile_channels<ALIGNED, T>(&p, &a, (float *)space);
    tile_groups<IS_WHOLE, T>(&p, &a, (float *)space);
    if (IS_WHOLE && p.y) {
        __syncthreads();
        apply_rows<ALIGNED, T>(&p, &a, (float *)space);
    }
}

template <bool ALIGNED, typename T>
static __global__ void __launch_bounds__(CUDA_TILE_THREADS, 2) group_apply_kernel(struct gn p)
{
    CUDA_SHARED_BYTES(space);
    const struct place a = place_in<T>(&p);

    apply_rows<ALIGNED, T>(&p, &a, (float *)space);
}

static int64_t greater(int64_t a, int64_t b) { return a > b ? a : b; }

static bool bad_group_norm(enum dtype type, int64_t B, int64_t HW, int64_t C, int64_t G, int64_t ldx, int64_t ldy)
{
    return (unsigned)type >= N_DTYPE || B < 0 || HW < 0 || C < 0 || G < 1 || C % G || ldx < C || ldy < C
           || C > INT32_MAX / 2;
}

static bool group_aligned(const struct gn *p, int V)
{
    return cuda_aligned(p->x) && cuda_aligned(p->y) && p->C % V == 0 && p->ldx % V == 0 && p->ldy % V == 0;
}

/* Vectors side by side that hold whole groups, if a block may have all pixels of these; otherwise 0. */
static int whole_lanes(const struct gn *p, int V)
{
    int64_t channels = p->size;

    while (channels % V)
        channels += p->size;
    return channels <= CUDA_TILE_THREADS * V && p->HW * channels <= WHOLE ? (int)(channels / V) : 0;
}

/* Cut images for statistics: by their own size. */
static void cut_stats(struct gn *p, int V)
{
    const int lanes = whole_lanes(p, V);
    int64_t n, width, most, long_enough;

    p->whole = lanes > 0;
    p->tile = cuda_tile_of(divide_up(p->C, V), p->HW, lanes);
    p->block_rows = p->HW;
    p->n_block = 1;
    width = p->tile.lanes * V;
    p->col_slot = p->tile.n_col == 1 ? p->G : (int)lesser(p->G, (width + p->size - 2) / p->size + 1);
    if (p->whole)
        return;
    n = divide_up(p->HW, AT_ONCE * p->tile.rows);
    most = lesser(MAX_BLOCKS, SCRATCH / (int64_t)sizeof *p->part / p->tile.n_col / p->col_slot);
    long_enough = divide_up(n, greater(most, 1));
    n = greater(long_enough, lesser(greater(n / BLOCKS, 1), LONGEST));
    p->block_rows = n * AT_ONCE * p->tile.rows;
    p->n_block = (int)divide_up(p->HW, p->block_rows);
}

/* Cut them for the apply pass, where every pixel is for itself: long blocks, but enough of them. */
static void cut_apply(struct gn *p, int V)
{
    int64_t n;

    p->tile = cuda_tile_of(divide_up(p->C, V), p->HW, 0);
    n = divide_up(p->HW, AT_ONCE * p->tile.rows);
    n = lesser(greater(p->n_image * n * p->tile.n_col / (132 * 8), 1), APPLY_LONGEST);
    p->block_rows = n * AT_ONCE * p->tile.rows;
    p->n_block = (int)divide_up(p->HW, p->block_rows);
}

static dim3 group_grid(const struct gn *p)
{
    return dim3((unsigned)(p->n_image * p->n_block), (unsigned)p->tile.n_col);
}

template <bool IS_WHOLE> static int launch_stats(struct kctx *k, const struct gn *p, enum dtype type)
{
    const int V = 16 / (int)dtype_bytes(type), width = p->tile.lanes * V;
    const int stats = p->tile.rows * (2 * width + 1), apply = IS_WHOLE ? 3 * width : 0;
    const size_t bytes = sizeof(float) * (size_t)(stats > apply ? stats : apply);

    CUDA_BY_TYPE(type, T, CUDA_BY_ALIGNMENT(group_aligned(p, V), A,
                 LAUNCH(k, (group_stats_kernel<IS_WHOLE, A, T>), group_grid(p), p->tile.threads, bytes, *p)));
    if (!IS_WHOLE)
        CUDA_BY_TYPE(type, T, LAUNCH(k, group_join_kernel<T>, (unsigned)divide_up(p->n_image * p->G, WARPS), 32 * WARPS,
                                     0, *p));
    return K_OK;
}

static int launch_apply(struct kctx *k, struct gn p, enum dtype type)
{
    const int V = 16 / (int)dtype_bytes(type);

    cut_apply(&p, V);
    CUDA_BY_TYPE(type, T, CUDA_BY_ALIGNMENT(group_aligned(&p, V), A,
                 LAUNCH(k, (group_apply_kernel<A, T>), group_grid(&p), p.tile.threads,
                        3 * sizeof(float) * (size_t)(p.tile.lanes * V), p)));
    return K_OK;
}

/* n images from number `first` on */
static struct gn some_images(const struct gn *p, enum dtype type, int64_t first, int64_t n)
{
    const int64_t pixels = first * p->HW, bytes = (int64_t)dtype_bytes(type);
    struct gn q = *p;

    q.n_image = n;
    q.x = (const char *)p->x + pixels * p->ldx * bytes;
    q.y = p->y ? (char *)p->y + pixels * p->ldy * bytes : NULL;
    q.mean = q.new_mean = p->new_mean + first * p->G;
    q.rstd = q.new_rstd = p->new_rstd + first * p->G;
    return q;
}

static int group_norm(struct kctx *k, void *y, int64_t ldy, float *mean, float *rstd, const void *x, int64_t ldx,
                      enum dtype type, const float *gamma, const float *beta, int64_t B, int64_t HW, int64_t C,
                      int64_t G, float eps, bool silu)
{
    struct gn p = { y, x, mean, rstd, mean, rstd, gamma, beta, y ? ldy : ldx, ldx, HW, B, (int)C, (int)G, 0, silu,
                    false, eps, { 0, 0, 0, 0 }, 0, 0, 0, false, (float2 *)k->scratch };
    int64_t image_bytes, at_once;

    if (bad_group_norm(type, B, HW, C, G, ldx, p.ldy))
        return K_ARG;
    if (!B || !HW || !C)
        return cuda_launched(k);
    p.size = (int)(C / G);
    cut_stats(&p, 16 / (int)dtype_bytes(type));
    image_bytes = (int64_t)sizeof *p.part * p.tile.n_col * p.col_slot * p.n_block;
    if (k->scratch_bytes < SCRATCH || image_bytes > SCRATCH)
        return K_SCRATCH;
    if (p.whole) {
        launch_stats<true>(k, &p, type);
        return cuda_launched(k);
    }
    at_once = SCRATCH / image_bytes;
    for (int64_t b = 0; b < B; b += at_once) {
        struct gn q = some_images(&p, type, b, lesser(at_once, B - b));

        launch_stats<false>(k, &q, type);
        q.backwards = true;
        if (y)
            launch_apply(k, q, type);
    }
    return cuda_launched(k);
}

static int group_norm_apply(struct kctx *k, void *y, int64_t ldy, const float *mean, const float *rstd, const void *x,
                            int64_t ldx, enum dtype type, const float *gamma, const float *beta, int64_t B, int64_t HW,
                            int64_t C, int64_t G, bool silu)
{
    struct gn p = { y, x, NULL, NULL, mean, rstd, gamma, beta, ldy, ldx, HW, B, (int)C, (int)G, 0, silu, false, 0,
                    { 0, 0, 0, 0 }, 0, 0, 0, false, NULL };

    if (bad_group_norm(type, B, HW, C, G, ldx, ldy))
        return K_ARG;
    p.size = (int)(C / G);
    if (B && HW && C)
        launch_apply(k, p, type);
    return cuda_launched(k);
}

/* ---- layer norm ---- */

struct ln {
    void *y;
    const void *x;
    float *mean, *rstd;         /* or NULL */
    const float *gamma, *beta;
    int64_t rows;
    int D;
    float eps;
};

/* The row's statistics from sums s, q of d and d^2, d = x - m, for a rounded mean m. */
static __device__ __forceinline__ void row_stats(const struct ln *p, int64_t r, float m, float s, float q, bool first,
                                                 float *mean, float *rstd)
{
    const float d = s / (float)p->D, var = fmaf(-d, d, q / (float)p->D);

    *mean = m + d;
    *rstd = 1 / sqrtf((var < 0 ? 0 : var) + p->eps);    /* NaN passes */
    if (first && p->mean) {
        p->mean[r] = *mean;
        p->rstd[r] = *rstd;
    }
}

/* s += x - m, q += (x - m)^2 over the n elements of a vector that are there */
template <bool ALIGNED, typename T>
static __device__ __forceinline__ void add_distances(const float *v, float m, int n, float *s, float *q)
{
    for (int j = 0; j < cuda_vec<T>; j++)
        if (ALIGNED || j < n) {
            *s += v[j] - m;
            *q = fmaf(v[j] - m, v[j] - m, *q);
        }
}

template <typename T> static __device__ __forceinline__ float vec_sum(const float *v)
{
    float s = (v[0] + v[1]) + (v[2] + v[3]);

    for (int j = 4; j < cuda_vec<T>; j += 4)
        s += (v[j] + v[j + 1]) + (v[j + 2] + v[j + 3]);
    return s;
}

/* A vector of the row's output from its input, column c on. */
template <bool ALIGNED, typename T>
static __device__ __forceinline__ void put_row(const struct ln *p, int64_t r, int c, const float *v, float mean,
                                               float rstd)
{
    float gamma[cuda_vec<T>], beta[cuda_vec<T>], z[cuda_vec<T>];

    for (int j = 0; j < cuda_vec<T>; j += 4) {
        load_some<ALIGNED>(gamma + j, p->gamma + c + j, p->D - c - j);
        load_some<ALIGNED>(beta + j, p->beta + c + j, p->D - c - j);
    }
    for (int j = 0; j < cuda_vec<T>; j++)
        z[j] = fmaf(__fmul_rn(v[j] - mean, rstd), gamma[j], beta[j]);
    store_some<ALIGNED>((T *)p->y + r * p->D + c, z, p->D - c);
}

/* A warp for each row, which stays in registers: N floats in each lane. */
template <int N, bool ALIGNED, typename T>
static __global__ void __launch_bounds__(32 * WARPS) row_warp_kernel(struct ln p)
{
    const int V = cuda_vec<T>, lane = (int)threadIdx.x % 32;
    float v[N / cuda_vec<T>][cuda_vec<T>], mean, rstd;

    for (int64_t r = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32; r < p.rows; r += (int64_t)gridDim.x * WARPS) {
        const T *x = (const T *)p.x + r * p.D;
        float m = 0, s = 0, q = 0;

        for (int i = 0; i < N / V; i++)
            if ((i * 32 + lane) * V < p.D) {
                load_some<ALIGNED>(v[i], x + (i * 32 + lane) * V, p.D - (i * 32 + lane) * V);
                m += vec_sum<T>(v[i]);
            }
        m = warp_sum(m) / (float)p.D;
        for (int i = 0; i < N / V; i++)
            if ((i * 32 + lane) * V < p.D)
                add_distances<ALIGNED, T>(v[i], m, p.D - (i * 32 + lane) * V, &s, &q);
        row_stats(&p, r, m, warp_sum(s), warp_sum(q), lane == 0, &mean, &rstd);
        for (int i = 0; i < N / V; i++)
            if ((i * 32 + lane) * V < p.D)
                put_row<ALIGNED, T>(&p, r, (i * 32 + lane) * V, v[i], mean, rstd);
    }
}

/* A block for each row, read three times. */
template <bool ALIGNED, typename T> static __global__ void row_block_kernel(struct ln p)
{
    CUDA_SHARED(float, space, 32);
    const int V = cuda_vec<T>, step = (int)blockDim.x * V;
    float v[cuda_vec<T>], mean, rstd;

    for (int64_t r = blockIdx.x; r < p.rows; r += gridDim.x) {
        const T *x = (const T *)p.x + r * p.D;
        float m = 0, s = 0, q = 0;

        for (int64_t c = (int)threadIdx.x * V; c < p.D; c += step) {
            load_some<ALIGNED>(v, x + c, (int)(p.D - c));
            m += vec_sum<T>(v);
        }
        m = block_sum(m, space) / (float)p.D;
        for (int64_t c = (int)threadIdx.x * V; c < p.D; c += step) {
            load_some<ALIGNED>(v, x + c, (int)(p.D - c));
            add_distances<ALIGNED, T>(v, m, (int)(p.D - c), &s, &q);
        }
        s = block_sum(s, space);
        row_stats(&p, r, m, s, block_sum(q, space), threadIdx.x == 0, &mean, &rstd);
        for (int64_t c = (int)threadIdx.x * V; c < p.D; c += step) {
            load_some<ALIGNED>(v, x + c, (int)(p.D - c));
            put_row<ALIGNED, T>(&p, r, (int)c, v, mean, rstd);
        }
    }
}

template <bool ALIGNED, typename T> static void launch_rows(struct kctx *k, const struct ln *p)
{
    const unsigned warps = (unsigned)lesser(divide_up(p->rows, WARPS), INT32_MAX);
    const unsigned rows = (unsigned)lesser(p->rows, INT32_MAX);

    if (p->D <= 512)
        LAUNCH(k, (row_warp_kernel<16, ALIGNED, T>), warps, 32 * WARPS, 0, *p);
    else if (p->D <= 1024)
        LAUNCH(k, (row_warp_kernel<32, ALIGNED, T>), warps, 32 * WARPS, 0, *p);
    else if (p->D <= 2048)
        LAUNCH(k, (row_warp_kernel<64, ALIGNED, T>), warps, 32 * WARPS, 0, *p);
    else
        LAUNCH(k, (row_block_kernel<ALIGNED, T>), rows, 256, 0, *p);
}

static int layer_norm(struct kctx *k, void *y, float *mean, float *rstd, const void *x, enum dtype type,
                      const float *gamma, const float *beta, int64_t rows, int64_t D, float eps)
{
    const struct ln p = { y, x, mean, rstd, gamma, beta, rows, (int)D, eps };
    const bool aligned = cuda_aligned(x) && cuda_aligned(y) && cuda_aligned(gamma) && cuda_aligned(beta);

    if ((unsigned)type >= N_DTYPE || rows < 0 || D < 0 || D > INT32_MAX / 2 || !mean != !rstd)
        return K_ARG;
    if (rows && D)
        CUDA_BY_TYPE(type, T, CUDA_BY_ALIGNMENT(aligned && D % cuda_vec<T> == 0, A, launch_rows<A, T>(k, &p)));
    return cuda_launched(k);
}

void cuda_fill_norm(struct kern *k)
{
    k->group_norm = group_norm;
    k->group_norm_apply = group_norm_apply;
    k->layer_norm = layer_norm;
    if (k->scratch_bytes < SCRATCH)
        k->scratch_bytes = SCRATCH;
}
