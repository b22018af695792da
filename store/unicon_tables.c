/* store/unicon_tables.c: see paper Eq. 4 and 5 for what the matrices do, core/joint.h for their names. */
#include "store/unicon_tables.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

const char *const unicon_folder[3] = { "xy_lora", "yx_lora", "y_lora" };
const char *const unicon_kind[3] = { [JOINT_CONV] = "conv", [JOINT_CONV_FUSE] = "conv_fuse", NULL };

/* ---- names of tensors ---- */

static const char *const projection[] = { "to_q", "to_k", "to_v", "to_out.0" };

static const struct {
    const char *text, *role;
} endings[] = {
    { ".lora.down.weight", "down" }, { ".lora.up.weight", "up" },
    { "_lora.down.weight", "down" }, { "_lora.up.weight", "up" },
    { ".lora_linear_layer.down.weight", "down" }, { ".lora_linear_layer.up.weight", "up" },
};

/* Behind the text that p begins with, or NULL; so is behind NULL. */
static const char *skip(const char *p, const char *text)
{
    const size_t n = strlen(text);

    return p && !strncmp(p, text, n) ? p + n : NULL;
}

static const char *skip_number(const char *p)
{
    size_t n = p ? strspn(p, "0123456789") : 0;

    return n == 1 || n == 2 ? p + n : NULL;
}

/* Behind "down_blocks.0.attentions.0.transformer_blocks.0", where a '.' follows, or NULL. */
static const char *skip_block(const char *name)
{
    const char *p = skip(name, "mid_block");

    if (!p) {
        p = skip(name, "down_blocks.");
        p = skip_number(p ? p : skip(name, "up_blocks."));
    }
    p = skip_number(skip(skip_number(skip(p, ".attentions.")), ".transformer_blocks."));
    return p && *p == '.' ? p : NULL;
}

/* "down" or "up" by what follows the projection's name, or NULL. */
static const char *role_of(const char *p)
{
    const char *adapter;

    for (size_t i = 0; i < sizeof endings / sizeof *endings; i++)
        if (!strcmp(p, endings[i].text))
            return endings[i].role;
    adapter = skip(p, ".lora_A.");
    adapter = adapter ? adapter : skip(p, ".lora_B.");
    if (!adapter)
        return NULL;
    if (strcmp(adapter, "weight")) {                /* "lora_A.<adapter>.weight" */
        const size_t n = strcspn(adapter, ".");
        if (!n || strcmp(adapter + n, ".weight"))
            return NULL;
    }
    return p[6] == 'A' ? "down" : "up";
}

static bool ends(const char *name, const char *with)
{
    const size_t n = strlen(name), m = strlen(with);

    return n > m && !strcmp(name + n - m, with);
}

bool unicon_pick_lora(const char *name, char *out, size_t size, void *ctx)
{
    static const char *const attn[] = { "attn1n", "attn1", "attn2" };
    struct unicon_picker *k = ctx;
    const char *block = skip(name, "unet."), *end, *p, *role = NULL;
    size_t i = k->part == UNICON_Y ? 1 : 0, j;

    block = block ? block : name;
    end = skip_block(block);
    p = skip(end, ".");
    for (; p && i < (k->part == UNICON_Y ? 3u : 1u); i++) {
        const char *at = skip(skip(p, attn[i]), ".");
        at = skip(at, "processor.") ? skip(at, "processor.") : at;
        for (j = 0; at && j < 4 && !skip(at, projection[j]); j++)
            ;
        if (at && j == 4 && skip(at, "to_out"))
            role = role_of(skip(at, "to_out"));     /* older names of to_out.0 */
        else if (at && j < 4)
            role = role_of(skip(at, projection[j]));
        if (role)
            break;
    }
    if (!role && k->part == UNICON_Y && skip(p, "attn1n.") && ends(name, ".xy_lora.weight"))
        return false;                               /* see store/unicon_tables.h */
    if (!role) {
        k->unknown = k->unknown ? k->unknown : name;
        return false;
    }
    j = j < 4 ? j : 3;
    return snprintf(out, size, "%.*s.%s.%s.%s.weight", (int)(end - block), block, attn[i], projection[j], role) <
           (int)size;
}

