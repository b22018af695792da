/* tests/emu/ptx.cc: the instructions of kernels/cuda_ptx.cuh on the emulated device. An asynchronous copy lands when it
 * is waited for, not before; or, where the order of threads is shuffled, at once: both may happen on a device. */
#include <vector>

#include "kernels/cuda_ptx.cuh"

#include "emu.h"

/* ---- half precision ---- */

static float f16_value(unsigned h)
{
    const uint32_t sign = (h & 0x8000u) << 16, e = h >> 10 & 31, m = h & 1023;
    uint32_t u;
    float f;

    if (e == 0) {
        f = (float)m * 0x1p-24f;
        return sign ? -f : f;
    }
    u = sign | (e == 31 ? 0x7f800000u : (e + 112) << 23) | m << 13;
    memcpy(&f, &u, 4);
    return f;
}

/* All of them, made once. */
float ptx_f16_to_f32(unsigned h)
{
    static float table[1 << 16];
    static bool made;

    for (unsigned i = 0; !made && i < 1 << 16; i++)
        table[i] = f16_value(i);
    made = true;
    return table[h & 0xffff];
}

unsigned ptx_f32_to_f16(float x)
{
    uint32_t u;

    memcpy(&u, &x, 4);
    const unsigned sign = u >> 16 & 0x8000u;
    const uint32_t a = u & 0x7fffffffu;
    if (a > 0x7f800000u)
        return 0x7fff;
    if (a >= 0x477ff000u)
        return sign | 0x7c00;
    if (a < 0x38800000u) {              /* subnormal: multiples of 2^-24 */
        float abs;

        memcpy(&abs, &a, 4);
        return sign | (unsigned)nearbyintf(abs * 16777216.0f);
    }
    return sign | ((a - 0x38000000u + 0xfffu + (a >> 13 & 1)) >> 13);
}

unsigned ptx_pack_f16(float low, float high)
{
    return ptx_f32_to_f16(low) | ptx_f32_to_f16(high) << 16;
}

static unsigned f32_to_bf16(float x)
{
    uint32_t u;

    memcpy(&u, &x, 4);
    return (u & 0x7fffffffu) > 0x7f800000u ? 0x7fff : (u + 0x7fff + (u >> 16 & 1)) >> 16;
}

unsigned ptx_pack_bf16(float low, float high)
{
    return f32_to_bf16(low) | f32_to_bf16(high) << 16;
}

float ptx_exp2(float x)
{
    const float y = exp2f(x);

    return y < 0x1p-126f ? 0 : y;
}

/* ---- asynchronous copies ---- */

struct copy {
    void *to;
    unsigned char value[16];
    const void *from;
};
struct copies {
    std::vector<struct copy> open;
    std::vector<std::vector<struct copy>> group;
    bool unfenced;              /* some have landed that wgmma may not see yet */
};
static struct copies of_thread[1024];
static void emu_products_left(void);

static void check16(const void *p, const char *what)
{
    if ((uintptr_t)p % 16)
        emu_die(what);
}

static void land(const struct copy *c)
{
    if (c->from)
        memcpy(c->to, c->from, 16);
    else
        memset(c->to, 0, 16);
}

void ptx_copy16(void *shared, const void *global, bool there)
{
    struct copy c = { shared, { 0 }, there ? global : NULL };

    check16(shared, "an asynchronous copy to an address that is no multiple of 16");
    check16(global, "an asynchronous copy from an address that is no multiple of 16");
    if (emu_copies_at_once)
        land(&c);
    of_thread[emu_thread()].open.push_back(c);
}

void ptx_copy_commit(void)
{
    struct copies *c = &of_thread[emu_thread()];

    c->group.push_back(std::move(c->open));
    c->open.clear();
}

void ptx_copy_wait_up_to(int n)
{
    struct copies *c = &of_thread[emu_thread()];

    while (c->group.size() > (size_t)n) {
        for (const struct copy &i : c->group.front()) {
            c->unfenced = true;
            if (!emu_copies_at_once)
                land(&i);
        }
        c->group.erase(c->group.begin());
    }
}

void emu_copies_left(void)
{
    struct copies *c = &of_thread[emu_thread()];

    for (const auto &g : c->group)
        if (!g.empty())
            emu_die("a thread ends before its asynchronous copies are waited for");
    if (!c->open.empty())
        emu_die("a thread ends with asynchronous copies in no group");
    c->group.clear();
    c->unfenced = false;
    emu_products_left();
}

/* ---- matrices ---- */

