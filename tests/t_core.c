/* tests/t_core.c: the ground that everything stands on: errors, arenas, pools, tensors, devices, named random
 * numbers. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "core/arena.h"
#include "core/device.h"
#include "core/err.h"
#include "core/pool.h"
#include "core/rng.h"
#include "core/tensor.h"
#include "tests/kit.h"
#include "kernels/dev.h"
#include "tests/tap.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

static const size_t MiB = (size_t)1 << 20;

static bool is_err(const struct err *e, int code, const char *part)
{
    if (e->code == code && strstr(e->text, part))
        return true;
    tap_note("error %d '%s', want %d and '%s'", e->code, e->text, code, part);
    return false;
}

/* Whole numbers below n from a fixed sequence. */
static uint64_t below(uint64_t *state, uint64_t n)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (*state >> 33) % n;
}

/* ---- errors ---- */

static void test_err(void)
{
    struct err e = { 0 };
    int rc = err_set(&e, E_FORMAT, "tensor '%s' ends at %d, file at %d", "b", 900, 512);

    tap_ok(rc == E_FORMAT && is_err(&e, E_FORMAT, "tensor 'b' ends at 900, file at 512"), "a code and a sentence");
    rc = err_in(&e, "reading weights '%s'", "a");
    rc = err_in(&e, "job %d", 7) == rc ? rc : 0;
    tap_ok(rc == E_FORMAT && !strcmp(e.text, "job 7: reading weights 'a': tensor 'b' ends at 900, file at 512"),
           "context goes in front, the code stays");
    err_set(&e, E_IO, "<%s>", e.text);
    tap_ok(!strcmp(e.text, "<job 7: reading weights 'a': tensor 'b' ends at 900, file at 512>") && e.code == E_IO,
           "arguments may point into the record");
    err_clear(&e);
    tap_ok(e.code == OK && !e.text[0], "clear");
    tap_ok(err_set(NULL, E_BUSY, "nobody reads this") == E_BUSY && err_in(NULL, "nor this") != OK,
           "no record, no crash");
    err_clear(NULL);
}

static void test_err_long(void)
{
    char text[700], wide[700];
    struct err e;
    bool ok = true;

    memset(text, 'x', sizeof text);
    text[sizeof text - 1] = '\0';
    err_set(&e, E_ARG, "%s", text);
    ok &= strlen(e.text) == sizeof e.text - 1 && !strncmp(e.text, text, sizeof e.text - 1);
    err_in(&e, "outside");
    ok &= strlen(e.text) == sizeof e.text - 1 && !strncmp(e.text, "outside: xxx", 12);
    err_in(&e, "%s", text);
    ok &= strlen(e.text) == sizeof e.text - 1 && e.text[0] == 'x' && e.code == E_ARG;
    tap_ok(ok, "a message that is too long is cut");
    ok = true;
    for (size_t shift = 0; shift < 4; shift++) {            /* 1 to 4 bytes a character, at every offset of the cut */
        static const char *const letter[] = { "a", "\xC3\xA9", "\xE2\x82\xAC", "\xF0\x9F\x90\xB1" };
        for (size_t l = 0; l < LEN(letter); l++) {
            const size_t len = strlen(letter[l]);
            memset(wide, 'x', shift);
            for (size_t i = shift; i + len < sizeof wide; i += len)
                memcpy(wide + i, letter[l], len + 1);
            err_set(&e, E_ARG, "%s", wide);
            ok &= (strlen(e.text) - shift) % len == 0 && strlen(e.text) + len >= sizeof e.text;
        }
    }
    tap_ok(ok, "a cut never splits a character");
}

/* ---- arenas ---- */

static void test_arena(void)
{
    struct arena a;
    struct err e = { 0 };
    unsigned char *first, *p[40], *q;
    bool ok = arena_init(&a, "step", ARENA_HOST, 100 * MiB, &e) == OK;
    size_t mark, total = 0;

    first = arena_push(&a, 1, &e);
    q = arena_push(&a, 0, &e);
    ok &= first && q == first + 64 && arena_push(&a, 65, &e) == q && arena_mark(&a) == 192;
    tap_ok(ok && (uintptr_t)first % 64 == 0, "pushes are aligned and rounded up; an empty one is valid");
    mark = arena_mark(&a);
    for (int i = 0; i < 40; i++) {                          /* grows far past the first commit */
        p[i] = arena_push(&a, 2 * MiB + (size_t)i, &e);
        ok &= p[i] != NULL;
        if (p[i])
            memset(p[i], i, 2 * MiB + (size_t)i);
        total += (2 * MiB + (size_t)i + 63) / 64 * 64;
    }
    for (int i = 0; i < 40 && ok; i++)
        ok &= p[i][0] == i && p[i][MiB] == i && p[i][2 * MiB + (size_t)i - 1] == i;
    tap_ok(ok && arena_mark(&a) == mark + total, "what was written stays where it is while the arena grows");
    arena_release(&a, mark);
    q = arena_push(&a, 10, &e);
    ok = q == p[0] && arena_high(&a) == mark + total;
    arena_reset_high(&a);
    tap_ok(ok && arena_high(&a) == mark + 64, "release to a mark; the high-water mark and its restart");
    arena_release(&a, mark + MiB);
    tap_ok(arena_mark(&a) == mark + 64, "releasing to a mark above does nothing");
    arena_release(&a, 0);
    q = arena_push_zero(&a, 4 * MiB, &e);
    for (size_t i = 0; i < 4 * MiB && ok; i++)
        ok = q[i] == 0;
    tap_ok(ok, "a cleared push over used memory");
    arena_free(&a);
    arena_free(&a);
    tap_ok(a.base == NULL, "free, twice");
}