bool unicon_pick_post(const char *name, char *out, size_t size, void *ctx)
{
    struct unicon_picker *k = ctx;
    const char *block = skip(name, "unet."), *end, *p, *model;

    if (strstr(name, "lora") || skip(name, "optimizer"))
        return false;
    block = block ? block : name;
    end = skip_block(block);
    model = skip(end, ".post1n.");
    p = model ? strrchr(model, '.') : skip(end, ".conv1n");
    if (p && model) {
        k->two_models |= k->model && strncmp(k->model, model, (size_t)(p - model) + 1);
        k->model = model;
        p = p > model ? p : NULL;
    }
    if (!p || strcmp(p, ".weight")) {
        k->unknown = k->unknown ? k->unknown : name;
        return false;
    }
    return snprintf(out, size, "%.*s.conv1n.weight", (int)(end - block), block) < (int)size;
}

static int unknown(int part, const char *name, struct err *e)
{
    const bool joint = strstr(name, ".attn1n.") != NULL, lora = strstr(name, "lora") != NULL;

    if (part == UNICON_Y && joint)
        return err_set(e, E_FORMAT, "tensor '%s' belongs into %s or %s", name, unicon_folder[UNICON_XY],
                       unicon_folder[UNICON_YX]);
    if (part != UNICON_POST && !joint && lora)
        return err_set(e, E_FORMAT, "tensor '%s' is of a plain LoRA, not of %s, where layers are called %s", name,
                       unicon_folder[part], part == UNICON_Y ? "attn1 and attn2" : "attn1n");
    if (!lora && !joint && !strstr(name, "1n."))
        return err_set(e, E_FORMAT, "tensor '%s' is no part of a UniCon checkpoint; is it a base model's?", name);
    return err_set(e, E_FORMAT, "tensor '%s' is not known in a UniCon checkpoint", name);
}

int unicon_picked(const struct unicon_picker *k, struct err *e)
{
    if (k->unknown)
        return unknown(k->part, k->unknown, e);
    if (k->two_models)
        return err_set(e, E_FORMAT, "it has the projections of several models");
    return OK;
}

/* ---- what tables have to hold ---- */

static int block_bytes(const char *name)
{
    const char *end = skip_block(name);

    return end ? (int)(end - name) : 0;
}

/* The first entry of the next block: names are sorted. */
static int next_block(const struct weights *t, int i)
{
    const char *name = t->entry[i].name;
    const size_t n = (size_t)block_bytes(name) + 1;

    while (++i < t->n && !strncmp(t->entry[i].name, name, n))
        ;
    return i;
}

/* "<block of name>.<tail>", or NULL */
static const struct weights_entry *of_block(const struct weights *t, const char *name, const char *tail)
{
    char want[200];

    snprintf(want, sizeof want, "%.*s.%s", block_bytes(name), name, tail);
    return weights_get(t, want);
}

/* A matrix of floats that has to be there. */
static int get_matrix(const struct weights_entry **out, const struct weights *t, const char *name, const char *tail,
                      struct err *e)
{
    const struct weights_entry *w = of_block(t, name, tail);
    char text[200];

    if (!w)
        return err_set(e, E_FORMAT, "tensor '%.*s.%s' is missing", block_bytes(name), name, tail);
    if (w->n_dim != 2 || w->dim[0] < 1 || w->dim[1] < 1 || w->type > STORED_BF16)
        return err_set(e, E_FORMAT, "tensor '%s' is %s and no matrix of F32, F16 or BF16", w->name,
                       weights_text(w, text, sizeof text));
    *out = w;
    return OK;
}

