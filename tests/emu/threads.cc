/* tests/emu/threads.cc: the threads of a block as fibers of one host thread. Each runs until it has to wait for others;
 * then the next in the order of the block runs. */
#include <cuda_runtime.h>

#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <vector>

#include "emu.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define POISON(p, n) __asan_poison_memory_region(p, n)
#define UNPOISON(p, n) __asan_unpoison_memory_region(p, n)
#else
#define POISON(p, n) ((void)(p))
#define UNPOISON(p, n) ((void)(p))
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;
bool emu_copies_at_once;

enum { STACK_BYTES = 128 << 10, MAX_BARRIER = 16, RED_ZONE = 64 };
static const size_t shared_cap = (size_t)512 << 10;

enum wait { RUNS, AT_BARRIER, AT_WARP, ENDED };

struct fiber {
    void *sp;
    ucontext_t uc;
    enum wait wait;
    int number, barrier;
    size_t shared_at;           /* in the list of the block's static arrays */
    void *fake_stack;
    uint3 idx;
};

struct warp {
    unsigned mask, come;
    void *item[32];
    bool busy;
};

static struct {
    std::vector<struct fiber> fiber;
    std::vector<struct warp> warp;
    std::vector<size_t> array, array_bytes;     /* static shared arrays of this launch: where they begin */
    size_t n_seen, shared_used, dynamic;
    char *stacks, *shared;
    size_t n_stack;
    int n, n_live, barrier_count[MAX_BARRIER], barrier_come[MAX_BARRIER];
    struct fiber *now;
    ucontext_t home;
    void *home_sp, *home_fake;
    const void *home_bottom;
    size_t home_size;
    const char *kernel;
    const std::function<void()> *body;
    std::vector<int> order;
} m;

[[noreturn]] void emu_die(const char *what)
{
    fprintf(stderr, "emulated device: %s, in %s, block (%u,%u,%u), thread (%u,%u,%u)\n", what,
            m.kernel ? m.kernel : "the host's call", blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x, threadIdx.y,
            threadIdx.z);
    abort();
}

/* ---- switching ---- */

#if defined(__x86_64__)
/* Save the callee's registers, exchange stacks, restore. */
extern "C" void emu_switch(void **save, void *to);
__asm__(".text\n.globl emu_switch\n.type emu_switch,@function\nemu_switch:\n"
        "endbr64\n"
        "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
        "mov %rsp,(%rdi)\nmov %rsi,%rsp\n"
        "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n.size emu_switch,.-emu_switch\n");
#endif

static void enter(void);

static char *stack_of(int i) { return m.stacks + (size_t)i * STACK_BYTES; }

static void prepare(struct fiber *f)
{
    char *bottom = stack_of(f->number);

    UNPOISON(bottom, STACK_BYTES);
#if defined(__x86_64__)
    void **top = (void **)(bottom + STACK_BYTES) - 3;   /* 8 behind a multiple of 16, as at any function's entry */

    *top = NULL;                        /* a return address for enter(), which never returns */
    *--top = (void *)enter;
    for (int i = 0; i < 6; i++)
        *--top = NULL;
    f->sp = top;
#else
    getcontext(&f->uc);
    f->uc.uc_stack.ss_sp = bottom;
    f->uc.uc_stack.ss_size = STACK_BYTES;
    f->uc.uc_link = NULL;
    makecontext(&f->uc, enter, 0);
#endif
}

static void to_home(bool ends)
{
    struct fiber *f = m.now;

#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(ends ? NULL : &f->fake_stack, m.home_bottom, m.home_size);
#endif
#if defined(__x86_64__)
    emu_switch(&f->sp, m.home_sp);
#else
    swapcontext(&f->uc, &m.home);
#endif
    (void)ends;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(f->fake_stack, &m.home_bottom, &m.home_size);
#endif
    threadIdx = f->idx;
}

static void to_fiber(struct fiber *f)
{
    m.now = f;
    threadIdx = f->idx;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&m.home_fake, stack_of(f->number), STACK_BYTES);
