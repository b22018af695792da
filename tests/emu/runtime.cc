/* tests/emu/runtime.cc: streams, events, memory and graphs of the emulated device. */
#include <cuda.h>
#include <cuda_runtime.h>

#include <sys/mman.h>

#include <deque>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "emu.h"

enum { MAX_SHARED = 227 << 10, FREE_SHARED = 48 << 10, PAGE = 4096 };

struct work {
    std::string name;
    const void *kernel;
    std::function<void()> run;
    cudaEvent_t records, awaits;
    long ticket;                /* of the record that is awaited */
};

struct emu_stream {
    std::deque<struct work> queue;
    bool capturing;
    std::vector<struct work> captured;
};

struct emu_event {
    long recorded, done;        /* tickets */
    cudaStream_t stream;
};

struct emu_graph { std::vector<struct work> node; };
struct emu_graph_exec { std::vector<struct work> node; };

static std::set<cudaStream_t> streams;
static std::map<char *, size_t> device_memory, pinned;       /* where, bytes of pages or bytes */
static std::map<const void *, int> allowed;
static cudaError_t last;
static int depth;                                            /* > 0: device memory is open */

static cudaError_t fail(cudaError_t e)
{
    if (e != cudaSuccess)
        last = e;
    return e;
}

static size_t pages(size_t bytes) { return (bytes + PAGE - 1) / PAGE * PAGE; }

static void protect(bool open)
{
    for (const auto &r : device_memory)
        if (mprotect(r.first, r.second, open ? PROT_READ | PROT_WRITE : PROT_NONE))
            emu_die("mprotect failed");
}

static void open_memory(void)
{
    if (depth++ == 0)
        protect(true);
}

static void close_memory(void)
{
    if (--depth == 0)
        protect(false);
}

static bool within(const std::map<char *, size_t> &m, const void *p, size_t bytes)
{
    auto i = m.upper_bound((char *)p);

    if (i == m.begin())
        return false;
    --i;
    /* neighbours may join */
    size_t have = (size_t)(i->first + i->second - (char *)p);
    if ((char *)p >= i->first + i->second)
        return false;
    for (auto j = std::next(i); have < bytes && j != m.end() && j->first == (char *)p + have; ++j)
        have += j->second;
    return have >= bytes;
}

/* ---- streams ---- */

static void run_until(cudaStream_t s, cudaEvent_t stop, long ticket)
{
    open_memory();
    while (!s->queue.empty() && !(stop && stop->done >= ticket)) {
        struct work w = std::move(s->queue.front());

        s->queue.pop_front();
        if (w.awaits && w.awaits->done < w.ticket)
            run_until(w.awaits->stream, w.awaits, w.ticket);
        if (w.run)
            w.run();
        if (w.records && w.records->done < w.ticket)
            w.records->done = w.ticket;
    }
    close_memory();
}

static void add(cudaStream_t s, struct work w)
{
    if (s->capturing)
        s->captured.push_back(std::move(w));
    else
        s->queue.push_back(std::move(w));
}

void emu_queue_work(cudaStream_t s, const char *name, std::function<void()> run)
{
    add(s, work{ name, NULL, std::move(run), NULL, NULL, 0 });
}

void emu_queue_kernel(cudaStream_t s, const char *name, const void *kernel, dim3 grid, dim3 block, size_t shared,
                      std::function<void()> body)
{
    const size_t n = (size_t)block.x * block.y * block.z;
    const int most = allowed.count(kernel) ? allowed[kernel] : FREE_SHARED;

    if (!s || n == 0 || n > 1024 || block.z > 64 || !grid.x || !grid.y || !grid.z || grid.x > 0x7fffffffu
        || grid.y > 65535 || grid.z > 65535 || shared > (size_t)most) {
        fprintf(stderr, "emulated device: %s cannot be launched: grid (%u,%u,%u), block %zu, %zu bytes shared of %d\n",
                name, grid.x, grid.y, grid.z, n, shared, most);
        fail(cudaErrorInvalidConfiguration);
        return;
    }
    std::string own = name;
    add(s, work{ own, kernel, [=] { emu_run_kernel(own.c_str(), grid, block, shared, body); }, NULL, NULL, 0 });
}

