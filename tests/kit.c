#include "tests/kit.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/tap.h"

enum { GUARD = 256 };
static const unsigned char guard_byte = 0xA5;

const double kit_rel[N_DTYPE] = { 0x1p-23, 0x1p-11, 0x1p-8 };

const struct kern *kit_twin(int i)
{
    const char *only = getenv("UNICON_TEST_ISA");
    const struct kern *k;
    int seen = 0;

    for (const char *const *n = kern_cpu_names(); *n; n++) {
        if (only && strcmp(only, *n))
            continue;
        k = kern_cpu(*n);
        if (k && seen++ == i)
            return k;
    }
    return NULL;
}

struct kctx *kit_ctx(const struct kern *kern, int n_threads)
{
    static struct kctx ctx[9];
    struct kctx *k = &ctx[n_threads];

    if (!k->scratch || k->scratch_bytes != kern->scratch_bytes) {
        free(k->scratch);
        k->n_threads = n_threads;
        k->scratch_bytes = kern->scratch_bytes;
        k->scratch = aligned_alloc(64, (size_t)n_threads * kern->scratch_bytes + 64);
        if (!k->scratch)
            exit(1);
    }
    memset(k->scratch, 0xFF, (size_t)n_threads * kern->scratch_bytes);
    return k;
}

