#include "store/lora_file.h"

#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "store/json_conf.h"
#include "store/lora_keys.h"
#include "store/map.h"

/* One tensor of the file that belongs to a LoRA. */
struct found {
    enum lora_part part;
    enum lora_key_role role;
    char *target, *group;           /* in the file's meta arena */
    struct weights_entry *entry;
};

/* What the file or one beside it says about scales where tensors do not. */
struct scales {
    bool known[2];                  /* by enum lora_part */
    bool root[2];                   /* "rank-stabilised": alpha / sqrt(rank) */
    double alpha[2];
};

/* ---- scales that are no tensors ---- */

/* The keys of a peft configuration, each with `front` before it. */
static void parse_peft(struct json_conf *c, const char *front, struct scales *s, enum lora_part part)
{
    static const char *const off[] = { "use_dora", "lora_bias", "fan_in_fan_out", NULL };
    static const char *const empty[] = { "alpha_pattern", "megatron_config", NULL };
    char key[80];

    for (int i = 0; off[i]; i++) {
        snprintf(key, sizeof key, "%s%s", front, off[i]);
        json_conf_only(c, key, "false", "null");
    }
    for (int i = 0; empty[i]; i++) {
        snprintf(key, sizeof key, "%s%s", front, empty[i]);
        json_conf_only(c, key, "{}", "null");
    }
    snprintf(key, sizeof key, "%suse_rslora", front);
    s->root[part] = json_conf_bool(c, key, false);
    snprintf(key, sizeof key, "%slora_alpha", front);
    s->known[part] = json_conf_get(c, key) != NULL;
    s->alpha[part] = json_conf_number(c, key, 0, -1e6, 1e6);
}

/* diffusers writes both configurations as one JSON text into the safetensors metadata. */
static int scales_of_metadata(struct scales *s, const char *metadata, struct err *e)
{
    struct json_conf outer, inner;
    const char *text;
    int rc = OK;

    if (!metadata || json_conf_open(&outer, "metadata", metadata, strlen(metadata), NULL)) {
        if (metadata)
            json_conf_close(&outer);
        return OK;                  /* none, or nothing that says anything about scales */
    }
    text = json_string_value(json_conf_get(&outer, "lora_adapter_metadata"));
    if (text && !json_conf_open(&inner, "lora_adapter_metadata", text, strlen(text), e)) {
        parse_peft(&inner, "unet.", s, LORA_UNET);
        parse_peft(&inner, "text_encoder.", s, LORA_TEXT);
        rc = json_conf_close(&inner);
    } else if (text) {
        rc = json_conf_close(&inner);
    }
    json_conf_close(&outer);
    return rc;
}

/* peft's own folders hold adapter_config.json beside the weights. */
static int scales_beside(struct scales *s, const char *path, struct err *e)
{
    static const char name[] = "adapter_config.json";
    const char *slash = strrchr(path, '/');
    const int n = slash ? (int)(slash - path) + 1 : 0;
    const size_t size = (size_t)n + sizeof name;
    char *beside = arena_fault_now() ? NULL : malloc(size);
    struct map m = { 0 };
    struct json_conf c;
    int rc;

    if (!beside)
        return err_set(e, E_NOMEM, "out of memory");
    snprintf(beside, size, "%.*s%s", n, path, name);
    rc = map_open(&m, beside, e);
    if (!rc) {
        if (!json_conf_open(&c, name, (const char *)m.base, m.size, e)) {
            parse_peft(&c, "", s, LORA_UNET);
            parse_peft(&c, "", s, LORA_TEXT);
        }
        rc = json_conf_close(&c);
    }
    map_close(&m);
    free(beside);
    return rc;
}

/* ---- tensors to pairs ---- */

static char *keep(struct arena *a, const char *text, struct err *e)
{
    const size_t size = strlen(text) + 1;
    char *p = arena_push(a, size, e);

    return p ? memcpy(p, text, size) : NULL;
}

/* One tensor more. *n grows if it belongs to a LoRA. */
static int take(struct found *found, int *n, struct lora_file *f, const struct lora_names *names,
                struct weights_entry *entry, bool *peft, struct err *e)
{
    struct lora_key key;
    struct found *to = &found[*n];

    lora_key_parse(&key, names, entry->name);
    switch (key.role) {
    case LORA_KEY_OTHER:
        f->n_other++;
        return OK;
    case LORA_KEY_REFUSED:
        return err_set(e, E_FORMAT, "tensor '%s' is of %s, which is not supported", entry->name, key.kind);
    case LORA_KEY_FOREIGN:
        return err_set(e, E_FORMAT, "tensor '%s' is for a layer that the model does not have: the LoRA is for another "
                       "base model", entry->name);
    default:
        break;
    }
    *peft |= key.peft;
    *to = (struct found){ .part = key.part, .role = key.role, .entry = entry };
    to->target = keep(&f->file->meta, key.target, e);
    to->group = to->target ? keep(&f->file->meta, key.group, e) : NULL;
    if (!to->group)
        return e->code;
    (*n)++;
    return OK;
}

static int by_target(const void *a, const void *b)
{
    const struct found *p = a, *q = b;
    int d = p->part != q->part ? (int)p->part - (int)q->part : strcmp(p->target, q->target);

    d = d ? d : strcmp(p->group, q->group);
    return d ? d : (int)p->role - (int)q->role;
}

