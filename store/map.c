#include "store/map.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static const unsigned char nothing[1];

int map_open(struct map *out, const char *path, struct err *e)
{
    struct stat st;
    void *base = MAP_FAILED;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY), rc = OK;   /* a pipe must not make us wait */

    if (fd < 0 || fstat(fd, &st)) {
        rc = err_set(e, E_IO, "cannot read '%s': %s", path, strerror(errno));
        goto out;
    }
    if (!S_ISREG(st.st_mode)) {
        rc = err_set(e, E_IO, "cannot read '%s': %s", path, S_ISDIR(st.st_mode) ? strerror(EISDIR)
                     : "it is not a regular file");
        goto out;
    }
    if ((uintmax_t)st.st_size > SIZE_MAX / 2) {
        rc = err_set(e, E_IO, "cannot read '%s': %s", path, strerror(EFBIG));
        goto out;
    }
    if (st.st_size > 0) {
        base = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (base == MAP_FAILED) {
            rc = err_set(e, E_IO, "cannot map '%s' (%jd bytes): %s", path, (intmax_t)st.st_size, strerror(errno));
            goto out;
        }
    }
    out->base = base == MAP_FAILED ? nothing : base;
    out->size = (size_t)st.st_size;
out:
    if (fd >= 0)
        close(fd);
    return rc;
}

void map_scattered(const struct map *m, bool scattered)
{
    if (m->size)
        madvise((void *)(uintptr_t)m->base, m->size, scattered ? MADV_RANDOM : MADV_NORMAL);
}

/* Only pages that lie wholly inside: their neighbours may still be wanted. */
void map_drop(const struct map *m, const void *data, size_t bytes)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), from = (size_t)((const unsigned char *)data - m->base);
    const size_t first = (from + page - 1) / page * page, last = (from + bytes) / page * page;

    if (m->size && first < last)
        madvise((char *)(uintptr_t)m->base + first, last - first, MADV_DONTNEED);
}

void map_close(struct map *m)
{
    if (m->base && m->size)
        munmap((void *)(uintptr_t)m->base, m->size);
    memset(m, 0, sizeof *m);
}
