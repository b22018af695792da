#include "tests/tiny.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/golden.h"

enum { MAX_TENSOR = 1024 };

static void die(const char *what)
{
    printf("Bail out! tests/reference/tiny.txt: %s\n", what);
    exit(1);
}

/* tiny.py, values() */
static void draw(float *v, const struct weights_entry *w, const char *part, const char *full)
{
    const int64_t n = weights_count(w);
    int64_t fan_in = 1;

    for (int i = 1; i < w->n_dim; i++)
        fan_in *= w->dim[i];
    if (strstr(w->name, "norm") && !strcmp(w->name + strlen(w->name) - 6, "weight")) {
        golden_draw(v, n, full, GOLDEN_SEED, 0.125);
        for (int64_t i = 0; i < n; i++)
            v[i] += 1;
    } else if (w->n_dim == 1)
        golden_draw(v, n, full, GOLDEN_SEED, 0.0625);
    else if (!strcmp(part, "text") && strstr(w->name, "embedding"))
        golden_draw(v, n, full, GOLDEN_SEED, 0.5);
    else
        golden_draw(v, n, full, GOLDEN_SEED, exp2(-rint(log2((double)fan_in) / 2)));
}

static void add(struct tiny *m, const char *model, const char *part, const char *key, char *sizes)
{
    struct weights_entry *w = &m->table.entry[m->table.n];
    char full[320], *end = sizes;
    int64_t stride = 1;

    if (m->table.n == MAX_TENSOR)
        die("too many tensors");
    w->name = strdup(key);
    while (*end && *end != '\n' && w->n_dim < WEIGHTS_MAX_DIM)
        w->dim[w->n_dim++] = strtoll(end, &end, 10);
    for (int i = w->n_dim - 1; i >= 0; i--) {
        w->stride[i] = stride;
        stride *= w->dim[i];
    }
    w->data = m->values[m->table.n] = malloc(sizeof(float) * (size_t)stride);
    if (!w->name || !w->data)
        die("out of memory");
    snprintf(full, sizeof full, "%s.%s.%s", model, part, key);
    draw(m->values[m->table.n], w, part, full);
    m->table.n++;
}

struct tiny *tiny_open(const char *model, const char *part)
{
    struct tiny *m = calloc(1, sizeof *m);
    FILE *f = fopen("tests/reference/tiny.txt", "r");
    char line[512], a[16], b[16], key[256];
    int at;

    if (!m || !f || !(m->table.entry = calloc(MAX_TENSOR, sizeof *m->table.entry))
        || !(m->values = calloc(MAX_TENSOR, sizeof *m->values)))
        die("cannot be read");
    while (fgets(line, sizeof line, f))
        if (sscanf(line, "%15s %15s %255s%n", a, b, key, &at) == 3 && !strcmp(a, model) && !strcmp(b, part))
            add(m, model, part, key, line + at);
    fclose(f);
    m->table.path = "tiny";
    if (!m->table.n || weights_sort(&m->table, NULL))
        die("nothing of that model");
    return m;
}

void tiny_close(struct tiny *m)
{
    for (int i = 0; i < m->table.n; i++) {
        free((void *)(uintptr_t)m->table.entry[i].name);
        free(m->values[i]);
    }
    free(m->table.entry);
    free(m->values);
    free(m);
}

struct unet_config tiny_unet_config(const char *model)
{
    const bool sd2 = !strcmp(model, "sd2");
    struct unet_config c = sd2 ? unet_config_sd2() : unet_config_sd15();
    static const int64_t width[] = { 32, 64, 64, 96 }, heads[] = { 2, 4, 4, 6 };

    for (int i = 0; i < 4; i++) {
        c.width[i] = width[i];
        c.heads[i] = sd2 ? heads[i] : 8;
    }
    c.cross_attention_dim = sd2 ? 64 : 48;
    c.sample_size = 8;
    return c;
}

struct vae_config tiny_vae_config(const char *model)
{
    const bool sd2 = !strcmp(model, "sd2");
    struct vae_config c = vae_config_sd15();
    static const int64_t width[] = { 32, 64, 64, 96 };

    for (int i = 0; i < 4; i++)
        c.width[i] = width[i];
    c.n_stage = sd2 ? 2 : 4;
    c.layers_per_block = sd2 ? 1 : 2;
    c.sample_size = sd2 ? 32 : 64;
    return c;
}

struct clip_text_config tiny_text_config(const char *model)
{
    const bool sd2 = !strcmp(model, "sd2");
    struct clip_text_config c = sd2 ? clip_text_config_sd2() : clip_text_config_sd15();

    c.hidden_size = sd2 ? 64 : 48;
    c.intermediate_size = sd2 ? 96 : 112;
    c.num_hidden_layers = sd2 ? 2 : 3;
    c.num_attention_heads = sd2 ? 2 : 4;
    return c;
}
