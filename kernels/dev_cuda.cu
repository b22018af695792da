/* kernels/dev_cuda.cu: devices, their memory, and queues of work on them. In a build without CUDA, cuda_none.c is here.
 *
 * Memory is mapped page by page behind reserved addresses by the driver's virtual memory calls, which are asked of the
 * runtime by name so that nothing links to the driver. */
extern "C" {
#include "kernels/dev.h"
}

#include <cuda.h>
#include <cuda_runtime.h>
#include <stdio.h>
#include <string.h>

#include <new>

#include "kernels/cuda_queue.h"

enum { LEAST_CC = 80 };

static const size_t least_step = (size_t)2 << 20, stage_bytes = (size_t)8 << 20;

static thread_local char why_text[256];

static void tell(const char *what, const char *why)
{
    snprintf(why_text, sizeof why_text, "%s: %s", what, why);
}

extern "C" const char *dev_cuda_why(void) { return why_text; }

/* ---- what there is ---- */

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

/* ---- failures ---- */

void cuda_fail(struct dev_queue *q, const char *what, const char *why)
{
    if (q->status == K_OK)
        tell(what, why);
    q->status = K_LAUNCH;
}

bool cuda_check_call(struct dev_queue *q, cudaError_t rc, const char *what)
{
    if (rc == cudaSuccess)
        return true;
    (void)cudaGetLastError();
    cuda_fail(q, what, cudaGetErrorString(rc));
    return false;
}

void cuda_check_launch(struct dev_queue *q, const char *kernel)
{
    cuda_check_call(q, cudaGetLastError(), kernel);
}

int cuda_take_failure(struct dev_queue *q)
{
    const int status = q->status;

    q->status = K_OK;
    return status;
}

/* ---- a queue ---- */

static bool good(cudaError_t rc, const char *what)
{
    if (rc == cudaSuccess)
        return true;
    (void)cudaGetLastError();
    tell(what, cudaGetErrorString(rc));
    return false;
}

static bool fit(struct dev_queue *q)
{
    int major = 0, minor = 0, n = 0;

    if (!good(cudaGetDeviceCount(&n), "looking for devices"))
        return false;
    if (q->device < 0 || q->device >= n) {
        snprintf(why_text, sizeof why_text,
                 n == 1 ? "there is %d device, cuda:0" : "there are %d devices, from cuda:0 on", n);
        return false;
    }
    if (!good(cudaSetDevice(q->device), "using it")
        || !good(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, q->device), "asking for its kind")
        || !good(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, q->device), "asking for its kind")
        || !good(cudaDeviceGetAttribute(&q->n_sm, cudaDevAttrMultiProcessorCount, q->device), "asking for its size"))
        return false;
    q->cc = major * 10 + minor;
    if (q->cc >= LEAST_CC)
        return true;
    snprintf(why_text, sizeof why_text, "it is too old: its compute capability is %d.%d, 8.0 (Ampere) is the least",
             major, minor);
    return false;
}

static bool make(struct dev_queue *q)
{
    if (!good(cudaStreamCreateWithFlags(&q->stream, cudaStreamNonBlocking), "making a stream on it"))
        return false;
    for (int i = 0; i < CUDA_N_STAGE; i++)
        if (!good(cudaHostAlloc((void **)&q->stage[i], stage_bytes, cudaHostAllocDefault), "pinning memory")
            || !good(cudaEventCreateWithFlags(&q->stage_free[i], cudaEventDisableTiming), "making an event"))
            return false;
    for (int i = 0; i < CUDA_RUN_AHEAD; i++)
        if (!good(cudaEventCreateWithFlags(&q->step[i], cudaEventDisableTiming), "making an event"))
            return false;
    if (cublasLtCreate(&q->lt) != CUBLAS_STATUS_SUCCESS) {
        tell("cuBLASLt", "it does not start");
        return false;
    }
    if (cuda_plans_open(q))
        return true;
    tell("cuBLASLt", "out of memory for its plans");
    return false;
}

extern "C" int dev_cuda_open(struct dev_queue **out, int device, const char **why)
{
    struct dev_queue *q = new (std::nothrow) dev_queue();

    *out = NULL;
    why_text[0] = 0;
    if (!q)
        tell("opening it", "out of memory");
    else
        q->device = device;
    if (why)
        *why = why_text;
    if (!q || !fit(q) || !make(q)) {
        dev_cuda_close(q);
        return K_LAUNCH;
    }
    *out = q;
    return K_OK;
}

