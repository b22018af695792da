#include "tests/bench/random_base.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Matrices are about normal with this deviation, scales of norms 1 + that, biases that. */
#define DEVIATION 0.02f

enum { MAX_TENSOR = 2048, N_MATRIX = 40 << 20, N_VECTOR = 1 << 16 };

static bool add(struct random_base *b, struct weights *t, const char *name, int n_dim, const int64_t *dim)
{
    struct weights_entry *x = t->entry ? t->entry : calloc(MAX_TENSOR, sizeof *x);
    const size_t length = strlen(name);
    int64_t n = 1;

    t->entry = x;
    if (!x || t->n == MAX_TENSOR || !(x[t->n].name = strdup(name)))
        return false;
    x = &t->entry[t->n];
    x->type = STORED_F32;
    x->n_dim = n_dim;
    for (int i = n_dim - 1; i >= 0; i--) {
        x->dim[i] = dim[i];
        x->stride[i] = n;
        n *= dim[i];
    }
    if (n > (n_dim > 1 ? N_MATRIX : N_VECTOR))
        return false;
    t->n++;
    if (n_dim > 1)                              /* no two begin at the same value, or to_q would be to_k */
        x->data = b->value + (int64_t)t->n * 8191 % (N_MATRIX - n + 1);
    else
        x->data = b->value + N_MATRIX + (length > 7 && !strcmp(name + length - 7, ".weight") ? N_VECTOR : 0);
    return true;
}

static bool add2(struct random_base *b, struct weights *t, const char *block, const char *name, int64_t rows,
                 int64_t columns)
{
    char full[256];

    snprintf(full, sizeof full, "%s.%s.weight", block, name);
    return add(b, t, full, 2, (int64_t[]){ rows, columns });
}

/* Sections "[unet 686]" and so on, lines "name 320,320,3,3"; the original layout's names are indented. */
static bool read_names(struct random_base *b)
{
    FILE *f = fopen("tests/reference/base_keys.txt", "r");
    char line[256], name[200], *at;
    struct weights *t = NULL;
    bool ok = f != NULL;

    while (ok && fgets(line, sizeof line, f)) {
        int64_t dim[4];
        int n = 0;

        if (line[0] == '[')
            t = !strncmp(line, "[unet", 5) ? &b->unet : !strncmp(line, "[vae", 4) ? &b->vae
              : !strncmp(line, "[text1", 6) ? &b->text : NULL;
        if (!t || line[0] == '[' || line[0] == ' ' || sscanf(line, "%199s", name) != 1)
            continue;
        at = line + strlen(name);
        do
            dim[n++] = strtol(at + 1, &at, 10);
        while (*at == ',' && n < 4);
        ok = add(b, t, name, n, dim);
    }
    if (f)
        fclose(f);
    return ok && b->unet.n && !weights_sort(&b->unet, &b->e) && !weights_sort(&b->vae, &b->e)
        && !weights_sort(&b->text, &b->e);
}

int random_base_open(struct random_base *b)
{
    const struct krng r = { { 1, 2 }, { 3, 4, 5 } };
    const struct kern *f = kern_cpu(NULL);
    struct kctx k = { .n_threads = 1 };
    const int64_t n = (int64_t)N_MATRIX + N_VECTOR;

    *b = (struct random_base){ .value = malloc(sizeof(float) * (size_t)(n + N_VECTOR)) };
    if (!b->value)
        return err_set(&b->e, E_NOMEM, "no memory for random weights");
    if (f->random_normal(&k, b->value, F32, n, &r, 0) || f->axpby(&k, b->value, DEVIATION, b->value, 0, NULL, F32, n)
        || f->axpby(&k, b->value + n, 1, b->value + N_MATRIX, 1, NULL, F32, N_VECTOR))
        return err_set(&b->e, E_BUG, "random weights");
    return read_names(b) ? OK : err_set(&b->e, E_IO, "tests/reference/base_keys.txt: cannot be used from here");
}

static bool add_terms(struct random_base *b, struct weights *t, const char *block, const char *attn, int64_t C,
                      int64_t Ck)
{
    static const char *const projection[] = { "to_q", "to_k", "to_v", "to_out.0" };
    bool ok = true;

    for (int i = 0; i < 4 && ok; i++) {
        char name[64];

        snprintf(name, sizeof name, "%s.%s.down", attn, projection[i]);
        ok = add2(b, t, block, name, RANDOM_BASE_RANK, i == 1 || i == 2 ? Ck : C);
        snprintf(name, sizeof name, "%s.%s.up", attn, projection[i]);
        ok = ok && add2(b, t, block, name, C, RANDOM_BASE_RANK);
    }
    return ok;
}

int random_base_adapters(struct random_base *b, const struct joint_place *place, int n)
{
    struct weights *const table[] = { &b->xy, &b->yx, &b->y, &b->fuse, &b->conv };
    bool ok = true;

    if (b->xy.n)
        return OK;
    for (int i = 0; i < n && ok; i++) {
        const int64_t C = place[i].C;
        const char *name = place[i].name;

        ok = add_terms(b, &b->xy, name, "attn1n", C, C) && add_terms(b, &b->yx, name, "attn1n", C, C)
            && add_terms(b, &b->y, name, "attn1", C, C) && add_terms(b, &b->y, name, "attn2", C, 768)
            && add2(b, &b->fuse, name, "conv1n", 2 * C, 2 * C) && add2(b, &b->conv, name, "conv1n", C, C);
    }
    for (int i = 0; i < 5 && ok; i++)
        ok = !weights_sort(table[i], &b->e);
    return ok ? OK : err_set(&b->e, E_NOMEM, "no memory for adapters");
}

void random_base_close(struct random_base *b)
{
    struct weights *const table[] = { &b->unet, &b->vae, &b->text, &b->xy, &b->yx, &b->y, &b->fuse, &b->conv };

    for (int i = 0; i < 8; i++) {
        for (int j = 0; j < table[i]->n; j++)
            free((void *)(uintptr_t)table[i]->entry[j].name);
        free(table[i]->entry);
    }
    free(b->value);
}
