/* core/weight.c: raw weights to packs, each kind when it is first asked for. A stale pack is packed again where it
 * lies: its size depends on shapes alone. */
#include "core/weight.h"

#include <inttypes.h>

int weight_init(struct weight *w, const char *name, struct tensor *raw, struct tensor *bias, struct arena *arena,
                struct err *e)
{
    char text[96];

    *w = (struct weight){ .name = name, .raw = raw, .bias = bias, .arena = arena };
    if (!raw || (raw->n_dim != 2 && raw->n_dim != 4))
        return err_set(e, E_ARG, "weights '%s': want (Co,Ci) or (Co,KH,KW,Ci), got %s", name,
                       raw ? tensor_text(raw, text, sizeof text) : "none");
    w->Co = raw->dim[0];
    w->Ci = raw->dim[raw->n_dim - 1];
    w->KH = raw->n_dim == 4 ? (int)raw->dim[1] : 1;
    w->KW = raw->n_dim == 4 ? (int)raw->dim[2] : 1;
    w->pack_type = raw->type;
    if (bias && (bias->type != F32 || tensor_count(bias) != w->Co))
        return err_set(e, E_ARG, "weights '%s': want a bias of f32 (%" PRId64 "), got %s", name, w->Co,
                       tensor_text(bias, text, sizeof text));
    return OK;
}

int weight_init_fetched(struct weight *w, struct err *e)
{
    if (!w->fetch || !w->stage || w->Co < 0 || w->Ci < 0 || w->KH < 1 || w->KW < 1)
        return err_set(e, E_BUG, "weights '%s' (%" PRId64 ",%d,%d,%" PRId64 ") cannot be fetched", w->name, w->Co,
                       w->KH, w->KW, w->Ci);
    if (w->bias && (w->bias->type != F32 || tensor_count(w->bias) != w->Co))
        return err_set(e, E_ARG, "weights '%s': want a bias of f32 (%" PRId64 ")", w->name, w->Co);
    return OK;
}

/* The values to pack: the raw ones, or fetched into the stage, which the caller releases. */
static const void *values(struct weight *w, struct err *e)
{
    void *p;

    if (w->raw)
        return w->raw->data;
    p = arena_push(w->stage, (size_t)(w->Co * w->KH * w->KW * w->Ci) * dtype_bytes(w->pack_type), e);
    return !p || w->fetch(w, p, e) ? NULL : p;
}

int weight_values(const struct weight *w, float *dst, struct err *e)
{
    struct weight as_f32 = *w;

    if (w->raw && w->arena->place == ARENA_NULL)
        return OK;
    if (w->raw && w->arena->place == ARENA_CUDA)
        return err_set(e, E_DEVICE, "the values of '%s' are on the device", w->name);
    if (w->raw) {
        dtype_to_f32(dst, w->raw->data, w->raw->type, tensor_count(w->raw));
        return OK;
    }
    as_f32.pack_type = F32;
    return w->fetch ? w->fetch(&as_f32, dst, e) : err_set(e, E_BUG, "the values of '%s' are gone", w->name);
}

/* Make *slot hold the pack that p describes. */
static int pack_now(struct weight *w, struct device *d, const struct kpack *p, void **slot, bool *stale, struct err *e)
{
    const size_t mark = w->stage ? arena_mark(w->stage) : 0;
    const void *raw;
    int rc;

    if (*slot && !*stale)
        return OK;
    if (!w->raw && !w->fetch)
        return err_set(e, E_BUG, "weights '%s' were dropped before they were packed", w->name);
    if (!*slot) {
        *slot = arena_push(w->arena, d->kern->pack_bytes(p), e);
        if (!*slot)
            return err_in(e, "packing weights '%s'", w->name);
        *stale = true;
    }
    raw = values(w, e);
    rc = raw ? d->kern->pack(&d->ctx, *slot, p, raw) : K_OK;
    if (w->stage)
        arena_release(w->stage, mark);
    if (!raw)
        return err_in(e, "packing weights '%s'", w->name);
    if (rc)
        return err_set(e, rc == K_LAUNCH ? E_DEVICE : E_BUG,
                       "weights '%s' (%" PRId64 ",%d,%d,%" PRId64 ") cannot be packed as kind %d", w->name, w->Co,
                       w->KH, w->KW, w->Ci, p->kind);
    *stale = false;
    return OK;
}

static struct kpack whole(const struct weight *w, enum kpack_kind kind)
{
    return (struct kpack){ .kind = kind,
                           .src = w->raw ? w->raw->type : w->pack_type,
                           .dst = w->pack_type,
                           .Co = w->Co,
                           .Ci = w->Ci,
                           .KH = w->KH,
                           .KW = w->KW,
                           .ci_first = 0,
                           .ci_total = w->Ci };
}

const void *weight_pack(struct weight *w, struct device *d, enum kpack_kind kind, struct err *e)
{
    const struct kpack p = whole(w, kind);

    return pack_now(w, d, &p, &w->pack[kind], &w->stale[kind], e) ? NULL : w->pack[kind];
}

const void *weight_pack_glu(struct weight *w, struct device *d, struct err *e)
{
    struct kpack p = whole(w, K_PACK_FWD);

    p.glu = true;
    if (w->Co % 2) {
        err_set(e, E_ARG, "weights '%s': a gated product needs an even width, not %" PRId64, w->name, w->Co);
        return NULL;
    }
    return pack_now(w, d, &p, &w->glu_pack, &w->glu_stale, e) ? NULL : w->glu_pack;
}

int weight_pack_split(struct weight *w, struct device *d, enum kpack_kind kind, int64_t at, const void *out[2],
                      struct err *e)
{
    const bool dx = kind == K_PACK_DX;
    void **slot = dx ? w->split_dx : w->split_pack;
    bool *stale = dx ? w->split_dx_stale : w->split_stale;
    struct kpack p = whole(w, kind);
    int rc;

    if ((!dx && kind != K_PACK_FWD) || at <= 0 || at >= w->Ci)
        return err_set(e, E_ARG, "weights '%s' with %" PRId64 " input channels cannot be split at %" PRId64, w->name,
                       w->Ci, at);
    if (w->split_at && w->split_at != at)
        return err_set(e, E_ARG, "weights '%s' are split at channel %" PRId64 ", asked for %" PRId64, w->name,
                       w->split_at, at);
    w->split_at = at;
    for (int i = 0; i < 2; i++) {
        p.ci_first = i ? at : 0;
        p.Ci = i ? w->Ci - at : at;
        rc = pack_now(w, d, &p, &slot[i], &stale[i], e);
        if (rc)
            return rc;
        out[i] = slot[i];
    }
    return OK;
}

void weight_touch(struct weight *w)
{
    for (int i = 0; i < K_N_PACK; i++)
        w->stale[i] = true;
    for (int i = 0; i < 2; i++)
        w->split_stale[i] = w->split_dx_stale[i] = true;
    w->glu_stale = true;
}