struct load {
    uint32_t *r;
    const void *row;
    int n;
    bool trans;
};

static uint16_t element(void *const lane[32], int matrix, int row, int column)
{
    const struct load *l = (const struct load *)lane[8 * matrix + row];
    uint16_t v;

    memcpy(&v, (const char *)l->row + 2 * column, 2);
    return v;
}

static void load_all(void *const lane[32], unsigned mask)
{
    if (mask != 0xffffffffu)
        emu_die("ldmatrix by part of a warp");
    const struct load *first = (const struct load *)lane[0];
    for (int i = 0; i < 8 * first->n; i++)
        check16(((const struct load *)lane[i])->row, "ldmatrix of a row that is not aligned to 16");
    for (int i = 0; i < 32; i++) {
        struct load *l = (struct load *)lane[i];

        for (int k = 0; k < l->n; k++) {
            const int r = i / 4, c = i % 4 * 2;
            const uint32_t low = l->trans ? element(lane, k, c, r) : element(lane, k, r, c);
            const uint32_t high = l->trans ? element(lane, k, c + 1, r) : element(lane, k, r, c + 1);

            l->r[k] = low | high << 16;
        }
    }
}

static void load(uint32_t *r, const void *row, int n, bool trans)
{
    struct load l = { r, row, n, trans };

    emu_warp(0xffffffffu, &l, load_all);
}

void ptx_ldmatrix_x4(uint32_t r[4], const void *row) { load(r, row, 4, false); }
void ptx_ldmatrix_x2(uint32_t r[2], const void *row) { load(r, row, 2, false); }
void ptx_ldmatrix_x4_trans(uint32_t r[4], const void *row) { load(r, row, 4, true); }
void ptx_ldmatrix_x2_trans(uint32_t r[2], const void *row) { load(r, row, 2, true); }

struct mma {
    float *d;
    const uint32_t *a, *b;
    int k;
    bool bf16;
};

static float value(uint32_t word, int i, bool bf16)
{
    const uint32_t h = i ? word >> 16 : word & 0xffffu;
    const uint32_t u = h << 16;
    float f;

    if (!bf16)
        return ptx_f16_to_f32(h);
    memcpy(&f, &u, 4);
    return f;
}

/* d of all lanes, from and to where the lanes have it. */
static void exchange(float D[16][8], void *const lane[32], bool back)
{
    for (int l = 0; l < 32; l++) {
        float *d = ((const struct mma *)lane[l])->d;

        for (int i = 0; i < 4; i++) {
            float *at = &D[l / 4 + i / 2 * 8][l % 4 * 2 + i % 2];

            *(back ? &d[i] : at) = *(back ? at : &d[i]);
        }
    }
}

__attribute__((optimize("O3"))) static void multiply(float D[16][8], const float A[16][16], const float B[16][8], int K)
{
    for (int r = 0; r < 16; r++)
        for (int k = 0; k < K; k++)
            for (int c = 0; c < 8; c++)
                D[r][c] += A[r][k] * B[k][c];
}

static void mma_all(void *const lane[32], unsigned mask)
{
    float A[16][16], B[16][8], D[16][8];
    const struct mma *first = (const struct mma *)lane[0];

    if (mask != 0xffffffffu)
        emu_die("mma by part of a warp");
    for (int l = 0; l < 32; l++) {
        const struct mma *m = (const struct mma *)lane[l];

        for (int i = 0; i < 2; i++)
            for (int h = 0; h < m->k / 8; h++) {
                for (int below = 0; below < 2; below++)
                    A[l / 4 + 8 * below][l % 4 * 2 + i + 8 * h] = value(m->a[below + 2 * h], i, m->bf16);
                B[l % 4 * 2 + i + 8 * h][l / 4] = value(m->b[h], i, m->bf16);
            }
    }
    exchange(D, lane, false);
    multiply(D, A, B, first->k);
    exchange(D, lane, true);
}

static void mma(float *d, const uint32_t *a, const uint32_t *b, int k, bool bf16)
{
    struct mma m = { d, a, b, k, bf16 };

    emu_warp(0xffffffffu, &m, mma_all);
}

void ptx_mma_k16_bf16(float d[4], const uint32_t a[4], const uint32_t b[2]) { mma(d, a, b, 16, true); }
void ptx_mma_k16_f16(float d[4], const uint32_t a[4], const uint32_t b[2]) { mma(d, a, b, 16, false); }
void ptx_mma_k8_bf16(float d[4], const uint32_t a[2], uint32_t b) { mma(d, a, &b, 8, true); }
void ptx_mma_k8_f16(float d[4], const uint32_t a[2], uint32_t b) { mma(d, a, &b, 8, false); }

