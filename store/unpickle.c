/* store/unpickle.c: the machine that pickles are programs for: a stack, a memo, some sixty operations. They are listed
 * in the comments of Python's pickletools.py. Every operation takes at least a byte and makes at most one value, one
 * place on the stack and two cells per place, and nothing here calls itself, so time and memory follow the size of the
 * input. */
#include "store/unpickle.h"

#include <inttypes.h>
#include <string.h>

enum { MAX_MEMO = UNPICKLE_MAX - 1 };

/* ---- operations: each takes the argument of its row in the table below ---- */

static int do_constant(struct unpickler *p, int arg, struct err *e)
{
    return unpickle_push(p, (uint32_t)arg, e);
}

/* arg: bytes that are passed over */
static int do_skip(struct unpickler *p, int arg, struct err *e)
{
    return unpickle_take(p, (uint64_t)arg, e) ? unpickle_push(p, V_OTHER, e) : E_FORMAT;
}

static int do_skip_line(struct unpickler *p, int arg, struct err *e)
{
    size_t n;

    return unpickle_take_line(p, &n, e) ? unpickle_push(p, (uint32_t)arg, e) : E_FORMAT;
}

static int do_protocol(struct unpickler *p, int arg, struct err *e)
{
    uint64_t n;

    if (unpickle_take_number(p, 1, &n, e))
        return E_FORMAT;
    return n <= (uint64_t)arg ? OK : err_set(e, E_FORMAT, "protocol %" PRIu64 " is not known; 0 to %d are", n, arg);
}

/* A frame is a hint for reading ahead. */
static int do_frame(struct unpickler *p, int arg, struct err *e)
{
    uint64_t n;

    if (unpickle_take_number(p, arg, &n, e))
        return E_FORMAT;
    return n <= (uint64_t)(p->end - p->at) ? OK : err_set(e, E_FORMAT, "a frame of %" PRIu64 " bytes is cut off", n);
}

static int push_int(struct unpickler *p, int64_t n, struct err *e)
{
    const uint32_t v = unpickle_new(p, P_INT, e);

    if (v)
        p->value[v].n = n;
    return unpickle_push_made(p, v, e);
}

static int push_text(struct unpickler *p, enum pickle_kind kind, const void *text, uint64_t n, struct err *e)
{
    const uint32_t v = unpickle_new(p, kind, e);

    if (v) {
        p->value[v].text = text;
        p->value[v].n = (int64_t)n;
    }
    return unpickle_push_made(p, v, e);
}

/* arg: 1 and 2 bytes without a sign, 4 with one */
static int do_int(struct unpickler *p, int arg, struct err *e)
{
    uint64_t n;

    if (unpickle_take_number(p, arg, &n, e))
        return E_FORMAT;
    return push_int(p, arg == 4 ? (int64_t)(int32_t)(uint32_t)n : (int64_t)n, e);
}

/* Decimal digits, L after them for a long one; 00 and 01 are the truth values of protocol 0. */
static int do_int_line(struct unpickler *p, int arg, struct err *e)
{
    size_t n, i = 0;
    const char *text = unpickle_take_line(p, &n, e);
    bool minus, big = false;
    int64_t x = 0;

    if (!text)
        return E_FORMAT;
    if (arg == 'I' && n == 2 && text[0] == '0' && (text[1] == '0' || text[1] == '1'))
        return unpickle_push(p, text[1] == '1' ? V_TRUE : V_FALSE, e);
    n -= arg == 'L' && n && text[n - 1] == 'L';
    minus = n && text[0] == '-';
    for (i = minus; i < n && text[i] >= '0' && text[i] <= '9'; i++) {
        const int digit = text[i] - '0';
        big |= __builtin_mul_overflow(x, 10, &x) || __builtin_add_overflow(x, minus ? -digit : digit, &x);
    }
    if (i < n || n == (size_t)minus)
        return err_set(e, E_FORMAT, "'%.*s' is no number", (int)(n < 40 ? n : 40), text);
    return big ? push_text(p, P_BIG, text, n, e) : push_int(p, x, e);
}