static void test_arena_limits(void)
{
    struct arena a;
    struct err e = { 0 };
    bool ok = arena_init(&a, "small", ARENA_HOST, 1000, &e) == OK;

    ok &= arena_push(&a, 900, &e) != NULL && e.code == OK;
    ok &= !arena_push(&a, 64, &e) && is_err(&e, E_NOMEM, "'small'");        /* 960 + 64 > 1000 */
    err_clear(&e);
    ok &= !arena_push(&a, SIZE_MAX, &e) && is_err(&e, E_NOMEM, "'small'");
    err_clear(&e);
    ok &= !arena_push(&a, SIZE_MAX - 70, &e) && is_err(&e, E_NOMEM, "'small'");
    ok &= arena_mark(&a) == 960 && arena_high(&a) == 960 && arena_push(&a, 0, &e) != NULL;
    arena_free(&a);
    tap_ok(ok, "a full arena says so and stays usable");

    ok = arena_init(&a, "vast", ARENA_HOST, SIZE_MAX, &e) == E_NOMEM && is_err(&e, E_NOMEM, "'vast'");
    ok &= arena_init(&a, "vast", ARENA_HOST, (size_t)1 << 50, &e) == E_NOMEM && is_err(&e, E_NOMEM, "'vast'");
    ok &= !arena_push(&a, 0, &e) && is_err(&e, E_BUG, "'vast'");
    arena_free(&a);
    tap_ok(ok, "more than there is");
    ok = arena_init(&a, "none", ARENA_HOST, 0, &e) == OK && arena_push(&a, 0, &e) && !arena_push(&a, 1, &e);
    arena_free(&a);
    tap_ok(ok, "an arena of nothing");
    if (dev_cuda_probe(NULL, 0, NULL) > 0)
        ok = arena_init(&a, "device", ARENA_CUDA, MiB, &e) == OK && arena_push(&a, MiB, &e) && !arena_push(&a, 1, &e);
    else
        ok = arena_init(&a, "device", ARENA_CUDA, MiB, &e) == E_DEVICE && is_err(&e, E_DEVICE, "'device'");
    arena_free(&a);
    tap_ok(ok, "an arena on a device, or none");
}

static void test_seal(void)
{
    struct arena a, empty;
    struct err e = { 0 };
    bool ok = arena_init(&a, "step", ARENA_HOST, MiB, &e) == OK
        && arena_init(&empty, "idle", ARENA_HOST, MiB, &e) == OK;

    arena_push(&a, 1000, &e);
    arena_release(&a, 0);
    arena_seal(&a);
    ok &= arena_push(&a, 500, &e) && arena_push(&a, 512, &e) && e.code == OK;       /* 1024 in all */
    ok &= !arena_push(&a, 1, &e) && is_err(&e, E_BUG, "'step'") && is_err(&e, E_BUG, "sealed");
    ok &= !arena_push(&a, 100 * MiB, &e) && e.code == E_BUG && arena_push(&a, 0, &e) && arena_high(&a) == 1024;
    arena_seal(&empty);
    ok &= !arena_push(&empty, 1, &e) && is_err(&e, E_BUG, "'idle'");
    tap_ok(ok, "nothing grows past a seal, also in an arena that was never used");
    arena_free(&a);
    arena_free(&empty);
}

#if !defined(__SANITIZE_ADDRESS__)
/* Bytes that count against RLIMIT_DATA: libraries, too, have some. */
static size_t data_bytes(void)
{
    FILE *f = fopen("/proc/self/status", "r");
    char line[256];
    size_t kib = 0;

    while (f && fgets(line, sizeof line, f) && sscanf(line, "VmData: %zu", &kib) != 1)
        ;
    if (f)
        fclose(f);
    return kib << 10;
}
#endif

