#include "tests/golden.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_TENSOR = 4096, MAX_NAME = 200 };

/* The header is read from `at` to `end`; the first failure is kept in why and ends everything. */
struct reader {
    const char *at, *end;
    const unsigned char *data;          /* after the header */
    size_t data_bytes;
    struct golden *g;
    char *why;
    size_t why_size;
};

static int refuse(struct reader *r, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static int refuse(struct reader *r, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(r->why, r->why_size, fmt, ap);
    va_end(ap);
    return -1;
}

static int expect(struct reader *r, char c)
{
    if (r->at == r->end || *r->at != c)
        return refuse(r, "'%c' expected where %td bytes of the header are left", c, r->end - r->at);
    r->at++;
    return 0;
}

static int next_is(const struct reader *r, char c)
{
    return r->at < r->end && *r->at == c;
}

/* A string without escapes into s[MAX_NAME]. */
static int read_string(struct reader *r, char *s)
{
    size_t n = 0;

    if (expect(r, '"'))
        return -1;
    while (r->at < r->end && *r->at != '"') {
        if (*r->at == '\\' || (unsigned char)*r->at < 32 || n + 1 == MAX_NAME)
            return refuse(r, "a string has an escape or is too long");
        s[n++] = *r->at++;
    }
    s[n] = '\0';
    return expect(r, '"');
}

static int read_count(struct reader *r, int64_t *n)
{
    const char *first = r->at;

    *n = 0;
    for (; r->at < r->end && *r->at >= '0' && *r->at <= '9'; r->at++) {
        if (*n > INT64_MAX / 10 - 1)
            return refuse(r, "a number is too large");
        *n = *n * 10 + (*r->at - '0');
    }
    return r->at == first ? refuse(r, "a number is expected") : 0;
}

/* [a,b,..], at most max of them */
static int read_counts(struct reader *r, int64_t *v, int max, int *n)
{
    *n = 0;
    if (expect(r, '['))
        return -1;
    while (!next_is(r, ']')) {
        if (*n == max)
            return refuse(r, "more than %d numbers in a list", max);
        if ((*n && expect(r, ',')) || read_count(r, &v[(*n)++]))
            return -1;
    }
    return expect(r, ']');
}

/* Sets t->n; refuses products past what memory could hold. */
static int count(struct reader *r, struct golden_tensor *t)
{
    t->n = 1;
    for (int i = 0; i < t->n_dim; i++) {
        if (t->dim[i] > 0 && t->n > (INT64_C(1) << 40) / t->dim[i])
            return refuse(r, "tensor '%s' is too large", t->name);
        t->n *= t->dim[i];
    }
    return 0;
}

static struct golden_tensor *add(struct reader *r, const char *name)
{
    struct golden_tensor *t = &r->g->tensor[r->g->n_tensor];

    if (r->g->n_tensor == MAX_TENSOR || golden_get(r->g, name)) {
        refuse(r, "tensor '%s' comes twice, or there are more than %d", name, MAX_TENSOR);
        return NULL;
    }
    t->name = strdup(name);
    if (!t->name) {
        refuse(r, "out of memory");
        return NULL;
    }
    r->g->n_tensor++;
    return t;
}

static int take_data(struct reader *r, struct golden_tensor *t, const char *dtype, const int64_t offset[2])
{
    const int is_int = !strcmp(dtype, "I32");
    void *mem;

    if (!is_int && strcmp(dtype, "F32"))
        return refuse(r, "tensor '%s' is %s; F32 and I32 are read", t->name, dtype);
    if (count(r, t))
        return -1;
    if (offset[0] > offset[1] || (uint64_t)offset[1] > r->data_bytes || offset[1] - offset[0] != 4 * t->n)
        return refuse(r, "tensor '%s' lies at %" PRId64 "..%" PRId64 " of %zu bytes and has %" PRId64 " elements",
                      t->name, offset[0], offset[1], r->data_bytes, t->n);
    mem = malloc((size_t)(4 * t->n) + 1);
    if (!mem)
        return refuse(r, "out of memory");
    memcpy(mem, r->data + offset[0], (size_t)(4 * t->n));
    t->i = is_int ? mem : NULL;
    t->f = is_int ? NULL : mem;
    return 0;
}

/* {"dtype":"F32","shape":[..],"data_offsets":[a,b]} */
static int read_tensor(struct reader *r, const char *name)
{
    struct golden_tensor *t = add(r, name);
    char key[MAX_NAME], dtype[MAX_NAME];
    int64_t offset[2];
    int n;

    if (!t)
        return -1;
    if (expect(r, '{') || read_string(r, key) || expect(r, ':') || read_string(r, dtype) || expect(r, ','))
        return -1;
    if (strcmp(key, "dtype") || read_string(r, key) || strcmp(key, "shape") || expect(r, ':'))
        return refuse(r, "tensor '%s': dtype, then shape are expected", name);
    if (read_counts(r, t->dim, GOLDEN_MAX_DIM, &t->n_dim) || expect(r, ',') || read_string(r, key) || expect(r, ':')
        || read_counts(r, offset, 2, &n) || expect(r, '}'))
        return -1;
    if (strcmp(key, "data_offsets") || n != 2)
        return refuse(r, "tensor '%s': two data_offsets are expected", name);
    return take_data(r, t, dtype, offset);
}

/* The formula is in tests/reference/golden.py. */
void golden_draw(float *v, int64_t n, const char *name, uint64_t seed, double scale)
{
    uint64_t s = 0xCBF29CE484222325u, z;

    for (; *name; name++)
        s = (s ^ (unsigned char)*name) * 0x100000001B3u;
    s ^= seed;
    for (int64_t i = 0; i < n; i++) {
        z = s + (uint64_t)(i + 1) * 0x9E3779B97F4A7C15u;
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
        z ^= z >> 31;
        const int64_t sum = (int64_t)((z & 0xFFFF) + (z >> 16 & 0xFFFF) + (z >> 32 & 0xFFFF) + (z >> 48));
        v[i] = (float)((double)(sum - 131070) * 0x1p-15 * scale);
    }
}

/* text: "scale dim0 dim1 .." */
static int read_drawn(struct reader *r, const char *name, const char *text)
{
    struct golden_tensor *t = add(r, name);
    char *end;
    const double scale = strtod(text, &end);

    if (!t)
        return -1;
    while (*end == ' ' && t->n_dim < GOLDEN_MAX_DIM) {
        t->dim[t->n_dim] = strtoll(end, &end, 10);
        if (t->dim[t->n_dim++] <= 0)
            return refuse(r, "tensor '%s' is drawn as '%s'", name, text);
    }
    if (*end || !t->n_dim)
        return refuse(r, "tensor '%s' is drawn as '%s'", name, text);
    if (count(r, t))
        return -1;
    t->f = malloc(sizeof *t->f * (size_t)t->n);
    if (!t->f)
        return refuse(r, "out of memory");
    golden_draw(t->f, t->n, name, r->g->seed, scale);
    return 0;
}

/* {"key":"value",..}. The seed comes after the draws, which therefore wait for a second reading. */
static int read_metadata(struct reader *r, int drawing)
{
    char key[MAX_NAME], value[MAX_NAME];

    if (expect(r, '{'))
        return -1;
    for (int first = 1; !next_is(r, '}'); first = 0) {
        if ((!first && expect(r, ',')) || read_string(r, key) || expect(r, ':') || read_string(r, value))
            return -1;
        if (!drawing && !strcmp(key, "seed"))
            r->g->seed = strtoull(value, NULL, 10);
        if (drawing && !strncmp(key, "draw ", 5) && read_drawn(r, key + 5, value))
            return -1;
    }
    return expect(r, '}');
}

static int read_header(struct reader *r)
{
    char key[MAX_NAME];
    const char *metadata;

    if (expect(r, '{'))
        return -1;
    for (int first = 1; !next_is(r, '}'); first = 0) {
        if ((!first && expect(r, ',')) || read_string(r, key) || expect(r, ':'))
            return -1;
        if (strcmp(key, "__metadata__")) {
            if (read_tensor(r, key))
                return -1;
            continue;
        }
        metadata = r->at;
        if (read_metadata(r, 0))
            return -1;
        r->at = metadata;
        if (read_metadata(r, 1))
            return -1;
    }
    for (r->at++; r->at < r->end; r->at++)
        if (*r->at != ' ')
            return refuse(r, "something follows the header's last brace");
    return 0;
}

struct golden *golden_parse(const unsigned char *bytes, size_t size, char *why, size_t why_size)
{
    struct reader r = { .why = why, .why_size = why_size };
    uint64_t header = 0;

    if (size < 8) {
        refuse(&r, "%zu bytes are no golden file", size);
        return NULL;
    }
    for (int i = 7; i >= 0; i--)
        header = header << 8 | bytes[i];
    if (header > size - 8) {
        refuse(&r, "the header has %" PRIu64 " bytes, the file %zu", header, size);
        return NULL;
    }
    r.at = (const char *)bytes + 8;
    r.end = r.at + header;
    r.data = bytes + 8 + header;
    r.data_bytes = size - 8 - header;
    r.g = calloc(1, sizeof *r.g);
    if (r.g)
        r.g->tensor = calloc(MAX_TENSOR + 1, sizeof *r.g->tensor);
    if (!r.g || !r.g->tensor || read_header(&r)) {
        golden_close(r.g);
        return NULL;
    }
    return r.g;
}

struct golden *golden_open(const char *path)
{
    FILE *f = fopen(path, "rb");
    struct golden *g = NULL;
    unsigned char *bytes = NULL;
    char why[512] = "cannot be read";
    long size = -1;

    if (f && !fseek(f, 0, SEEK_END))
        size = ftell(f);
    if (size >= 0)
        bytes = malloc((size_t)size + 1);
    if (bytes && !fseek(f, 0, SEEK_SET) && fread(bytes, 1, (size_t)size, f) == (size_t)size)
        g = golden_parse(bytes, (size_t)size, why, sizeof why);
    if (f)
        fclose(f);
    free(bytes);
    if (!g) {
        printf("Bail out! golden file '%s': %s\n", path, why);
        exit(1);
    }
    return g;
}

void golden_close(struct golden *g)
{
    if (!g)
        return;
    for (int i = 0; g->tensor && i < g->n_tensor; i++) {
        free(g->tensor[i].name);
        free(g->tensor[i].f);
        free(g->tensor[i].i);
    }
    free(g->tensor);
    free(g);
}

const struct golden_tensor *golden_get(const struct golden *g, const char *name)
{
    for (int i = 0; i < g->n_tensor; i++)
        if (!strcmp(g->tensor[i].name, name))
            return &g->tensor[i];
    return NULL;
}
