/* core/model/clip_table.c: two hash tables with open addressing, at most half full. */
#include "core/model/clip_table.h"

#include <stdlib.h>
#include <string.h>
#include "core/arena.h"

static void *allocate(size_t n, size_t bytes)
{
    return arena_fault_now() || n > SIZE_MAX / bytes ? NULL : malloc(n * bytes);
}

int clip_table_open(struct clip_table *t, size_t bytes, size_t n_symbol, size_t n_pair, struct err *e)
{
    size_t slots = 1024, pairs = 1024;

    while (slots < 2 * n_symbol)
        slots *= 2;
    while (pairs < 2 * n_pair)
        pairs *= 2;
    *t = (struct clip_table){ .slot_mask = (uint32_t)slots - 1, .pair_mask = (uint32_t)pairs - 1 };
    t->text = allocate(bytes + 1, 1);
    t->symbol = allocate(n_symbol + 1, sizeof *t->symbol);
    t->slot = allocate(slots, sizeof *t->slot);
    t->pair = allocate(pairs, sizeof *t->pair);
    if (!t->text || !t->symbol || !t->slot || !t->pair)
        return err_set(e, E_NOMEM, "out of memory for a vocabulary of %zu merges", n_pair);
    memset(t->slot, 0xFF, slots * sizeof *t->slot);
    memset(t->pair, 0xFF, pairs * sizeof *t->pair);
    return OK;
}

void clip_table_close(struct clip_table *t)
{
    free(t->text);
    free(t->symbol);
    free(t->slot);
    free(t->pair);
    *t = (struct clip_table){ 0 };
}

/* FNV-1a, folded. */
static uint32_t hash_bytes(const char *text, size_t bytes)
{
    uint64_t h = 0xcbf29ce484222325u;

    for (size_t i = 0; i < bytes; i++)
        h = (h ^ (unsigned char)text[i]) * 0x100000001b3u;
    return (uint32_t)(h ^ h >> 32);
}

/* Where a string is, or where it would be. */
static uint32_t string_slot(const struct clip_table *t, const char *text, size_t bytes)
{
    for (uint32_t i = hash_bytes(text, bytes);; i++) {
        const int32_t s = t->slot[i & t->slot_mask];
        if (s < 0 || (t->symbol[s].bytes == bytes && !memcmp(t->text + t->symbol[s].at, text, bytes)))
            return i & t->slot_mask;
    }
}

int32_t clip_table_find(const struct clip_table *t, const char *text, size_t bytes)
{
    return t->slot[string_slot(t, text, bytes)];
}

/* `text` may lie where the new string will: clip_table_join() puts it there. */
int32_t clip_table_add(struct clip_table *t, const char *text, size_t bytes)
{
    const uint32_t i = string_slot(t, text, bytes);

    if (t->slot[i] < 0) {
        memmove(t->text + t->text_bytes, text, bytes);
        t->symbol[t->n_symbol] = (struct clip_symbol){ t->text_bytes, (uint32_t)bytes, -1 };
        t->text_bytes += (uint32_t)bytes;
        t->text[t->text_bytes++] = 0;
        t->slot[i] = t->n_symbol++;
    }
    return t->slot[i];
}

int32_t clip_table_join(struct clip_table *t, int32_t left, int32_t right)
{
    const struct clip_symbol l = t->symbol[left], r = t->symbol[right];
    char *to = t->text + t->text_bytes;

    memcpy(to, t->text + l.at, l.bytes);
    memcpy(to + l.bytes, t->text + r.at, r.bytes);
    return clip_table_add(t, to, (size_t)l.bytes + r.bytes);
}

static struct clip_pair *pair_slot(const struct clip_table *t, int32_t left, int32_t right)
{
    const uint64_t h = ((uint64_t)(uint32_t)left << 32 | (uint32_t)right) * 0x9E3779B97F4A7C15u;

    for (uint32_t i = (uint32_t)(h >> 32);; i++) {
        struct clip_pair *p = &t->pair[i & t->pair_mask];
        if (p->joined < 0 || (p->left == left && p->right == right))
            return p;
    }
}

void clip_table_rank(struct clip_table *t, int32_t left, int32_t right, int32_t joined, int32_t rank)
{
    *pair_slot(t, left, right) = (struct clip_pair){ left, right, rank, joined };
}

const struct clip_pair *clip_table_pair(const struct clip_table *t, int32_t left, int32_t right)
{
    const struct clip_pair *p = pair_slot(t, left, right);

    return p->joined < 0 ? NULL : p;
}
