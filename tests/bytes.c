#include "tests/bytes.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/tap.h"

static char dir[200];

static void give_up(const char *what)
{
    perror(what);
    exit(1);
}

struct bytes bytes_read(const char *path)
{
    FILE *f = fopen(path, "rb");
    struct bytes b = { 0 };
    struct stat st;

    if (!f || fstat(fileno(f), &st))
        give_up(path);
    b.n = b.cap = (size_t)st.st_size;
    b.p = malloc(b.n ? b.n : 1);
    if (!b.p || fread(b.p, 1, b.n, f) != b.n)
        give_up(path);
    fclose(f);
    return b;
}

struct bytes bytes_copy(const struct bytes *b, size_t n)
{
    struct bytes c = { malloc(n ? n : 1), n, n };

    if (!c.p)
        give_up("malloc");
    if (n)
        memcpy(c.p, b->p, n);
    return c;
}

void bytes_free(struct bytes *b)
{
    free(b->p);
    memset(b, 0, sizeof *b);
}

void bytes_add(struct bytes *b, const void *p, size_t n)
{
    if (b->n + n > b->cap) {
        b->cap = 2 * (b->n + n);
        b->p = realloc(b->p, b->cap);
        if (!b->p)
            give_up("realloc");
    }
    if (n)
        memcpy(b->p + b->n, p, n);
    b->n += n;
}

void bytes_add_number(struct bytes *b, uint64_t x, int n)
{
    bytes_add(b, "\0\0\0\0\0\0\0", (size_t)n);
    bytes_put(b, b->n - (size_t)n, n, x);
}

void bytes_put(struct bytes *b, size_t at, int n, uint64_t x)
{
    for (int i = 0; i < n; i++)
        b->p[at + (size_t)i] = (unsigned char)(x >> 8 * i);
}

size_t bytes_find(const struct bytes *b, size_t from, const void *what, size_t n)
{
    for (size_t i = from; i + n <= b->n; i++)
        if (!memcmp(b->p + i, what, n))
            return i;
    return SIZE_MAX;
}

const char *bytes_path(char *buf, size_t size, const char *name)
{
    const char *tmp = getenv("TMPDIR");

    if (!dir[0]) {
        snprintf(dir, sizeof dir, "%s/unicon.XXXXXX", tmp && *tmp ? tmp : "/tmp");
        if (!mkdtemp(dir))
            give_up(dir);
    }
    snprintf(buf, size, "%s/%s", dir, name);
    return buf;
}

bool bytes_save(const struct bytes *b, const char *path)
{
    FILE *f = fopen(path, "wb");
    bool ok = f && fwrite(b->p, 1, b->n, f) == b->n;

    return f && !fclose(f) && ok;
}

/* Calls each(path) for every file; returns how many there are. */
static int for_files(int (*each)(const char *path))
{
    DIR *d = dir[0] ? opendir(dir) : NULL;
    struct dirent *entry;
    char path[512];
    int n = 0;

    while (d && (entry = readdir(d)))
        if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, "..")) {
            snprintf(path, sizeof path, "%s/%s", dir, entry->d_name);
            n++;
            if (each)
                each(path);
        }
    if (d)
        closedir(d);
    return n;
}

int bytes_count_files(void)
{
    return for_files(NULL);
}

void bytes_clean(void)
{
    for_files(remove);
    if (dir[0])
        rmdir(dir);
    dir[0] = '\0';
}

bool is_err(const struct err *e, int code, const char *part)
{
    if (e->code == code && strstr(e->text, part))
        return true;
    tap_note("error %d '%s', want %d and '%s'", e->code, e->text, code, part);
    return false;
}
