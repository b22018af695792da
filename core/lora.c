#include "core/lora.h"

#include <inttypes.h>
#include <string.h>

/* The first delta of part's target, or lora->n. */
static int first(const struct lora *l, enum lora_part part, const char *target)
{
    int lo = 0, hi = l->n;

    while (lo < hi) {
        const int mid = lo + (hi - lo) / 2;
        const struct lora_delta *d = &l->delta[mid];

        if (d->part < part || (d->part == part && strcmp(d->target, target) < 0))
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

static bool meant(const struct lora *l, int i, enum lora_part part, const char *target)
{
    return i < l->n && l->delta[i].part == part && !strcmp(l->delta[i].target, target);
}

bool lora_changes(const struct lora_set *set, enum lora_part part, const char *target)
{
    for (int u = 0; u < set->n; u++)
        if (meant(set->use[u].lora, first(set->use[u].lora, part, target), part, target))
            return true;
    return false;
}

/* down (r,K) and up (Co,r), whatever their sizes are written as. */
static int check(const struct lora *l, const struct lora_delta *d, int64_t Co, int64_t K, int64_t *r, struct err *e)
{
    char down[100], up[100];

    *r = d->down->n_dim > 1 ? d->down->dim[0] : 0;
    if (*r > 0 && d->up->n_dim > 1 && d->up->dim[0] == Co && weights_count(d->up) == Co * *r &&
        weights_count(d->down) / *r == K && weights_count(d->down) % *r == 0)
        return OK;
    return err_set(e, E_FORMAT, "LoRA '%s': down %s and up %s do not fit '%s', which has %" PRId64 " outputs of %"
                   PRId64 " inputs each: it is for another base model", l->path ? l->path : "?",
                   weights_text(d->down, down, sizeof down), weights_text(d->up, up, sizeof up), d->target, Co, K);
}

/* w (Co,K) += scale * up (Co,r) down (r,K) */
static int add_one(const struct lora *l, struct lora_delta *d, double scale, float *w, int64_t Co, int64_t K,
                   struct arena *work, struct err *e)
{
    const struct kern *kern = kern_cpu(NULL);
    struct kctx k = { .n_threads = 1, .scratch_bytes = kern->scratch_bytes };
    struct kgemm g = { .M = Co, .N = K, .n = 1, .c = w, .ldc = K, .ldb = K, .alpha = (float)scale, .beta = 1 };
    int64_t r = 0;
    int rc = check(l, d, Co, K, &r, e);
    float *down, *up;

    if (rc)
        return rc;
    down = arena_push(work, (size_t)(r * K) * sizeof *down, e);
    up = down ? arena_push(work, (size_t)(Co * r) * sizeof *up, e) : NULL;
    k.scratch = up ? arena_push(work, k.scratch_bytes, e) : NULL;
    if (!k.scratch)
        return e->code;
    if (work->place == ARENA_NULL)
        return OK;
    rc = weights_read(d->down, down, F32, e);
    rc = rc ? rc : weights_read(d->up, up, F32, e);
    if (rc)
        return err_in(e, "LoRA '%s'", l->path ? l->path : "?");
    g.K = g.lda = r;
    g.a = up;
    g.b = down;
    d->used = true;
    return kern->gemm(&k, &g) ? err_set(e, E_BUG, "LoRA '%s': product for '%s'", l->path ? l->path : "?", d->target)
                              : OK;
}

int lora_add(const struct lora_set *set, enum lora_part part, const char *target, float *w, int64_t Co, int64_t K,
             struct arena *work, struct err *e)
{
    const size_t mark = arena_mark(work);
    struct err mine;
    int rc = OK;

    e = e ? e : &mine;
    for (int u = 0; u < set->n && !rc; u++) {
        struct lora *l = set->use[u].lora;

        for (int i = first(l, part, target); meant(l, i, part, target) && !rc; i++) {
            rc = add_one(l, &l->delta[i], set->use[u].weight * l->delta[i].scale, w, Co, K, work, e);
            arena_release(work, mark);
        }
    }
    return rc;
}
