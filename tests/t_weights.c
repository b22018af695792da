/* tests/t_weights.c: named tensors as files hold them: every stored type into every type, strides, rounding, checks,
 * tables. The files themselves are in t_weights_file.c and t_pickle.c. */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/tensor.h"
#include "core/weights.h"
#include "tests/bytes.h"
#include "tests/kit.h"
#include "tests/tap.h"

/* ---- reading ---- */

/* One value as a double, and as the bytes of its type. x stays in the range of the type. */
static void store_value(unsigned char *at, enum stored_type t, double x)
{
    const uint8_t truth = x > 0;
    uint16_t half;                      /* `at` may be odd */

    switch (t) {
    case STORED_F32: memcpy(at, &(float){ (float)x }, 4); break;
    case STORED_F16:
    case STORED_BF16:
        dtype_from_f32(&half, t == STORED_F16 ? F16 : BF16, &(float){ (float)x }, 1);
        memcpy(at, &half, sizeof half);
        break;
    case STORED_F64: memcpy(at, &x, 8); break;
    case STORED_I8: memcpy(at, &(int8_t){ (int8_t)x }, 1); break;
    case STORED_U8: memcpy(at, &(uint8_t){ (uint8_t)fabs(x) }, 1); break;
    case STORED_I16: memcpy(at, &(int16_t){ (int16_t)x }, 2); break;
    case STORED_I32: memcpy(at, &(int32_t){ (int32_t)x }, 4); break;
    case STORED_I64: memcpy(at, &(int64_t){ (int64_t)x }, 8); break;
    default: memcpy(at, &truth, 1);
    }
}

static double load_value(const unsigned char *at, enum stored_type t)
{
    _Alignas(8) unsigned char raw[8];
    float f;

    memcpy(raw, at, stored_bytes(t));
    switch (t) {
    case STORED_F32: return *(float *)raw;
    case STORED_F16: dtype_to_f32(&f, raw, F16, 1); return f;
    case STORED_BF16: dtype_to_f32(&f, raw, BF16, 1); return f;
    case STORED_F64: return *(double *)raw;
    case STORED_I8: return *(int8_t *)raw;
    case STORED_U8: return *raw;
    case STORED_I16: return *(int16_t *)raw;
    case STORED_I32: return *(int32_t *)raw;
    case STORED_I64: return (double)*(int64_t *)raw;
    default: return *raw != 0;
    }
}

/* Element number i in row-major order, straight from the definition of strides. */
static double element(const struct weights_entry *w, int64_t i)
{
    int64_t at = 0;

    for (int d = w->n_dim - 1; d >= 0; d--) {
        at += i % w->dim[d] * w->stride[d];
        i /= w->dim[d];
    }
    return load_value((const unsigned char *)w->data + (size_t)at * stored_bytes(w->type), w->type);
}

/* kit_round knows the end of F16's range only. */
static double rounded(enum dtype type, double x)
{
    const double y = type == F32 ? (double)(float)x : kit_round(type, x);

    return type == BF16 && fabs(y) > 0x1.fep127 ? copysign(INFINITY, y) : y;
}

/* All of it, and rows of it, into every type, against one element at a time; guards behind and before. */
static bool reads(const struct weights_entry *w)
{
    const int64_t n = weights_count(w), row = w->n_dim && w->dim[0] ? n / w->dim[0] : 0;
    struct err e = { 0 };
    bool ok = true;

    for (int t = 0; t < N_DTYPE; t++) {
        struct buf all = buf_new((enum dtype)t, n), rows = buf_new((enum dtype)t, n);
        ok &= weights_read(w, all.p, (enum dtype)t, &e) == OK && buf_intact(&all);
        buf_read(&all);
        for (int64_t i = 0; i < n && ok; i++) {
            const double want = rounded((enum dtype)t, element(w, i));
            if (all.v[i] != want && !(isnan(want) && isnan(all.v[i]))) {
                tap_note("%s element %" PRId64 " as %s: %.17g, want %.17g", stored_name(w->type), i,
                         dtype_name((enum dtype)t), all.v[i], want);
                ok = false;
            }
        }
        if (row) {
            const int64_t first = w->dim[0] / 3, count = (w->dim[0] + 1) / 2;
            ok &= weights_read_rows(w, first, count, rows.p, (enum dtype)t, &e) == OK && buf_intact(&rows);
            ok &= !memcmp(rows.p, (char *)all.p + (size_t)(first * row) * dtype_bytes((enum dtype)t),
                          (size_t)(count * row) * dtype_bytes((enum dtype)t));
        }
        buf_free(&all);
        buf_free(&rows);
    }
    return ok;
}

