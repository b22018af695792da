/* core/joint.c: adapters of a pair by name. */
#include "core/joint.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static const char *const projection[JOINT_N_TERM] = { "to_q", "to_k", "to_v", "to_out.0" };

/* The rank is what the file says: rows of `down`. 0 if there is no such tensor. */
static int64_t rank_of(const struct weights *w, const char *prefix)
{
    char name[256];
    const struct weights_entry *d;

    snprintf(name, sizeof name, "%s.down.weight", prefix);
    d = w ? weights_get(w, name) : NULL;
    return d && d->n_dim > 1 ? d->dim[0] : 0;
}

/* Four terms of an attention: k and v take Ck channels. */
static void bind_terms(struct layers *l, struct joint_term *m, int64_t C, int64_t Ck, const char *attention)
{
    for (int i = 0; i < JOINT_N_TERM; i++) {
        const int64_t Ci = i == JOINT_K || i == JOINT_V ? Ck : C;
        char name[200];
        int64_t r;

        snprintf(name, sizeof name, "%s.%s", attention, projection[i]);
        r = rank_of(l->weights, name);
        layer_linear(l, &m[i].down, r ? r : 1, Ci, false, "%s.down", name);
        layer_linear(l, &m[i].up, C, r ? r : 1, false, "%s.up", name);
    }
}

static struct layers layers_over(const struct layers *l, const struct weights *w)
{
    struct layers own;

    layers_init(&own, l->dev, l->type, l->mem, w);
    own.keep_raw = l->keep_raw;
    return own;
}

/* An adapter that was trained without this block. */
static bool passes_over(const struct weights *w, const char *attention)
{
    char name[200];
    int64_t found = 0;

    for (int i = 0; i < JOINT_N_TERM; i++) {
        snprintf(name, sizeof name, "%s.%s", attention, projection[i]);
        found += rank_of(w, name);
    }
    return !found;
}

static int bind_adapter(struct joint *j, const struct joint_place *place, int n, const struct layers *l,
                        const struct weights *w, bool yx, struct err *e)
{
    struct layers own = layers_over(l, w);
    char name[160];

    for (int i = 0; i < n; i++) {
        snprintf(name, sizeof name, "%s.attn1n", place[i].name);
        if (!j->block[i].has_post && passes_over(w, name))
            continue;
        bind_terms(&own, yx ? j->block[i].yx : j->block[i].xy, place[i].C, place[i].C, name);
    }
    return layers_done(&own, yx ? "adapter yx_lora" : "adapter xy_lora", NULL, e);
}

static int bind_y(struct joint *j, const struct joint_place *place, int n, int64_t cross, const struct layers *l,
                  const struct weights *w, struct err *e)
{
    struct layers own = layers_over(l, w);
    char name[160];

    for (int i = 0; i < n; i++) {
        snprintf(name, sizeof name, "%s.attn1", place[i].name);
        bind_terms(&own, j->block[i].y1, place[i].C, place[i].C, name);
        snprintf(name, sizeof name, "%s.attn2", place[i].name);
        bind_terms(&own, j->block[i].y2, place[i].C, cross, name);
    }
    return layers_done(&own, "adapter y_lora", NULL, e);
}

static void find_posts(struct joint *j, const struct joint_place *place, int n, const struct weights *w)
{
    char name[200];

    for (int i = 0; i < n; i++) {
        snprintf(name, sizeof name, "%s.conv1n.weight", place[i].name);
        j->block[i].has_post = !w || weights_get(w, name);
    }
}

static int bind_post(struct joint *j, const struct joint_place *place, int n, const struct layers *l,
                     const struct weights *w, struct err *e)
{
    const int times = j->kind == JOINT_CONV_FUSE ? 2 : 1;
    struct layers own = layers_over(l, w);

    for (int i = 0; i < n; i++)
        if (j->block[i].has_post)
            layer_linear(&own, &j->block[i].post, times * place[i].C, times * place[i].C, false, "%s.conv1n",
                         place[i].name);
    return layers_done(&own, "post projections", NULL, e);
}

int joint_new(struct joint **out, const struct joint_place *place, int n, int64_t cross, const struct joint_weights *w,
              const struct layers *l, struct err *e)
{
    struct joint *j;
    int rc;

    if (n < 0 || n > JOINT_MAX_BLOCK)
        return err_set(e, E_ARG, "joint attention for %d blocks; at most %d", n, JOINT_MAX_BLOCK);
    j = arena_push_zero(&l->mem->meta, sizeof *j, e);
    if (!j)
        return e ? e->code : E_NOMEM;
    find_posts(j, place, n, w->post);
    j->kind = w->kind;
    j->scale = (float)w->scale;
    j->has_y = w->y != NULL;
    j->apart = l->keep_raw;
    rc = bind_adapter(j, place, n, l, w->xy, false, e);
    rc = rc ? rc : bind_adapter(j, place, n, l, w->yx, true, e);
    rc = rc || !j->has_y ? rc : bind_y(j, place, n, cross, l, w->y, e);
    rc = rc ? rc : bind_post(j, place, n, l, w->post, e);
    rc = rc || j->apart ? rc : joint_fold(j, place, n, l, e);
    if (!rc)
        *out = j;
    return rc;
}

int joint_y_terms(const struct joint_run *r, int k, int block, int attn, int projection_of, struct op_lora *out)
{
    int n = 0;

    for (int p = 0; r && p < r->n_pair; p++) {
        struct joint *j = r->pair[p].joint;
        struct joint_term *m = attn == 1 ? j->block[block].y1 : j->block[block].y2;
        bool had = r->pair[p].y != k || !j->has_y;

        for (int i = 0; i < p && !had; i++)             /* two pairs of one checkpoint adapt their y once */
            had = r->pair[i].y == k && r->pair[i].joint == j;
        if (!had)
            out[n++] = (struct op_lora){ &m[projection_of].down, &m[projection_of].up, j->scale };
    }
    return n;
}

int joint_read_rows(const struct joint_run *r, int64_t B, int64_t *first, int64_t *n)
{
    const int64_t each = r ? B / r->n_input : B;
    int m = 0;

    for (int k = 0; k < (r ? r->n_input : 1); k++) {
        if (r && r->unread[k])
            continue;
        if (m && first[m - 1] + n[m - 1] == k * each)
            n[m - 1] += each;
        else {
            first[m] = k * each;
            n[m++] = each;
        }
    }
    return m;
}
