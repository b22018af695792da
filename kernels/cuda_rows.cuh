/* kernels/cuda_rows.cuh: rows of channels cut into tiles of vectors of 16 bytes. Private to kernels/.
 *
 * A kernel over vectors is compiled twice: ALIGNED, where every vector is whole and at a multiple of 16 bytes, and for
 * everything else. Both give the same elements to the same threads: sums do not depend on where an operand lies. */
#ifndef UNICON_KERNELS_CUDA_ROWS_CUH
#define UNICON_KERNELS_CUDA_ROWS_CUH

#include "kernels/cuda_vec.cuh"

/* The vector at p, of which n elements are there (all of them if ALIGNED); zeros behind. */
template <bool ALIGNED, typename T> static __device__ __forceinline__ void load_some(float *v, const T *p, int n)
{
    if (ALIGNED)
        load_vec<cuda_vec<T>>(v, p);
    else
        for (int j = 0; j < cuda_vec<T>; j++)
            v[j] = j < n ? load(&p[j]) : 0;
}

template <bool ALIGNED, typename T> static __device__ __forceinline__ void store_some(T *p, const float *v, int n)
{
    if (ALIGNED)
        store_vec<cuda_vec<T>>(p, v);
    else
        for (int j = 0; j < cuda_vec<T>; j++)
            if (j < n)
                store(&p[j], v[j]);
}

/* Run STATEMENT with A standing for whether `aligned`. */
#define CUDA_BY_ALIGNMENT(aligned, A, ...)                                                                          \
    do {                                                                                                            \
        if (aligned) {                                                                                              \
            const bool A = true;                                                                                    \
            __VA_ARGS__;                                                                                            \
        } else {                                                                                                    \
            const bool A = false;                                                                                   \
            __VA_ARGS__;                                                                                            \
        }                                                                                                           \
    } while (0)

static inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t lesser(int64_t a, int64_t b) { return a < b ? a : b; }

/* A block of threads on rows of channels: `lanes` vectors side by side, `rows` rows at a time. Thread t has vector
 * t % lanes of row t / lanes; threads beyond the last row idle. A row of C channels takes n_col such tiles. */
enum { CUDA_TILE_THREADS = 320 };       /* ten warps: 40, 80 and 160 vectors, 320 to 1280 channels, leave none idle */

struct cuda_tile {
    int lanes, rows, threads, n_col;
};

/* For rows of n_vec vectors, n_rows of them; lanes 0: to be chosen. Depends on these sizes alone. */
static inline struct cuda_tile cuda_tile_of(int64_t n_vec, int64_t n_rows, int lanes)
{
    struct cuda_tile t;

    t.n_col = (int)((n_vec + CUDA_TILE_THREADS - 1) / CUDA_TILE_THREADS);
    t.lanes = (int)((n_vec + t.n_col - 1) / t.n_col);
    if (lanes) {
        t.lanes = lanes;
        t.n_col = (int)((n_vec + lanes - 1) / lanes);
    }
    t.rows = CUDA_TILE_THREADS / t.lanes;
    if (t.rows > n_rows)
        t.rows = (int)n_rows;
    t.threads = (t.lanes * t.rows + 31) / 32 * 32;
    return t;
}

#endif
