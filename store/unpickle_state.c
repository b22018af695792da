/* store/unpickle_state.c: what the operations of a pickle are made of: tables that grow, the stack, the input. */
#include "store/unpickle.h"

#include <inttypes.h>
#include <string.h>

enum { FIRST_CAP = 256, MAX_LINE = 4096 };

/* ---- tables ---- */

void *unpickle_grow(struct unpickler *p, const void *table, uint32_t *cap, uint32_t n, size_t bytes, struct err *e)
{
    const uint32_t more = *cap ? 2 * *cap : FIRST_CAP;
    void *grown;

    if (n < *cap)
        return (void *)(uintptr_t)table;
    if (more > UNPICKLE_MAX) {
        err_set(e, E_FORMAT, "it holds more than %d things", UNPICKLE_MAX);
        return NULL;
    }
    grown = arena_push(p->arena, more * bytes, e);
    if (!grown)
        return NULL;
    if (n)
        memcpy(grown, table, n * bytes);
    *cap = more;
    return grown;
}

uint32_t unpickle_new(struct unpickler *p, enum pickle_kind kind, struct err *e)
{
    struct pickle_value *more = unpickle_grow(p, p->value, &p->cap_value, p->n_value, sizeof *more, e);

    if (!more)
        return 0;
    p->value = more;
    p->value[p->n_value] = (struct pickle_value){ .kind = (unsigned char)kind };
    return p->n_value++;
}

int unpickle_append(struct unpickler *p, uint32_t container, uint32_t value, struct err *e)
{
    struct pickle_cell *more = unpickle_grow(p, p->cell, &p->cap_cell, p->n_cell, sizeof *more, e);
    struct pickle_value *c = &p->value[container];

    if (!more)
        return e->code;
    p->cell = more;
    p->cell[p->n_cell] = (struct pickle_cell){ value, 0 };
    if (c->first)
        p->cell[c->last].next = p->n_cell;
    else
        c->first = p->n_cell;
    c->last = p->n_cell++;
    c->n++;
    return OK;
}

uint32_t unpickle_item(const struct unpickler *p, uint32_t container, int64_t i)
{
    uint32_t c = p->value[container].first;

    while (i-- > 0)
        c = p->cell[c].next;
    return p->cell[c].value;
}

bool unpickle_is(const struct unpickler *p, uint32_t value, const char *text)
{
    const struct pickle_value *v = &p->value[value];

    return v->kind == P_STR && (size_t)v->n == strlen(text) && !memcmp(v->text, text, (size_t)v->n);
}

int unpickle_push(struct unpickler *p, uint32_t v, struct err *e)
{
    uint32_t *more = unpickle_grow(p, p->stack, &p->cap_stack, p->n_stack, sizeof *more, e);

    if (!more)
        return e->code;
    p->stack = more;
    p->stack[p->n_stack++] = v;
    return OK;
}

int unpickle_push_made(struct unpickler *p, uint32_t v, struct err *e)
{
    return v ? unpickle_push(p, v, e) : e->code;
}

int unpickle_pop(struct unpickler *p, uint32_t *v, struct err *e)
{
    if (!p->n_stack || p->stack[p->n_stack - 1] == V_MARK)
        return err_set(e, E_FORMAT, "nothing is on the stack where something is needed");
    *v = p->stack[--p->n_stack];
    return OK;
}

int unpickle_mark(const struct unpickler *p, uint32_t *at, struct err *e)
{
    for (uint32_t i = p->n_stack; i > 0; i--)
        if (p->stack[i - 1] == V_MARK) {
            *at = i;
            return OK;
        }
    return err_set(e, E_FORMAT, "there is no mark on the stack");
}

/* ---- input ---- */

const unsigned char *unpickle_take(struct unpickler *p, uint64_t n, struct err *e)
{
    const unsigned char *at = p->at;

    if (n > (uint64_t)(p->end - at)) {
        err_set(e, E_FORMAT, "it ends where %" PRIu64 " bytes more are needed", n);
        return NULL;
    }
    p->at += n;
    return at;
}

int unpickle_take_number(struct unpickler *p, int bytes, uint64_t *n, struct err *e)
{
    const unsigned char *at = unpickle_take(p, (uint64_t)bytes, e);

    if (!at)
        return E_FORMAT;
    *n = 0;
    for (int i = bytes - 1; i >= 0; i--)
        *n = *n << 8 | at[i];
    return OK;
}

const char *unpickle_take_line(struct unpickler *p, size_t *n, struct err *e)
{
    const char *at = (const char *)p->at;
    const unsigned char *end = memchr(at, '\n', (size_t)(p->end - p->at));

    if (!end || end - p->at > MAX_LINE) {
        err_set(e, E_FORMAT, "a line has no end, or more than %d bytes", MAX_LINE);
        return NULL;
    }
    *n = (size_t)(end - p->at);
    p->at = end + 1;
    return at;
}