enum { POOL = 40000 };          /* elements, several chunks of any reader */

static void test_read(void)
{
    static const struct {
        const char *why;
        int n_dim;
        int64_t dim[4], stride[4];
    } cases[] = {
        { "a number", 0, { 0 }, { 0 } },
        { "one element in four dimensions", 4, { 1, 1, 1, 1 }, { 7, 0, 900000000, 1 } },
        { "nothing", 2, { 3, 0 }, { 900000000, 1 } },
        { "dense, many chunks", 2, { 173, 131 }, { 131, 1 } },
        { "transposed", 2, { 131, 173 }, { 1, 131 } },
        { "every other column", 2, { 50, 33 }, { 66, 2 } },
        { "channels last", 4, { 5, 7, 3, 3 }, { 63, 1, 21, 7 } },
        { "dense behind sizes of one", 4, { 1, 70, 1, 60 }, { 3, 60, 5, 1 } },
        { "rows apart", 3, { 9, 4, 5 }, { 4000, 5, 1 } },
        { "expanded", 3, { 20, 30, 11 }, { 0, 1, 0 } },
        { "short rows, far apart", 3, { 30, 40, 2 }, { 1, 900, 31 } },
        { "overlapping windows", 2, { 3000, 5 }, { 1, 1 } },
    };
    unsigned char *pool = malloc(8 * POOL + 8);
    uint64_t seed = 3;

    for (size_t c = 0; c < LEN(cases); c++) {
        bool ok = true;
        for (int t = 0; t < STORED_F8_E4M3; t++) {
            for (size_t shift = 0; shift < (stored_bytes(t) > 1 ? 2 : 1); shift++) {   /* and unaligned */
                struct weights_entry w = { .name = "w", .type = t, .n_dim = cases[c].n_dim, .data = pool + shift };
                memcpy(w.dim, cases[c].dim, sizeof cases[c].dim);
                memcpy(w.stride, cases[c].stride, sizeof cases[c].stride);
                for (size_t i = 0; i < POOL; i++)
                    store_value(pool + shift + i * stored_bytes(t), t, kit_normal(&seed) * 30);
                ok &= weights_check(&w, POOL * stored_bytes(t), NULL) == OK && reads(&w);
            }
        }
        tap_ok(ok, "%s, every type to every type, aligned and not", cases[c].why);
    }
    free(pool);
}

/* Rounded once, not twice: numbers next to the middle between two of a type, and whole numbers that a double or a float
 * does not hold. kit_round is of the nearest double; for the last ones that is told apart by hand. */
static void test_rounding(void)
{
    static const double far[] = { 0.0, -0.0, 65504, 65519.99, 65520, 65536, 1e-8, -2.9e-8, 5.97e-8, 6.1e-5, 3.3895e38,
                                  3.3961775e38, 3.4028235e38, 3.5e38, 1e300, -1e300, 1e-46, 7e-46, 1e-310, 4.6e-41,
                                  INFINITY, -INFINITY, NAN };
    static const int64_t big[] = { INT64_MAX, INT64_MIN, ((int64_t)1 << 53) + 1, ((int64_t)1 << 62) + 1,
                                   ((int64_t)1 << 24) + 1, -((int64_t)1 << 40) - 1, 257, 2049, 65519, 0, -1 };
    /* 2^40 + 2^32 is the middle of two of bf16's, 2^60 + 2^36 that of two of f32's: a little more decides. */
    static const int64_t middle[] = { ((int64_t)1 << 40) + ((int64_t)1 << 32),
                                      ((int64_t)1 << 40) + ((int64_t)1 << 32) + 1,
                                      ((int64_t)1 << 60) + ((int64_t)1 << 36),
                                      ((int64_t)1 << 60) + ((int64_t)1 << 36) + 1 };
    static const float want[N_DTYPE][4] = { [F32] = { 0x1.01p40f, 0x1.01p40f, 0x1p60f, 0x1.000002p60f },
                                            [BF16] = { 0x1p40f, 0x1.02p40f, 0x1p60f, 0x1p60f } };
    struct weights_entry w = { .name = "w", .type = STORED_F64, .n_dim = 1, .stride = { 1 } };
    double x[4000];
    uint64_t seed = 11;
    bool ok;
    float f[4];
    uint16_t half[4];

    for (size_t i = 0; i < LEN(x); i++) {
        const double at = kit_round((enum dtype)(1 + i % 2), kit_normal(&seed)), ulp = at * (i % 2 ? 0x1p-9 : 0x1p-12);
        x[i] = i < LEN(far) ? far[i] : at + ulp * (1 + (double)(i % 5 - 2.0) * 0x1p-40) * (i % 3 ? 1 : 0.5);
    }
    w.data = x;
    w.dim[0] = LEN(x);
    tap_ok(reads(&w), "F64 is rounded once");
    w.type = STORED_I64;
    w.data = big;
    w.dim[0] = LEN(big);
    tap_ok(reads(&w), "I64 at the ends of its range and of other types'");
    w.data = middle;
    w.dim[0] = LEN(middle);
    ok = weights_read(&w, f, F32, NULL) == OK && !memcmp(f, want[F32], sizeof f);
    ok &= weights_read(&w, half, BF16, NULL) == OK;
    dtype_to_f32(f, half, BF16, 4);
    tap_ok(ok && !memcmp(f, want[BF16], sizeof f), "I64 is rounded once: %a %a %a %a", f[0], f[1], f[2], f[3]);
}