static void forget(struct cuda_graph *g)
{
    if (g->exec)
        (void)cudaGraphExecDestroy(g->exec);
    g->exec = NULL;
}

extern "C" void dev_cuda_close(struct dev_queue *q)
{
    if (!q)
        return;
    if (q->stream)
        (void)cudaStreamSynchronize(q->stream);
    for (int i = 0; i < CUDA_N_GRAPH; i++)
        forget(&q->graph[i]);
    if (q->plans)
        cuda_plans_close(q);
    if (q->lt)
        (void)cublasLtDestroy(q->lt);
    for (int i = 0; i < CUDA_RUN_AHEAD; i++)
        if (q->step[i])
            (void)cudaEventDestroy(q->step[i]);
    for (int i = 0; i < CUDA_N_STAGE; i++) {
        if (q->stage_free[i])
            (void)cudaEventDestroy(q->stage_free[i]);
        if (q->stage[i])
            (void)cudaFreeHost(q->stage[i]);
    }
    if (q->stream)
        (void)cudaStreamDestroy(q->stream);
    (void)cudaGetLastError();
    delete q;
}

extern "C" void dev_cuda_counts(const struct dev_queue *q, struct dev_cuda_counts *out)
{
    out->launches = q->n_launch;
    out->graph_launches = q->n_graph_launch;
    out->graphs_made = q->n_graph_made;
}

/* ---- memory ---- */

struct driver {
    CUresult (*reserve)(CUdeviceptr *, size_t, size_t, CUdeviceptr, unsigned long long);
    CUresult (*unreserve)(CUdeviceptr, size_t);
    CUresult (*create)(CUmemGenericAllocationHandle *, size_t, const CUmemAllocationProp *, unsigned long long);
    CUresult (*release)(CUmemGenericAllocationHandle);
    CUresult (*map)(CUdeviceptr, size_t, size_t, CUmemGenericAllocationHandle, unsigned long long);
    CUresult (*unmap)(CUdeviceptr, size_t);
    CUresult (*access)(CUdeviceptr, size_t, const CUmemAccessDesc *, size_t);
    CUresult (*granularity)(size_t *, const CUmemAllocationProp *, CUmemAllocationGranularity_flags);
};

/* As the driver of CUDA 10.2 introduced it; runtimes before 12.5 cannot be told a version. */
static cudaError_t driver_call(const char *name, void **at, enum cudaDriverEntryPointQueryResult *how)
{
#if CUDART_VERSION >= 12050
    return cudaGetDriverEntryPointByVersion(name, at, 10020, cudaEnableDefault, how);
#else
    return cudaGetDriverEntryPoint(name, at, cudaEnableDefault, how);
#endif
}

static const struct driver *driver(void)
{
    static struct driver d;
    static const struct {
        const char *name;
        void **at;
    } calls[] = {
        { "cuMemAddressReserve", (void **)&d.reserve }, { "cuMemAddressFree", (void **)&d.unreserve },
        { "cuMemCreate", (void **)&d.create },          { "cuMemRelease", (void **)&d.release },
        { "cuMemMap", (void **)&d.map },                { "cuMemUnmap", (void **)&d.unmap },
        { "cuMemSetAccess", (void **)&d.access },       { "cuMemGetAllocationGranularity", (void **)&d.granularity },
    };
    static bool found;

    for (size_t i = 0; !found && i < sizeof calls / sizeof *calls; i++) {
        enum cudaDriverEntryPointQueryResult how;

        if (driver_call(calls[i].name, calls[i].at, &how) != cudaSuccess || how != cudaDriverEntryPointSuccess) {
            (void)cudaGetLastError();
            tell(calls[i].name, "the driver does not have it");
            return NULL;
        }
    }
    found = true;
    return &d;
}

static CUmemAllocationProp on_current_device(void)
{
    CUmemAllocationProp prop;
    int device = 0;

    (void)cudaGetDevice(&device);
    memset(&prop, 0, sizeof prop);
    prop.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    prop.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    prop.location.id = device;
    return prop;
}

extern "C" int64_t dev_cuda_free_bytes(struct dev_queue *q)
{
    size_t free_bytes = 0, total = 0;

    return cuda_check_call(q, cudaMemGetInfo(&free_bytes, &total), "asking for free memory") ? (int64_t)free_bytes : 0;
}

