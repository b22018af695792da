/* kernels/narrow_cpu.c: products with a handful of columns, such as the last convolution of the denoiser (320 -> 4).
 * Vectors run along K: each lane keeps its own chain, lanes are added at the end. Rows are read where they lie. */
#include "kernels/gather.h"

#include <omp.h>

enum {
    ROWS = VL == 16 ? 6 : 2,            /* with COLS: accumulators that fit the registers */
    COLS = 4,
    ROW_BLOCK = 48                      /* rows of a task */
};

/* One vector along K: VL f32, or 2 VL bf16. n is what is left of the channels. */
INLINE vf load_x(const void *x, enum dtype t, bool dot, int64_t c, int64_t n)
{
#if HAS_BF16_DOT
    if (dot)
        return n >= 2 * VL ? v_loadf((const float *)(const void *)((const uint16_t *)x + c))
                           : (vf)_mm512_maskz_loadu_epi16((1u << n) - 1, (const uint16_t *)x + c);
#endif
    (void)dot;
    return v_load_upto(x, c, t, n);
}

INLINE vf load_w(const void *w, enum dtype t, bool dot, int64_t at)
{
    if (dot)
        return v_loadf((const float *)(const void *)((const uint16_t *)w + at));
    return v_load(w, at, t);
}

INLINE vf multiply_add(bool dot, vf x, vf w, vf acc)
{
#if HAS_BF16_DOT
    if (dot)
        return (vf)_mm512_dpbf16_ps((__m512)acc, (__m512bh)x, (__m512bh)w);
#endif
    (void)dot;
    return v_fma(x, w, acc);
}

/* Products of one tap: acc (mr,cols) += rows x[] . columns of w, over C channels. mr, cols, dot and the types are
 * constants at each call. */
INLINE void tap(vf acc[ROWS][COLS], int mr, int cols, bool dot, enum dtype xt, enum dtype wt, const void *const x[ROWS],
                const void *w, int64_t w_at, int64_t w_ld, int64_t C)
{
    const int step = dot ? 2 * VL : VL;
    int64_t c = 0;

    for (; c < C; c += step) {
        const int64_t n = C - c;
        vf wv[COLS];

        for (int j = 0; j < cols; j++)
            wv[j] = load_w(w, wt, dot, w_at + j * w_ld + c);
        for (int r = 0; r < mr; r++) {
            const vf xv = load_x(x[r], xt, dot, c, n);
            for (int j = 0; j < cols; j++)
                acc[r][j] = multiply_add(dot, xv, wv[j], acc[r][j]);
        }
    }
}

INLINE void tap_any(vf acc[ROWS][COLS], int mr, int cols, const struct gather *g, const struct panels *s,
                    const void *const x[ROWS], int64_t w_at, int64_t w_ld)
{
    if (g->dot)
        tap(acc, mr, cols, true, BF16, BF16, x, s->pack, w_at, w_ld, g->C);
    else if (g->type == F32 && s->type == F32)
        tap(acc, mr, cols, false, F32, F32, x, s->pack, w_at, w_ld, g->C);
    else
        tap(acc, mr, cols, false, g->type, s->type, x, s->pack, w_at, w_ld, g->C);
}

/* acc of rows [row, row+mr), columns [col, col+cols) after tap t of run i. */
INLINE void add_tap(const struct product *p, int columns, int i, int t, const struct pixel *px, int mr, int col,
                    int cols, const void *zeros, vf acc[ROWS][COLS])
{
    const struct gather *g = p->run[i].a;
    const struct panels *s = p->run[i].b;
    const int64_t w_ld = pack_narrow_depth(g->C);
    const void *x[ROWS];

    for (int r = 0; r < mr; r++) {
        const int64_t at = gather_at(g, &px[r], t);
        x[r] = at < 0 ? zeros : (const char *)g->x + (size_t)at * dtype_bytes(g->type);
    }
    tap_any(acc, mr, cols, g, s, x, ((s->first_tap + t) * columns + col) * w_ld, w_ld);
}

