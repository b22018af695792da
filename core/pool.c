/* core/pool.c: the blocks tile what was pushed, in order of address; no two free neighbours. A request takes the first
 * free block that is large enough and leaves the rest free behind it. The arena grows by what a free last block lacks.
 * Addresses are compared, never followed, so any arena will do. */
#include "core/pool.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "core/poison.h"

struct pool_block {
    char *at;
    size_t bytes;               /* a multiple of ARENA_ALIGN, never 0 */
    bool taken;
};

enum { FIRST_BLOCKS = 64, MAX_BLOCKS = 1 << 14 };

int pool_init(struct pool *p, struct arena *arena, struct err *e)
{
    memset(p, 0, sizeof *p);
    p->arena = arena;
    p->block = arena_fault_now() ? NULL : calloc(FIRST_BLOCKS, sizeof *p->block);
    if (!p->block)
        return err_set(e, E_NOMEM, "pool over '%s': out of memory", arena->name);
    p->cap_block = FIRST_BLOCKS;
    return OK;
}

/* The pool's blocks are the top of the arena. */
void pool_reset(struct pool *p)
{
    if (p->n_block && p->arena->base)
        arena_release(p->arena, (size_t)(p->block[0].at - p->arena->base));
    p->n_block = 0;
    p->used = 0;
}

void pool_free(struct pool *p)
{
    pool_reset(p);
    free(p->block);
    memset(p, 0, sizeof *p);
}

/* Room in the table for one block more; a take adds at most one. */
static int grow_table(struct pool *p, struct err *e)
{
    struct pool_block *more;

    if (p->n_block < p->cap_block)
        return OK;
    if (p->cap_block >= MAX_BLOCKS)
        return err_set(e, E_NOMEM, "pool over '%s': more than %d blocks", p->arena->name, MAX_BLOCKS);
    more = arena_fault_now() ? NULL : realloc(p->block, sizeof *more * 2 * (size_t)p->cap_block);
    if (!more)
        return err_set(e, E_NOMEM, "pool over '%s': out of memory for %d blocks", p->arena->name, 2 * p->cap_block);
    p->block = more;
    p->cap_block *= 2;
    return OK;
}

static void insert(struct pool *p, int i, struct pool_block b)
{
    memmove(p->block + i + 1, p->block + i, sizeof b * (size_t)(p->n_block - i));
    p->block[i] = b;
    p->n_block++;
}

static void erase(struct pool *p, int i)
{
    p->n_block--;
    memmove(p->block + i, p->block + i + 1, sizeof *p->block * (size_t)(p->n_block - i));
}

/* Make the last block a free one of `need` bytes; returns it, or NULL. */
static struct pool_block *grow_arena(struct pool *p, size_t need, struct err *e)
{
    struct pool_block *last = p->n_block ? &p->block[p->n_block - 1] : NULL;
    const size_t has = last && !last->taken ? last->bytes : 0;
    char *more = arena_push(p->arena, need - has, e);

    if (!more)
        return NULL;
    if (has && more != last->at + has) {
        err_set(e, E_BUG, "arena '%s' belongs to a pool, but somebody else pushes to it", p->arena->name);
        return NULL;
    }
    if (has) {
        last->bytes = need;
        return last;
    }
    insert(p, p->n_block, (struct pool_block){ more, need, false });
    return &p->block[p->n_block - 1];
}

static struct pool_block *first_fit(struct pool *p, size_t need)
{
    for (int i = 0; i < p->n_block; i++)
        if (!p->block[i].taken && p->block[i].bytes >= need)
            return &p->block[i];
    return NULL;
}

void *pool_take(struct pool *p, size_t bytes, struct err *e)
{
    size_t need;
    struct pool_block *b;

    if (bytes > SIZE_MAX / 2) {
        err_set(e, E_NOMEM, "pool over '%s': nobody has %zu bytes", p->arena->name, bytes);
        return NULL;
    }
    need = bytes ? (bytes + ARENA_ALIGN - 1) / ARENA_ALIGN * ARENA_ALIGN : ARENA_ALIGN;
    if (grow_table(p, e))
        return NULL;
    b = first_fit(p, need);
    if (b) {
        if (!arena_push(p->arena, 0, e))        /* one push per take, where tests can make memory run out */
            return NULL;
    } else {
        b = grow_arena(p, need, e);
        if (!b)
            return NULL;
    }
    if (b->bytes > need)
        insert(p, (int)(b - p->block) + 1, (struct pool_block){ b->at + need, b->bytes - need, false });
    b->bytes = need;
    b->taken = true;
    p->used += need;
    if (p->used > p->high)
        p->high = p->used;
    if (p->arena->place == ARENA_HOST)
        UNPOISON(b->at, need);
    return b->at;
}

static int find(const struct pool *p, const void *at)
{
    int low = 0, high = p->n_block;

    while (low < high) {
        const int mid = low + (high - low) / 2;
        if ((uintptr_t)p->block[mid].at < (uintptr_t)at)
            low = mid + 1;
        else
            high = mid;
    }
    return low < p->n_block && p->block[low].at == at ? low : -1;
}

/* Join block i to the one behind it if both are free and touch. */
static void merge(struct pool *p, int i)
{
    struct pool_block *b = &p->block[i];

    if (i < 0 || i + 1 >= p->n_block || b->taken || b[1].taken || b->at + b->bytes != b[1].at)
        return;
    b->bytes += b[1].bytes;
    erase(p, i + 1);
}

/* What is no block of this pool, or was given back before, is left alone: p->used tells. */
void pool_give(struct pool *p, void *block)
{
    const int i = block ? find(p, block) : -1;

    if (i < 0 || !p->block[i].taken)
        return;
    p->block[i].taken = false;
    p->used -= p->block[i].bytes;
    if (p->arena->place == ARENA_HOST)
        POISON(p->block[i].at, p->block[i].bytes);
    merge(p, i);
    merge(p, i - 1);
}