static void test_refused_reads(void)
{
    const unsigned char data[64] = { 0 };
    struct weights_entry w = { .name = "w", .type = STORED_F8_E5M2, .n_dim = 1, .dim = { 4 }, .stride = { 1 },
                               .data = data };
    struct err e = { 0 };
    float f[4] = { 7, 7, 7, 7 };
    bool ok = weights_read(&w, f, F32, &e) == E_FORMAT && is_err(&e, E_FORMAT, "F8_E5M2");

    w.type = STORED_F8_E4M3;
    ok &= weights_read(&w, f, BF16, &e) == E_FORMAT && is_err(&e, E_FORMAT, "F8_E4M3");
    w.type = STORED_F32;
    ok &= weights_read(&w, f, N_DTYPE, &e) == E_ARG;
    ok &= weights_read_rows(&w, 3, 2, f, F32, &e) == E_ARG && is_err(&e, E_ARG, "F32 (4)");
    ok &= weights_read_rows(&w, -1, 1, f, F32, &e) == E_ARG && weights_read_rows(&w, 5, 0, f, F32, &e) == E_ARG;
    ok &= weights_read_rows(&w, INT64_MAX, INT64_MAX, f, F32, &e) == E_ARG;
    ok &= weights_read_rows(&w, 4, 0, f, F32, &e) == OK && f[0] == 7 && f[3] == 7;
    w.n_dim = 0;
    ok &= weights_read_rows(&w, 0, 1, f, F32, &e) == E_ARG;
    tap_ok(ok, "types without a conversion, rows that are not there");
}

/* ---- tables ---- */