/* Memory comes in the driver's granules, 2 MiB on all devices so far; 32 MiB at a time makes for few mappings. */
extern "C" size_t dev_cuda_step(void) { return least_step * 16; }

extern "C" size_t dev_cuda_most(void)
{
    size_t free_bytes = 0, total = 0;

    if (cudaMemGetInfo(&free_bytes, &total) == cudaSuccess)
        return total;
    (void)cudaGetLastError();
    return 0;
}

extern "C" void *dev_cuda_reserve(size_t bytes)
{
    const struct driver *d = driver();
    const CUmemAllocationProp prop = on_current_device();
    CUdeviceptr p = 0;
    size_t granule = 0;

    if (!d)
        return NULL;
    if (d->granularity(&granule, &prop, CU_MEM_ALLOC_GRANULARITY_MINIMUM) != CUDA_SUCCESS
        || dev_cuda_step() % granule) {
        tell("asking for the size of pages", "the driver's answer is of no use");
        return NULL;
    }
    if (d->reserve(&p, bytes, 0, 0, 0) != CUDA_SUCCESS) {
        tell("reserving addresses on the device", "the driver refuses");
        return NULL;
    }
    return (void *)p;
}

/* One step of memory at `at`. */
static bool map_step(const struct driver *d, CUdeviceptr at)
{
    const CUmemAllocationProp prop = on_current_device();
    const size_t bytes = dev_cuda_step();
    CUmemGenericAllocationHandle handle;
    CUmemAccessDesc access;
    bool mapped;

    if (d->create(&handle, bytes, &prop, 0) != CUDA_SUCCESS)
        return false;
    memset(&access, 0, sizeof access);
    access.location = prop.location;
    access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
    mapped = d->map(at, bytes, 0, handle, 0) == CUDA_SUCCESS;
    (void)d->release(handle);           /* lives as long as it is mapped */
    if (mapped && d->access(at, bytes, &access, 1) == CUDA_SUCCESS)
        return true;
    if (mapped)
        (void)d->unmap(at, bytes);
    return false;
}

/* The driver takes mappings away as they were made, so all are one step. */
static void unmap_steps(const struct driver *d, CUdeviceptr base, size_t from, size_t to)
{
    for (size_t at = from; at < to; at += dev_cuda_step())
        (void)d->unmap(base + at, dev_cuda_step());
}

extern "C" int dev_cuda_commit(void *base, size_t from, size_t to)
{
    const struct driver *d = driver();
    size_t free_bytes = 0, total = 0;

    if (!d)
        return K_LAUNCH;
    for (size_t at = from; at < to; at += dev_cuda_step()) {
        if (map_step(d, (CUdeviceptr)base + at))
            continue;
        unmap_steps(d, (CUdeviceptr)base, from, at);
        (void)cudaMemGetInfo(&free_bytes, &total);
        (void)cudaGetLastError();
        snprintf(why_text, sizeof why_text, "the device has %zu MiB free of %zu MiB, %zu MiB more are needed",
                 free_bytes >> 20, total >> 20, (to - from) >> 20);
        return K_LAUNCH;
    }
    return K_OK;
}

extern "C" void dev_cuda_unreserve(void *base, size_t committed, size_t bytes)
{
    const struct driver *d = driver();

    if (!d || !base)
        return;
    (void)cudaDeviceSynchronize();
    unmap_steps(d, (CUdeviceptr)base, 0, committed);
    (void)d->unreserve((CUdeviceptr)base, bytes);
    (void)cudaGetLastError();
}

/* ---- graphs ---- */

/* The place of this key; *known: it was begun before. The place that was not used for longest is taken else. */
static struct cuda_graph *place_for(struct dev_queue *q, uint64_t key, bool *known)
{
    struct cuda_graph *oldest = &q->graph[0];

    *known = true;
    for (int i = 0; i < CUDA_N_GRAPH; i++) {
        if (q->graph[i].used && q->graph[i].key == key)
            return &q->graph[i];
        if (q->graph[i].used < oldest->used)
            oldest = &q->graph[i];
    }
    *known = false;
    return oldest;
}

/* The executable of the captured key with the arguments of `graph`; made anew where its shape is another. */
static cudaGraphExec_t executable(struct dev_queue *q, cudaGraph_t graph)
{
    struct cuda_graph *g = q->capture;
    cudaGraphExecUpdateResultInfo info;

    q->n_graph_launch++;
    if (g->exec) {
        if (cudaGraphExecUpdate(g->exec, graph, &info) == cudaSuccess)
            return g->exec;
        (void)cudaGetLastError();
    }
    forget(g);
    q->n_graph_made++;
    return cuda_check_call(q, cudaGraphInstantiate(&g->exec, graph, 0), "making a graph") ? g->exec : NULL;
}

