#include "tests/cuda_kit.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/tensor.h"

enum { GUARD = 256, ALIGN = 256, CPU_THREADS = 8 };

const struct kern *kit_cpu, *kit_cuda;
const double kit_near[N_DTYPE] = { 1e-5, 2e-3, 1e-2 };
bool cuda_kit_odd;
struct dev_queue *kit_queue;

static struct {
    unsigned char *base, *guard;        /* on the device; 2 * GUARD bytes on the host */
    size_t cap, used;
    void *host[4096];                   /* what to free */
    int n_host, n_odd;
    struct kctx cpu, cuda;
    bool emulated;
} kit;

static void stop(const char *what)
{
    printf("Bail out! %s: %s\n", what, dev_cuda_why());
    exit(1);
}

static void *on_host(size_t bytes)
{
    void *p = malloc(bytes ? bytes : 1);

    if (!p || kit.n_host == LEN(kit.host)) {
        printf("Bail out! no room on the host\n");
        exit(1);
    }
    return kit.host[kit.n_host++] = p;
}

bool cuda_kit_begin(void)
{
    const char *number = getenv("UNICON_TEST_DEVICE"), *why = "";
    struct dev_cuda_info info = { .name = "" };

    kit_cpu = kern_cpu(NULL);
    kit_cuda = kern_cuda();
    if (!kit_cuda || dev_cuda_probe(&info, 1, &why) < 0) {
        printf("1..0 # SKIP %s\n", kit_cuda ? why : "this build has no CUDA");
        return false;
    }
    if (dev_cuda_open(&kit_queue, number ? atoi(number) : 0, &why))
        stop("there is a device, and it cannot be used");
    kit.emulated = strstr(info.name, "emulated") != NULL;
    kit.cap = (cuda_kit_small() ? (size_t)512 << 20 : (size_t)8 << 30) / dev_cuda_step() * dev_cuda_step();
    kit.base = dev_cuda_reserve(kit.cap);
    if (!kit.base || dev_cuda_commit(kit.base, 0, kit.cap))
        stop("memory for tests");
    kit.guard = malloc((size_t)2 * GUARD);
    /* beside a real device sizes are real too */
    kit.cpu = (struct kctx){ .n_threads = kit.emulated ? 1 : CPU_THREADS,
                             .scratch_bytes = (kit_cpu->scratch_bytes + 63) / 64 * 64 };
    kit.cpu.scratch = aligned_alloc(64, kit.cpu.scratch_bytes * (size_t)kit.cpu.n_threads + 64);
    kit.cuda = (struct kctx){ .n_threads = 1, .scratch_bytes = kit_cuda->scratch_bytes, .stream = kit_queue };
    kit.cuda.scratch = kit_cuda->scratch_bytes ? dev_cuda_reserve((kit_cuda->scratch_bytes + dev_cuda_step() - 1)
                                                                  / dev_cuda_step() * dev_cuda_step()) : NULL;
    if (kit_cuda->scratch_bytes
        && (!kit.cuda.scratch || dev_cuda_commit(kit.cuda.scratch, 0, (kit_cuda->scratch_bytes + dev_cuda_step() - 1)
                                                 / dev_cuda_step() * dev_cuda_step())))
        stop("memory for scratch");
    tap_note("device: %s", info.name);
    return true;
}

bool cuda_kit_emulated(void) { return kit.emulated; }
bool cuda_kit_small(void) { return kit.emulated || getenv("UNICON_TEST_SMALL"); }

int cuda_kit_end(void)
{
    cuda_kit_release();
    dev_cuda_close(kit_queue);
    dev_cuda_unreserve(kit.base, kit.cap, kit.cap);
    free(kit.cpu.scratch);
    free(kit.guard);
    return tap_done();
}

struct kctx *kit_cpu_ctx(void) { return &kit.cpu; }

/* The scratch's first part is enough to see what is read before it is written. */
struct kctx *kit_cuda_ctx(void)
{
    static unsigned char nan[1 << 16];

    memset(nan, 0xFF, sizeof nan);
    if (kit.cuda.scratch_bytes
        && dev_cuda_put(kit_queue, kit.cuda.scratch, nan,
                        kit.cuda.scratch_bytes < sizeof nan ? kit.cuda.scratch_bytes : sizeof nan))
        stop("poisoning scratch");
    return &kit.cuda;
}

void cuda_kit_release(void)
{
    if (dev_cuda_sync(kit_queue))
        stop("the device");
    for (int i = 0; i < kit.n_host; i++)
        free(kit.host[i]);
    kit.n_host = 0;
    kit.used = 0;
}

/* `bytes` on the device, `odd` bytes behind an aligned address, guards around them, all of it 0xFF. */
static void *space(size_t bytes, size_t odd)
{
    const size_t from = kit.used, all = (GUARD + odd + bytes + GUARD + ALIGN - 1) / ALIGN * ALIGN;
    static unsigned char nan[1 << 16];

    if (kit.used + all > kit.cap) {
        printf("Bail out! the tests' device memory is too small\n");
        exit(1);
    }
    memset(nan, 0xFF, sizeof nan);
    for (size_t at = 0; at < all; at += sizeof nan)
        if (dev_cuda_put(kit_queue, kit.base + from + at, nan, all - at < sizeof nan ? all - at : sizeof nan))
            stop("poisoning memory");
    kit.used += all;
    return kit.base + from + GUARD + odd;
}