#endif
#if defined(__x86_64__)
    emu_switch(&m.home_sp, f->sp);
#else
    swapcontext(&m.home, &f->uc);
#endif
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(m.home_fake, NULL, NULL);
#endif
}

static void release_barrier(int id)
{
    m.barrier_come[id] = m.barrier_count[id] = 0;
    for (struct fiber &f : m.fiber)
        if (f.wait == AT_BARRIER && f.barrier == id)
            f.wait = RUNS;
}

static void enter(void)
{
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(NULL, &m.home_bottom, &m.home_size);
#endif
    (*m.body)();
    emu_copies_left();
    m.now->wait = ENDED;
    m.n_live--;
    for (int id = 0; id < MAX_BARRIER; id++)    /* who has ended is not waited for */
        if (m.barrier_come[id] && !m.barrier_count[id] && m.barrier_come[id] == m.n_live)
            release_barrier(id);
    to_home(true);
    abort();
}

/* ---- meeting ---- */

int emu_thread(void) { return m.now->number; }
int emu_lane(void) { return m.now->number % 32; }

void emu_barrier(int id, int count)
{
    if (id < 0 || id >= MAX_BARRIER || count % 32)
        emu_die("a barrier's number or count cannot be");
    if (m.barrier_come[id] && m.barrier_count[id] != count)
        emu_die("threads disagree on how many a barrier waits for");
    m.barrier_count[id] = count;
    if (++m.barrier_come[id] == (count ? count : m.n_live)) {
        release_barrier(id);
        return;
    }
    m.now->wait = AT_BARRIER;
    m.now->barrier = id;
    to_home(false);
}

void emu_warp(unsigned mask, void *mine, void (*all)(void *const lane[32], unsigned mask))
{
    struct warp *w = &m.warp[(size_t)m.now->number / 32];
    const int lane = emu_lane();

    if (!(mask >> lane & 1))
        emu_die("a lane takes part in what its mask leaves it out of");
    if (w->busy && w->mask != mask)
        emu_die("lanes of a warp meet with different masks");
    w->busy = true;
    w->mask = mask;
    w->come |= 1u << lane;
    w->item[lane] = mine;
    if (w->come != mask) {
        m.now->wait = AT_WARP;
        to_home(false);
        return;
    }
    if (all)
        all(w->item, mask);
    w->busy = false;
    w->come = 0;
    memset(w->item, 0, sizeof w->item);
    for (int i = m.now->number / 32 * 32; i < m.now->number / 32 * 32 + 32 && i < m.n; i++)
        if (m.fiber[(size_t)i].wait == AT_WARP)
            m.fiber[(size_t)i].wait = RUNS;
}

void emu_shuffle_all(void *const lane[32], unsigned mask)
{
    for (int i = 0; i < 32; i++) {
        struct emu_shuffle *s = (struct emu_shuffle *)lane[i];

        if (!s)
            continue;
        if (s->from < 0 || s->from > 31 || !(mask >> s->from & 1))
            s->out = 0x7ff7dead7fc0dead;        /* undefined on a device */
        else
            s->out = ((struct emu_shuffle *)lane[s->from])->in;
    }
}

static void ballot_all(void *const lane[32], unsigned mask)
{
    unsigned all = 0;

    (void)mask;
    for (int i = 0; i < 32; i++)
        all |= lane[i] && *(unsigned *)lane[i] ? 1u << i : 0;
    for (int i = 0; i < 32; i++)
        if (lane[i])
            *(unsigned *)lane[i] = all;
}

unsigned __ballot_sync(unsigned mask, int p)
{
    unsigned v = p != 0;

    emu_warp(mask, &v, ballot_all);
    return v;
}

/* ---- shared memory: static arrays in the order in which threads ask, then the dynamic one ---- */