static void test_check(void)
{
    static char longest[WEIGHTS_MAX_NAME + 2];
    static const char *const bad[] = { "", "a\nb", "\x1b[31m", "\x7f", "\xc2\x9b", "\x80", "\xc0\xaf", "\xe0\x9f\xbf",
                                       "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xf0\x9f\x90", "a\xff", longest };
    static const char *const good[] = {
        "a", "model.diffusion_model.out.0.weight", "\xc3\xa9 \xe2\x82\xac", "\xf0\x9f\x90\xb1", "\xc2\xa0", longest + 1
    };
    const int64_t huge = INT64_MAX;
    struct weights_entry w = { .name = "w", .type = STORED_F32, .n_dim = 2, .dim = { 3, 4 }, .stride = { 4, 1 } };
    struct err e = { 0 };
    bool ok = true;

    memset(longest, 'x', sizeof longest - 1);
    for (size_t i = 0; i < LEN(good); i++) {
        w.name = good[i];
        ok &= weights_check(&w, 48, &e) == OK;
    }
    for (size_t i = 0; i < LEN(bad); i++) {
        w.name = bad[i];
        err_clear(&e);
        if (weights_check(&w, 48, &e) != E_FORMAT || !is_err(&e, E_FORMAT, "name")) {
            tap_note("name %zu", i);
            ok = false;
        }
    }
    tap_ok(ok && weights_check(&(struct weights_entry){ 0 }, 48, &e) == E_FORMAT, "names are printable UTF-8");
    w.name = "w";
    ok = weights_check(&w, 47, &e) == E_FORMAT && is_err(&e, E_FORMAT, "element 12 where 47 bytes");
    w.stride[0] = 5;
    ok &= weights_check(&w, 55, &e) == E_FORMAT && weights_check(&w, 56, &e) == OK;
    w.stride[0] = -1;
    ok &= weights_check(&w, 100, &e) == E_FORMAT && is_err(&e, E_FORMAT, "negative");
    w.stride[0] = huge;
    ok &= weights_check(&w, SIZE_MAX, &e) == E_FORMAT && is_err(&e, E_FORMAT, "too large");
    w.stride[0] = huge / 2;
    ok &= weights_check(&w, SIZE_MAX, &e) == E_FORMAT;
    w.dim[0] = -1;
    ok &= weights_check(&w, 100, &e) == E_FORMAT;
    w = (struct weights_entry){ .name = "w", .type = STORED_U8, .n_dim = 3, .dim = { huge, huge, 0 } };
    ok &= weights_check(&w, 100, &e) == E_FORMAT && is_err(&e, E_FORMAT, "too large");
    w = (struct weights_entry){
        .name = "w", .type = STORED_F64, .n_dim = 2, .dim = { (int64_t)1 << 30, (int64_t)1 << 29 }
    };
    ok &= weights_check(&w, 8, &e) == OK;                   /* strides 0: 2^62 bytes of one element */
    w.dim[1]++;
    ok &= weights_check(&w, 8, &e) == E_FORMAT;
    w.dim[0] = w.dim[1] = 0;
    ok &= weights_check(&w, 0, &e) == OK;
    w.n_dim = WEIGHTS_MAX_DIM + 1;
    ok &= weights_check(&w, 8, &e) == E_FORMAT && is_err(&e, E_FORMAT, "9 dimensions");
    w.n_dim = 0;
    ok &= weights_check(&w, 8, &e) == OK && weights_check(&w, 7, &e) == E_FORMAT;
    w.type = N_STORED;
    ok &= weights_check(&w, 8, &e) == E_FORMAT && is_err(&e, E_FORMAT, "unknown type");
    tap_ok(ok, "sizes, strides, ends");
}

static size_t dropped_bytes;
static const void *dropped;

static void note_drop(void *ctx, const void *data, size_t bytes)
{
    *(int *)ctx += 1;
    dropped = data;
    dropped_bytes = bytes;
}

static void test_table(void)
{
    struct weights_entry list[] = {
        { .name = "b", .n_dim = 2, .dim = { 2, 3 }, .stride = { 10, 2 }, .data = "x" }, { .name = "a.weight" },
        { .name = "a" }, { .name = "a.bias", .n_dim = 1, .dim = { 0 }, .data = "y" }, { .name = "\xc3\xa9" },
    };
    struct weights t = { .entry = list, .n = LEN(list) };
    struct err e = { 0 };
    char text[40];
    int n = 0;
    bool ok = weights_sort(&t, &e) == OK && weights_get(&t, "a") == list && weights_get(&t, "\xc3\xa9") == list + 4;

    ok &= weights_get(&t, "b") == list + 3 && !weights_get(&t, "c") && !weights_get(&t, "") && !weights_get(&t, "a.");
    ok &= !weights_get(&(struct weights){ 0 }, "a") && weights_sort(&(struct weights){ 0 }, &e) == OK;
    tap_ok(ok, "sorted, found by name");
    ok = !strcmp(weights_text(&list[3], text, sizeof text), "F32 (2,3)") && weights_count(&list[3]) == 6;
    ok &= !strcmp(weights_text(&list[0], text, sizeof text), "F32 ()") && weights_count(&list[0]) == 1;
    ok &= !strcmp(weights_text(&list[3], text, 6), "F32 (") && !strcmp(stored_name(N_STORED), "?") && !stored_bytes(-1);
    tap_ok(ok, "told in words");
    weights_drop(&t, &list[3]);
    t.drop = note_drop;
    t.ctx = &n;
    weights_drop(&t, &list[3]);
    ok = n == 1 && dropped == list[3].data && dropped_bytes == 15 * 4;
    weights_drop(&t, weights_get(&t, "a.bias"));
    tap_ok(ok && n == 1, "dropped from the first to the last element");
    list[0].name = "b";
    ok = weights_sort(&t, &e) == E_FORMAT;
    tap_ok(ok && is_err(&e, E_FORMAT, "'b' is there twice"), "no name twice");
}

int main(void)
{
    test_read();
    test_rounding();
    test_refused_reads();
    test_check();
    test_table();
    return tap_done();
}