/* arg: bytes of the length; then a number in two's complement */
static int do_long(struct unpickler *p, int arg, struct err *e)
{
    const unsigned char *at;
    uint64_t n, x = 0;

    if (unpickle_take_number(p, arg, &n, e))
        return E_FORMAT;
    at = unpickle_take(p, n, e);
    if (!at)
        return E_FORMAT;
    if (n > 8)
        return push_text(p, P_BIG, at, n, e);
    for (uint64_t i = 0; i < n; i++)
        x |= (uint64_t)at[i] << 8 * i;
    if (n && n < 8 && at[n - 1] & 0x80)
        x |= UINT64_MAX << 8 * n;
    return push_int(p, (int64_t)x, e);
}

/* arg: bytes of the length; then a string */
static int do_string(struct unpickler *p, int arg, struct err *e)
{
    const unsigned char *at;
    uint64_t n;

    if (unpickle_take_number(p, arg, &n, e))
        return E_FORMAT;
    at = unpickle_take(p, n, e);
    return at ? push_text(p, P_STR, at, n, e) : E_FORMAT;
}

static int do_bytes(struct unpickler *p, int arg, struct err *e)
{
    uint64_t n;

    if (unpickle_take_number(p, arg, &n, e) || !unpickle_take(p, n, e))
        return E_FORMAT;
    return unpickle_push(p, V_OTHER, e);
}

/* Strings of protocol 0, 'S' in quotes. Backslashes would have to be undone in a copy; no name has any. */
static int do_string_line(struct unpickler *p, int arg, struct err *e)
{
    size_t n;
    const char *text = unpickle_take_line(p, &n, e);

    if (!text)
        return E_FORMAT;
    if (memchr(text, '\\', n))
        return err_set(e, E_FORMAT, "a string of protocol 0 has a backslash; please save with protocol 2 or later");
    if (arg == 'V')
        return push_text(p, P_STR, text, n, e);
    if (n < 2 || (text[0] != '\'' && text[0] != '"') || text[n - 1] != text[0])
        return err_set(e, E_FORMAT, "a string of protocol 0 is not in quotes");
    return push_text(p, P_STR, text + 1, n - 2, e);
}

/* arg: drop the topmost place; or all down to the mark and with it */
static int do_pop(struct unpickler *p, int arg, struct err *e)
{
    uint32_t at = p->n_stack;

    if (arg == '1' ? unpickle_mark(p, &at, e) : !at)
        return err_set(e, E_FORMAT, "the stack is empty");
    p->n_stack = at - 1;
    return OK;
}

static int do_double(struct unpickler *p, int arg, struct err *e)
{
    uint32_t v;

    (void)arg;
    if (unpickle_pop(p, &v, e))
        return E_FORMAT;
    p->n_stack++;
    return unpickle_push(p, v, e);
}

/* ---- the memo ---- */

/* arg: bytes of the index, 0: a line of digits, -1: the next free one */
static int memo_index(struct unpickler *p, int arg, uint64_t *i, struct err *e)
{
    size_t n;
    const char *text;

    if (arg > 0 && unpickle_take_number(p, arg, i, e))
        return E_FORMAT;
    if (arg < 0)
        *i = p->memo_used;
    if (arg == 0) {
        text = unpickle_take_line(p, &n, e);
        if (!text)
            return E_FORMAT;
        *i = n ? 0 : UINT64_MAX;
        for (size_t k = 0; k < n; k++)
            *i = text[k] >= '0' && text[k] <= '9' && *i <= MAX_MEMO ? 10 * *i + (uint64_t)(text[k] - '0') : UINT64_MAX;
    }
    return *i <= MAX_MEMO ? OK : err_set(e, E_FORMAT, "the memo has no place %" PRIu64, *i);
}