/* 0 is not known yet. */
static bool agree(int64_t *known, int64_t got)
{
    *known = *known ? *known : got;
    return *known == got;
}

/* down (r,*in), up (*width,r) */
static int check_pair(const struct weights *t, const char *name, const char *attn, const char *proj, int64_t *rank,
                      int64_t *in, int64_t *width, struct err *e)
{
    const struct weights_entry *down, *up;
    char tail[40], a[60], b[60];
    int rc;

    snprintf(tail, sizeof tail, "%s.%s.down.weight", attn, proj);
    rc = get_matrix(&down, t, name, tail, e);
    snprintf(tail, sizeof tail, "%s.%s.up.weight", attn, proj);
    rc = rc ? rc : get_matrix(&up, t, name, tail, e);
    if (rc)
        return rc;
    if (down->dim[0] != up->dim[1])
        return err_set(e, E_FORMAT, "'%s', %s, and '%s', %s, have no common rank", down->name,
                       weights_text(down, a, sizeof a), tail, weights_text(up, b, sizeof b));
    if (!agree(rank, down->dim[0]))
        return err_set(e, E_FORMAT, "'%s' has rank %" PRId64 ", others have %" PRId64 ": one adapter has one rank",
                       down->name, down->dim[0], *rank);
    if (!agree(width, up->dim[0]) || !agree(in, down->dim[1]))
        return err_set(e, E_FORMAT, "'%s', %s, and '%s', %s, do not fit the others of their block: %" PRId64
                       " values in, %" PRId64 " out", down->name, weights_text(down, a, sizeof a), tail,
                       weights_text(up, b, sizeof b), *in, *width);
    return OK;
}

/* Every block of an adapter is complete, with one rank, and one size of text embeddings in y's. */
static int check_adapter(const struct weights *t, int part, struct err *e)
{
    const int tensors = part == UNICON_Y ? 16 : 8;              /* of a block */
    int64_t rank = 0, text = 0, width;
    int n = 0, rc = OK;

    if (t->n < 1)
        return err_set(e, E_FORMAT, "there are no tensors in it");
    for (int i = 0; i < t->n && !rc; i = next_block(t, i)) {
        const char *name = t->entry[i].name;
        width = 0;
        n += tensors;
        for (int p = 0; p < 4 && !rc; p++) {
            const bool of_text = p == 1 || p == 2;
            if (part != UNICON_Y) {
                rc = check_pair(t, name, "attn1n", projection[p], &rank, &width, &width, e);
                continue;
            }
            rc = check_pair(t, name, "attn1", projection[p], &rank, &width, &width, e);
            rc = rc ? rc : check_pair(t, name, "attn2", projection[p], &rank, of_text ? &text : &width, &width, e);
        }
    }
    if (!rc && t->n != n)
        rc = err_set(e, E_FORMAT, "there are %d tensors in it and not %d", t->n, n);
    return rc;
}

static int64_t width_of(const struct weights *t, const char *name, int part)
{
    const char *tail = part == UNICON_Y ? "attn1.to_q.up.weight" : "attn1n.to_q.up.weight";
    const struct weights_entry *up = of_block(t, name, tail);

    return up ? up->dim[0] : 0;
}

/* Every block of a is one of b, of the same width. */
static int check_beside(const struct weights *a, int part_a, const struct weights *b, int part_b, struct err *e)
{
    for (int i = 0; i < a->n; i = next_block(a, i)) {
        const char *name = a->entry[i].name;
        const int64_t here = width_of(a, name, part_a), there = width_of(b, name, part_b);
        if (!there)
            return err_set(e, E_FORMAT, "block '%.*s' is in %s and not in %s", block_bytes(name), name,
                           unicon_folder[part_a], unicon_folder[part_b]);
        if (here != there)
            return err_set(e, E_FORMAT, "block '%.*s' has width %" PRId64 " in %s, %" PRId64 " in %s",
                           block_bytes(name), name, here, unicon_folder[part_a], there, unicon_folder[part_b]);
    }
    return OK;
}

