/* kernels/norm_cpu.c: group and layer normalisation, forward and backward.
 *
 * A group of C/G channels is no multiple of a vector, so nothing strides along groups: rows of C channels are read as
 * they lie, with one accumulator per channel, and channels join their group afterwards. An image's pixels are cut into
 * tasks, a number that depends on the sizes alone; threads take tasks, and tasks are added up in order.
 *
 * Statistics, two passes over a block of pixels, the second from cache: a channel's mean m, then sums of d = x - m and
 * d^2 in f32. With doubles these move to the group's origin o (its first element): sum(x-o) = sum(d) + n(m-o),
 * sum((x-o)^2) = sum(d^2) + 2(m-o) sum(d) + n(m-o)^2. So neither a mean far from zero nor a long sum costs accuracy. */
#include "kernels/simd.h"

#include "kernels/isa.h"

enum {
    COLS = 640,                 /* channels at a time: their accumulators and constants stay in L1 */
    BLOCK = 32768,              /* elements of a block of pixels: they stay in L2 */
    MAX_TASKS = 256,            /* per image */
    BIG = 32768,                /* elements from which threads pay */
    LEAF = 32 * VL              /* elements of a row added in f32 before the sum goes on in double */
};

/* Room for the tasks' sums: of one thread's scratch, so that the cut does not depend on their number. */
static const int64_t part_bytes = SCRATCH_BYTES;

