/* kernels/pack_cpu.c: weights (Co,KH,KW,Ci) into panels, once. A pack is [phase][panel][tap][channel][NR]: phases and
 * taps are those of the product that reads it (see conv_cpu.c), and a tap may be the sum of several raw ones:
 *   K_PACK_FWD    1 phase, KH*KW taps over Ci, columns Co
 *   K_PACK_DX     1 phase, KH*KW taps over Co, columns Ci
 *   K_PACK_UP     4 phases of 2x2 taps over Ci: doubling makes two of three weights meet the same pixel
 *   K_PACK_UP_DX  1 phase, 4x4 taps over Co: a pixel is seen by four rows of the doubled output
 * Packs of few columns are laid out along K instead (product.h, pack_is_narrow). */
#include "kernels/product.h"

#include "kernels/isa.h"

enum {
    CHUNK = 64,                         /* channels transposed at a time */
    BIG = 1 << 17                       /* bytes of a pack from which threads pay */
};
_Static_assert((int)CHUNK >= (int)NR, "a panel row fits a chunk");

static int n_phases(const struct kpack *p)
{
    return p->kind == K_PACK_UP ? 4 : 1;
}

static int n_taps(const struct kpack *p)
{
    return p->kind == K_PACK_UP ? 4 : p->kind == K_PACK_UP_DX ? 16 : p->KH * p->KW;
}

static bool is_dx(const struct kpack *p)
{
    return p->kind == K_PACK_DX || p->kind == K_PACK_UP_DX;
}

static int64_t n_columns(const struct kpack *p)
{
    return is_dx(p) ? p->Ci : p->Co;
}

static int64_t n_channels(const struct kpack *p)
{
    return is_dx(p) ? p->Co : p->Ci;
}

static bool is_narrow(const struct kpack *p)
{
    return pack_is_narrow(n_columns(p), p->glu);
}

/* Columns of a panel that hold values of their own: half of them are gates with glu. */
static int64_t n_panels(const struct kpack *p)
{
    return p->glu ? ceil_div(p->Co / 2, VL) : ceil_div(n_columns(p), NR);
}

static int64_t tap_depth(const struct kpack *p)
{
    return pack_tap_depth(p->dst, n_channels(p));
}

static bool valid(const struct kpack *p)
{
    const bool up = p->kind == K_PACK_UP || p->kind == K_PACK_UP_DX;

    return p->kind < K_N_PACK && p->src < N_DTYPE && p->dst < N_DTYPE && p->Co >= 0 && p->Ci >= 0 && p->KH > 0
        && p->KW > 0 && p->ci_first >= 0 && p->ci_first + p->Ci <= p->ci_total
        && (!up || (p->KH == 3 && p->KW == 3)) && (!p->glu || (p->kind == K_PACK_FWD && p->Co % 2 == 0));
}

static size_t pack_bytes(const struct kpack *p)
{
    if (!valid(p))
        return 0;
    if (is_narrow(p))
        return (size_t)(n_phases(p) * n_taps(p) * n_columns(p) * pack_narrow_depth(n_channels(p)))
            * dtype_bytes(p->dst);
    return (size_t)(n_phases(p) * n_panels(p) * n_taps(p) * tap_depth(p) * NR) * dtype_bytes(p->dst);
}

/* Raw taps along one axis that a tap of an up-sampling pack sums: bits 0..2. */
static unsigned up_taps(enum kpack_kind kind, int phase, int tap)
{
    static const unsigned fwd[2][2] = { { 1, 6 }, { 3, 4 } };   /* {w0, w1+w2}, {w0+w1, w2} */
    static const unsigned dx[4] = { 4, 6, 3, 1 };               /* rows 2i-1, 2i, 2i+1, 2i+2 */

    return kind == K_PACK_UP ? fwd[phase][tap] : dx[tap];
}

/* The raw taps, as bits of KH*KW, that are summed in `tap` of `phase`. */
static uint64_t summed_taps(const struct kpack *p, int phase, int tap)
{
    const int side = p->kind == K_PACK_UP ? 2 : 4;
    uint64_t set = 0;

    if (p->kind != K_PACK_UP && p->kind != K_PACK_UP_DX)
        return 0;
    for (int a = 0; a < 3; a++)
        for (int b = 0; b < 3; b++)
            if ((up_taps(p->kind, phase / 2, tap / side) >> a & 1)
                && (up_taps(p->kind, phase % 2, tap % side) >> b & 1))
                set |= (uint64_t)1 << (a * 3 + b);
    return set;
}

/* Add w[co][raw_tap][c0..c0+n) to dst; set rather than add when it is the first of a sum. */
static void take_row(float *dst, const struct kpack *p, const void *w, int64_t co, int raw_tap, int64_t c0, int64_t n,
                     bool first)
{
    const int64_t at = (co * p->KH * p->KW + raw_tap) * p->ci_total + p->ci_first + c0;
    float more[CHUNK];                  /* n <= CHUNK, and a panel is no wider */

    widen(first ? dst : more, w, at, p->src, n);
    for (int64_t i = 0; !first && i < n; i++)
        dst[i] += more[i];
}

