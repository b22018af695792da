/* core/device.c: names to twins. */
#include "core/device.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/dev.h"

#ifdef _OPENMP
#include <omp.h>
#endif

enum { MAX_THREADS = 1024 };

/* "" if name is kind, "rest" if it is "kind:rest", NULL if it is something else. */
static const char *after(const char *name, const char *kind)
{
    const size_t n = strlen(kind);

    if (strncmp(name, kind, n))
        return NULL;
    if (name[n] == ':' && name[n + 1])
        return name + n + 1;
    return name[n] ? NULL : name + n;
}

/* "portable, avx2": the instruction sets of this build, only those that this processor runs if `here`. */
static const char *list_isas(char *buf, size_t size, bool here)
{
    size_t n = 0;

    buf[0] = '\0';
    for (const char *const *i = kern_cpu_names(); *i && n < size; i++)
        if (!here || kern_cpu(*i))
            n += (size_t)snprintf(buf + n, size - n, "%s%s", n ? ", " : "", *i);
    return buf;
}

static bool known_isa(const char *isa)
{
    for (const char *const *i = kern_cpu_names(); *i; i++)
        if (!strcmp(*i, isa))
            return true;
    return false;
}

/* "0" to "4095"; -1 for anything else */
static int number_of(const char *text)
{
    char *end;
    const long n = strtol(text, &end, 10);

    return *text >= '0' && *text <= '9' && !*end && n < 4096 ? (int)n : -1;
}

/* The CPU twin of "cpu:isa" and "null:isa"; the best for an empty isa. */
static int find_cpu(const struct kern **out, const char *name, const char *isa, struct err *e)
{
    char have[128];

    *out = kern_cpu(*isa ? isa : NULL);
    if (*out)
        return OK;
    if (!known_isa(isa))
        return err_set(e, E_ARG, "device '%s': there is no instruction set '%s'; this build has %s", name, isa,
                       list_isas(have, sizeof have, false));
    return err_set(e, E_DEVICE, "device '%s': this processor does not have %s; it runs %s", name, isa,
                   list_isas(have, sizeof have, true));
}

static int open_cuda(struct device *d, const char *name, const char *number, struct err *e)
{
    const int n = *number ? number_of(number) : 0;
    const char *why;

    if (n < 0)
        return err_set(e, E_ARG, "device '%s': want cuda or cuda:N, N from 0 on", name);
    if (dev_cuda_open(&d->queue, n, &why))
        return err_set(e, E_DEVICE, "device '%s': %s; use cpu", name, why);
    d->kern = kern_cuda();
    d->place = ARENA_CUDA;
    d->apart = true;
    return OK;
}

static int find_kern(struct device *d, const char *name, struct err *e)
{
    const struct kern *like = kern_cuda();
    const char *isa = after(name, "cpu");
    int rc = OK;

    d->place = ARENA_HOST;
    if (isa)
        return find_cpu(&d->kern, name, isa, e);
    isa = after(name, "null");
    if (isa) {
        d->apart = !strcmp(isa, "cuda");
        if (!d->apart)
            rc = find_cpu(&like, name, isa, e);
        else if (!like)
            rc = err_set(e, E_DEVICE, "device '%s': this build has no CUDA", name);
        if (rc)
            return rc;
        kern_null(&d->null, like);
        d->kern = &d->null;
        d->place = ARENA_NULL;
        return OK;
    }
    isa = after(name, "cuda");
    return isa ? open_cuda(d, name, isa, e)
               : err_set(e, E_ARG, "unknown device '%s': say cpu, null or cuda, cpu:ISA or cuda:N", name);
}

static int default_threads(void)
{
#ifdef _OPENMP
    return omp_get_max_threads();
#else
    return 1;
#endif
}

int device_open(struct device *d, const char *name, int n_threads, struct err *e)
{
    int rc;

    memset(d, 0, sizeof *d);
    if (n_threads < 0 || n_threads > MAX_THREADS)
        return err_set(e, E_ARG, "device '%s': %d threads; say 1 to %d, or 0 for as many as there are processors", name,
                       n_threads, MAX_THREADS);
    rc = find_kern(d, name, e);
    if (rc)
        goto out;
    d->n_threads = n_threads ? n_threads : default_threads();
    d->ctx.n_threads = d->apart ? 1 : d->n_threads;
    d->ctx.stream = d->queue;
    d->ctx.scratch_bytes = (d->kern->scratch_bytes + ARENA_ALIGN - 1) / ARENA_ALIGN * ARENA_ALIGN;
    d->ctx.count = d->place == ARENA_NULL ? &d->count : NULL;
    rc = arena_init(&d->threads, "threads", d->place, (size_t)d->ctx.n_threads * d->ctx.scratch_bytes, e);
    if (!rc) {
        d->ctx.scratch = arena_push(&d->threads, (size_t)d->ctx.n_threads * d->ctx.scratch_bytes, e);
        rc = d->ctx.scratch ? OK : E_NOMEM;
    }
out:
    if (rc)
        device_close(d);
    return rc;
}

void device_close(struct device *d)
{
    arena_free(&d->threads);
    dev_cuda_close(d->queue);
    memset(d, 0, sizeof *d);
}

/* ---- copies and steps ---- */

static int told(int kstatus, struct err *e)
{
    return kstatus ? err_set(e, E_DEVICE, "the device failed: %s", dev_cuda_why()) : OK;
}

int device_put(struct device *d, void *dst, const void *src, size_t bytes, struct err *e)
{
    if (d->queue)
        return told(dev_cuda_put(d->queue, dst, src, bytes), e);
    if (d->place == ARENA_HOST && bytes)
        memcpy(dst, src, bytes);
    return OK;
}

int device_get(struct device *d, void *dst, const void *src, size_t bytes, struct err *e)
{
    if (d->queue)
        return told(dev_cuda_get(d->queue, dst, src, bytes), e);
    if (d->place == ARENA_HOST && bytes)
        memcpy(dst, src, bytes);
    return OK;
}

int device_sync(struct device *d, struct err *e) { return d->queue ? told(dev_cuda_sync(d->queue), e) : OK; }

int device_step_begin(struct device *d, uint64_t key, struct err *e)
{
    return d->queue ? told(dev_cuda_graph_begin(d->queue, key), e) : OK;
}

int device_step_end(struct device *d, struct err *e)
{
    int rc = OK;

    if (d->queue) {
        rc = dev_cuda_graph_end(d->queue);
        rc = rc ? rc : dev_cuda_pace(d->queue);
    }
    return told(rc, e);
}

size_t device_arena_bytes(const struct device *d, size_t high)
{
    const size_t step = d->apart ? dev_cuda_step() : 1;

    return (high + step - 1) / step * step;
}

int64_t device_free_bytes(const struct device *d) { return d->queue ? dev_cuda_free_bytes(d->queue) : INT64_MAX; }