/* The address space, then the data size, are limited to a little more than is in use. */
static void test_system_limit(void)
{
#if defined(__SANITIZE_ADDRESS__)
    tap_skip("limits of the system", "the sanitizer needs its address space");
#else
    struct rlimit was, now;
    struct arena a = { 0 };
    struct err e = { 0 };
    size_t got = 0;
    bool ok;

    getrlimit(RLIMIT_AS, &was);
    now = was;
    now.rlim_cur = (rlim_t)1 << 33;
    setrlimit(RLIMIT_AS, &now);
    ok = arena_init(&a, "step", ARENA_HOST, (size_t)1 << 34, &e) == E_NOMEM && is_err(&e, E_NOMEM, "'step'");
    setrlimit(RLIMIT_AS, &was);
    tap_ok(ok, "no address space: %s", e.text);
    arena_free(&a);

    getrlimit(RLIMIT_DATA, &was);
    ok = arena_init(&a, "step", ARENA_HOST, (size_t)1 << 34, &e) == OK;
    now = was;
    /* between two steps of the commits, so that the last ones are small */
    now.rlim_cur = (rlim_t)(data_bytes() / MiB * MiB + 1120 * MiB);
    setrlimit(RLIMIT_DATA, &now);
    err_clear(&e);
    while (got < 4096 && arena_push(&a, MiB, &e))
        got++;
    setrlimit(RLIMIT_DATA, &was);
    if (got == 4096) {
        tap_skip("no memory behind the address space", "the system does not enforce RLIMIT_DATA");
    } else {
        ok &= is_err(&e, E_NOMEM, "'step'") && arena_mark(&a) == got * MiB && arena_push(&a, MiB, &e);
        tap_ok(ok && got >= 1056, "no memory behind the address space after %zu MiB: %s", got, e.text);
    }
    arena_free(&a);
#endif
}

/* The same pushes and releases on both: the same marks, failures and high water. */
static void test_null_arena(void)
{
    struct arena a, b, c;
    struct err e = { 0 };
    uint64_t s = 1;
    size_t mark[64];
    int n_mark = 0;
    bool ok = arena_init(&a, "host", ARENA_HOST, 3 * MiB + 100, &e) == OK;

    ok &= arena_init(&b, "null", ARENA_NULL, 3 * MiB + 100, &e) == OK;
    ok &= arena_init(&c, "other", ARENA_NULL, (size_t)1 << 45, &e) == OK;
    ok &= (size_t)(c.base - b.base) >= 3 * MiB + 100 || (size_t)(b.base - c.base) >= (size_t)1 << 45;
    tap_ok(ok && arena_push(&c, (size_t)1 << 44, &e), "null arenas do not share addresses, and may be vast");
    for (int i = 0; i < 10000; i++) {
        const uint64_t what = below(&s, 8);
        if (what < 5) {
            const size_t bytes = below(&s, 4) ? below(&s, 5000) : below(&s, MiB);
            char *p = arena_push(&a, bytes, &e), *q = arena_push(&b, bytes, &e);
            ok &= !p == !q && (!p || (p - a.base == q - b.base && (uintptr_t)q % 64 == 0));
        } else if (what == 5 && n_mark < 64) {
            mark[n_mark++] = arena_mark(&a);
        } else if (what == 6 && n_mark) {
            n_mark -= 1 + (int)below(&s, (uint64_t)n_mark);
            arena_release(&a, mark[n_mark]);
            arena_release(&b, mark[n_mark]);
        } else if (what == 7 && !below(&s, 100)) {
            arena_reset_high(&a);
            arena_reset_high(&b);
        }
        ok &= arena_mark(&a) == arena_mark(&b) && arena_high(&a) == arena_high(&b);
    }
    tap_ok(ok && arena_high(&b) > 2 * MiB, "a null arena counts what a host arena uses");
    ok = !arena_push_zero(&b, 10, &e) && is_err(&e, E_BUG, "'null'");
    tap_ok(ok, "a null arena cannot be cleared");
    arena_free(&a);
    arena_free(&b);
    arena_free(&c);
}

static void test_poison(void)
{
#if defined(__SANITIZE_ADDRESS__)
    struct arena a;
    struct err e = { 0 };
    struct pool pool;
    char *p, *q;
    bool ok = arena_init(&a, "step", ARENA_HOST, MiB, &e) == OK;

    p = arena_push(&a, 100, &e);
    q = arena_push(&a, 64, &e);
    ok &= !__asan_address_is_poisoned(p + 99) && __asan_address_is_poisoned(p + 104) && !__asan_address_is_poisoned(q)
        && __asan_address_is_poisoned(q + 64);
    arena_release(&a, 128);
    ok &= __asan_address_is_poisoned(q) && !__asan_address_is_poisoned(p);
    arena_release(&a, 0);
    ok &= pool_init(&pool, &a, &e) == OK;
    p = pool_take(&pool, 128, &e);
    q = pool_take(&pool, 128, &e);
    pool_give(&pool, p);
    ok &= __asan_address_is_poisoned(p) && !__asan_address_is_poisoned(q);
    ok &= pool_take(&pool, 100, &e) == p && !__asan_address_is_poisoned(p);
    pool_free(&pool);
    arena_free(&a);
    tap_ok(ok, "what was released or given back is poisoned");
#else
    tap_skip("what was released or given back is poisoned", "this is no ASan build");
#endif
}

