/* tests/fuzz/f_keys.c: any lines as the names of a file's tensors, each with up to four sizes behind a blank. Names are
 * mapped as those of checkpoints and of LoRA files; the tables that come out are sorted, their entries lie inside the
 * bytes, and configurations that sizes give are in range. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "store/checkpoint_keys.h"
#include "store/lora_keys.h"
#include "store/model_shapes.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { MAX_NAME = 300, MAX_ENTRY = 300 };

static char bytes[1 << 16];
static struct arena meta;
static struct lora_names *names;

static void must(bool ok)
{
    if (!ok)
        abort();
}

static void start(void)
{
    const struct unet_config u = unet_config_sd15();

    if (names)
        return;
    must(!arena_init(&meta, "meta", ARENA_HOST, (size_t)1 << 28, NULL));
    must(!lora_names_new(&names, &u, NULL));
}

/* "name 1 2 3" of n bytes, false if it is no tensor. */
static bool read_entry(struct weights_entry *w, const char *line, size_t n)
{
    char *text = arena_push(&meta, n + 1, NULL), *at;
    int64_t count = 4;

    must(text != NULL);
    memcpy(text, line, n);
    text[n] = 0;
    *w = (struct weights_entry){ .name = text, .data = bytes };
    at = strchr(text, ' ');
    while (at && w->n_dim < 4) {
        *at++ = 0;
        w->dim[w->n_dim] = strtoll(at, &at, 10);
        if (w->dim[w->n_dim] < 0 || w->dim[w->n_dim] > (int64_t)sizeof bytes)
            return false;
        count *= w->dim[w->n_dim++];
        if (count > (int64_t)sizeof bytes)
            return false;
        at = *at == ' ' ? at : NULL;
    }
    for (int i = w->n_dim - 1, step = 1; i >= 0; step *= (int)w->dim[i--])
        w->stride[i] = step;
    return text[0] && strlen(text) < MAX_NAME;
}

static void check_name(const char *name)
{
    struct lora_key key;

    lora_key_parse(&key, names, name);
    must(strlen(key.target) < sizeof key.target && strlen(key.group) < sizeof key.group);
    if (key.role <= LORA_KEY_ALPHA)
        must(key.target[0] && key.group[0]);
    must((key.role == LORA_KEY_REFUSED) == (key.kind != NULL));
}

/* The table that weights_file_select would make, then what is done to it. */
static void select_entries(struct weights *out, const struct weights *in,
                           bool (*rename)(const char *, char *, size_t, void *), void *ctx)
{
    const size_t size = MAX_NAME + 100;

    *out = (struct weights){ .entry = arena_push(&meta, sizeof *out->entry * (size_t)(in->n + 1), NULL) };
    must(out->entry != NULL);
    for (int i = 0; i < in->n; i++) {
        char *name = arena_push(&meta, size, NULL);
        must(name != NULL);
        if (!rename(in->entry[i].name, name, size, ctx))
            continue;
        must(name[0] && strlen(name) < size);
        out->entry[out->n] = in->entry[i];
        out->entry[out->n++].name = name;
    }
}

static bool usable(struct weights *w)
{
    struct err e = { 0 };
    int rc = weights_sort(w, &e);

    rc = rc ? rc : checkpoint_split_qkv(w, &meta, &e);
    must(rc == OK || rc == E_FORMAT);
    for (int i = 0; i < w->n && !rc; i++) {
        const struct weights_entry *x = &w->entry[i];
        const char *at = x->data;
        must(i == 0 || strcmp(x[-1].name, x->name) < 0);
        must(at >= bytes && at + 4 * weights_count(x) <= bytes + sizeof bytes);
    }
    return !rc;
}

static void check_configs(struct weights *unet, struct weights *vae, struct weights *text)
{
    struct unet_config u;
    struct vae_config v;
    struct clip_text_config t;
    struct err e = { 0 };

    if (usable(unet) && !shapes_unet(&u, unet, &e))
        for (int i = 0; i < u.n_stage; i++)
            must(u.n_stage <= UNET_MAX_STAGE && u.width[i] > 0 && u.width[i] % u.heads[i] == 0);
    if (usable(vae)) {
        checkpoint_squeeze_vae(vae);
        if (!shapes_vae(&v, vae, &e))
            must(v.n_stage >= 1 && v.n_stage <= VAE_MAX_STAGE && v.width[0] % v.norm_num_groups == 0);
    }
    if (usable(text) && !shapes_text(&t, text, K_ACT_GELU, &e))
        must(t.num_attention_heads > 0 && t.hidden_size % t.num_attention_heads == 0);
}

static void check_control(struct weights *control)
{
    const struct unet_config base = unet_config_sd15();
    struct controlnet_config c;
    struct err e = { 0 };

    if (!usable(control) || shapes_control(&c, control, &base, &e))
        return;
    must(c.n_hint >= 1 && c.n_hint <= CONTROLNET_MAX_HINT && c.unet.n_stage <= UNET_MAX_STAGE);
    for (int i = 0; i < c.n_hint; i++)
        must(c.hint[i] > 0);
    for (int i = 0; i < c.unet.n_stage; i++)
        must(c.unet.width[i] > 0 && c.unet.heads[i] > 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct weights_entry entry[MAX_ENTRY];
    struct weights file = { .entry = entry }, unet, vae, text, control;
    struct checkpoint_layout layout;
    size_t mark;

    start();
    mark = arena_mark(&meta);
    while (size && file.n < MAX_ENTRY) {
        const uint8_t *end = memchr(data, '\n', size);
        const size_t n = end ? (size_t)(end - data) : size;

        if (read_entry(&entry[file.n], (const char *)data, n))
            check_name(entry[file.n++].name);
        data += n + (end != NULL);
        size -= n + (end != NULL);
    }
    model_foreign(&file);
    checkpoint_layout(&layout, &file);
    select_entries(&unet, &file, checkpoint_unet_key, &layout);
    select_entries(&vae, &file, checkpoint_vae_key, &layout);
    select_entries(&text, &file, checkpoint_text_key, &layout);
    select_entries(&control, &file, checkpoint_control_key, &layout);
    check_configs(&unet, &vae, &text);
    check_control(&control);
    select_entries(&vae, &file, diffusers_vae_key, NULL);
    select_entries(&text, &file, diffusers_text_key, NULL);
    check_configs(&file, &vae, &text);
    arena_release(&meta, mark);
    return 0;
}
