/* kernels/product_cpu.c: the blocked loop and the micro-kernels of product.h. */
#include "kernels/product.h"

#include <omp.h>

/* c (mr,NR) = or += a (mr,kc) b (kc,NR). mr is a constant at each call, so the accumulators are registers. */
INLINE void micro_f32(int mr, int64_t kc, const float *a, const float *b, float *c, bool first)
{
    vf acc[MR][2];

    for (int i = 0; i < mr; i++) {
        acc[i][0] = first ? v_zero() : v_loadf(c + i * NR);
        acc[i][1] = first ? v_zero() : v_loadf(c + i * NR + VL);
    }
    for (int64_t k = 0; k < kc; k++) {
        const vf b0 = v_loadf(b + k * NR), b1 = v_loadf(b + k * NR + VL);

        __builtin_prefetch(b + (k + 16) * NR);
        if (NR * 4 > 64)
            __builtin_prefetch(b + (k + 16) * NR + 16);
        for (int i = 0; i < mr; i++) {
            const vf ai = v_set(a[i * LDA + k]);
            acc[i][0] = v_fma(ai, b0, acc[i][0]);
            acc[i][1] = v_fma(ai, b1, acc[i][1]);
        }
    }
    for (int i = 0; i < mr; i++) {
        v_storef(c + i * NR, acc[i][0]);
        v_storef(c + i * NR + VL, acc[i][1]);
    }
}

#if HAS_BF16_DOT
/* The same with bf16 pairs: kc counts bf16, two to a step. */
INLINE void micro_dot(int mr, int64_t kc, const float *a, const float *b, float *c, bool first)
{
    __m512 acc[MR][2];

    for (int i = 0; i < mr; i++) {
        acc[i][0] = first ? _mm512_setzero_ps() : _mm512_loadu_ps(c + i * NR);
        acc[i][1] = first ? _mm512_setzero_ps() : _mm512_loadu_ps(c + i * NR + VL);
    }
    for (int64_t k = 0; k < kc / 2; k++) {
        const __m512bh b0 = (__m512bh)_mm512_loadu_ps(b + k * NR), b1 = (__m512bh)_mm512_loadu_ps(b + k * NR + VL);

        __builtin_prefetch(b + (k + 16) * NR);
        __builtin_prefetch(b + (k + 16) * NR + 16);
        for (int i = 0; i < mr; i++) {
            const __m512bh ai = (__m512bh)_mm512_set1_ps(a[i * LDA + k]);
            acc[i][0] = _mm512_dpbf16_ps(acc[i][0], ai, b0);
            acc[i][1] = _mm512_dpbf16_ps(acc[i][1], ai, b1);
        }
    }
    for (int i = 0; i < mr; i++) {
        _mm512_storeu_ps(c + i * NR, acc[i][0]);
        _mm512_storeu_ps(c + i * NR + VL, acc[i][1]);
    }
}
#else
INLINE void micro_dot(int mr, int64_t kc, const float *a, const float *b, float *c, bool first)
{
    (void)mr, (void)kc, (void)a, (void)b, (void)c, (void)first;      /* no run is ever `dot` here */
}
#endif

typedef void micro_fn(int64_t kc, const float *a, const float *b, float *c, bool first);

#define MICRO(n)                                                                                     \
    static void f32_##n(int64_t kc, const float *a, const float *b, float *c, bool first)            \
    {                                                                                                \
        if (first)                                                                                   \
            micro_f32(n, kc, a, b, c, true);                                                         \
        else                                                                                         \
            micro_f32(n, kc, a, b, c, false);                                                        \
    }                                                                                                \
    static void dot_##n(int64_t kc, const float *a, const float *b, float *c, bool first)            \
    {                                                                                                \
        if (first)                                                                                   \
            micro_dot(n, kc, a, b, c, true);                                                         \
        else                                                                                         \
            micro_dot(n, kc, a, b, c, false);                                                        \
    }

MICRO(1) MICRO(2) MICRO(3) MICRO(4) MICRO(5) MICRO(6)
#if VL == 16
MICRO(7) MICRO(8) MICRO(9) MICRO(10) MICRO(11) MICRO(12) MICRO(13) MICRO(14)
#endif

static micro_fn *const micro[2][MR + 1] = {
    { NULL, f32_1, f32_2, f32_3, f32_4, f32_5, f32_6,
#if VL == 16
      f32_7, f32_8, f32_9, f32_10, f32_11, f32_12, f32_13, f32_14
#endif
    },
    { NULL, dot_1, dot_2, dot_3, dot_4, dot_5, dot_6,
#if VL == 16
      dot_7, dot_8, dot_9, dot_10, dot_11, dot_12, dot_13, dot_14
#endif
    },
};