/* ---- memory running out at every point ---- */

static int scenario(struct err *e)
{
    struct arena meta = { 0 }, step = { 0 };
    struct pool pool = { 0 };
    struct device dev = { 0 };
    struct tensor *x = NULL, *y = NULL;
    void *a = NULL, *b = NULL;
    size_t used = 0;
    int rc = arena_init(&meta, "meta", ARENA_HOST, MiB, e);

    if (!rc)
        rc = arena_init(&step, "step", ARENA_HOST, MiB, e);
    if (!rc)
        rc = pool_init(&pool, &step, e);
    if (!rc)
        rc = device_open(&dev, "null", 2, e);
    if (!rc) {
        used = arena_mark(&meta);
        x = tensor_new(&meta, &meta, F32, 2, (int64_t[]){ 3, 5 }, e);
        y = x ? tensor_view(&meta, x, 1, (int64_t[]){ 15 }, e) : NULL;
        a = y ? pool_take(&pool, 1000, e) : NULL;
        pool_give(&pool, a);
        b = a ? pool_take(&pool, 10, e) : NULL;
        rc = b ? OK : e->code;
        if (!x && arena_mark(&meta) != used)
            rc = E_BUG;                                     /* a failed maker leaves nothing behind */
        if (!a && (pool.n_block || pool.used))
            rc = E_BUG;
    }
    device_close(&dev);
    pool_free(&pool);
    arena_free(&step);
    arena_free(&meta);
    return rc;
}

static void test_faults(void)
{
    struct err e = { 0 };
    long total;
    bool ok = true;

    arena_fault_at(0);
    ok &= scenario(&e) == OK;
    total = arena_fault_count();
    for (long n = 1; n <= total + 1; n++) {
        err_clear(&e);
        arena_fault_at(n);
        ok &= n <= total ? scenario(&e) == E_NOMEM && e.code == E_NOMEM : scenario(&e) == OK;
        ok &= n > total || arena_fault_count() >= n;
    }
    arena_fault_at(0);
    tap_ok(ok && total == 10, "out of memory at each of %ld points: one clean error, nothing left behind", total);
}

/* ---- pools ---- */

enum { MODEL_MAX = 256 };

/* The blocks that are taken, as offsets and sizes in order: first fit means the lowest gap that is large enough. */
struct model {
    struct { size_t at, bytes; unsigned char fill; } block[MODEL_MAX];
    int n;
};

static size_t rounded(size_t bytes)
{
    return bytes ? (bytes + 63) / 64 * 64 : 64;
}

static size_t model_take(struct model *m, size_t bytes, unsigned char fill)
{
    size_t at = 0;
    int i = 0;

    while (i < m->n && m->block[i].at - at < rounded(bytes)) {
        at = m->block[i].at + rounded(m->block[i].bytes);
        i++;
    }
    memmove(m->block + i + 1, m->block + i, sizeof m->block[0] * (size_t)(m->n - i));
    m->block[i].at = at;
    m->block[i].bytes = bytes;
    m->block[i].fill = fill;
    m->n++;
    return at;
}

static bool filled(const unsigned char *p, size_t bytes, unsigned char fill)
{
    for (size_t i = 0; i < bytes; i++)
        if (p[i] != fill)
            return false;
    return true;
}

/* 10000 takes and gives. On the host every block is filled, and looked at again when it is given back. */
static bool play(struct pool *p, uint64_t seed, bool touch)
{
    struct model m = { .n = 0 };
    struct err e = { 0 };
    char *const base = p->arena->base;
    size_t used = 0;
    bool ok = true;

    for (int i = 0; i < 10000 && ok; i++) {
        const bool take = m.n == 0 || (m.n < MODEL_MAX && below(&seed, 100) < (i < 6000 ? 55 : 45));
        if (take) {
            const size_t bytes = below(&seed, 10) ? below(&seed, 300) : below(&seed, 20000);
            const size_t at = model_take(&m, bytes, (unsigned char)i);
            char *got = pool_take(p, bytes, &e);
            used += rounded(bytes);
            ok &= got == base + at;
            if (got && touch)
                memset(got, i & 255, bytes);
        } else {
            const int j = (int)below(&seed, (uint64_t)m.n);
            char *block = base + m.block[j].at;
            ok &= !touch || filled((unsigned char *)block, m.block[j].bytes, m.block[j].fill);
            pool_give(p, block);
            used -= rounded(m.block[j].bytes);
            m.n--;
            memmove(m.block + j, m.block + j + 1, sizeof m.block[0] * (size_t)(m.n - j));
        }
        ok &= p->used == used && p->high >= used;
    }
    while (m.n)
        pool_give(p, base + m.block[--m.n].at);
    return ok && p->used == 0 && p->n_block == 1;
}

