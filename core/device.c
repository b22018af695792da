/* core/device.c: names to twins. */
#include "core/device.h"

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

static int find_kern(struct device *d, const char *name, struct err *e)
{
    const struct kern *like;
    const char *isa = after(name, "cpu"), *why;
    int rc;

    d->place = ARENA_HOST;
    if (isa)
        return find_cpu(&d->kern, name, isa, e);
    isa = after(name, "null");
    if (isa) {
        rc = find_cpu(&like, name, isa, e);
        if (rc)
            return rc;
        kern_null(&d->null, like);
        d->kern = &d->null;
        d->place = ARENA_NULL;
        return OK;
    }
    if (!after(name, "cuda"))
        return err_set(e, E_ARG, "unknown device '%s': say cpu, null or cuda, or cpu:ISA", name);
    d->kern = kern_cuda();
    d->place = ARENA_CUDA;
    if (d->kern)
        return OK;
    if (dev_cuda_probe(NULL, 0, &why) > 0)
        why = "the kernels for it are not written yet";
    return err_set(e, E_DEVICE, "device '%s': %s; use cpu", name, why);
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
    d->ctx.n_threads = n_threads ? n_threads : default_threads();
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
    memset(d, 0, sizeof *d);
}