cudaError_t emu_allow_shared(const void *kernel, int bytes)
{
    if (bytes > MAX_SHARED)
        return fail(cudaErrorInvalidValue);
    allowed[kernel] = bytes > FREE_SHARED ? bytes : FREE_SHARED;
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned)
{
    *s = new emu_stream();
    streams.insert(*s);
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t s)
{
    if (!streams.erase(s))
        return fail(cudaErrorInvalidValue);
    run_until(s, NULL, 0);
    delete s;
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t s)
{
    if (s->capturing)
        emu_die("a stream that is being captured cannot be waited for");
    run_until(s, NULL, 0);
    return last;
}

cudaError_t cudaDeviceSynchronize(void)
{
    for (cudaStream_t s : streams)
        cudaStreamSynchronize(s);
    return last;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned)
{
    if (s->capturing)
        emu_die("waiting for an event while a stream is captured is not emulated");
    if (e->stream)
        add(s, work{ "wait", NULL, nullptr, NULL, e, e->recorded });
    return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned)
{
    *e = new emu_event();
    return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t e)
{
    delete e;
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s)
{
    if (s->capturing)
        emu_die("recording an event while a stream is captured is not emulated");
    e->stream = s;
    add(s, work{ "record", NULL, nullptr, e, NULL, ++e->recorded });
    return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t e)
{
    if (e->stream && e->done < e->recorded)
        run_until(e->stream, e, e->recorded);
    return last;
}

cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t, cudaEvent_t)
{
    *ms = 1;
    return cudaSuccess;
}

/* ---- graphs ---- */

cudaError_t cudaStreamBeginCapture(cudaStream_t s, enum cudaStreamCaptureMode)
{
    if (s->capturing)
        return fail(cudaErrorInvalidValue);
    s->capturing = true;
    s->captured.clear();
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *g)
{
    if (!s->capturing)
        return fail(cudaErrorInvalidValue);
    s->capturing = false;
    *g = new emu_graph{ std::move(s->captured) };
    s->captured.clear();
    return cudaSuccess;
}

cudaError_t cudaGraphGetNodes(cudaGraph_t g, void **, size_t *n)
{
    *n = g->node.size();
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *x, cudaGraph_t g, unsigned long long)
{
    *x = new emu_graph_exec{ g->node };
    return cudaSuccess;
}

/* The same kernels in the same order take new arguments. */
cudaError_t cudaGraphExecUpdate(cudaGraphExec_t x, cudaGraph_t g, cudaGraphExecUpdateResultInfo *info)
{
    bool same = x->node.size() == g->node.size();

    info->result = 1;
    for (size_t i = 0; same && i < g->node.size(); i++)
        same = x->node[i].kernel == g->node[i].kernel && x->node[i].name == g->node[i].name;
    if (!same)
        return fail(cudaErrorGraphExecUpdateFailure);
    x->node = g->node;
    info->result = 0;
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t x, cudaStream_t s)
{
    if (s->capturing)
        emu_die("a graph is launched into a stream that is being captured");
    for (const struct work &w : x->node)
        s->queue.push_back(w);
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t x)
{
    delete x;
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t g)
{
    delete g;
    return cudaSuccess;
}

/* ---- memory ---- */