INLINE int64_t divide_up(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

/* How HW pixels of C channels are cut. */
struct cut {
    int64_t block;              /* pixels of a block */
    int64_t pixels;             /* of a task, some blocks */
    int64_t n_tasks;            /* of an image */
};

static struct cut cut_image(int64_t HW, int64_t C, int64_t max_tasks)
{
    struct cut s;
    int64_t n_blocks;

    s.block = BLOCK / C / 4 * 4;
    s.block = s.block < 16 ? 16 : lesser(s.block, 256);
    n_blocks = divide_up(HW, s.block);
    s.pixels = s.block * divide_up(n_blocks, max_tasks);
    s.n_tasks = divide_up(HW, s.pixels);
    return s;
}

/* ---- group norm, forward ---- */

struct gn {
    void *y;
    const void *x;
    float *new_mean, *new_rstd; /* where statistics go */
    const float *mean, *rstd, *gamma, *beta;
    int64_t ldy, ldx, HW, C, G;
    enum dtype type;
    bool silu;
    float eps;
    struct cut cut;
    int64_t first;              /* image whose task sums lie first in part */
    double *part;               /* (image - first, task, G, 2): sums of x-o and (x-o)^2 */
};

struct sums {                   /* of a block's channels; a vector may reach past the last */
    float mean[COLS + VL], d[COLS + VL], dd[COLS + VL];
};

/* s->mean += x over R pixels from element i on, C channels */
INLINE void add_rows(enum dtype T, int R, struct sums *s, const void *x, int64_t i, int64_t ld, int64_t C)
{
    for (int64_t c = 0; c < C; c += VL) {
        vf v[4];
        for (int r = 0; r < R; r++)
            v[r] = v_load_upto(x, i + r * ld + c, T, C - c);
        v_storef(s->mean + c, v_loadf(s->mean + c) + (R == 4 ? (v[0] + v[1]) + (v[2] + v[3]) : v[0]));
    }
}

/* s->d += x - mean, s->dd += (x - mean)^2 */
INLINE void add_distances(enum dtype T, int R, struct sums *s, const void *x, int64_t i, int64_t ld, int64_t C)
{
    for (int64_t c = 0; c < C; c += VL) {
        const vf mean = v_loadf(s->mean + c);
        vf d = v_zero(), dd = v_zero();
        for (int r = 0; r < R; r++) {
            const vf v = v_load_upto(x, i + r * ld + c, T, C - c) - mean;
            d += v;
            dd = v_fma(v, v, dd);
        }
        v_storef(s->d + c, v_loadf(s->d + c) + d);
        v_storef(s->dd + c, v_loadf(s->dd + c) + dd);
    }
}

INLINE void block_sums_run(enum dtype T, struct sums *s, const void *x, int64_t i, int64_t ld, int64_t n, int64_t C)
{
    const vf scale = v_set(1.0f / (float)n);
    int64_t r = 0;

    memset(s, 0, sizeof *s);
    for (; r + 4 <= n; r += 4)
        add_rows(T, 4, s, x, i + r * ld, ld, C);
    for (; r < n; r++)
        add_rows(T, 1, s, x, i + r * ld, ld, C);
    for (int64_t c = 0; c < C; c += VL)
        v_storef(s->mean + c, v_loadf(s->mean + c) * scale);
    for (r = 0; r + 4 <= n; r += 4)
        add_distances(T, 4, s, x, i + r * ld, ld, C);
    for (; r < n; r++)
        add_distances(T, 1, s, x, i + r * ld, ld, C);
}

static int block_sums(struct sums *s, const void *x, enum dtype type, int64_t i, int64_t ld, int64_t n, int64_t C)
{
    BY_TYPE(type, block_sums_run(T, s, x, i, ld, n, C));
    return K_OK;
}

/* o of group g: its first element in the image */
static double origin(const struct gn *p, int64_t b, int64_t g)
{
    return (double)s_load(p->x, b * p->HW * p->ldx + g * (p->C / p->G), p->type);
}

static void task_sums(const struct gn *p, int64_t b, int64_t task)
{
    const int64_t size = p->C / p->G, stop = lesser(p->HW, (task + 1) * p->cut.pixels);
    double *part = p->part + ((b - p->first) * p->cut.n_tasks + task) * p->G * 2;
    struct sums s;

    memset(part, 0, sizeof *part * 2 * (size_t)p->G);
    for (int64_t t = task * p->cut.pixels; t < stop; t += p->cut.block) {
        const int64_t n = lesser(p->cut.block, stop - t);
        for (int64_t c0 = 0; c0 < p->C; c0 += COLS) {
            const int64_t c1 = lesser(p->C, c0 + COLS);
            block_sums(&s, p->x, p->type, (b * p->HW + t) * p->ldx + c0, p->ldx, n, c1 - c0);
            for (int64_t g = c0 / size, c = c0; c < c1; g++) {
                const double o = origin(p, b, g);
                double sum = part[2 * g], squares = part[2 * g + 1];
                for (; c < lesser(c1, (g + 1) * size); c++) {
                    const double m = (double)s.mean[c - c0] - o, d = (double)s.d[c - c0], nm = (double)n * m;
                    sum += d + nm;
                    squares += (double)s.dd[c - c0] + m * (2 * d + nm);
                }
                part[2 * g] = sum;
                part[2 * g + 1] = squares;
            }
        }
    }
}

/* mean and rstd of an image from its tasks' sums */
static void image_stats(const struct gn *p, int64_t b)
{
    const double n = (double)p->HW * (double)(p->C / p->G);
    double *part = p->part + (b - p->first) * p->cut.n_tasks * p->G * 2;

    for (int64_t task = 1; task < p->cut.n_tasks; task++)
        for (int64_t i = 0; i < 2 * p->G; i++)
            part[i] += part[task * p->G * 2 + i];
    for (int64_t g = 0; g < p->G; g++) {
        const double d = part[2 * g] / n, var = part[2 * g + 1] / n - d * d;
        p->new_mean[b * p->G + g] = (float)(origin(p, b, g) + d);
        p->new_rstd[b * p->G + g] = (float)(1 / sqrt((var < 0 ? 0 : var) + (double)p->eps));    /* NaN passes */
    }
}

/* y = act((x - mean) rstd gamma + beta) over n pixels and C channels; the constants lie per channel. */
INLINE void apply_run(enum dtype T, bool silu, void *y, int64_t iy, int64_t ldy, const void *x, int64_t ix, int64_t ldx,
                      int64_t n, int64_t C, const float *mean, const float *scale, const float *beta)
{
    for (int64_t r = 0; r < n; r++, iy += ldy, ix += ldx)
        for (int64_t c = 0; c < C; c += VL) {
            const vf d = v_load_upto(x, ix + c, T, C - c) - v_loadf(mean + c);
            const vf z = v_fma(d, v_loadf(scale + c), v_loadf(beta + c));
            v_store_upto(y, iy + c, T, silu ? v_silu(z) : z, C - c);
        }
}

static int apply(const struct gn *p, int64_t iy, int64_t ix, int64_t n, int64_t C, const float *mean,
                 const float *scale, const float *beta)
{
    if (p->silu)
        BY_TYPE(p->type, apply_run(T, true, p->y, iy, p->ldy, p->x, ix, p->ldx, n, C, mean, scale, beta));
    else
        BY_TYPE(p->type, apply_run(T, false, p->y, iy, p->ldy, p->x, ix, p->ldx, n, C, mean, scale, beta));
    return K_OK;
}

static void task_apply(const struct gn *p, int64_t b, int64_t task)
{
    const int64_t size = p->C / p->G, t = task * p->cut.pixels, n = lesser(p->HW - t, p->cut.pixels);
    float mean[COLS + VL] = { 0 }, scale[COLS + VL] = { 0 }, beta[COLS + VL] = { 0 };

    for (int64_t c0 = 0; c0 < p->C; c0 += COLS) {
        const int64_t c1 = lesser(p->C, c0 + COLS);
        for (int64_t g = c0 / size, c = c0; c < c1; g++)
            for (; c < lesser(c1, (g + 1) * size); c++) {
                mean[c - c0] = p->mean[b * p->G + g];
                scale[c - c0] = p->rstd[b * p->G + g] * p->gamma[c];
                beta[c - c0] = p->beta[c];
            }
        apply(p, (b * p->HW + t) * p->ldy + c0, (b * p->HW + t) * p->ldx + c0, n, c1 - c0, mean, scale, beta);
    }
}

static bool bad_group_norm(enum dtype type, int64_t B, int64_t HW, int64_t C, int64_t G, int64_t ldx, int64_t ldy)
{
    return (unsigned)type >= N_DTYPE || B < 0 || HW < 0 || C < 0 || G < 1 || C % G || ldx < C || ldy < C;
}

/* Statistics of images [p->first, last), by tasks and then summed in their order. */
static void stats_at_once(const struct gn *p, int64_t last)
{
    const int64_t n = (last - p->first) * p->cut.n_tasks;

#pragma omp for schedule(static)
    for (int64_t i = 0; i < n; i++)
        task_sums(p, p->first + i / p->cut.n_tasks, i % p->cut.n_tasks);
#pragma omp for schedule(static)
    for (int64_t b = p->first; b < last; b++)
        image_stats(p, b);
}

static void apply_at_once(const struct gn *p, int64_t last)
{
    const int64_t n = (last - p->first) * p->cut.n_tasks;

#pragma omp for schedule(static)
    for (int64_t i = 0; i < n; i++)
        task_apply(p, p->first + i / p->cut.n_tasks, i % p->cut.n_tasks);
}

static int group_norm(struct kctx *k, void *y, int64_t ldy, float *mean, float *rstd, const void *x, int64_t ldx,
                      enum dtype type, const float *gamma, const float *beta, int64_t B, int64_t HW, int64_t C,
                      int64_t G, float eps, bool silu)
{
    const int64_t sum_bytes = 2 * (int64_t)sizeof(double) * G;
    struct gn p = { .y = y, .x = x, .new_mean = mean, .new_rstd = rstd, .mean = mean, .rstd = rstd, .gamma = gamma,
                    .beta = beta, .ldy = ldy, .ldx = ldx, .HW = HW, .C = C, .G = G, .type = type, .silu = silu,
                    .eps = eps, .part = k->scratch };
    int64_t at_once;

    if (bad_group_norm(type, B, HW, C, G, ldx, y ? ldy : C))
        return K_ARG;
    if (!B || !HW || !C)
        return K_OK;
    if (sum_bytes > part_bytes || (int64_t)k->scratch_bytes < part_bytes)
        return K_SCRATCH;
    p.cut = cut_image(HW, C, lesser(MAX_TASKS, part_bytes / sum_bytes));
    at_once = part_bytes / (p.cut.n_tasks * sum_bytes);
    for (; p.first < B; p.first += at_once) {
        const int64_t last = lesser(B, p.first + at_once);
#pragma omp parallel num_threads(k->n_threads) if (B * HW * C >= BIG)
        {
            stats_at_once(&p, last);
            if (y)
                apply_at_once(&p, last);
        }
    }
    return K_OK;
}

static int group_norm_apply(struct kctx *k, void *y, int64_t ldy, const float *mean, const float *rstd, const void *x,
                            int64_t ldx, enum dtype type, const float *gamma, const float *beta, int64_t B, int64_t HW,
                            int64_t C, int64_t G, bool silu)
{
    const struct gn p = { .y = y, .x = x, .mean = mean, .rstd = rstd, .gamma = gamma, .beta = beta,
                          .ldy = ldy, .ldx = ldx, .HW = HW, .C = C, .G = G, .type = type, .silu = silu,
                          .cut = cut_image(HW > 0 ? HW : 1, C > 0 ? C : 1, MAX_TASKS) };

    if (bad_group_norm(type, B, HW, C, G, ldx, ldy))
        return K_ARG;
    if (!B || !HW || !C)
        return K_OK;
#pragma omp parallel num_threads(k->n_threads) if (B * HW * C >= BIG)
    apply_at_once(&p, B);
    return K_OK;
}

/* ---- group norm, backward ----
 * With xhat = (x - mean) rstd, z = gamma xhat + beta, dz = dy act'(z), and means over the group,
 *     dx = rstd (gamma dz - mean(gamma dz) - xhat mean(gamma dz xhat))
 *     dgamma = sum dz xhat,  dbeta = sum dz
 * work: per image and task the channels' sums of dz and dz xhat; then per image and group the two means. */

struct gn_back {
    void *dx;
    const void *dy, *x;
    const float *mean, *rstd, *gamma, *beta;
    int64_t lddy, ldx, HW, C, G;
    enum dtype type;
    bool silu;
    struct cut cut;
    float *sums;                /* (B,task,2,C) */
    float *means;               /* (B,G,2) */
};

struct back_consts {            /* per channel of a column block */
    float mean[COLS + VL], rstd[COLS + VL], gamma[COLS + VL], beta[COLS + VL], mean_dz[COLS + VL],
        mean_dzx[COLS + VL];
};

static void back_consts(struct back_consts *q, const struct gn_back *p, int64_t b, int64_t c0, int64_t c1, bool means)
{
    const int64_t size = p->C / p->G;

    for (int64_t g = c0 / size, c = c0; c < c1; g++) {
        const int64_t bg = b * p->G + g;
        for (; c < lesser(c1, (g + 1) * size); c++) {
            q->mean[c - c0] = p->mean[bg];
            q->rstd[c - c0] = p->rstd[bg];
            q->gamma[c - c0] = p->gamma[c];
            q->beta[c - c0] = p->beta[c];
            q->mean_dz[c - c0] = means ? p->means[2 * bg] : 0;
            q->mean_dzx[c - c0] = means ? p->means[2 * bg + 1] : 0;
        }
    }
}

INLINE vf back_act(bool silu, vf dy, vf xhat, const struct back_consts *q, int64_t c)
{
    return silu ? dy * v_silu_slope(v_fma(xhat, v_loadf(q->gamma + c), v_loadf(q->beta + c))) : dy;
}

/* sum[0][c] += dz, sum[1][c] += dz xhat over R pixels */
INLINE void add_back_rows(enum dtype T, bool silu, int R, float (*sum)[COLS + VL], const struct gn_back *p,
                          const struct back_consts *q, int64_t idy, int64_t ix, int64_t C)
{
    for (int64_t c = 0; c < C; c += VL) {
        vf a = v_zero(), b = v_zero();
        for (int r = 0; r < R; r++) {
            const vf x = v_load_upto(p->x, ix + r * p->ldx + c, T, C - c);
            const vf dy = v_load_upto(p->dy, idy + r * p->lddy + c, T, C - c);
            const vf xhat = (x - v_loadf(q->mean + c)) * v_loadf(q->rstd + c), dz = back_act(silu, dy, xhat, q, c);
            a += dz;
            b = v_fma(dz, xhat, b);
        }
        v_storef(sum[0] + c, v_loadf(sum[0] + c) + a);
        v_storef(sum[1] + c, v_loadf(sum[1] + c) + b);
    }
}

INLINE void back_sums_run(enum dtype T, bool silu, float (*sum)[COLS + VL], const struct gn_back *p,
                          const struct back_consts *q, int64_t idy, int64_t ix, int64_t n, int64_t C)
{
    int64_t r = 0;

    for (; r + 4 <= n; r += 4)
        add_back_rows(T, silu, 4, sum, p, q, idy + r * p->lddy, ix + r * p->ldx, C);
    for (; r < n; r++)
        add_back_rows(T, silu, 1, sum, p, q, idy + r * p->lddy, ix + r * p->ldx, C);
}

static int back_sums(float (*sum)[COLS + VL], const struct gn_back *p, const struct back_consts *q, int64_t idy,
                     int64_t ix, int64_t n, int64_t C)
{
    if (p->silu)
        BY_TYPE(p->type, back_sums_run(T, true, sum, p, q, idy, ix, n, C));
    else
        BY_TYPE(p->type, back_sums_run(T, false, sum, p, q, idy, ix, n, C));
    return K_OK;
}

static void task_back_sums(const struct gn_back *p, int64_t b, int64_t task)
{
    const int64_t t = task * p->cut.pixels, n = lesser(p->HW - t, p->cut.pixels);
    float *out = p->sums + (b * p->cut.n_tasks + task) * 2 * p->C, sum[2][COLS + VL];
    struct back_consts q = { 0 };

    for (int64_t c0 = 0; c0 < p->C; c0 += COLS) {
        const int64_t c1 = lesser(p->C, c0 + COLS);
        back_consts(&q, p, b, c0, c1, false);
        memset(sum, 0, sizeof sum);
        back_sums(sum, p, &q, (b * p->HW + t) * p->lddy + c0, (b * p->HW + t) * p->ldx + c0, n, c1 - c0);
        memcpy(out + c0, sum[0], sizeof *out * (size_t)(c1 - c0));
        memcpy(out + p->C + c0, sum[1], sizeof *out * (size_t)(c1 - c0));
    }
}

static void group_back_means(const struct gn_back *p, int64_t b, int64_t g)
{
    const int64_t size = p->C / p->G;
    const double n = (double)p->HW * (double)size;
    double a = 0, ax = 0;

    for (int64_t task = 0; task < p->cut.n_tasks; task++) {
        const float *sum = p->sums + (b * p->cut.n_tasks + task) * 2 * p->C;
        for (int64_t c = g * size; c < (g + 1) * size; c++) {
            a += (double)p->gamma[c] * (double)sum[c];
            ax += (double)p->gamma[c] * (double)sum[p->C + c];
        }
    }
    p->means[2 * (b * p->G + g)] = (float)(a / n);
    p->means[2 * (b * p->G + g) + 1] = (float)(ax / n);
}

INLINE void back_apply_run(enum dtype T, bool silu, const struct gn_back *p, const struct back_consts *q, int64_t idx,
                           int64_t idy, int64_t ix, int64_t n, int64_t C)
{
    for (int64_t r = 0; r < n; r++, idx += p->C, idy += p->lddy, ix += p->ldx)
        for (int64_t c = 0; c < C; c += VL) {
            const vf x = v_load_upto(p->x, ix + c, T, C - c), dy = v_load_upto(p->dy, idy + c, T, C - c);
            const vf rstd = v_loadf(q->rstd + c), xhat = (x - v_loadf(q->mean + c)) * rstd;
            const vf dz = back_act(silu, dy, xhat, q, c);
            const vf d = v_fma(dz, v_loadf(q->gamma + c), -v_loadf(q->mean_dz + c));
            v_store_upto(p->dx, idx + c, T, v_fnma(xhat, v_loadf(q->mean_dzx + c), d) * rstd, C - c);
        }
}

static int back_apply(const struct gn_back *p, const struct back_consts *q, int64_t idx, int64_t idy, int64_t ix,
                      int64_t n, int64_t C)
{
    if (p->silu)
        BY_TYPE(p->type, back_apply_run(T, true, p, q, idx, idy, ix, n, C));
    else
        BY_TYPE(p->type, back_apply_run(T, false, p, q, idx, idy, ix, n, C));
    return K_OK;
}

static void task_back_apply(const struct gn_back *p, int64_t b, int64_t task)
{
    const int64_t t = task * p->cut.pixels, n = lesser(p->HW - t, p->cut.pixels), first = b * p->HW + t;
    struct back_consts q = { 0 };

    for (int64_t c0 = 0; c0 < p->C; c0 += COLS) {
        const int64_t c1 = lesser(p->C, c0 + COLS);
        back_consts(&q, p, b, c0, c1, true);
        back_apply(p, &q, first * p->C + c0, first * p->lddy + c0, first * p->ldx + c0, n, c1 - c0);
    }
}

/* dbeta and dgamma of columns [c0,c1), at most 64, from n tasks' sums (n,2,C). */
static void add_params(float *dgamma, float *dbeta, const float *sums, int64_t n, int64_t C, int64_t c0, int64_t c1)
{
    double a[64] = { 0 }, ax[64] = { 0 };

    for (int64_t i = 0; i < n; i++)
        for (int64_t c = c0; c < c1; c++) {
            a[c - c0] += (double)sums[2 * i * C + c];
            ax[c - c0] += (double)sums[(2 * i + 1) * C + c];
        }
    for (int64_t c = c0; c < c1; c++) {
        dbeta[c] = (float)((double)dbeta[c] + a[c - c0]);
        dgamma[c] = (float)((double)dgamma[c] + ax[c - c0]);
    }
}

static size_t group_norm_back_bytes(int64_t B, int64_t HW, int64_t C, int64_t G)
{
    if (B <= 0 || HW <= 0 || C <= 0 || G < 1)
        return 0;
    return sizeof(float) * 2 * (size_t)(B * cut_image(HW, C, MAX_TASKS).n_tasks * C + B * G);
}

static int group_norm_back(struct kctx *k, void *dx, float *dgamma, float *dbeta, const void *dy, int64_t lddy,
                           const void *x, int64_t ldx, const float *mean, const float *rstd, enum dtype type,
                           const float *gamma, const float *beta, int64_t B, int64_t HW, int64_t C, int64_t G,
                           bool silu, void *work)
{
    struct gn_back p = { .dx = dx, .dy = dy, .x = x, .mean = mean, .rstd = rstd, .gamma = gamma, .beta = beta,
                         .lddy = lddy, .ldx = ldx, .HW = HW, .C = C, .G = G, .type = type, .silu = silu };
    int64_t n;

    if (bad_group_norm(type, B, HW, C, G, ldx, lddy) || !dgamma != !dbeta)
        return K_ARG;
    if (!B || !HW || !C)
        return K_OK;
    p.cut = cut_image(HW, C, MAX_TASKS);
    n = B * p.cut.n_tasks;
    p.sums = work;
    p.means = p.sums + n * 2 * C;
#pragma omp parallel num_threads(k->n_threads) if (B * HW * C >= BIG)
    {
#pragma omp for schedule(static)
        for (int64_t i = 0; i < n; i++)
            task_back_sums(&p, i / p.cut.n_tasks, i % p.cut.n_tasks);
#pragma omp for schedule(static) nowait
        for (int64_t c = 0; c < (dgamma ? C : 0); c += 64)
            add_params(dgamma, dbeta, p.sums, n, C, c, lesser(C, c + 64));
#pragma omp for schedule(static)
        for (int64_t i = 0; i < B * G; i++)
            group_back_means(&p, i / G, i % G);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < n; i++)
            task_back_apply(&p, i / p.cut.n_tasks, i % p.cut.n_tasks);
    }
    return K_OK;
}

