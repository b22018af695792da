/* core/weights.c: values leave a file in chunks: gathered by their strides if need be, then converted. */
#include "core/weights.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/tensor.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "files hold little-endian numbers, and they are used as they lie"
#endif

enum { CHUNK = 2048 };          /* elements: what is gathered and converted at a time stays in the first cache */

static const int64_t max_bytes = (int64_t)1 << 62;

static const struct {
    const char *name;
    size_t bytes;
} stored[N_STORED] = {
    [STORED_F32] = { "F32", 4 },    [STORED_F16] = { "F16", 2 },        [STORED_BF16] = { "BF16", 2 },
    [STORED_F64] = { "F64", 8 },    [STORED_I8] = { "I8", 1 },          [STORED_U8] = { "U8", 1 },
    [STORED_I16] = { "I16", 2 },    [STORED_I32] = { "I32", 4 },        [STORED_I64] = { "I64", 8 },
    [STORED_BOOL] = { "BOOL", 1 },  [STORED_F8_E4M3] = { "F8_E4M3", 1 }, [STORED_F8_E5M2] = { "F8_E5M2", 1 },
};

size_t stored_bytes(enum stored_type t)
{
    return (unsigned)t < N_STORED ? stored[t].bytes : 0;
}

const char *stored_name(enum stored_type t)
{
    return (unsigned)t < N_STORED ? stored[t].name : "?";
}

int64_t weights_count(const struct weights_entry *w)
{
    int64_t n = 1;

    for (int i = 0; i < w->n_dim; i++)
        n *= w->dim[i];
    return n;
}

bool weights_is_dense(const struct weights_entry *w)
{
    int64_t stride = 1;

    for (int i = w->n_dim - 1; i >= 0; i--) {
        if (w->dim[i] != 1 && w->stride[i] != stride)
            return false;
        stride *= w->dim[i];
    }
    return true;
}

const char *weights_text(const struct weights_entry *w, char *buf, size_t size)
{
    size_t n = (size_t)snprintf(buf, size, "%s (", stored_name(w->type));

    for (int i = 0; i < w->n_dim && n < size; i++)
        n += (size_t)snprintf(buf + n, size - n, "%s%" PRId64, i ? "," : "", w->dim[i]);
    if (n < size)
        snprintf(buf + n, size - n, ")");
    return buf;
}

/* ---- checks ---- */

/* Bytes of the well-formed UTF-8 character at s, which ends in 0; 0 if it is none or a control character. */
static size_t letter(const unsigned char *s)
{
    const size_t n = s[0] < 0x80 ? 1 : s[0] >= 0xF0 ? 4 : s[0] >= 0xE0 ? 3 : 2;
    uint32_t c = s[0] & (0xFFu >> (n == 1 ? 0 : n + 1));
    static const uint32_t least[] = { 0, 0x20, 0xA0, 0x800, 0x10000 };

    if (s[0] == 0x7F || (s[0] >= 0x80 && s[0] < 0xC2) || s[0] > 0xF4)
        return 0;
    for (size_t i = 1; i < n; i++) {
        if ((s[i] & 0xC0) != 0x80)
            return 0;
        c = c << 6 | (s[i] & 0x3F);
    }
    return c < least[n] || c > 0x10FFFF || (c >= 0xD800 && c < 0xE000) ? 0 : n;
}

static int check_name(const char *name, struct err *e)
{
    size_t n = 0, more;

    if (!name || !*name)
        return err_set(e, E_FORMAT, "a tensor has no name");
    for (; name[n]; n += more) {
        more = letter((const unsigned char *)name + n);
        if (!more)
            return err_set(e, E_FORMAT, "the name of a tensor has byte 0x%02x at %zu: it is not printable UTF-8",
                           (unsigned char)name[n], n);
        if (n >= WEIGHTS_MAX_NAME)
            return err_set(e, E_FORMAT, "the name of a tensor, '%.60s..', has more than %d bytes", name,
                           WEIGHTS_MAX_NAME);
    }
    return OK;
}

/* The distance from the first to the last element, in elements, -1 for an empty tensor, or -2 if it does not fit. */
static int64_t reach(const struct weights_entry *w)
{
    int64_t at = 0, step;

    for (int i = 0; i < w->n_dim; i++)
        if (w->dim[i] == 0)
            return -1;
    for (int i = 0; i < w->n_dim; i++) {
        if (w->dim[i] == 1)
            continue;
        if (__builtin_mul_overflow(w->dim[i] - 1, w->stride[i], &step) || __builtin_add_overflow(at, step, &at))
            return -2;
    }
    return at;
}