/* A block of rows, tap by tap, so that a tap's weights stay in the first-level cache. */
INLINE void block(const struct product *p, int columns, int64_t row, int64_t end, int mr, int col, int cols,
                  const void *zeros, float *tile)
{
    vf acc[ROW_BLOCK / ROWS][ROWS][COLS];
    struct pixel px[ROW_BLOCK];

    memset(acc, 0, sizeof acc);
    for (int i = 0; i < p->n_run; i++) {
        const struct gather *g = p->run[i].a;

        px[0] = pixel_at(row, g->Gh, g->Gw);
        for (int64_t r = 1; r < end - row; r++) {
            px[r] = px[r - 1];
            pixel_next(&px[r], g->Gh, g->Gw);
        }
        for (int t = 0; t < g->n_tap; t++)
            for (int64_t r = 0; r < end - row; r += mr) {
                vf sum[ROWS][COLS];

                memcpy(sum, acc[r / mr], sizeof sum);
                add_tap(p, columns, i, t, px + r, mr, col, cols, zeros, sum);
                memcpy(acc[r / mr], sum, sizeof sum);
            }
    }
    for (int64_t r = 0; r < end - row; r++)
        for (int j = 0; j < cols; j++)
            tile[r * NR + col + j] = v_sum(acc[r / mr][r % mr][j]);
}

static void rows_4(const struct product *p, int columns, int64_t row, int64_t end, int col, const void *zeros,
                   float *tile)
{
    block(p, columns, row, end, ROWS, col, 4, zeros, tile);
}

static void rows_3(const struct product *p, int columns, int64_t row, int64_t end, int col, const void *zeros,
                   float *tile)
{
    block(p, columns, row, end, ROWS, col, 3, zeros, tile);
}

static void rows_1(const struct product *p, int columns, int64_t row, int64_t end, int col, const void *zeros,
                   float *tile)
{
    block(p, columns, row, end, ROWS, col, 1, zeros, tile);
}

/* Rows [row, end) where their number is a multiple of ROWS, or is 1: the same chains either way. */
static void some_rows(const struct product *p, int columns, int64_t row, int64_t end, const void *zeros, float *tile)
{
    for (int col = 0; col < columns;) {
        const int cols = columns - col >= 4 ? 4 : columns - col >= 3 ? 3 : 1;

        if (end - row == 1)
            for (int j = 0; j < cols; j++)
                block(p, columns, row, end, 1, col + j, 1, zeros, tile);
        else
            (cols == 4 ? rows_4 : cols == 3 ? rows_3 : rows_1)(p, columns, row, end, col, zeros, tile);
        col += cols;
    }
    for (int64_t r = row; r < end; r += MR)
        p->out(p->epilogue, r, (int)lesser(MR, end - r), 0, tile + (r - row) * NR);
}

int ISA_NAME(narrow_run)(struct kctx *k, const struct product *p, int columns)
{
    const int64_t n_task = ceil_div(p->M, ROW_BLOCK);
    int64_t channels = 0;

    for (int i = 0; i < p->n_run; i++) {
        const struct gather *g = p->run[i].a;
        channels = g->C > channels ? g->C : channels;
    }
    if ((size_t)channels * 4 + sizeof(float) * ROW_BLOCK * NR > k->scratch_bytes)
        return K_SCRATCH;
    #pragma omp parallel for num_threads(k->n_threads) schedule(static) if (n_task > 1)
    for (int64_t t = 0; t < n_task; t++) {
        const int64_t first = t * ROW_BLOCK, end = lesser(p->M, first + ROW_BLOCK), whole = (end - first) / ROWS * ROWS;
        float *tile = (float *)(void *)thread_scratch(k, omp_get_thread_num()), *zeros = tile + ROW_BLOCK * NR;

        memset(zeros, 0, (size_t)channels * 4);
        memset(tile, 0, sizeof(float) * ROW_BLOCK * NR);
        if (whole)
            some_rows(p, columns, first, first + whole, zeros, tile);
        for (int64_t r = first + whole; r < end; r++)
            some_rows(p, columns, r, r + 1, zeros, tile);
    }
    return K_OK;
}