/* End the capture and launch what was captured. */
static int leave_capture(struct dev_queue *q)
{
    cudaGraph_t graph = NULL;
    cudaGraphExec_t exec;
    size_t n = 0;

    if (!q->capturing)
        return q->status;
    q->capturing = false;
    if (!cuda_check_call(q, cudaStreamEndCapture(q->stream, &graph), "capturing a graph"))
        return q->status;
    if (cuda_check_call(q, cudaGraphGetNodes(graph, NULL, &n), "capturing a graph") && n) {
        exec = executable(q, graph);
        if (exec)
            cuda_check_call(q, cudaGraphLaunch(exec, q->stream), "launching a graph");
    }
    (void)cudaGraphDestroy(graph);
    return q->status;
}

/* Work of a key that is new runs by itself: kernels are loaded, weights packed and memory mapped when they are first
 * needed, and none of that belongs in a graph. */
extern "C" int dev_cuda_graph_begin(struct dev_queue *q, uint64_t key)
{
    struct cuda_graph *g;
    bool known;

    if (q->capturing)
        return K_ARG;
    g = place_for(q, key, &known);
    g->used = ++q->n_begun;
    if (!known) {
        forget(g);
        g->key = key;
        return K_OK;
    }
    q->capture = g;
    q->capturing = cuda_check_call(q, cudaStreamBeginCapture(q->stream, cudaStreamCaptureModeRelaxed),
                                   "capturing a graph");
    return cuda_take_failure(q);
}

extern "C" int dev_cuda_graph_end(struct dev_queue *q)
{
    leave_capture(q);
    return cuda_take_failure(q);
}

/* ---- copies ---- */

/* Pinned blocks take turns; one is used again when the copy from it is done. */
extern "C" int dev_cuda_put(struct dev_queue *q, void *dst, const void *src, size_t bytes)
{
    leave_capture(q);
    for (size_t at = 0; at < bytes && q->status == K_OK; at += stage_bytes) {
        const size_t n = bytes - at < stage_bytes ? bytes - at : stage_bytes;
        const int i = q->next_stage;

        if (!cuda_check_call(q, cudaEventSynchronize(q->stage_free[i]), "copying to the device"))
            break;
        memcpy(q->stage[i], (const char *)src + at, n);
        cuda_check_call(q, cudaMemcpyAsync((char *)dst + at, q->stage[i], n, cudaMemcpyHostToDevice, q->stream),
                        "copying to the device");
        cuda_check_call(q, cudaEventRecord(q->stage_free[i], q->stream), "copying to the device");
        q->next_stage = (i + 1) % CUDA_N_STAGE;
    }
    return cuda_take_failure(q);
}

extern "C" int dev_cuda_get(struct dev_queue *q, void *dst, const void *src, size_t bytes)
{
    leave_capture(q);
    for (size_t at = 0; at < bytes && q->status == K_OK; at += stage_bytes) {
        const size_t n = bytes - at < stage_bytes ? bytes - at : stage_bytes;
        const int i = q->next_stage;

        if (cuda_check_call(q, cudaEventSynchronize(q->stage_free[i]), "copying from the device")
            && cuda_check_call(q, cudaMemcpyAsync(q->stage[i], (const char *)src + at, n, cudaMemcpyDeviceToHost,
                                                  q->stream), "copying from the device")
            && cuda_check_call(q, cudaStreamSynchronize(q->stream), "waiting for the device"))
            memcpy((char *)dst + at, q->stage[i], n);
    }
    return cuda_take_failure(q);
}

extern "C" int dev_cuda_sync(struct dev_queue *q)
{
    leave_capture(q);
    cuda_check_call(q, cudaStreamSynchronize(q->stream), "waiting for the device");
    return cuda_take_failure(q);
}

extern "C" int dev_cuda_pace(struct dev_queue *q)
{
    const int i = (int)(q->n_step++ % CUDA_RUN_AHEAD);

    leave_capture(q);
    if (cuda_check_call(q, cudaEventSynchronize(q->step[i]), "waiting for the device"))
        cuda_check_call(q, cudaEventRecord(q->step[i], q->stream), "waiting for the device");
    return cuda_take_failure(q);
}