void *emu_shared(size_t bytes, size_t align)
{
    const size_t i = m.now->shared_at++;

    if (i == m.array.size()) {
        const size_t at = (m.shared_used + RED_ZONE + align - 1) / align * align;

        if (at + bytes > 48 << 10)
            emu_die("too much static shared memory");
        m.array.push_back(at);
        m.array_bytes.push_back(bytes);
        m.shared_used = at + bytes;
        UNPOISON(m.shared + at, bytes);
        memset(m.shared + at, 0xff, bytes);
    } else if (m.array_bytes[i] != bytes)
        emu_die("threads ask for different shared arrays");
    return m.shared + m.array[i];
}

void *emu_dynamic_shared(void) { return m.shared + shared_cap - (m.dynamic / 1024 + 2) * 1024; }

static void new_block(void)
{
    m.array.clear();
    m.array_bytes.clear();
    m.shared_used = 0;
    POISON(m.shared, shared_cap);
    UNPOISON((char *)emu_dynamic_shared(), m.dynamic);
    memset(emu_dynamic_shared(), 0xff, m.dynamic);      /* NaN in every type */
}

/* ---- running ---- */

static void *map_pages(size_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (p == MAP_FAILED)
        emu_die("no memory for stacks");
    return p;
}

static void choose_order(void)
{
    const char *text = getenv("UNICON_EMU_ORDER");
    const int how = text ? atoi(text) : 0;
    uint64_t s = (uint64_t)how;

    emu_copies_at_once = how > 1;
    m.order.resize((size_t)m.n);
    for (int i = 0; i < m.n; i++)
        m.order[(size_t)i] = how == 1 ? m.n - 1 - i : i;
    for (int i = m.n - 1; how > 1 && i > 0; i--) {
        s = s * 6364136223846793005u + 1442695040888963407u;
        std::swap(m.order[(size_t)i], m.order[(s >> 33) % (uint64_t)(i + 1)]);
    }
}

static void run_block(void)
{
    m.n_live = m.n;
    memset(m.barrier_come, 0, sizeof m.barrier_come);
    memset(m.barrier_count, 0, sizeof m.barrier_count);
    for (int i = 0; i < m.n; i++) {
        struct fiber *f = &m.fiber[(size_t)i];

        f->wait = RUNS;
        f->number = i;
        f->shared_at = 0;
        f->fake_stack = NULL;
        f->idx = uint3{ (unsigned)i % blockDim.x, (unsigned)i / blockDim.x % blockDim.y,
                        (unsigned)i / (blockDim.x * blockDim.y) };
        prepare(f);
    }
    for (struct warp &w : m.warp)
        w = warp{};
    for (bool moved = true; moved;) {
        moved = false;
        for (int i : m.order)
            if (m.fiber[(size_t)i].wait == RUNS) {
                moved = true;
                to_fiber(&m.fiber[(size_t)i]);
            }
    }
    if (m.n_live)
        emu_die("some threads wait at a barrier or for lanes that never come");
}

void emu_run_kernel(const char *name, dim3 grid, dim3 block, size_t dynamic, const std::function<void()> &body)
{
    const int n = (int)(block.x * block.y * block.z);

    m.kernel = name;
    m.body = &body;
    m.n = n;
    m.dynamic = dynamic;
    if (m.n_stack < (size_t)n) {
        m.stacks = (char *)map_pages((size_t)1024 * STACK_BYTES);
        m.n_stack = 1024;
    }
    if (!m.shared)
        m.shared = (char *)map_pages(shared_cap);
    m.fiber.resize((size_t)n);
    m.warp.resize(((size_t)n + 31) / 32);
    blockDim = block;
    gridDim = grid;
    choose_order();
    for (unsigned z = 0; z < grid.z; z++)
        for (unsigned y = 0; y < grid.y; y++)
            for (unsigned x = 0; x < grid.x; x++) {
                blockIdx = uint3{ x, y, z };
                new_block();
                run_block();
            }
    UNPOISON(m.shared, shared_cap);
    m.kernel = NULL;
}
