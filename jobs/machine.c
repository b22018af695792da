/* jobs/machine.c: see machine.h. */
#include "jobs/machine.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* The number after `key` in a file of "key: number" lines, or the file's first number for NULL; -1 if there is none. */
static int64_t number_in(const char *path, const char *key)
{
    FILE *f = fopen(path, "re");
    char line[256];
    long long n = -1;

    while (f && n < 0 && fgets(line, sizeof line, f))
        if (!key || !strncmp(line, key, strlen(key)))
            if (sscanf(line + (key ? strlen(key) : 0), "%lld", &n) != 1)
                n = -1;
    if (f)
        fclose(f);
    return n;
}

int64_t machine_free_bytes(void)
{
    const int64_t available = number_in("/proc/meminfo", "MemAvailable:");
    const int64_t most = number_in("/sys/fs/cgroup/memory.max", NULL);
    const int64_t used = number_in("/sys/fs/cgroup/memory.current", NULL);
    int64_t n = available >= 0 ? available * 1024 : INT64_MAX;

    if (most >= 0 && used >= 0 && most - used < n)
        n = most > used ? most - used : 0;
    return n;
}

int64_t machine_resident_bytes(void)
{
    FILE *f = fopen("/proc/self/statm", "re");
    long long size, resident = 0;

    if (f) {
        if (fscanf(f, "%lld %lld", &size, &resident) != 2)
            resident = 0;
        fclose(f);
    }
    return resident * sysconf(_SC_PAGESIZE);
}