static int do_put(struct unpickler *p, int arg, struct err *e)
{
    uint64_t i;
    uint32_t v;

    if (memo_index(p, arg, &i, e) || unpickle_pop(p, &v, e))
        return E_FORMAT;
    p->n_stack++;
    while (p->n_memo <= i) {
        uint32_t *more = unpickle_grow(p, p->memo, &p->cap_memo, p->n_memo, sizeof *more, e);
        if (!more)
            return e->code;
        p->memo = more;
        p->memo[p->n_memo++] = V_MARK;              /* nothing yet */
    }
    p->memo_used += p->memo[i] == V_MARK;
    p->memo[i] = v;
    return OK;
}

static int do_get(struct unpickler *p, int arg, struct err *e)
{
    uint64_t i;

    if (memo_index(p, arg, &i, e))
        return E_FORMAT;
    if (i >= p->n_memo || p->memo[i] == V_MARK)
        return err_set(e, E_FORMAT, "nothing is in place %" PRIu64 " of the memo", i);
    return unpickle_push(p, p->memo[i], e);
}

/* ---- containers ---- */

static int do_empty(struct unpickler *p, int arg, struct err *e)
{
    return unpickle_push_made(p, unpickle_new(p, (enum pickle_kind)arg, e), e);
}

/* Places from `at` on go to a container; inert objects swallow them. */
static int move_items(struct unpickler *p, uint32_t at, uint32_t to, enum pickle_kind kind, struct err *e)
{
    if (kind == P_DICT && (p->n_stack - at) % 2)
        return err_set(e, E_FORMAT, "a key has no value");
    if (p->value[to].kind != P_OTHER && p->value[to].kind != kind)
        return err_set(e, E_FORMAT, "items are put into something that holds none");
    for (uint32_t i = at; i < p->n_stack && p->value[to].kind != P_OTHER; i++)
        if (unpickle_append(p, to, p->stack[i], e))
            return e->code;
    p->n_stack = at;
    return OK;
}

/* arg: the kind that is made of everything above the mark */
static int do_collect(struct unpickler *p, int arg, struct err *e)
{
    const uint32_t v = arg == P_OTHER ? V_OTHER : unpickle_new(p, (enum pickle_kind)arg, e);
    uint32_t at;

    if (!v)
        return e->code;
    if (unpickle_mark(p, &at, e) || move_items(p, at, v, (enum pickle_kind)arg, e))
        return e->code;
    p->n_stack--;
    return unpickle_push(p, v, e);
}

/* arg: how many become a tuple */
static int do_tuple(struct unpickler *p, int arg, struct err *e)
{
    const uint32_t v = unpickle_new(p, P_TUPLE, e);

    if (!v)
        return e->code;
    for (int i = 1; i <= arg; i++)
        if (p->n_stack < (uint32_t)i || p->stack[p->n_stack - (uint32_t)i] == V_MARK)
            return err_set(e, E_FORMAT, "a tuple has too few items");
    if (move_items(p, p->n_stack - (uint32_t)arg, v, P_TUPLE, e))
        return e->code;
    return unpickle_push(p, v, e);
}

/* Items above the mark, or (arg > 0xFF: of that kind, no mark) the last one or pair, go into what lies below. */
static int do_extend(struct unpickler *p, int arg, struct err *e)
{
    const enum pickle_kind kind = arg & 0xFF;
    const uint32_t one = kind == P_DICT ? 2 : 1;
    uint32_t at;
    int rc;

    if (arg <= 0xFF) {
        if (unpickle_mark(p, &at, e))
            return E_FORMAT;
        if (at < 2 || p->stack[at - 2] == V_MARK)
            return err_set(e, E_FORMAT, "there is nothing to put items into");
        rc = move_items(p, at, p->stack[at - 2], kind, e);
        p->n_stack -= !rc;
        return rc;
    }
    for (uint32_t i = 1; i <= one + 1; i++)
        if (p->n_stack < i || p->stack[p->n_stack - i] == V_MARK)
            return err_set(e, E_FORMAT, "there is nothing to put an item into");
    at = p->n_stack - one;
    return move_items(p, at, p->stack[at - 1], kind, e);
}