static int read_alpha(double *out, const struct weights_entry *w, struct err *e)
{
    float alpha = 0;
    int rc;

    if (weights_count(w) != 1)
        return err_set(e, E_FORMAT, "tensor '%s' is no single number", w->name);
    rc = weights_read(w, &alpha, F32, e);
    if (rc)
        return rc;
    if (!isfinite(alpha))
        return err_set(e, E_FORMAT, "tensor '%s' is not finite", w->name);
    *out = (double)alpha;
    return OK;
}

/* down (r,Ci) and up (Co,r), or down (r,Ci,KH,KW) and up (Co,r,1,1). */
static int check_sizes(const struct weights_entry *down, const struct weights_entry *up, struct err *e)
{
    char a[100], b[100];
    bool ok = (down->n_dim == 2 || down->n_dim == 4) && (up->n_dim == 2 || up->n_dim == 4);

    ok = ok && down->dim[0] > 0 && up->dim[1] == down->dim[0];
    ok = ok && (up->n_dim == 2 || (up->dim[2] == 1 && up->dim[3] == 1));
    if (ok)
        return OK;
    return err_set(e, E_FORMAT, "'%s', %s, and '%s', %s, have no common rank", down->name,
                   weights_text(down, a, sizeof a), up->name, weights_text(up, b, sizeof b));
}

/* A pair from the n tensors of one group. */
static int pair(struct lora_delta *out, const struct found *found, int n, const struct scales *s, struct err *e)
{
    struct weights_entry *by_role[3] = { NULL };
    const enum lora_part part = found->part;
    double alpha, r;
    int rc;

    for (int i = 0; i < n; i++) {
        if (by_role[found[i].role])
            return err_set(e, E_FORMAT, "tensors '%s' and '%s' say the same", by_role[found[i].role]->name,
                           found[i].entry->name);
        by_role[found[i].role] = found[i].entry;
    }
    if (!by_role[LORA_KEY_DOWN] || !by_role[LORA_KEY_UP])
        return err_set(e, E_FORMAT, "tensor '%s' has no %s beside it", found->entry->name,
                       by_role[LORA_KEY_DOWN] ? "up" : "down");
    rc = check_sizes(by_role[LORA_KEY_DOWN], by_role[LORA_KEY_UP], e);
    if (rc)
        return rc;
    r = (double)by_role[LORA_KEY_DOWN]->dim[0];
    alpha = s->known[part] ? s->alpha[part] : r;
    if (by_role[LORA_KEY_ALPHA])
        rc = read_alpha(&alpha, by_role[LORA_KEY_ALPHA], e);
    *out = (struct lora_delta){ .part = part, .target = found->target, .down = by_role[LORA_KEY_DOWN],
                                .up = by_role[LORA_KEY_UP] };
    out->scale = alpha / (s->root[part] && s->known[part] && !by_role[LORA_KEY_ALPHA] ? sqrt(r) : r);
    return rc;
}

static int pair_all(struct lora_file *f, struct found *found, int n, const struct scales *s, struct err *e)
{
    struct lora *l = &f->lora;
    int rc = OK, m;

    qsort(found, (size_t)n, sizeof *found, by_target);
    l->delta = arena_push(&f->file->meta, sizeof *l->delta * (size_t)n, e);
    if (!l->delta)
        return e->code;
    for (int i = 0; i < n && !rc; i += m) {
        for (m = 1; i + m < n && found[i + m].part == found[i].part && !strcmp(found[i + m].group, found[i].group) &&
             !strcmp(found[i + m].target, found[i].target); m++)
            ;
        rc = pair(&l->delta[l->n], &found[i], m, s, e);
        l->n += !rc;
    }
    return rc;
}

/* ---- */

static int read_file(struct lora_file *f, const char *path, const struct lora_names *names, struct err *e)
{
    struct scales scales = { { false, false }, { false, false }, { 0, 0 } };
    struct found *found;
    bool peft = false;
    int n = 0, rc = weights_file_open(&f->file, path, e);

    if (rc)
        return rc;
    found = arena_fault_now() ? NULL : malloc(sizeof *found * (size_t)(f->file->table.n + 1));
    if (!found)
        return err_set(e, E_NOMEM, "out of memory");
    for (int i = 0; i < f->file->table.n && !rc; i++)
        rc = take(found, &n, f, names, &f->file->table.entry[i], &peft, e);
    if (!rc && !n)
        rc = err_set(e, E_FORMAT, "nothing in the file is a LoRA of a UNet or a text encoder");
    if (!rc)
        rc = peft ? scales_beside(&scales, path, e) : scales_of_metadata(&scales, f->file->metadata, e);
    rc = rc ? rc : pair_all(f, found, n, &scales, e);
    free(found);
    f->lora.path = f->file->path;
    f->lora.weights = &f->file->table;
    return rc;
}

int lora_file_open(struct lora_file **out, const char *path, const struct unet_config *unet, struct err *e)
{
    struct lora_file *f = arena_fault_now() ? NULL : calloc(1, sizeof *f);
    struct lora_names *names = NULL;
    struct err mine;
    int rc;

    e = e ? e : &mine;
    rc = f ? lora_names_new(&names, unet, e) : err_set(e, E_NOMEM, "out of memory");

    rc = rc ? rc : read_file(f, path, names, e);
    lora_names_free(names);
    if (rc) {
        lora_file_close(f);
        err_in(e, "LoRA '%s'", path);
        return rc;
    }
    *out = f;
    return OK;
}

void lora_file_close(struct lora_file *f)
{
    if (!f)
        return;
    weights_file_close(f->file);
    free(f);
}