/* ---- layer norm ---- */

/* Sum of x[i..i+D), in leaves. */
INLINE double row_sum(enum dtype T, const void *x, int64_t i, int64_t D)
{
    const int64_t end = i + D;
    double sum = 0;

    while (i < end) {
        const int64_t stop = lesser(end, i + LEAF);
        vf s = v_zero();
        for (; i + 4 * VL <= stop; i += 4 * VL)
            s += (v_load(x, i, T) + v_load(x, i + VL, T)) + (v_load(x, i + 2 * VL, T) + v_load(x, i + 3 * VL, T));
        for (; i < stop; i += VL)
            s += v_load_upto(x, i, T, stop - i);
        i = stop;
        sum += (double)v_sum(s);
    }
    return sum;
}

/* Sums of d = x - m and of d^2; the last few one by one, for a missing lane is not at distance zero. */
INLINE void row_distances(enum dtype T, const void *x, int64_t i, int64_t D, float m, double *sum, double *squares)
{
    const int64_t end = i + D;

    *sum = *squares = 0;
    while (i < end) {
        const int64_t stop = lesser(end, i + LEAF);
        vf s[4] = { v_zero() }, ss[4] = { v_zero() };
        for (; i + 4 * VL <= stop; i += 4 * VL)
            for (int j = 0; j < 4; j++) {
                const vf d = v_load(x, i + j * VL, T) - v_set(m);
                s[j] += d;
                ss[j] = v_fma(d, d, ss[j]);
            }
        for (; i + VL <= stop; i += VL) {
            const vf d = v_load(x, i, T) - v_set(m);
            s[0] += d;
            ss[0] = v_fma(d, d, ss[0]);
        }
        *sum += (double)v_sum((s[0] + s[1]) + (s[2] + s[3]));
        *squares += (double)v_sum((ss[0] + ss[1]) + (ss[2] + ss[3]));
        for (; i < stop; i++) {
            const double d = (double)(s_load(x, i, T) - m);
            *sum += d;
            *squares += d * d;
        }
    }
}