void *mirror_space(size_t bytes) { return space(bytes, 0); }

void *mirror_bytes(const void *host, size_t bytes)
{
    void *p = space(bytes, 0);

    if (dev_cuda_put(kit_queue, p, host, bytes))
        stop("copying");
    return p;
}

struct mirror mirror_new(enum dtype type, int64_t n)
{
    const size_t odd = cuda_kit_odd ? (size_t)(++kit.n_odd % 7 + 1) * dtype_bytes(type) : 0;
    struct mirror m = { .type = type, .n = n, .dev = space((size_t)n * dtype_bytes(type), odd) };

    m.f = on_host((size_t)n * sizeof *m.f);
    memset(m.f, 0xFF, (size_t)n * sizeof *m.f);
    return m;
}

struct mirror mirror_of(enum dtype type, int64_t n, const float *values)
{
    struct mirror m = mirror_new(type, n);
    void *typed = on_host((size_t)n * dtype_bytes(type));

    dtype_from_f32(typed, type, values, n);
    dtype_to_f32(m.f, typed, type, n);
    if (dev_cuda_put(kit_queue, m.dev, typed, (size_t)n * dtype_bytes(type)))
        stop("copying");
    return m;
}

struct mirror mirror_random(enum dtype type, int64_t n, uint64_t seed, double scale)
{
    float *v = on_host((size_t)n * sizeof *v);

    seed = seed * 0x9E3779B97F4A7C15u + 1;
    for (int64_t i = 0; i < n; i++)
        v[i] = (float)(scale * kit_normal(&seed));
    return mirror_of(type, n, v);
}

void mirror_poison(struct mirror *m)
{
    const size_t bytes = (size_t)m->n * dtype_bytes(m->type);
    void *nan = malloc(bytes ? bytes : 1);

    memset(nan, 0xFF, bytes);
    if (dev_cuda_put(kit_queue, m->dev, nan, bytes))
        stop("poisoning");
    free(nan);
}

void cuda_kit_order(int order)
{
    char text[16];

    if (dev_cuda_sync(kit_queue))       /* what is queued runs in the order that it was queued for */
        stop("the device");
    snprintf(text, sizeof text, "%d", order);
    setenv("UNICON_EMU_ORDER", text, 1);
}

void mirror_keep(struct mirror *m)
{
    const size_t bytes = (size_t)m->n * dtype_bytes(m->type);
    static int order;

    m->first = on_host(bytes);
    if (dev_cuda_get(kit_queue, m->first, m->dev, bytes))
        stop("reading");
    order = order == 1 ? 7 : 1;
    cuda_kit_order(order);
}

void mirror_read(const struct mirror *m, float *out)
{
    const size_t bytes = (size_t)m->n * dtype_bytes(m->type);
    void *typed = malloc(bytes ? bytes : 1);

    if (dev_cuda_get(kit_queue, typed, m->dev, bytes))
        stop("reading");
    dtype_to_f32(out, typed, m->type, m->n);
    free(typed);
}

static bool guards_intact(const struct mirror *m)
{
    const size_t bytes = (size_t)m->n * dtype_bytes(m->type);

    if (dev_cuda_get(kit_queue, kit.guard, (unsigned char *)m->dev - GUARD, GUARD)
        || dev_cuda_get(kit_queue, kit.guard + GUARD, (unsigned char *)m->dev + bytes, GUARD))
        stop("reading guards");
    for (int i = 0; i < 2 * GUARD; i++)
        if (kit.guard[i] != 0xFF) {
            tap_note("%d bytes %s were written", i < GUARD ? GUARD - i : i - GUARD + 1,
                     i < GUARD ? "before" : "behind");
            return false;
        }
    return true;
}

bool mirror_near(struct mirror *m, double rel, const char *fmt, ...)
{
    const size_t bytes = (size_t)m->n * dtype_bytes(m->type);
    double diff = 0, norm = 0, worst = -1;
    bool ok = guards_intact(m), same = true;
    int64_t at = 0;
    float *got = on_host((size_t)m->n * sizeof *got);
    char what[160];
    va_list ap;

    mirror_read(m, got);
    if (m->first) {
        void *second = on_host(bytes);

        same = !dev_cuda_get(kit_queue, second, m->dev, bytes) && !memcmp(m->first, second, bytes);
    }
    for (int64_t i = 0; i < m->n; i++) {
        const double d = got[i] == m->f[i] ? 0 : fabs((double)got[i] - (double)m->f[i]);

        if (!(d <= worst)) {
            worst = d;
            at = i;
        }
        diff += d * d;
        norm += isfinite(m->f[i]) ? (double)m->f[i] * (double)m->f[i] : 0;
        if (isnan(d))
            break;
    }
    ok &= same && sqrt(diff) <= rel * sqrt(norm);
    if (ok)
        return true;
    va_start(ap, fmt);
    vsnprintf(what, sizeof what, fmt, ap);
    va_end(ap);
    tap_note("%s: off by %.3g of %.3g (relative %.3g, allowed %.3g)%s; worst at %lld: %.9g, want %.9g", what,
             sqrt(diff), sqrt(norm), sqrt(diff / norm), rel, same ? "" : "; other bits the second time", (long long)at,
             (double)(m->n ? got[at] : 0), (double)(m->n ? m->f[at] : 0));
    return false;
}