/* One projection: (C,C) or (2C,2C), as the others. */
static int check_matrix(int *kind, const struct weights *post, const char *name, int64_t C, struct err *e)
{
    const struct weights_entry *w;
    char text[100];
    int rc = get_matrix(&w, post, name, "conv1n.weight", e), is;

    if (rc)
        return rc;
    if (strcmp(w->name, name))
        return err_set(e, E_FORMAT, "tensor '%s' is not known among projections", name);
    if (!C)
        return err_set(e, E_FORMAT, "tensor '%s' is for a block that %s and %s do not have", name,
                       unicon_folder[UNICON_XY], unicon_folder[UNICON_YX]);
    is = w->dim[0] == C ? JOINT_CONV : JOINT_CONV_FUSE;
    if (w->dim[0] != w->dim[1] || (is == JOINT_CONV_FUSE && w->dim[0] % 2) || (is && w->dim[0] / 2 != C))
        return err_set(e, E_FORMAT, "tensor '%s' is %s for a block of width %" PRId64 ": neither conv nor conv_fuse",
                       name, weights_text(w, text, sizeof text), C);
    if (*kind >= 0 && is != *kind)
        return err_set(e, E_FORMAT, "tensor '%s' is %s, a %s, where a %s is expected as in the others or in the "
                       "configuration", name, weights_text(w, text, sizeof text), unicon_kind[is], unicon_kind[*kind]);
    *kind = is;
    return OK;
}

/* *kind: what it has to be or -1; then what it is. Whole parts of the UNet may be without joint attention (trained with
 * the encoder skipped); a block that its neighbours leave alone has lost its projection. */
static int check_post(int *kind, const struct weights *post, const struct weights *xy, struct err *e)
{
    static const char part[] = "dmu";               /* down_blocks, mid_block, up_blocks */
    const char *with[3] = { NULL }, *without[3] = { NULL };
    int rc = OK;

    if (post->n < 1)
        return err_set(e, E_FORMAT, "there is no conv1n or post1n in it");
    for (int i = 0; i < post->n && !rc; i++)
        rc = check_matrix(kind, post, post->entry[i].name, width_of(xy, post->entry[i].name, UNICON_XY), e);
    for (int i = 0; i < xy->n && !rc; i = next_block(xy, i)) {
        const char *name = xy->entry[i].name;
        const size_t p = (size_t)(strchr(part, name[0]) - part);
        *(of_block(post, name, "conv1n.weight") ? &with[p] : &without[p]) = name;
        if (with[p] && without[p])
            rc = err_set(e, E_FORMAT, "tensor '%.*s.conv1n.weight' is missing; '%.*s' has one",
                         block_bytes(without[p]), without[p], block_bytes(with[p]), with[p]);
    }
    return rc;
}

int unicon_check(int *kind, const struct joint_weights *w, struct err *e)
{
    const struct weights *const table[] = { [UNICON_XY] = w->xy, [UNICON_YX] = w->yx, [UNICON_Y] = w->y };
    int rc = OK;

    for (int part = UNICON_XY; part <= UNICON_Y && !rc; part++)
        if (table[part]) {
            rc = check_adapter(table[part], part, e);
            if (rc)
                err_in(e, "%s", unicon_folder[part]);
        }
    rc = rc ? rc : check_beside(w->xy, UNICON_XY, w->yx, UNICON_YX, e);
    rc = rc ? rc : check_beside(w->yx, UNICON_YX, w->xy, UNICON_XY, e);
    rc = rc || !w->y ? rc : check_beside(w->xy, UNICON_XY, w->y, UNICON_Y, e);
    if (rc)
        return rc;
    rc = check_post(kind, w->post, w->xy, e);
    return rc ? err_in(e, "projections") : OK;
}