int weights_check(const struct weights_entry *w, size_t bytes, struct err *e)
{
    const int64_t size = (int64_t)stored_bytes(w->type);
    int64_t n = size, last;
    char text[200];

    if (check_name(w->name, e))
        return E_FORMAT;
    if (!size)
        return err_set(e, E_FORMAT, "tensor '%s' has an unknown type", w->name);
    if (w->n_dim < 0 || w->n_dim > WEIGHTS_MAX_DIM)
        return err_set(e, E_FORMAT, "tensor '%s' has %d dimensions; 0 to %d are possible", w->name, w->n_dim,
                       WEIGHTS_MAX_DIM);
    for (int i = 0; i < w->n_dim; i++)
        if (w->dim[i] < 0 || w->stride[i] < 0)
            return err_set(e, E_FORMAT, "tensor '%s' has a negative size or stride: %s", w->name,
                           weights_text(w, text, sizeof text));
    /* 0 in one dimension does not excuse the others: partial products are formed from them. */
    for (int i = 0; i < w->n_dim; i++)
        if (w->dim[i] && __builtin_mul_overflow(n, w->dim[i], &n))
            n = INT64_MAX;
    last = reach(w);
    if (n > max_bytes || last == -2)
        return err_set(e, E_FORMAT, "tensor '%s' is too large: %s", w->name, weights_text(w, text, sizeof text));
    if (last >= 0 && (size_t)last >= bytes / (size_t)size)
        return err_set(e, E_FORMAT, "tensor '%s', %s, ends at element %" PRId64 " where %zu bytes are left", w->name,
                       weights_text(w, text, sizeof text), last + 1, bytes);
    return OK;
}

/* ---- tables ---- */

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct weights_entry *)a)->name, ((const struct weights_entry *)b)->name);
}

int weights_sort(struct weights *w, struct err *e)
{
    if (w->n > 1)
        qsort(w->entry, (size_t)w->n, sizeof *w->entry, by_name);
    for (int i = 1; i < w->n; i++)
        if (!strcmp(w->entry[i - 1].name, w->entry[i].name))
            return err_set(e, E_FORMAT, "tensor '%s' is there twice", w->entry[i].name);
    return OK;
}

struct weights_entry *weights_get(const struct weights *w, const char *name)
{
    const struct weights_entry key = { .name = name };

    return w->n > 0 ? bsearch(&key, w->entry, (size_t)w->n, sizeof key, by_name) : NULL;
}

void weights_drop(const struct weights *w, const struct weights_entry *entry)
{
    const int64_t last = reach(entry);

    if (w->drop && last >= 0)
        w->drop(w->ctx, entry->data, (size_t)(last + 1) * stored_bytes(entry->type));
}

/* ---- reading ---- */

/* Where the next element is. Dimensions of size 1 are left out, and neighbours that lie like one are one: a dense
 * tensor has a single dimension of stride 1. */
struct walk {
    const unsigned char *data;
    size_t bytes;               /* of an element */
    int n;                      /* dimensions, at least 1 */
    int64_t dim[WEIGHTS_MAX_DIM], stride[WEIGHTS_MAX_DIM], at[WEIGHTS_MAX_DIM];
};

static void walk_init(struct walk *k, const struct weights_entry *w)
{
    *k = (struct walk){ .data = w->data, .bytes = stored_bytes(w->type), .n = 0 };
    for (int i = 0; i < w->n_dim; i++) {
        if (w->dim[i] == 1)
            continue;
        if (k->n && k->stride[k->n - 1] == w->dim[i] * w->stride[i]) {
            k->dim[k->n - 1] *= w->dim[i];
            k->stride[k->n - 1] = w->stride[i];
        } else {
            k->dim[k->n] = w->dim[i];
            k->stride[k->n++] = w->stride[i];
        }
    }
    if (!k->n) {
        k->dim[0] = k->stride[0] = 1;
        k->n = 1;
    }
}

/* n elements of `bytes` bytes, `step` bytes apart */
static void gather(unsigned char *dst, const unsigned char *src, size_t bytes, size_t step, int64_t n)
{
    if (step == bytes) {
        memcpy(dst, src, (size_t)n * bytes);
        return;
    }
    switch (bytes) {
    case 1:
        for (int64_t i = 0; i < n; i++, src += step)
            dst[i] = *src;
        return;
    case 2:
        for (int64_t i = 0; i < n; i++, src += step)
            memcpy(dst + 2 * i, src, 2);
        return;
    case 4:
        for (int64_t i = 0; i < n; i++, src += step)
            memcpy(dst + 4 * i, src, 4);
        return;
    default:
        for (int64_t i = 0; i < n; i++, src += step)
            memcpy(dst + 8 * i, src, 8);
    }
}

/* The next n elements, which there are, to dst. */
static void walk_take(struct walk *k, unsigned char *dst, int64_t n)
{
    const int in = k->n - 1;

    while (n > 0) {
        const int64_t left = k->dim[in] - k->at[in], run = n < left ? n : left;
        int64_t from = 0;
        for (int i = 0; i < k->n; i++)
            from += k->at[i] * k->stride[i];
        gather(dst, k->data + (size_t)from * k->bytes, k->bytes, (size_t)k->stride[in] * k->bytes, run);
        dst += (size_t)run * k->bytes;
        n -= run;
        k->at[in] += run;
        for (int i = in; i > 0 && k->at[i] == k->dim[i]; i--) {
            k->at[i] = 0;
            k->at[i - 1]++;
        }
    }
}