static void test_pool(void)
{
    struct arena host, null;
    struct pool p, q;
    struct err e = { 0 };
    size_t high, most;
    bool ok = arena_init(&host, "gradients", ARENA_HOST, 64 * MiB, &e) == OK
        && arena_init(&null, "null", ARENA_NULL, 64 * MiB, &e) == OK && pool_init(&p, &host, &e) == OK
        && pool_init(&q, &null, &e) == OK;

    tap_ok(ok && play(&p, 1, true), "10000 takes and gives as in the model; all merged at the end");
    high = arena_high(&host);
    most = p.high;
    ok = pool_take(&p, high, &e) == host.base && arena_high(&host) == high;
    tap_ok(ok, "the merged block is as large as all that was pushed");
    pool_reset(&p);
    tap_ok(arena_mark(&host) == 0 && p.used == 0 && play(&p, 1, true) && arena_high(&host) == high,
           "after a reset the same calls give the same addresses");
    tap_ok(play(&q, 1, false) && arena_high(&null) == high && q.high == most,
           "and on a null arena, with the same high water");
    pool_free(&p);
    pool_free(&q);
    arena_free(&host);
    arena_free(&null);
}

static void test_pool_misuse(void)
{
    struct arena a;
    struct pool p;
    struct err e = { 0 };
    char *x, *y, local;
    bool ok = arena_init(&a, "gradients", ARENA_HOST, 1024, &e) == OK && pool_init(&p, &a, &e) == OK;

    x = pool_take(&p, 128, &e);
    y = pool_take(&p, 128, &e);
    pool_give(&p, NULL);
    pool_give(&p, &local);
    pool_give(&p, x + 64);
    ok &= p.used == 256;
    pool_give(&p, x);
    pool_give(&p, x);
    tap_ok(ok && p.used == 128 && pool_take(&p, 128, &e) == x && y, "giving back what is not taken changes nothing");
    ok = !pool_take(&p, 1024, &e) && is_err(&e, E_NOMEM, "'gradients'");
    ok &= !pool_take(&p, SIZE_MAX, &e) && is_err(&e, E_NOMEM, "'gradients'");
    ok &= !pool_take(&p, SIZE_MAX / 2, &e) && p.used == 256;
    tap_ok(ok && pool_take(&p, 768, &e) == x + 256 && p.used == 1024, "a full pool says so and stays usable");
    pool_free(&p);
    ok = arena_mark(&a) == 0 && pool_init(&p, &a, &e) == OK && pool_take(&p, 64, &e);
    arena_push(&a, 64, &e);
    pool_give(&p, a.base);
    tap_ok(ok && !pool_take(&p, 128, &e) && is_err(&e, E_BUG, "'gradients'"), "somebody else's push is noticed");
    pool_free(&p);
    pool_free(&p);
    arena_free(&a);
}

static void test_pool_cap(void)
{
    struct arena a;
    struct pool p;
    struct err e = { 0 };
    long n = 0;
    bool ok = arena_init(&a, "many", ARENA_NULL, (size_t)1 << 40, &e) == OK && pool_init(&p, &a, &e) == OK;

    while (n < 1 << 20 && pool_take(&p, 64, &e))
        n++;
    tap_ok(ok && n == 1 << 14 && is_err(&e, E_NOMEM, "'many'"), "the book-keeping has a cap: %ld blocks", n);
    pool_free(&p);
    arena_free(&a);
}

/* ---- tensors ---- */

static void test_tensor(void)
{
    struct arena meta, data;
    struct err e = { 0 };
    struct tensor *x, *v, *w;
    char text[64], tiny[8], mem[24];
    size_t mark;
    bool ok = arena_init(&meta, "meta", ARENA_HOST, MiB, &e) == OK
        && arena_init(&data, "step", ARENA_NULL, MiB, &e) == OK;

    x = tensor_new(&meta, &data, BF16, 4, (int64_t[]){ 2, 64, 8, 3 }, &e);
    ok &= x && tensor_count(x) == 3072 && tensor_bytes(x) == 6144 && arena_mark(&data) == 6144 && !x->grad && !x->name;
    tap_ok(ok && !strcmp(tensor_text(x, text, sizeof text), "bf16 (2,64,8,3)"), "a tensor: %s", text);
    x->name = "h";
    v = tensor_view(&meta, x, 2, (int64_t[]){ 128, 24 }, &e);
    w = tensor_wrap(&meta, mem, F32, 0, NULL, &e);
    ok = v && v->data == x->data && v->type == BF16 && !v->needs_grad && !tensor_same_shape(v, x)
        && !tensor_same_shape(w, x) && !tensor_same_shape(x, w)
        && tensor_same_shape(x, x) && w && w->data == mem && tensor_count(w) == 1;
    tap_ok(ok && !strcmp(tensor_text(w, text, sizeof text), "f32 ()"), "a view and a scalar over the caller's memory");
    mark = arena_mark(&meta);
    tap_ok(!tensor_view(&meta, x, 1, (int64_t[]){ 3071 }, &e) && is_err(&e, E_ARG, "'h'") && arena_mark(&meta) == mark
           && is_err(&e, E_ARG, "bf16 (2,64,8,3)") && is_err(&e, E_ARG, "(3071)"), "a view of another size: %s",
           e.text);
    tap_ok(!strcmp(tensor_text(x, tiny, sizeof tiny), "bf16 (2"), "text is cut to the buffer");
    x = tensor_new(&meta, &data, F16, 3, (int64_t[]){ 7, 0, 9 }, &e);
    tap_ok(x && x->data && tensor_count(x) == 0, "a tensor without elements");
    arena_free(&meta);
    arena_free(&data);
}