INLINE void layer_norm_run(enum dtype T, void *y, float *mean, float *rstd, const void *x, const float *gamma,
                           const float *beta, int64_t r, int64_t D, float eps)
{
    const double per = 1 / (double)D;
    const float m = (float)(row_sum(T, x, r * D, D) * per);
    double d, dd, var;
    vf vm, vr;

    row_distances(T, x, r * D, D, m, &d, &dd);
    d *= per;
    var = dd * per - d * d;
    vm = v_set((float)((double)m + d));
    vr = v_set((float)(1 / sqrt((var < 0 ? 0 : var) + (double)eps)));
    if (mean) {
        mean[r] = vm[0];
        rstd[r] = vr[0];
    }
    for (int64_t i = 0; i < D; i += VL) {
        const vf g = v_load_upto(gamma, i, F32, D - i), b = v_load_upto(beta, i, F32, D - i);
        v_store_upto(y, r * D + i, T, v_fma((v_load_upto(x, r * D + i, T, D - i) - vm) * vr, g, b), D - i);
    }
}

static int layer_norm_row(void *y, float *mean, float *rstd, const void *x, enum dtype type, const float *gamma,
                          const float *beta, int64_t r, int64_t D, float eps)
{
    BY_TYPE(type, layer_norm_run(T, y, mean, rstd, x, gamma, beta, r, D, eps));
    return K_OK;
}