/* How M and the panels are cut into tasks. Any cut gives the same result. */
struct cut {
    int64_t n_row_block, n_panel_block;
};

static struct cut cut_for(const struct product *p, int n_threads)
{
    struct cut c = { ceil_div(p->M, (int64_t)p->max_tiles * MR), ceil_div(p->n_panel, MAX_PANELS) };

    /* Enough tasks for the threads, first by rows, then by columns, and a whole number of rounds. */
    while (c.n_row_block * c.n_panel_block < 2 * n_threads && c.n_row_block * 2 * MR <= p->M)
        c.n_row_block++;
    while (c.n_row_block * c.n_panel_block < 2 * n_threads && c.n_panel_block < p->n_panel)
        c.n_panel_block++;
    if (c.n_row_block >= n_threads && c.n_row_block * MR < p->M)
        c.n_row_block = ceil_div(c.n_row_block, n_threads) * n_threads;
    return c;
}

/* Where part i of n begins when `total` is cut evenly. */
static int64_t part_begin(int64_t total, int64_t n, int64_t i)
{
    return total / n * i + lesser(i, total % n);
}

static void product_task(const struct product *p, const struct cut *c, int64_t task, float *scratch)
{
    float *const tile = scratch, *const out = tile + TILE_FLOATS, *const b_buf = out + OUT_FLOATS;
    const int64_t jb = task / c->n_row_block, ib = task % c->n_row_block;
    const int64_t row0 = part_begin(p->M, c->n_row_block, ib), row1 = part_begin(p->M, c->n_row_block, ib + 1);
    const int64_t pan0 = part_begin(p->n_panel, c->n_panel_block, jb);
    const int n_pan = (int)(part_begin(p->n_panel, c->n_panel_block, jb + 1) - pan0);
    const int64_t n_tile = ceil_div(row1 - row0, MR);
    int64_t k_left = 0;
    bool first = true, once;

    for (int r = 0; r < p->n_run; r++)
        k_left += p->run[r].K;
    if (!k_left)
        memset(out, 0, sizeof(float) * MR * NR);            /* a sum over nothing */
    for (int64_t t = 0; !k_left && t < n_tile * n_pan; t++) {
        const int64_t row = row0 + part_begin(row1 - row0, n_tile, t / n_pan);
        const int64_t end = row0 + part_begin(row1 - row0, n_tile, t / n_pan + 1);

        p->out(p->epilogue, row, (int)(end - row), pan0 + t % n_pan, out);
    }
    once = p->n_run == 1 && k_left <= (p->run[0].dot ? 2 * KC : KC);        /* sums finish in one go */
    for (int r = 0; r < p->n_run; r++) {
        const struct run *run = &p->run[r];
        const int64_t kc_max = run->dot ? 2 * KC : KC, n_block = ceil_div(run->K ? run->K : 1, kc_max);
        const int64_t kc_even = lesser(kc_max, (ceil_div(run->K, n_block) + 15) / 16 * 16);

        for (int64_t k = 0; k < run->K; k += kc_even) {
            const int64_t kc = lesser(kc_even, run->K - k);
            const bool last = (k_left -= kc) == 0;
            int64_t stride;
            const float *b = run->b_get(run->b, b_buf, pan0, n_pan, k, kc, &stride);

            for (int64_t t = 0; t < n_tile; t++) {
                const int64_t row = row0 + part_begin(row1 - row0, n_tile, t);
                const int mr = (int)(row0 + part_begin(row1 - row0, n_tile, t + 1) - row);
                micro_fn *const f = micro[run->dot][mr];

                run->a_fill(run->a, tile, row, mr, k, kc);
                for (int j = 0; j < n_pan; j++) {
                    float *acc = out + (once ? 0 : (t * n_pan + j) * (MR * NR));

                    if (last && p->out_soon)
                        p->out_soon(p->epilogue, row, mr, pan0 + j);
                    f(kc, tile, b + j * stride, acc, first);
                    if (last)
                        p->out(p->epilogue, row, mr, pan0 + j, acc);
                }
            }
            first = false;
        }
    }
}

int ISA_NAME(product_run)(struct kctx *k, const struct product *p)
{
    const struct cut c = cut_for(p, k->n_threads);
    const int64_t n_task = c.n_row_block * c.n_panel_block;

    if (k->scratch_bytes < sizeof(float) * (TILE_FLOATS + OUT_FLOATS + B_FLOATS))
        return K_SCRATCH;
    #pragma omp parallel for num_threads(k->n_threads) schedule(dynamic) if (n_task > 1)
    for (int64_t t = 0; t < n_task; t++)
        product_task(p, &c, t, (float *)(void *)thread_scratch(k, omp_get_thread_num()));
    return K_OK;
}