static void take_taps(float *dst, const struct kpack *p, const void *w, int64_t co, int phase, int tap, int64_t c0,
                      int64_t n)
{
    uint64_t set = summed_taps(p, phase, tap);
    bool first = true;

    if (!set) {
        take_row(dst, p, w, co, tap, c0, n, true);
        return;
    }
    for (int raw = 0; set; raw++, set >>= 1)
        if (set & 1) {
            take_row(dst, p, w, co, raw, c0, n, first);
            first = false;
        }
}

/* Source row of column c of a panel, or -1 for padding. */
static int64_t column_row(const struct kpack *p, int64_t panel, int c)
{
    int64_t r = panel * NR + c;

    if (p->glu) {
        r = panel * VL + c % VL;
        return r >= p->Co / 2 ? -1 : c < VL ? r : p->Co / 2 + r;
    }
    return r < p->Co ? r : -1;
}

/* Store block (n,NR) as rows [k0,k0+n) of a tap. */
static void put_block(void *dst, enum dtype t, int64_t k0, const float *block, int64_t n)
{
    if (pack_pairs(t)) {
        uint16_t *d = dst;
        for (int64_t k = 0; k < n; k++)
            for (int c = 0; c < NR; c++)
                d[((k0 + k) / 2 * NR + c) * 2 + ((k0 + k) & 1)] = bf16_of_f32(block[k * NR + c]);
        return;
    }
    for (int64_t i = 0; i < n * NR; i += VL)
        v_store(dst, k0 * NR + i, t, v_loadf(block + i));
}

/* One tap of one panel, forward: columns are output channels, so rows of w are turned. */
static void pack_tap_fwd(void *dst, const struct kpack *p, const void *w, int phase, int64_t panel, int tap)
{
    float row[CHUNK], block[CHUNK * NR];

    for (int64_t c0 = 0; c0 < tap_depth(p); c0 += CHUNK) {
        const int64_t n = lesser(CHUNK, tap_depth(p) - c0), have = lesser(n, p->Ci - c0);

        memset(block, 0, sizeof block);
        for (int c = 0; c < NR; c++) {
            const int64_t co = column_row(p, panel, c);
            if (co < 0)
                continue;
            take_taps(row, p, w, co, phase, tap, c0, have);
            for (int64_t i = 0; i < have; i++)
                block[i * NR + c] = row[i];
        }
        put_block(dst, p->dst, c0, block, n);
    }
}

/* One tap of one panel, backward: columns are input channels, contiguous in w. */
static void pack_tap_dx(void *dst, const struct kpack *p, const void *w, int64_t panel, int tap)
{
    const int64_t have = lesser(NR, p->Ci - panel * NR);
    float block[CHUNK * NR];

    for (int64_t c0 = 0; c0 < tap_depth(p); c0 += CHUNK) {
        const int64_t n = lesser(CHUNK, tap_depth(p) - c0);

        memset(block, 0, sizeof block);
        for (int64_t i = 0; i < lesser(n, p->Co - c0); i++)
            take_taps(block + i * NR, p, w, c0 + i, 0, tap, panel * NR, have);
        put_block(dst, p->dst, c0, block, n);
    }
}

/* One tap of a narrow pack: columns one after the other, channels contiguous. */
static void pack_tap_narrow(void *dst, const struct kpack *p, const void *w, int phase, int tap)
{
    const int64_t depth = pack_narrow_depth(n_channels(p));
    float row[CHUNK];

    for (int64_t c = 0; c < n_columns(p); c++)
        for (int64_t c0 = 0; c0 < depth; c0 += CHUNK) {
            const int64_t n = lesser(CHUNK, depth - c0), have = lesser(n, n_channels(p) - c0);

            memset(row, 0, sizeof row);
            if (!is_dx(p) && have > 0)
                take_taps(row, p, w, c, phase, tap, c0, have);
            for (int64_t i = 0; is_dx(p) && i < have; i++)
                take_taps(row + i, p, w, c0 + i, 0, tap, c, 1);
            for (int64_t i = 0; i < n; i += VL)
                v_store(dst, c * depth + c0 + i, p->dst, v_loadf(row + i));
        }
}

static int pack(struct kctx *k, void *dst, const struct kpack *p, const void *w)
{
    const int taps = n_taps(p);
    const int64_t panels = n_panels(p), n = n_phases(p) * panels * taps;
    const size_t tap_bytes = (size_t)(tap_depth(p) * NR) * dtype_bytes(p->dst);

    if (!valid(p))
        return K_ARG;
    if (is_narrow(p)) {
        const size_t bytes = pack_bytes(p) / (size_t)(n_phases(p) * taps);
        for (int i = 0; i < n_phases(p) * taps; i++)
            pack_tap_narrow((char *)dst + (size_t)i * bytes, p, w, i / taps, i % taps);
        return K_OK;
    }
    #pragma omp parallel for num_threads(k->n_threads) schedule(static) if (n * (int64_t)tap_bytes > BIG)
    for (int64_t i = 0; i < n; i++) {
        const int phase = (int)(i / taps / panels);
        char *d = (char *)dst + (size_t)i * tap_bytes;

        if (is_dx(p))
            pack_tap_dx(d, p, w, i / taps % panels, (int)(i % taps));
        else
            pack_tap_fwd(d, p, w, phase, i / taps % panels, (int)(i % taps));
    }
    return K_OK;
}

void ISA_NAME(fill_pack)(struct kern *k)
{
    k->pack_bytes = pack_bytes;
    k->pack = pack;
    k->scratch_bytes = SCRATCH_BYTES;
}