static const struct { const char *why; int n_dim; int64_t dim[6]; enum dtype type; const char *text; } bad_shapes[] = {
    { "a negative size", 2, { 3, -1 }, F32, "(3,-1)" },
    { "six dimensions", 6, { 1, 1, 1, 1, 1, 1 }, F32, "6 dimensions" },
    { "fewer than none", -1, { 1 }, F32, "-1 dimensions" },
    { "too large", 3, { (int64_t)1 << 40, (int64_t)1 << 20, 8 }, F32, "too large" },
    { "a product that wraps to 0", 2, { (int64_t)1 << 32, (int64_t)1 << 32 }, F16, "too large" },
    { "too large beside a 0", 4, { 0, (int64_t)1 << 40, (int64_t)1 << 40, 1 }, F16, "too large" },
    { "an unknown type", 1, { 1 }, N_DTYPE, "unknown type" },
    { "more than the arena has", 1, { 1 << 20 }, F32, "'step'" },
};

static void test_bad_tensors(void)
{
    struct arena meta, data;
    struct err e = { 0 };

    arena_init(&meta, "meta", ARENA_HOST, MiB, &e);
    arena_init(&data, "step", ARENA_NULL, MiB, &e);
    for (size_t i = 0; i < LEN(bad_shapes); i++) {
        struct tensor *x = tensor_new(&meta, &data, bad_shapes[i].type, bad_shapes[i].n_dim, bad_shapes[i].dim, &e);
        tap_ok(!x && is_err(&e, i + 1 < LEN(bad_shapes) ? E_ARG : E_NOMEM, bad_shapes[i].text) && !arena_mark(&meta)
               && !arena_mark(&data), "%s: %s", bad_shapes[i].why, e.text);
    }
    arena_free(&meta);
    arena_free(&data);
}

/* What the 16 bits mean, from the formats' definitions. */
static double value_of(enum dtype type, unsigned h)
{
    const int bits = type == F16 ? 10 : 7, bias = type == F16 ? 15 : 127, top = type == F16 ? 31 : 255;
    const int e = (int)(h >> bits) & top, m = (int)h & ((1 << bits) - 1);
    const double sign = h >> 15 ? -1 : 1;

    if (e == top)
        return m ? (double)NAN : sign * (double)INFINITY;
    return e ? sign * ldexp((1 << bits) + m, e - bias - bits) : sign * ldexp(m, 1 - bias - bits);
}

/* All 65536 values to f32 and back; then the midpoint of each pair of neighbours, and the numbers beside it. */
static void test_conversions(enum dtype type)
{
    enum { N = 65536 };
    const unsigned inf = type == F16 ? 0x7c00 : 0x7f80;
    uint16_t *h = malloc(sizeof *h * N), *back = malloc(sizeof *back * N);
    float *f = malloc(sizeof *f * N);
    bool exact = true, same = true, ties = true;

    for (unsigned i = 0; i < N; i++)
        h[i] = (uint16_t)i;
    dtype_to_f32(f, h, type, N);
    dtype_from_f32(back, type, f, N);
    for (unsigned i = 0; i < N; i++) {
        const double want = value_of(type, i);
        exact &= isnan(want) ? isnan(f[i]) : (double)f[i] == want && !signbit(f[i]) == !(i >> 15);
        same &= isnan(want) ? isnan(value_of(type, back[i])) : back[i] == i;
    }
    for (unsigned i = 0; i < inf; i++) {                    /* the largest number's neighbour is infinity */
        const double low = value_of(type, i);
        const double high = i + 1 < inf ? value_of(type, i + 1) : 2 * low - value_of(type, i - 1);
        const float mid = (float)((low + high) / 2);
        const float in[6] = { nextafterf(mid, 0), mid, nextafterf(mid, INFINITY), -nextafterf(mid, 0), -mid,
                              -nextafterf(mid, INFINITY) };
        const unsigned even = i & 1 ? i + 1 : i, minus = 0x8000;
        const unsigned want[6] = { i, even, i + 1, i | minus, even | minus, (i + 1) | minus };
        uint16_t out[6];
        dtype_from_f32(out, type, in, 6);
        for (int j = 0; j < 6; j++)
            ties &= out[j] == want[j];
    }
    tap_ok(exact, "%s to f32: all values are exact", dtype_name(type));
    tap_ok(same, "%s to f32 and back: all values are the same", dtype_name(type));
    tap_ok(ties, "f32 to %s: to nearest, ties to even, for all neighbours and both signs", dtype_name(type));
    free(h);
    free(back);
    free(f);
}

