#include "tests/base_kit.h"

#include <fcntl.h>
#include <ftw.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void die(const char *what)
{
    perror(what);
    exit(1);
}

/* ---- the list ---- */

/* "320,4,3,3" */
static struct sizes parse_sizes(const char *text)
{
    struct sizes s = { 0, { 0 } };
    char *end;

    while (s.n_dim < 4) {
        s.dim[s.n_dim++] = strtoll(text, &end, 10);
        if (*end != ',')
            break;
        text = end + 1;
    }
    return s;
}

static struct keys_row *add_row(struct keys *k)
{
    if (k->n % 256 == 0)
        k->row = realloc(k->row, ((size_t)k->n + 256) * sizeof *k->row);
    if (!k->row)
        die("keys");
    memset(&k->row[k->n], 0, sizeof *k->row);
    return &k->row[k->n++];
}

static void read_line(struct keys *k, const char *line, char *section)
{
    char name[120], one[40], two[40];
    const int n = sscanf(line, "%119s %39s %39s", name, one, two);
    struct keys_row *row = k->n ? &k->row[k->n - 1] : NULL;

    if (line[0] == '[') {
        sscanf(line, "[%7s", section);
    } else if (line[0] == ' ' && row) {
        memcpy(row->original, name, sizeof name);
        if (n > 1)
            row->stored = parse_sizes(one);
    } else if (n > 1) {
        row = add_row(k);
        memcpy(row->section, section, sizeof row->section);
        memcpy(row->name, name, sizeof name);
        memcpy(row->original, name, sizeof name);
        row->one = parse_sizes(one);
        row->two = n > 2 ? parse_sizes(two) : row->one;
    }
}

static struct keys *read_keys(const char *path)
{
    struct keys *k = calloc(1, sizeof *k);
    FILE *f = fopen(path, "r");
    char line[256], section[8] = "";

    if (!f || !k)
        die(path);
    while (fgets(line, sizeof line, f))
        read_line(k, line, section);
    fclose(f);
    return k;
}

struct keys *keys_open(void) { return read_keys("tests/reference/base_keys.txt"); }
struct keys *keys_of_controls(void) { return read_keys("tests/reference/control_keys.txt"); }

void keys_close(struct keys *k)
{
    free(k->row);
    free(k);
}

/* ---- files ---- */

static char dir[4096];

static int drop(const char *path, const struct stat *st, int kind, struct FTW *where)
{
    (void)st, (void)kind, (void)where;
    return remove(path);
}

static void clean_up(void)
{
    nftw(dir, drop, 16, FTW_DEPTH | FTW_PHYS);
}

const char *base_dir(void)
{
    const char *tmp = getenv("TMPDIR");

    if (dir[0])
        return dir;
    snprintf(dir, sizeof dir, "%s/base.XXXXXX", tmp && *tmp ? tmp : "/tmp");
    if (!mkdtemp(dir))
        die(dir);
    atexit(clean_up);
    return dir;
}

const char *base_path(const char *fmt, ...)
{
    static char path[8][8192];
    static int next;
    char *out = path[next++ % 8];
    va_list ap;
    int n = snprintf(out, sizeof path[0], "%s/", base_dir());

    va_start(ap, fmt);
    vsnprintf(out + n, sizeof path[0] - (size_t)n, fmt, ap);
    va_end(ap);
    return out;
}

void base_mkdir(const char *path)
{
    if (mkdir(path, 0777))
        die(path);
}

void base_text(const char *path, const char *text)
{
    FILE *f = fopen(path, "w");

    if (!f || fputs(text, f) < 0 || fclose(f))
        die(path);
}

/* ---- holes ---- */

__attribute__((format(printf, 2, 3))) static void print(struct hole *h, const char *fmt, ...)
{
    va_list ap;
    int n;

    if (h->room - h->used < 1024) {
        h->room = h->room * 2 + 4096;
        h->header = realloc(h->header, h->room);
        if (!h->header)
            die("hole");
    }
    va_start(ap, fmt);
    n = vsnprintf(h->header + h->used, h->room - h->used, fmt, ap);
    va_end(ap);
    h->used += (size_t)n;
}

void hole_add_type(struct hole *h, const char *name, const char *type, int bytes, const struct sizes *s, int64_t *at)
{
    int64_t n = bytes;

    if (!h->used)
        print(h, "{");
    print(h, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[", h->used > 1 ? "," : "", name, type);
    for (int i = 0; i < s->n_dim; i++) {
        print(h, "%s%" PRId64, i ? "," : "", s->dim[i]);
        n *= s->dim[i];
    }
    if (at)
        *at = h->bytes;
    print(h, "],\"data_offsets\":[%" PRId64 ",%" PRId64 "]}", h->bytes, h->bytes + n);
    h->bytes += n;
}

void hole_add(struct hole *h, const char *name, const struct sizes *s)
{
    hole_add_type(h, name, "F16", 2, s, NULL);
}

int64_t hole_write(struct hole *h, const char *path)
{
    FILE *f = fopen(path, "wb");
    uint64_t size;
    int64_t first;

    if (!h->used)
        print(h, "{");
    print(h, "}");
    while (h->used % 8)
        print(h, " ");
    size = h->used;
    first = (int64_t)(8 + size);
    if (!f || fwrite(&size, 8, 1, f) != 1 || fwrite(h->header, h->used, 1, f) != 1 || fclose(f) ||
        truncate(path, first + h->bytes))
        die(path);
    free(h->header);
    *h = (struct hole){ NULL, 0, 0, 0 };
    return first;
}

void base_poke(const char *path, int64_t at, const void *bytes, size_t n)
{
    const int fd = open(path, O_WRONLY);

    if (fd < 0 || pwrite(fd, bytes, n, at) != (ssize_t)n || close(fd))
        die(path);
}
