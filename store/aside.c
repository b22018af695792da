#include "store/aside.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/arena.h"

enum { MAX_NAME = 240, TRIES = 100 };      /* of 255 bytes that a name may have, '.', '.' and six letters are ours */

/* Bytes of the directory's part of path, with its slash; 0 for the current one. */
static size_t directory_bytes(const char *path)
{
    const char *slash = strrchr(path, '/');

    return slash ? (size_t)(slash - path) + 1 : 0;
}

static int name_temporary(struct aside *a)
{
    static const char letters[] = "abcdefghijklmnopqrstuvwxyz012345";
    const size_t dir = directory_bytes(a->path), room = strlen(a->path) + 9;
    unsigned char random[6];
    char tail[7] = "";

    if (getrandom(random, sizeof random, 0) != sizeof random)
        return -1;
    for (size_t i = 0; i < sizeof random; i++)
        tail[i] = letters[random[i] % 32];
    snprintf(a->temporary, room, "%.*s.%.*s.%s", (int)dir, a->path, MAX_NAME, a->path + dir, tail);
    return 0;
}

/* A new file beside the path, with the permissions of what is there or those that the process gives to new files. */
static int make_temporary(struct aside *a)
{
    struct stat st;
    const bool old = !stat(a->path, &st);
    int fd = -1;

    if (old && S_ISDIR(st.st_mode)) {
        errno = EISDIR;
        return -1;
    }
    for (int i = 0; i < TRIES && fd < 0; i++) {
        if (name_temporary(a))
            return -1;
        fd = open(a->temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0666);
        if (fd < 0 && errno != EEXIST)
            return -1;
    }
    if (fd >= 0 && old && S_ISREG(st.st_mode) && fchmod(fd, st.st_mode & 0777) && errno != EPERM) {
        close(fd);
        unlink(a->temporary);
        return -1;
    }
    return fd;
}

int aside_open(struct aside *a, const char *path, struct err *e)
{
    const size_t n = strlen(path);
    int fd = -1, rc;

    memset(a, 0, sizeof *a);
    if (!n || path[n - 1] == '/')
        return err_set(e, E_ARG, "cannot write '%s': it names no file", path);
    a->path = arena_fault_now() ? NULL : strdup(path);
    a->temporary = arena_fault_now() ? NULL : malloc(n + 9);
    if (!a->path || !a->temporary) {
        rc = err_set(e, E_NOMEM, "cannot write '%s': out of memory", path);
        goto fail;
    }
    fd = make_temporary(a);
    if (fd < 0) {
        rc = err_set(e, E_IO, "cannot write '%s': %s", path, strerror(errno));
        goto fail;
    }
    a->file = arena_fault_now() ? NULL : fdopen(fd, "wb");
    if (!a->file) {
        rc = err_set(e, E_NOMEM, "cannot write '%s': out of memory", path);
        goto fail;
    }
    return OK;
fail:
    if (fd >= 0) {
        close(fd);
        unlink(a->temporary);
    }
    free(a->path);
    free(a->temporary);
    memset(a, 0, sizeof *a);
    return rc;
}

void aside_put(struct aside *a, const void *bytes, size_t size)
{
    errno = 0;
    if (size && fwrite(bytes, 1, size, a->file) != size && !a->error)
        a->error = errno;
}

/* The name is on the disk only once its directory is. File systems that cannot flush one say EINVAL or ENOTSUP. */
static int flush_directory(const struct aside *a, struct err *e)
{
    const size_t n = directory_bytes(a->path);
    int fd, rc = OK;

    memcpy(a->temporary, n ? a->path : ".", n ? n : 1);        /* it was longer, and is not needed any more */
    a->temporary[n ? n : 1] = '\0';
    fd = open(a->temporary, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 ? errno != EACCES : fsync(fd) && errno != EINVAL && errno != ENOTSUP)
        rc = err_set(e, E_IO, "'%s' is written, but its directory cannot be flushed to the disk: %s", a->path,
                     strerror(errno));
    if (fd >= 0)
        close(fd);
    return rc;
}

static void forget(struct aside *a)
{
    free(a->path);
    free(a->temporary);
    memset(a, 0, sizeof *a);
}

int aside_commit(struct aside *a, struct err *e)
{
    const char *what = "writing";
    int rc = OK;

    if (!a->file)
        return err_set(e, E_BUG, "a file is committed that is not open");
    if (ferror(a->file)) {
        rc = a->error ? a->error : EIO;
    } else if (fflush(a->file)) {
        rc = errno;
    } else if (fsync(fileno(a->file))) {
        what = "flushing to the disk";
        rc = errno;
    }
    if (fclose(a->file) && !rc)
        rc = errno;
    a->file = NULL;
    if (!rc && rename(a->temporary, a->path)) {
        what = "renaming";
        rc = errno;
    }
    if (rc) {
        rc = err_set(e, E_IO, "cannot write '%s': %s: %s", a->path, what, strerror(rc));
        unlink(a->temporary);
    } else {
        rc = flush_directory(a, e);
    }
    forget(a);
    return rc;
}

void aside_abandon(struct aside *a)
{
    if (a->file)
        fclose(a->file);
    if (a->temporary)
        unlink(a->temporary);
    forget(a);
}

int aside_write(const char *path, const void *bytes, size_t size, struct err *e)
{
    struct aside a;
    int rc = aside_open(&a, path, e);

    if (rc)
        return rc;
    aside_put(&a, bytes, size);
    return aside_commit(&a, e);
}