/* Ends where a page without access begins, as far as an alignment of 256 bytes lets it. */
cudaError_t cudaMalloc(void **p, size_t bytes)
{
    const size_t n = pages(bytes + 1);
    char *q = (char *)mmap(NULL, n + PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (q == MAP_FAILED)
        return fail(cudaErrorMemoryAllocation);
    mprotect(q, n, PROT_READ | PROT_WRITE);
    memset(q, 0xff, n);
    mprotect(q, n, depth ? PROT_READ | PROT_WRITE : PROT_NONE);
    device_memory[q] = n;
    *p = q + (n - (bytes + 255) / 256 * 256) / 256 * 256;
    return cudaSuccess;
}

cudaError_t cudaFree(void *p)
{
    char *q = (char *)((size_t)p / PAGE * PAGE);

    cudaDeviceSynchronize();
    if (!p)
        return cudaSuccess;
    auto i = device_memory.upper_bound(q);
    if (i == device_memory.begin())
        return fail(cudaErrorInvalidValue);
    --i;
    munmap(i->first, i->second + PAGE);
    device_memory.erase(i);
    return cudaSuccess;
}

cudaError_t cudaHostAlloc(void **p, size_t bytes, unsigned)
{
    *p = aligned_alloc(PAGE, pages(bytes ? bytes : 1));
    pinned[(char *)*p] = pages(bytes ? bytes : 1);
    return *p ? cudaSuccess : fail(cudaErrorMemoryAllocation);
}

cudaError_t cudaFreeHost(void *p)
{
    pinned.erase((char *)p);
    free(p);
    return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *a, const void *p)
{
    const bool device = within(device_memory, p, 1), host = within(pinned, p, 1);

    a->type = device ? cudaMemoryTypeDevice : host ? cudaMemoryTypeHost : cudaMemoryTypeUnregistered;
    a->device = device ? 0 : -1;
    a->devicePointer = device ? (void *)p : NULL;
    a->hostPointer = host ? (void *)p : NULL;
    return cudaSuccess;
}

/* The driver takes a copy of memory that is not pinned before it returns; that is also slow, so nobody should. */
cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t s)
{
    const bool to = within(device_memory, dst, bytes), from = within(device_memory, src, bytes);

    if (!bytes)
        return cudaSuccess;
    if ((kind == cudaMemcpyHostToDevice && (!to || from)) || (kind == cudaMemcpyDeviceToHost && (to || !from))
        || (kind == cudaMemcpyDeviceToDevice && (!to || !from)))
        emu_die("a copy's direction and its addresses disagree, or it passes the end of memory");
    if ((!to && !within(pinned, dst, bytes)) || (!from && !within(pinned, src, bytes)))
        emu_die("an asynchronous copy from or to memory of the host that is not pinned");
    emu_queue_work(s, "copy", [=] { memmove(dst, src, bytes); });
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *dst, int value, size_t bytes, cudaStream_t s)
{
    emu_queue_work(s, "set", [=] { memset(dst, value, bytes); });
    return cudaSuccess;
}

/* ---- virtual memory ---- */

static std::map<CUmemGenericAllocationHandle, size_t> handles;
static size_t physical, physical_cap = (size_t)64 << 30;
enum { GRANULE = 2 << 20 };

