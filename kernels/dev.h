/* kernels/dev.h: the CUDA devices of this machine, as their driver describes them.
 *
 *     struct dev_cuda_info info[8];
 *     const char *why;
 *     int n = dev_cuda_probe(info, 8, &why);
 *     if (n < 0)
 *         ...                                  no device, and why: "this build has no CUDA"  */
#ifndef UNICON_KERNELS_DEV_H
#define UNICON_KERNELS_DEV_H

#include <stdint.h>

#include "kernels/kern.h"

struct dev_cuda_info {
    char name[256];
    int major, minor;                   /* compute capability, 9.0 for an H200 */
    int n_sm;                           /* multiprocessors */
    int64_t total_bytes, free_bytes;
    int driver_version, runtime_version;        /* 13000 for 13.0 */
};

/* Describe the first `max` devices and return how many there are in all, at least 1; or K_LAUNCH when there is no
 * device, driver or CUDA in this build. *why (NULL if not wanted) is then a constant sentence, otherwise NULL.
 * Free memory is asked of the device itself, which makes a context on it: for people and plans, not for loops. */
int dev_cuda_probe(struct dev_cuda_info *out, int max, const char **why);

#endif