static double as_double(const void *raw, enum stored_type t, int64_t i)
{
    const int64_t *wide = raw;
    uint64_t u;
    int down = 0;

    switch (t) {
    case STORED_F64: return ((const double *)raw)[i];
    case STORED_I8: return ((const int8_t *)raw)[i];
    case STORED_U8: return ((const uint8_t *)raw)[i];
    case STORED_I16: return ((const int16_t *)raw)[i];
    case STORED_I32: return ((const int32_t *)raw)[i];
    case STORED_BOOL: return ((const uint8_t *)raw)[i] != 0;
    default: break;
    }
    /* 53 bits do not hold every 64-bit integer: of large ones 32 are kept, and a last one that says whether anything
     * was cut off, so that rounding to 24 bits or fewer sees on which side of the middle the number is. */
    u = wide[i] < 0 ? 0 - (uint64_t)wide[i] : (uint64_t)wide[i];
    while (u >> down >> 33)
        down++;
    u = u >> down | ((u & (((uint64_t)1 << down) - 1)) != 0);
    return ldexp(wide[i] < 0 ? -(double)u : (double)u, down);
}

/* Rounded to nearest even, or (`odd`) so that rounding once more, to 16 bits, is as if it had been the first time: what
 * does not fit goes to the neighbour whose last bit is 1 (Boldo and Melquiond 2008). */
static float narrow(double x, bool odd)
{
    float y = (float)x;
    uint32_t bits;

    if (!odd || (double)y == x || isnan(x))
        return y;
    memcpy(&bits, &y, sizeof bits);
    if (!(bits & 1))
        bits += fabs((double)y) < fabs(x) ? 1u : UINT32_MAX;
    memcpy(&y, &bits, sizeof y);
    return y;
}

static enum dtype float_type(enum stored_type t)
{
    return t == STORED_F32 ? F32 : t == STORED_F16 ? F16 : t == STORED_BF16 ? BF16 : N_DTYPE;
}

/* n <= CHUNK elements; raw is aligned to its type. */
static void convert(void *dst, enum dtype type, const void *raw, enum stored_type t, int64_t n)
{
    const enum dtype from = float_type(t);
    float f[CHUNK];

    if (from == F32) {
        dtype_from_f32(dst, type, raw, n);
        return;
    }
    if (from != N_DTYPE)
        dtype_to_f32(type == F32 ? dst : f, raw, from, n);
    else
        for (int64_t i = 0; i < n; i++)
            (type == F32 ? (float *)dst : f)[i] = narrow(as_double(raw, t, i), type != F32);
    if (type != F32)
        dtype_from_f32(dst, type, f, n);
}

int weights_read(const struct weights_entry *w, void *dst, enum dtype type, struct err *e)
{
    const size_t bytes = stored_bytes(w->type);
    const int64_t n = weights_count(w);
    _Alignas(64) unsigned char raw[CHUNK * 8];
    struct walk k;

    if (w->type == STORED_F8_E4M3 || w->type == STORED_F8_E5M2 || !bytes)
        return err_set(e, E_FORMAT, "tensor '%s' is %s; there is no conversion from that to %s", w->name,
                       stored_name(w->type), dtype_name(type));
    if ((unsigned)type >= N_DTYPE)
        return err_set(e, E_ARG, "tensor '%s' is asked for in an unknown type (%d)", w->name, (int)type);
    if (n == 0)
        return OK;
    walk_init(&k, w);
    if (float_type(w->type) == type) {
        walk_take(&k, dst, n);
        return OK;
    }
    for (int64_t i = 0; i < n; i += CHUNK) {
        const int64_t run = n - i < CHUNK ? n - i : CHUNK;
        const unsigned char *src = k.data + (size_t)i * bytes;
        if (k.n > 1 || k.stride[0] != 1 || (uintptr_t)src % bytes) {
            walk_take(&k, raw, run);
            src = raw;
        }
        convert((char *)dst + (size_t)i * dtype_bytes(type), type, src, w->type, run);
    }
    return OK;
}

int weights_read_rows(const struct weights_entry *w, int64_t first, int64_t n, void *dst, enum dtype type,
                      struct err *e)
{
    struct weights_entry part = *w;
    char text[200];

    if (w->n_dim < 1 || first < 0 || n < 0 || first > w->dim[0] || n > w->dim[0] - first)
        return err_set(e, E_ARG, "tensor '%s' is %s and has no %" PRId64 " rows from %" PRId64 " on", w->name,
                       weights_text(w, text, sizeof text), n, first);
    part.dim[0] = n;
    if (weights_count(&part) > 0)
        part.data = (const char *)w->data + (size_t)(first * w->stride[0]) * stored_bytes(w->type);
    return weights_read(&part, dst, type, e);
}