CUresult cuMemAddressReserve(CUdeviceptr *p, size_t bytes, size_t, CUdeviceptr, unsigned long long)
{
    char *q;

    if (bytes % GRANULE)
        return CUDA_ERROR_INVALID_VALUE;
    q = (char *)mmap(NULL, bytes + GRANULE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (q == MAP_FAILED)
        return CUDA_ERROR_OUT_OF_MEMORY;
    const size_t front = (GRANULE - (size_t)q % GRANULE) % GRANULE;
    if (front)
        munmap(q, front);
    if (front < GRANULE)
        munmap(q + front + bytes, GRANULE - front);
    *p = (CUdeviceptr)(q + front);
    return CUDA_SUCCESS;
}

CUresult cuMemAddressFree(CUdeviceptr p, size_t bytes)
{
    munmap((void *)p, bytes);
    return CUDA_SUCCESS;
}

CUresult cuMemCreate(CUmemGenericAllocationHandle *h, size_t bytes, const CUmemAllocationProp *prop, unsigned long long)
{
    static CUmemGenericAllocationHandle next = 1;
    const char *cap = getenv("UNICON_EMU_MEMORY");

    if (cap)
        physical_cap = strtoull(cap, NULL, 10);
    if (bytes % GRANULE || prop->type != CU_MEM_ALLOCATION_TYPE_PINNED)
        return CUDA_ERROR_INVALID_VALUE;
    if (physical + bytes > physical_cap)
        return CUDA_ERROR_OUT_OF_MEMORY;
    physical += bytes;
    *h = next++;
    handles[*h] = bytes;
    return CUDA_SUCCESS;
}

/* A handle's memory lives on while it is mapped. */
CUresult cuMemRelease(CUmemGenericAllocationHandle h)
{
    return handles.erase(h) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuMemMap(CUdeviceptr p, size_t bytes, size_t, CUmemGenericAllocationHandle h, unsigned long long)
{
    return handles.count(h) && handles[h] == bytes && p % GRANULE == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuMemSetAccess(CUdeviceptr p, size_t bytes, const CUmemAccessDesc *, size_t)
{
    device_memory[(char *)p] = bytes;
    return mprotect((void *)p, bytes, depth ? PROT_READ | PROT_WRITE : PROT_NONE) ? CUDA_ERROR_INVALID_VALUE
                                                                                  : CUDA_SUCCESS;
}

/* As a whole, what was mapped as a whole. */
CUresult cuMemUnmap(CUdeviceptr p, size_t bytes)
{
    const auto i = device_memory.find((char *)p);

    if (i == device_memory.end() || i->second != bytes)
        return CUDA_ERROR_INVALID_VALUE;
    physical -= bytes;
    device_memory.erase(i);
    return mmap((void *)p, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0)
        == MAP_FAILED ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

CUresult cuMemGetAllocationGranularity(size_t *g, const CUmemAllocationProp *, CUmemAllocationGranularity_flags)
{
    *g = GRANULE;
    return CUDA_SUCCESS;
}

cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **fn, unsigned, unsigned long long,
                                             enum cudaDriverEntryPointQueryResult *found)
{
    static const std::map<std::string, void *> known = {
        { "cuMemAddressReserve", (void *)cuMemAddressReserve }, { "cuMemAddressFree", (void *)cuMemAddressFree },
        { "cuMemCreate", (void *)cuMemCreate }, { "cuMemRelease", (void *)cuMemRelease },
        { "cuMemMap", (void *)cuMemMap }, { "cuMemUnmap", (void *)cuMemUnmap },
        { "cuMemSetAccess", (void *)cuMemSetAccess },
        { "cuMemGetAllocationGranularity", (void *)cuMemGetAllocationGranularity },
    };
    const auto i = known.find(name);

    *fn = i == known.end() ? NULL : i->second;
    *found = *fn ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
    return cudaSuccess;
}

/* ---- the device: UNICON_EMU_DEVICES of them (1), UNICON_EMU_CC its capability (90) ---- */

static int number(const char *name, int otherwise)
{
    const char *text = getenv(name);

    return text ? atoi(text) : otherwise;
}

static int current;

cudaError_t cudaGetDeviceCount(int *n)
{
    *n = number("UNICON_EMU_DEVICES", 1);
    return *n ? cudaSuccess : fail(cudaErrorNoDevice);
}

cudaError_t cudaGetDevice(int *d)
{
    *d = current;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int d)
{
    if (d < 0 || d >= number("UNICON_EMU_DEVICES", 1))
        return fail(cudaErrorInvalidDevice);
    current = d;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int d)
{
    const int cc = number("UNICON_EMU_CC", 90);

    memset(p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "emulated device %d", d);
    p->major = cc / 10;
    p->minor = cc % 10;
    p->multiProcessorCount = 4;
    p->totalGlobalMem = physical_cap;
    p->sharedMemPerBlockOptin = MAX_SHARED;
    p->l2CacheSize = 1 << 20;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *v, cudaDeviceAttr a, int)
{
    const int cc = number("UNICON_EMU_CC", 90);

    *v = a == cudaDevAttrMaxSharedMemoryPerBlockOptin ? (int)MAX_SHARED : a == cudaDevAttrMultiProcessorCount ? 4
        : a == cudaDevAttrComputeCapabilityMajor ? cc / 10 : cc % 10;
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total)
{
    *free_bytes = physical_cap - physical;
    *total = physical_cap;
    return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int *v)
{
    *v = 13000;
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *v)
{
    *v = 13000;
    return cudaSuccess;
}

cudaError_t cudaGetLastError(void)
{
    const cudaError_t e = last;

    last = cudaSuccess;
    return e;
}

cudaError_t cudaPeekAtLastError(void) { return last; }

const char *cudaGetErrorName(cudaError_t e) { return e == cudaSuccess ? "cudaSuccess" : "cudaError"; }

const char *cudaGetErrorString(cudaError_t e)
{
    switch (e) {
    case cudaSuccess: return "no error";
    case cudaErrorNoDevice: return "no CUDA-capable device is detected";
    case cudaErrorInvalidDevice: return "invalid device ordinal";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    default: return "invalid argument";
    }
}