/* ---- devices ---- */

static void test_devices(void)
{
    struct device d;
    struct err e = { 0 };
    bool ok = device_open(&d, "cpu", 3, &e) == OK;

    ok &= d.kern == kern_cpu(NULL) && d.place == ARENA_HOST && d.ctx.n_threads == 3 && d.ctx.scratch && !d.ctx.count
        && d.ctx.scratch_bytes >= d.kern->scratch_bytes && (uintptr_t)d.ctx.scratch % 64 == 0;
    memset(d.ctx.scratch, 1, 3 * d.ctx.scratch_bytes);
    device_close(&d);
    tap_ok(ok && !d.kern, "cpu");
    ok = device_open(&d, "cpu:portable", 0, &e) == OK && !strcmp(d.kern->name, "portable") && d.ctx.n_threads >= 1;
    device_close(&d);
    tap_ok(ok, "cpu:portable, as many threads as there are");
    ok = device_open(&d, "null:portable", 2, &e) == OK && d.kern == &d.null && !d.kern->computes
        && d.place == ARENA_NULL && d.ctx.count == &d.count
        && d.kern->scratch_bytes == kern_cpu("portable")->scratch_bytes
        && arena_high(&d.threads) == 2 * d.ctx.scratch_bytes;
    ok &= d.kern->fill(&d.ctx, d.ctx.scratch, F32, 10, 1) == K_OK && d.count.bytes == 40 && d.count.calls == 1;
    device_close(&d);
    tap_ok(ok, "null:portable counts");
    ok = device_open(&d, "null", 1, &e) == OK && !strcmp(d.kern->isa, kern_cpu(NULL)->isa);
    device_close(&d);
    tap_ok(ok, "null stands for the best CPU");
}

static const struct { const char *name; int n_threads, code; const char *text; } bad_devices[] = {
    { "", 1, E_ARG, "unknown device ''" },
    { "gpu", 1, E_ARG, "say cpu, null or cuda" },
    { "cpux", 1, E_ARG, "unknown device 'cpux'" },
    { "cpu:", 1, E_ARG, "unknown device 'cpu:'" },
    { "cpu:avx1024", 1, E_ARG, "this build has portable" },
    { "null:mmx", 1, E_ARG, "no instruction set 'mmx'" },
    { "cpu", -1, E_ARG, "-1 threads" },
    { "cpu", 100000, E_ARG, "100000 threads" },
};

static void test_bad_devices(void)
{
    struct device d;
    struct err e = { 0 };
    const char *lacks = NULL;
    char name[32];

    for (size_t i = 0; i < LEN(bad_devices); i++)
        tap_ok(device_open(&d, bad_devices[i].name, bad_devices[i].n_threads, &e) == bad_devices[i].code
               && is_err(&e, bad_devices[i].code, bad_devices[i].text) && !d.kern && !d.threads.base, "%s", e.text);
    if (dev_cuda_probe(NULL, 0, NULL) > 0)
        tap_skip("no CUDA device", "this build has CUDA");
    else
        tap_ok(device_open(&d, "cuda", 1, &e) == E_DEVICE && is_err(&e, E_DEVICE, "use cpu")
               && device_open(&d, "cuda:1", 1, &e) == E_DEVICE, "%s", e.text);
    for (const char *const *i = kern_cpu_names(); *i; i++)
        if (!kern_cpu(*i))
            lacks = *i;
    if (!lacks) {
        tap_skip("a missing instruction set", "this processor has them all");
        return;
    }
    snprintf(name, sizeof name, "cpu:%s", lacks);
    tap_ok(device_open(&d, name, 1, &e) == E_DEVICE && is_err(&e, E_DEVICE, "does not have"), "%s", e.text);
}

/* ---- random numbers ---- */