/* ---- objects ---- */

static int do_global(struct unpickler *p, int arg, struct err *e)
{
    size_t m, n;
    const char *module = unpickle_take_line(p, &m, e), *name = module ? unpickle_take_line(p, &n, e) : NULL;

    (void)arg;
    return name ? unpickle_push_made(p, unpickle_class(p, module, m, name, n, e), e) : E_FORMAT;
}

static int do_stack_global(struct unpickler *p, int arg, struct err *e)
{
    uint32_t module, name;

    (void)arg;
    if (unpickle_pop(p, &name, e) || unpickle_pop(p, &module, e))
        return E_FORMAT;
    if (p->value[module].kind != P_STR || p->value[name].kind != P_STR)
        return err_set(e, E_FORMAT, "a class has no name");
    return unpickle_push_made(p,
                              unpickle_class(p, p->value[module].text, (size_t)p->value[module].n, p->value[name].text,
                                             (size_t)p->value[name].n, e),
                              e);
}

static int do_persistent(struct unpickler *p, int arg, struct err *e)
{
    uint32_t id;

    (void)arg;
    return unpickle_pop(p, &id, e) ? E_FORMAT : unpickle_push_made(p, unpickle_persistent(p, id, e), e);
}

/* arg: how many things follow the class: its arguments, and keywords, which nothing that we know has */
static int do_call(struct unpickler *p, int arg, struct err *e)
{
    uint32_t callee, args, keywords;

    if ((arg == 2 && unpickle_pop(p, &keywords, e)) || unpickle_pop(p, &args, e) || unpickle_pop(p, &callee, e))
        return E_FORMAT;
    return unpickle_push_made(p, unpickle_call(p, callee, args, e), e);
}

/* 'i': the class is named here; 'o': it is the first thing above the mark. Arguments follow the mark. */
static int do_instance(struct unpickler *p, int arg, struct err *e)
{
    uint32_t at, callee;

    if (unpickle_mark(p, &at, e))
        return E_FORMAT;
    if (arg == 'o') {
        if (at == p->n_stack)
            return err_set(e, E_FORMAT, "an object has no class");
        callee = p->stack[at];
        memmove(p->stack + at, p->stack + at + 1, (p->n_stack - at - 1) * sizeof *p->stack);
        p->n_stack--;
    } else {
        if (do_global(p, arg, e) || unpickle_pop(p, &callee, e))
            return e->code;
    }
    return do_collect(p, P_TUPLE, e) || unpickle_pop(p, &at, e)
               ? e->code
               : unpickle_push_made(p, unpickle_call(p, callee, at, e), e);
}

/* State is attributes: a dict of tensors has a version in its, a tensor its hooks. */
static int do_build(struct unpickler *p, int arg, struct err *e)
{
    uint32_t state, object;

    (void)arg;
    if (unpickle_pop(p, &state, e) || unpickle_pop(p, &object, e))
        return E_FORMAT;
    switch (p->value[object].kind) {
    case P_LIST:
    case P_DICT:
    case P_TENSOR:
    case P_OTHER: return unpickle_push(p, object, e);
    default: return err_set(e, E_FORMAT, "something gets attributes that has none");
    }
}

enum { ONE = 0x100 };

