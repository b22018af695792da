/* tests/fuzz/replay.c: main() of a fuzz target without libFuzzer: runs it on every file of the directories given,
 * in order of their names, then on mutants of each (bytes flipped, cut, doubled, spliced) from a fixed seed.
 *
 *     build/release/fuzz/f_device tests/fuzz/corpus/f_device                                                  */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { INPUT_BYTES = 1 << 20, MUTANTS = 64 };

static uint8_t other[INPUT_BYTES];        /* the input before, to splice with */
static size_t other_size;

/* The target sees a block of exactly `size` bytes, so that an address checker sees it read past the end. */
static void run(const uint8_t *data, size_t size)
{
    uint8_t *copy = malloc(size ? size : 1);

    if (!copy)
        exit(1);
    memcpy(copy, data, size);
    LLVMFuzzerTestOneInput(copy, size);
    free(copy);
}

static uint32_t next(uint32_t *state)
{
    *state = *state * 1664525u + 1013904223u;
    return *state >> 8;
}

static void run_mutants(const uint8_t *data, size_t size)
{
    static uint8_t m[2 * INPUT_BYTES];
    uint32_t state = (uint32_t)size;
    size_t n, at;

    for (int i = 0; i < MUTANTS; i++) {
        memcpy(m, data, n = size);
        at = size ? next(&state) % size : 0;
        switch (i % 4) {
        case 0:
            if (size)
                m[at] = (uint8_t)next(&state);
            break;
        case 1:
            n = at;
            break;
        case 2:
            memcpy(m + n, data, size);
            n += size;
            break;
        default:
            n = at + (other_size < INPUT_BYTES ? other_size : INPUT_BYTES);
            memcpy(m + at, other, n - at);
        }
        run(m, n);
    }
}

static int run_file(const char *dir, const char *name)
{
    static uint8_t data[INPUT_BYTES];
    char path[4096];
    size_t size;
    FILE *f;

    snprintf(path, sizeof path, "%s/%s", dir, name);
    f = fopen(path, "rb");
    if (!f) {
        perror(path);
        return 1;
    }
    size = fread(data, 1, sizeof data, f);
    fclose(f);
    fprintf(stderr, "%s, %zu bytes\n", path, size);     /* the last line before a fall names the culprit */
    run(data, size);
    run_mutants(data, size);
    memcpy(other, data, other_size = size);
    return 0;
}

static int visible(const struct dirent *d)
{
    return d->d_name[0] != '.';
}

int main(int argc, char **argv)
{
    int n_files = 0, failed = 0;

    for (int a = 1; a < argc; a++) {
        struct dirent **entry;
        const int n = scandir(argv[a], &entry, visible, alphasort);
        if (n < 0) {
            perror(argv[a]);
            return 1;
        }
        for (int i = 0; i < n; i++) {
            failed |= run_file(argv[a], entry[i]->d_name);
            free(entry[i]);
        }
        free(entry);
        n_files += n;
    }
    printf("%d inputs and %d mutants of each\n", n_files, MUTANTS);
    return failed || n_files == 0;
}