static int layer_norm(struct kctx *k, void *y, float *mean, float *rstd, const void *x, enum dtype type,
                      const float *gamma, const float *beta, int64_t rows, int64_t D, float eps)
{
    if ((unsigned)type >= N_DTYPE || rows < 0 || D < 0 || !mean != !rstd)
        return K_ARG;
    if (D == 0)
        return K_OK;
#pragma omp parallel for num_threads(k->n_threads) schedule(static) if (rows * D >= BIG)
    for (int64_t r = 0; r < rows; r++)
        layer_norm_row(y, mean, rstd, x, type, gamma, beta, r, D, eps);
    return K_OK;
}

/* ---- layer norm, backward: as group norm's, with a row for a group ----
 * work: per task of rows the columns' sums of dy and dy xhat. */

struct ln_back {
    void *dx;
    const void *dy, *x;
    const float *mean, *rstd, *gamma;
    int64_t D;
    enum dtype type;
    float *sums;                /* (task,2,D), or NULL */
};

static int64_t rows_per_task(int64_t rows)
{
    return rows <= 32 * MAX_TASKS ? 32 : divide_up(rows, MAX_TASKS);
}

/* Row r. sum (2,D), if wanted, takes dy and dy xhat. */
INLINE void layer_norm_back_run(enum dtype T, bool params, const struct ln_back *p, float *sum, int64_t r)
{
    const int64_t D = p->D, at = r * D;
    const vf mean = v_set(p->mean[r]), rstd = v_set(p->rstd[r]);
    double a = 0, ax = 0;
    vf ma, max;

    for (int64_t leaf = 0; leaf < D; leaf += LEAF) {
        vf s = v_zero(), sx = v_zero();
        for (int64_t i = leaf; i < lesser(D, leaf + LEAF); i += VL) {
            const vf xhat = (v_load_upto(p->x, at + i, T, D - i) - mean) * rstd;
            const vf d = v_load_upto(p->dy, at + i, T, D - i) * v_load_upto(p->gamma, i, F32, D - i);
            s += d;
            sx = v_fma(d, xhat, sx);
        }
        a += (double)v_sum(s);
        ax += (double)v_sum(sx);
    }
    ma = v_set((float)(a / (double)D));
    max = v_set((float)(ax / (double)D));
    for (int64_t i = 0; i < D; i += VL) {
        const vf xhat = (v_load_upto(p->x, at + i, T, D - i) - mean) * rstd, dy = v_load_upto(p->dy, at + i, T, D - i);
        const vf d = v_fma(dy, v_load_upto(p->gamma, i, F32, D - i), -ma);
        v_store_upto(p->dx, at + i, T, v_fnma(xhat, max, d) * rstd, D - i);
        if (params) {
            v_store_upto(sum, i, F32, v_load_upto(sum, i, F32, D - i) + dy, D - i);
            v_store_upto(sum, D + i, F32, v_fma(dy, xhat, v_load_upto(sum, D + i, F32, D - i)), D - i);
        }
    }
}

