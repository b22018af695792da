/* kernels/dev_cuda.cu: devices, and the CUDA twin of the kernels. In a build without CUDA, cuda_none.c is here. */
extern "C" {
#include "kernels/dev.h"
}

#include <cuda_runtime.h>
#include <string.h>

/* No member of the contract is filled on the device yet. */
extern "C" const struct kern *kern_cuda(void)
{
    return NULL;
}

static cudaError_t describe(struct dev_cuda_info *d, int device)
{
    struct cudaDeviceProp prop;
    size_t free_bytes = 0, total_bytes = 0;
    cudaError_t rc = cudaGetDeviceProperties(&prop, device);

    memset(d, 0, sizeof *d);
    if (rc == cudaSuccess)
        rc = cudaSetDevice(device);
    if (rc == cudaSuccess)
        rc = cudaMemGetInfo(&free_bytes, &total_bytes);
    if (rc == cudaSuccess)
        rc = cudaDriverGetVersion(&d->driver_version);
    if (rc == cudaSuccess)
        rc = cudaRuntimeGetVersion(&d->runtime_version);
    if (rc != cudaSuccess)
        return rc;
    memcpy(d->name, prop.name, sizeof d->name);
    d->name[sizeof d->name - 1] = 0;
    d->major = prop.major;
    d->minor = prop.minor;
    d->n_sm = prop.multiProcessorCount;
    d->total_bytes = (int64_t)total_bytes;
    d->free_bytes = (int64_t)free_bytes;
    return cudaSuccess;
}

/* The caller's current device is current again afterwards. */
extern "C" int dev_cuda_probe(struct dev_cuda_info *out, int max, const char **why)
{
    int n = 0, current = 0;
    cudaError_t rc = cudaGetDeviceCount(&n);

    if (rc == cudaSuccess && n == 0)
        rc = cudaErrorNoDevice;
    if (rc == cudaSuccess)
        rc = cudaGetDevice(&current);
    for (int i = 0; i < n && i < max && rc == cudaSuccess; i++)
        rc = describe(&out[i], i);
    if (rc == cudaSuccess && max > 0)
        rc = cudaSetDevice(current);
    if (rc != cudaSuccess)
        (void)cudaGetLastError();       /* a later launch must not be blamed for this */
    if (why)
        *why = rc == cudaSuccess ? NULL : cudaGetErrorString(rc);
    return rc == cudaSuccess ? n : K_LAUNCH;
}