static uint64_t splitmix(uint64_t *s)
{
    uint64_t z = (*s += 0x9E3779B97F4A7C15u);

    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

double kit_normal(uint64_t *state)
{
    const double u = ((double)(splitmix(state) >> 11) + 1) * 0x1p-53, v = (double)(splitmix(state) >> 11) * 0x1p-53;

    return sqrt(-2 * log(u)) * cos(6.283185307179586 * v);
}

/* Round to p significand bits with least exponent emin, to nearest even, in doubles. */
double kit_round(enum dtype type, double x)
{
    static const int bits[N_DTYPE] = { 24, 11, 8 }, emin[N_DTYPE] = { -149, -24, -133 };
    int e;

    if (!isfinite(x) || x == 0)
        return x;
    frexp(x, &e);
    e -= bits[type];
    if (e < emin[type])
        e = emin[type];
    x = ldexp(nearbyint(ldexp(x, -e)), e);
    return type == F16 && fabs(x) > 65504 ? copysign(INFINITY, x) : x;
}

static double get(const void *p, int64_t i, enum dtype t)
{
    uint16_t h;
    uint32_t u;
    float f;

    if (t == F32)
        return memcpy(&f, (const char *)p + 4 * i, 4), (double)f;
    memcpy(&h, (const char *)p + 2 * i, 2);
    if (t == BF16) {
        u = (uint32_t)h << 16;
        return memcpy(&f, &u, 4), (double)f;
    }
    const int e = h >> 10 & 31, m = h & 1023;
    const double a = e == 31 ? (m ? (double)NAN : (double)INFINITY) : e ? ldexp(1024 + m, e - 25) : ldexp(m, -24);
    return h >> 15 ? -a : a;
}

/* x is representable in t. */
static void put(void *p, int64_t i, enum dtype t, double x)
{
    const float f = (float)x;
    uint32_t u;
    uint16_t h;
    int e;

    memcpy(&u, &f, 4);
    if (t == F32) {
        memcpy((char *)p + 4 * i, &f, 4);
        return;
    }
    if (t == BF16) {
        h = (uint16_t)(u >> 16);
    } else if (x == 0) {
        h = (uint16_t)(u >> 16);
    } else {
        const double m = frexp(fabs(x), &e);            /* |x| = m 2^e, m in [0.5,1) */
        if (!isfinite(x))
            h = 0x7c00;
        else if (e < -13)
            h = (uint16_t)ldexp(m, e + 24);
        else
            h = (uint16_t)(((e + 14) << 10) | ((int)ldexp(m, 11) & 1023));
        h = (uint16_t)(h | (u >> 16 & 0x8000));
    }
    memcpy((char *)p + 2 * i, &h, 2);
}

static struct buf make(enum dtype type, int64_t n, size_t bytes, size_t shift)
{
    struct buf b = { .type = type, .n = n };

    b.mem_bytes = ((bytes + 2 * GUARD + 128 + 63) / 64) * 64;
    b.mem = aligned_alloc(64, b.mem_bytes);
    b.v = n ? malloc(sizeof *b.v * (size_t)n) : NULL;
    if (!b.mem || (n && !b.v)) {
        fprintf(stderr, "tests/kit: out of memory for %zu bytes\n", bytes);
        exit(1);
    }
    memset(b.mem, guard_byte, b.mem_bytes);
    b.p = b.mem + GUARD + shift;
    return b;
}

struct buf buf_new(enum dtype type, int64_t n)
{
    struct buf b = make(type, n, (size_t)n * dtype_bytes(type), 3 * dtype_bytes(type));

    buf_poison(&b);
    return b;
}

struct buf buf_raw(size_t bytes)
{
    struct buf b = make(F32, 0, bytes, 0);

    b.n = -(int64_t)bytes;                              /* raw: n bytes, no values */
    memset(b.p, 0xFF, bytes);
    return b;
}

static size_t payload(const struct buf *b)
{
    return b->n < 0 ? (size_t)-b->n : (size_t)b->n * dtype_bytes(b->type);
}

void buf_poison(struct buf *b)
{
    memset(b->p, 0xFF, payload(b));
    for (int64_t i = 0; i < b->n; i++)
        b->v[i] = NAN;
}

void buf_set(struct buf *b, int64_t i, double x)
{
    b->v[i] = kit_round(b->type, x);
    put(b->p, i, b->type, b->v[i]);
}

struct buf buf_random(enum dtype type, int64_t n, uint64_t seed, double scale)
{
    struct buf b = buf_new(type, n);
    uint64_t s = seed * 0x9E3779B97F4A7C15u + 1;

    for (int64_t i = 0; i < n; i++)
        buf_set(&b, i, scale * kit_normal(&s));
    return b;
}

struct buf buf_copy(const struct buf *b)
{
    struct buf c = buf_new(b->type, b->n);

    memcpy(c.p, b->p, payload(b));
    memcpy(c.v, b->v, sizeof *c.v * (size_t)b->n);
    return c;
}

void buf_free(struct buf *b)
{
    free(b->mem);
    free(b->v);
    memset(b, 0, sizeof *b);
}

bool buf_intact(const struct buf *b)
{
    const unsigned char *first = b->p, *last = first + payload(b);

    for (const unsigned char *m = b->mem; m < b->mem + b->mem_bytes; m++)
        if ((m < first || m >= last) && *m != guard_byte) {
            tap_note("guard byte at %td of %zu was overwritten", m - first, payload(b));
            return false;
        }
    return true;
}

void buf_read(struct buf *b)
{
    for (int64_t i = 0; i < b->n; i++)
        b->v[i] = get(b->p, i, b->type);
}

static void note_failure(const char *fmt, va_list ap, const char *rest)
{
    char text[256];

    vsnprintf(text, sizeof text, fmt, ap);
    tap_note("%s: %s", text, rest);
}

bool buf_near(struct buf *got, const double *want, double rel, double abs, const char *fmt, ...)
{
    double worst = 0;
    int64_t at = -1;
    char rest[160];
    va_list ap;

    buf_read(got);
    for (int64_t i = 0; i < got->n; i++) {
        const double share = fabs(got->v[i] - want[i]) / (abs + rel * fabs(want[i]));
        if (!(share <= worst)) {
            worst = share;
            at = i;
            if (isnan(share))
                break;
        }
    }
    if (at < 0 || worst <= 1)
        return true;
    snprintf(rest, sizeof rest, "element %lld of %lld is %.9g, want %.9g (%.3g of the tolerance)", (long long)at,
             (long long)got->n, got->v[at], want[at], worst);
    va_start(ap, fmt);
    note_failure(fmt, ap, rest);
    va_end(ap);
    return false;
}

bool buf_near_norm(struct buf *got, const double *want, double rel, const char *fmt, ...)
{
    double num = 0, den = 0;
    char rest[160];
    va_list ap;

    buf_read(got);
    for (int64_t i = 0; i < got->n; i++) {
        num += (got->v[i] - want[i]) * (got->v[i] - want[i]);
        den += want[i] * want[i];
    }
    if (sqrt(num) <= rel * sqrt(den))
        return true;
    snprintf(rest, sizeof rest, "relative error %.3g, allowed %.3g", sqrt(num / den), rel);
    va_start(ap, fmt);
    note_failure(fmt, ap, rest);
    va_end(ap);
    return false;
}

bool buf_same(const struct buf *a, const struct buf *b, const char *fmt, ...)
{
    const unsigned char *p = a->p, *q = b->p;
    char rest[80];
    va_list ap;

    for (size_t i = 0; i < payload(a); i++)
        if (p[i] != q[i]) {
            snprintf(rest, sizeof rest, "bits differ at byte %zu of %zu", i, payload(a));
            va_start(ap, fmt);
            note_failure(fmt, ap, rest);
            va_end(ap);
            return false;
        }
    return true;
}