static const struct {
    int (*run)(struct unpickler *p, int arg, struct err *e);
    int arg;
} operation[256] = {
    ['('] = { do_constant, V_MARK },    ['N'] = { do_constant, V_NONE },
    [0x88] = { do_constant, V_TRUE },   [0x89] = { do_constant, V_FALSE },
    [0x8F] = { do_constant, V_OTHER },  ['G'] = { do_skip, 8 },             ['F'] = { do_skip_line, V_OTHER },
    [0x80] = { do_protocol, 5 },        [0x95] = { do_frame, 8 },
    ['K'] = { do_int, 1 },              ['M'] = { do_int, 2 },              ['J'] = { do_int, 4 },
    ['I'] = { do_int_line, 'I' },       ['L'] = { do_int_line, 'L' },
    [0x8A] = { do_long, 1 },            [0x8B] = { do_long, 4 },
    ['U'] = { do_string, 1 },           ['T'] = { do_string, 4 },           ['X'] = { do_string, 4 },
    [0x8C] = { do_string, 1 },          [0x8D] = { do_string, 8 },
    ['S'] = { do_string_line, 'S' },    ['V'] = { do_string_line, 'V' },
    ['C'] = { do_bytes, 1 },            ['B'] = { do_bytes, 4 },
    [0x8E] = { do_bytes, 8 },           [0x96] = { do_bytes, 8 },
    ['0'] = { do_pop, '0' },            ['1'] = { do_pop, '1' },            ['2'] = { do_double, 0 },
    ['q'] = { do_put, 1 },              ['r'] = { do_put, 4 },              ['p'] = { do_put, 0 },
    [0x94] = { do_put, -1 },
    ['h'] = { do_get, 1 },              ['j'] = { do_get, 4 },              ['g'] = { do_get, 0 },
    ['}'] = { do_empty, P_DICT },       [']'] = { do_empty, P_LIST },       [')'] = { do_empty, P_TUPLE },
    ['d'] = { do_collect, P_DICT },     ['l'] = { do_collect, P_LIST },     ['t'] = { do_collect, P_TUPLE },
    [0x91] = { do_collect, P_OTHER },
    [0x85] = { do_tuple, 1 },           [0x86] = { do_tuple, 2 },           [0x87] = { do_tuple, 3 },
    ['a'] = { do_extend, P_LIST | ONE }, ['e'] = { do_extend, P_LIST },
    ['s'] = { do_extend, P_DICT | ONE }, ['u'] = { do_extend, P_DICT },     [0x90] = { do_extend, P_OTHER },
    ['c'] = { do_global, 0 },           [0x93] = { do_stack_global, 0 },    ['Q'] = { do_persistent, 0 },
    ['R'] = { do_call, 1 },             [0x81] = { do_call, 1 },            [0x92] = { do_call, 2 },
    ['i'] = { do_instance, 'i' },       ['o'] = { do_instance, 'o' },       ['b'] = { do_build, 0 },
};

/* The values that every unpickler has, under the same indices. */
static int make_constants(struct unpickler *p, struct err *e)
{
    static const enum pickle_kind kind[V_FIRST_MADE] = { P_MARK, P_NONE, P_BOOL, P_BOOL, P_OTHER };

    if (p->n_cell)
        return OK;
    p->value = unpickle_grow(p, NULL, &p->cap_value, 0, sizeof *p->value, e);
    p->cell = p->value ? unpickle_grow(p, NULL, &p->cap_cell, 0, sizeof *p->cell, e) : NULL;
    if (!p->cell)
        return e->code;
    for (int i = 0; i < V_FIRST_MADE; i++)
        p->value[p->n_value++] = (struct pickle_value){ .kind = (unsigned char)kind[i], .n = i == V_TRUE };
    p->n_cell = 1;
    return OK;
}

int unpickle(struct unpickler *p, uint32_t *top, const unsigned char *bytes, size_t size, struct err *e)
{
    const unsigned char *op;
    int rc = make_constants(p, e);

    p->base = p->at = bytes;
    p->end = bytes + size;
    p->n_stack = p->n_memo = p->memo_used = 0;
    while (!rc) {
        op = p->at;
        if (!unpickle_take(p, 1, e)) {
            rc = E_FORMAT;
        } else if (*op == '.') {
            rc = unpickle_pop(p, top, e);
            break;
        } else if (!operation[*op].run) {
            rc = err_set(e, E_FORMAT, "operation 0x%02x is none that torch.save writes", *op);
        } else {
            rc = operation[*op].run(p, operation[*op].arg, e);
        }
    }
    return rc ? err_in(e, "pickle, byte %td", p->at - p->base) : OK;
}