/* ---- wgmma: every thread does its own share when it waits. Until then its accumulators are NaN ---- */

struct wgmma {
    float *d;
    int n;
    uint64_t a, b;
    bool bf16;
};
struct products {
    std::vector<struct wgmma> open;
    std::vector<std::vector<struct wgmma>> group;
    std::vector<float> sum;             /* what d really is while anything is open */
    bool fenced;
};
static struct products products_of[1024];

/* Addresses of shared memory count from the dynamic array's begin, which is a multiple of 1024. */
uint64_t ptx_wgmma_tile(const void *shared)
{
    const int64_t at = (const char *)shared - (const char *)emu_dynamic_shared();

    if (at < 0 || at % 1024 || at >= 1 << 18)
        emu_die("a tile for wgmma that does not begin at a multiple of 1024 of shared memory");
    return (uint64_t)at >> 4 | (uint64_t)1 << 16 | (uint64_t)64 << 32 | (uint64_t)1 << 62;
}

/* Row `row` of a tile, its 16 values. */
static void tile_row(float out[16], uint64_t tile, int row, bool bf16)
{
    const uint64_t start = (tile & 0x3fff) << 4, group = (tile >> 32 & 0x3fff) << 4;
    uint32_t word[4];

    if (tile >> 62 != 1 || (tile >> 49 & 7))
        emu_die("a tile for wgmma that is not swizzled by 128 bytes");
    for (int chunk = 0; chunk < 2; chunk++) {
        uint64_t at = start + (uint64_t)(row / 8) * group + (uint64_t)(row % 8 * 128 + chunk * 16);

        at ^= (at >> 7 & 7) << 4;
        memcpy(word, (const char *)emu_dynamic_shared() + at, 16);
        for (int i = 0; i < 8; i++)
            out[8 * chunk + i] = value(word[i / 2], i % 2, bf16);
    }
}

static void perform(const struct wgmma *w, float *sum)
{
    const int thread = emu_thread() % 128, row = thread / 32 * 16 + thread % 32 / 4;
    float a[2][16], b[16];

    for (int h = 0; h < 2; h++)
        tile_row(a[h], w->a, row + 8 * h, w->bf16);
    for (int c = 0; c < w->n / 4; c++) {
        tile_row(b, w->b, c / 2 * 8 + thread % 4 * 2 + c % 2, w->bf16);
        for (int h = 0; h < 2; h++)
            for (int k = 0; k < 16; k++)
                sum[c / 2 * 4 + h * 2 + c % 2] += a[h][k] * b[k];
    }
}

void ptx_wgmma(float *d, int n, uint64_t a, uint64_t b, bool bf16)
{
    struct products *p = &products_of[emu_thread()];

    if (!p->fenced)
        emu_die("wgmma without wgmma.fence");
    for (unsigned i = 0; i < blockDim.x; i++)
        if (of_thread[i].unfenced)
            emu_die("wgmma reads what was copied without fence.proxy.async");
    if (p->open.empty() && p->group.empty()) {
        p->sum.assign(d, d + n / 2);
        for (int i = 0; i < n / 2; i++)
            d[i] = NAN;
    }
    p->open.push_back({ d, n, a, b, bf16 });
}

void ptx_wgmma_fence(void) { products_of[emu_thread()].fenced = true; }

void ptx_wgmma_commit(void)
{
    struct products *p = &products_of[emu_thread()];

    p->group.push_back(std::move(p->open));
    p->open.clear();
}

void ptx_wgmma_wait_up_to(int n)
{
    struct products *p = &products_of[emu_thread()];
    float *d = NULL;

    p->fenced = false;
    while (p->group.size() > (size_t)n) {
        for (const struct wgmma &w : p->group.front()) {
            perform(&w, p->sum.data());
            d = w.d;
        }
        p->group.erase(p->group.begin());
    }
    if (d && p->group.empty() && p->open.empty())
        memcpy(d, p->sum.data(), p->sum.size() * sizeof *d);
}

void ptx_copies_to_wgmma(void) { of_thread[emu_thread()].unfenced = false; }

static void emu_products_left(void)
{
    struct products *p = &products_of[emu_thread()];

    for (const auto &g : p->group)
        if (!g.empty())
            emu_die("a thread ends before its products are waited for");
    if (!p->open.empty())
        emu_die("a thread ends with products in no group");
    p->group.clear();
    p->fenced = false;
}