static void test_rng(void)
{
    const struct krng r = rng_stream(0x123456789abcdef0, RNG_TEST, 17, 0x30000000Aull);
    const struct kern *kern = kern_cpu(NULL);
    enum { N = 1000 };
    uint32_t bits[N];
    float uniform[N];
    bool ok = true;

    ok &= r.key[0] == 0x9abcdef0 && r.key[1] == 0x12345678 && r.ctr[0] == 10 && r.ctr[1] == 17
        && r.ctr[2] == RNG_TEST + (3u << 8);
    tap_ok(ok, "seed, step, row and purpose have their places");
    for (uint64_t first = 0; first < 4; first++) {
        kern->random_bits(kit_ctx(kern, 1), bits, N, &r, first * 1000003);
        kern->random_uniform(kit_ctx(kern, 1), uniform, N, &r, first * 1000003);
        for (uint64_t i = 0; i < N; i++)
            ok &= rng_u32(&r, first * 1000003 + i) == bits[i]
                && rng_uniform(&r, first * 1000003 + i) == (double)uniform[i];
    }
    tap_ok(ok, "single numbers are those of the kernels");
}

static int by_word(const void *a, const void *b)
{
    const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

/* First two words of streams whose names differ in one place, for every bit of row and step that counts. */
static void test_streams(void)
{
    static const enum rng_purpose purposes[] = { RNG_INIT, RNG_NOISE, RNG_STEP, RNG_LATENT, RNG_TIME, RNG_DROP,
                                                 RNG_AUGMENT, RNG_SHUFFLE, RNG_TEST };
    uint64_t word[LEN(purposes) * (1 + 64 + 32 + 55)];
    size_t n = 0, same = 0;

    for (size_t p = 0; p < LEN(purposes); p++)
        for (int bit = -1; bit < 64 + 32 + 55; bit++) {
            const uint64_t seed = 42 ^ (bit >= 0 && bit < 64 ? (uint64_t)1 << bit : 0);
            const uint32_t step = bit >= 64 && bit < 96 ? 1u << (bit - 64) : 0;
            const uint64_t row = bit >= 96 ? (uint64_t)1 << (bit - 96) : 0;
            const struct krng r = rng_stream(seed, purposes[p], step, row);
            word[n++] = (uint64_t)rng_u32(&r, 0) << 32 | rng_u32(&r, 1);
        }
    qsort(word, n, sizeof *word, by_word);
    for (size_t i = 1; i < n; i++)
        same += word[i] == word[i - 1];
    tap_ok(n == LEN(word) && same == 0, "%zu names, %zu streams", n, n - same);
}

/* floor(u n / 2^64) in 128 bits: element i above, the same element of the stream with the last bit turned below. */
static bool below_exact(const struct krng *r, uint64_t i, uint64_t n)
{
#if defined(__SIZEOF_INT128__)
    __extension__ typedef unsigned __int128 wide;
    struct krng twin = *r;
    twin.ctr[2] ^= 0x80000000u;
    const uint64_t u = (uint64_t)rng_u32(r, i) << 32 | rng_u32(&twin, i);
    return rng_below(r, i, n) == (uint64_t)((wide)u * n >> 64);
#else
    return rng_below(r, i, n) < n;
#endif
}

static void test_below(void)
{
    const struct krng r = rng_stream(1, RNG_SHUFFLE, 0, 0);
    const uint64_t big = ((uint64_t)1 << 63) + 12345;
    int64_t seen[7] = { 0 };
    double mean = 0, chi2 = 0;
    bool ok = true, wide = false;

    for (uint64_t i = 0; i < 70000; i++) {
        const uint64_t x = rng_below(&r, i, 7), y = rng_below(&r, i, big);
        ok &= x < 7 && y < big && rng_below(&r, i, 1) == 0 && rng_below(&r, i, 0) == 0;
        ok &= below_exact(&r, i, big - i) && below_exact(&r, i, UINT64_MAX) && below_exact(&r, i, 1 + i);
        ok &= rng_below(&r, i, (uint64_t)1 << 32) == rng_u32(&r, i);       /* the upper half is the element */
        seen[x % 7]++;
        mean += (double)y / (double)big / 70000;
        wide |= (y & 0xffffffff) != 0;
    }
    for (int i = 0; i < 7; i++)
        chi2 += ((double)seen[i] - 10000) * ((double)seen[i] - 10000) / 10000;
    /* six degrees of freedom: 22.5 is 1 in 1000; the mean of 70000 uniforms is within 4/sqrt(12*70000) of a half */
    tap_ok(ok && wide && chi2 < 22.5 && fabs(mean - 0.5) < 0.0044, "whole numbers below n: chi2 %.1f, mean %.4f", chi2,
           mean);
}

int main(void)
{
    test_err();
    test_err_long();
    test_arena();
    test_arena_limits();
    test_seal();
    test_system_limit();
    test_null_arena();
    test_poison();
    test_faults();
    test_pool();
    test_pool_misuse();
    test_pool_cap();
    test_tensor();
    test_bad_tensors();
    test_conversions(F16);
    test_conversions(BF16);
    test_devices();
    test_bad_devices();
    test_rng();
    test_streams();
    test_below();
    return tap_done();
}