static int layer_norm_back_row(const struct ln_back *p, float *sum, int64_t r)
{
    if (sum)
        BY_TYPE(p->type, layer_norm_back_run(T, true, p, sum, r));
    else
        BY_TYPE(p->type, layer_norm_back_run(T, false, p, sum, r));
    return K_OK;
}

static size_t layer_norm_back_bytes(int64_t rows, int64_t D)
{
    if (rows <= 0 || D <= 0)
        return 0;
    return sizeof(float) * 2 * (size_t)(divide_up(rows, rows_per_task(rows)) * D);
}

static int layer_norm_back(struct kctx *k, void *dx, float *dgamma, float *dbeta, const void *dy, const void *x,
                           const float *mean, const float *rstd, enum dtype type, const float *gamma, int64_t rows,
                           int64_t D, void *work)
{
    const struct ln_back p = { .dx = dx, .dy = dy, .x = x, .mean = mean, .rstd = rstd, .gamma = gamma, .D = D,
                               .type = type, .sums = dgamma ? work : NULL };
    const int64_t per = rows_per_task(rows), n = divide_up(rows, per);

    if ((unsigned)type >= N_DTYPE || rows < 0 || D < 0 || !dgamma != !dbeta)
        return K_ARG;
    if (!rows || !D)
        return K_OK;
#pragma omp parallel num_threads(k->n_threads) if (rows * D >= BIG)
    {
#pragma omp for schedule(static)
        for (int64_t task = 0; task < n; task++) {
            float *sum = p.sums ? p.sums + task * 2 * D : NULL;
            if (sum)
                memset(sum, 0, sizeof *sum * 2 * (size_t)D);
            for (int64_t r = task * per; r < lesser(rows, (task + 1) * per); r++)
                layer_norm_back_row(&p, sum, r);
        }
#pragma omp for schedule(static)
        for (int64_t c = 0; c < (dgamma ? D : 0); c += 64)
            add_params(dgamma, dbeta, p.sums, n, D, c, lesser(D, c + 64));
    }
    return K_OK;
}

void ISA_NAME(fill_norm)(struct kern *k)
{
    k->group_norm = group_norm;
    k->group_norm_apply = group_norm_apply;
    k->group_norm_back_bytes = group_norm_back_bytes;
    k->group_norm_back = group_norm_back;
    k->layer_norm = layer_norm;
    k->layer_norm_back_bytes = layer_norm_back_bytes;
    k->layer_norm_back = layer_norm_back;
    if (k->scratch_bytes < SCRATCH_BYTES)
        k->scratch_bytes = SCRATCH_BYTES;
}
