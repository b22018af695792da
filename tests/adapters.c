#include "tests/adapters.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/golden.h"

enum { MAX_TENSOR = 512 };

static void die(const char *what)
{
    printf("Bail out! %s\n", what);
    exit(1);
}

/* "unet.B.attn1n.to_q.lora.down.weight" as joint_new knows it: "B.attn1n.to_q.down.weight". */
static char *plain_name(const char *key)
{
    const char *from = strncmp(key, "unet.", 5) ? key : key + 5, *lora = strstr(from, ".lora.");
    char *out = malloc(strlen(from) + 1);

    if (!out)
        die("out of memory");
    if (lora)
        sprintf(out, "%.*s.%s", (int)(lora - from), from, lora + 6);
    else
        strcpy(out, from);
    return out;
}

static void add(struct weights *t, const char *full, const char *key, int64_t rows, int64_t columns)
{
    struct weights_entry *w;
    float *v = malloc(sizeof *v * (size_t)(rows * columns));
    double scale = 0.25;

    if (!t->entry)
        t->entry = calloc(MAX_TENSOR, sizeof *t->entry);
    if (t->n == MAX_TENSOR || !v || !t->entry)
        die("too many tensors");
    w = &t->entry[t->n++];
    if (strstr(key, "lora.down"))
        scale = exp2(-rint(log2((double)columns) / 2));
    else if (!strstr(key, "lora.up"))
        scale = exp2(-(1 + rint(log2((double)columns) / 2)));
    golden_draw(v, rows * columns, full, GOLDEN_SEED, scale);
    *w = (struct weights_entry){ .name = plain_name(key), .type = STORED_F32, .n_dim = 2, .dim = { rows, columns },
                                 .stride = { columns, 1 }, .data = v };
}

struct adapters *adapters_open(const char *checkpoint)
{
    struct adapters *a = calloc(1, sizeof *a);
    FILE *f = fopen("tests/reference/unicon.txt", "r");
    char line[512], name[32], part[32], key[256], full[400];
    long rows, columns;

    if (!a || !f)
        die("tests/reference/unicon.txt cannot be read");
    while (fgets(line, sizeof line, f)) {
        if (sscanf(line, "%31s %31s %255s %ld %ld", name, part, key, &rows, &columns) != 5 || strcmp(name, checkpoint))
            continue;
        snprintf(full, sizeof full, "%s.%s.%s", name, part, key);
        add(!strcmp(part, "xy_lora") ? &a->xy : !strcmp(part, "yx_lora") ? &a->yx : !strcmp(part, "y_lora") ? &a->y
            : &a->post, full, key, rows, columns);
    }
    fclose(f);
    if (!a->post.n || weights_sort(&a->xy, NULL) || weights_sort(&a->yx, NULL) || weights_sort(&a->y, NULL)
        || weights_sort(&a->post, NULL))
        die("tests/reference/unicon.txt has no such checkpoint");
    return a;
}

static void table_close(struct weights *t)
{
    for (int i = 0; i < t->n; i++) {
        free((void *)(uintptr_t)t->entry[i].name);
        free((void *)(uintptr_t)t->entry[i].data);
    }
    free(t->entry);
}

void adapters_close(struct adapters *a)
{
    table_close(&a->xy);
    table_close(&a->yx);
    table_close(&a->y);
    table_close(&a->post);
    free(a);
}
