/* store/unpickle_class.c: what a pickle's names mean. */
#include "store/unpickle.h"

#include <inttypes.h>
#include <string.h>

#define LEN(a) (sizeof(a) / sizeof *(a))

enum pickle_class {
    C_TENSOR,                   /* (storage, offset, size, stride, ..) */
    C_TENSOR_TYPED,             /* (bytes, offset, size, stride, requires_grad, hooks, type, ..) */
    C_PARAMETER,                /* (tensor, ..) */
    C_FROM_TYPE,                /* (function, type, its arguments, attributes) */
    C_SIZE,                     /* (sizes) */
    C_DICT,                     /* () or (list of pairs) */
    C_EMPTY_DICT,               /* what defaultdict is given is no item */
    C_STORAGE,                  /* of: row of storages[] */
    C_TYPE                      /* of: an enum stored_type */
};

static const struct {
    const char *module, *name;
    enum pickle_class what;
} classes[] = {
    { "torch._utils", "_rebuild_tensor", C_TENSOR },
    { "torch._utils", "_rebuild_tensor_v2", C_TENSOR },
    { "torch._utils", "_rebuild_tensor_v3", C_TENSOR_TYPED },
    { "torch._utils", "_rebuild_parameter", C_PARAMETER },
    { "torch._utils", "_rebuild_parameter_with_state", C_PARAMETER },
    { "torch._tensor", "_rebuild_from_type_v2", C_FROM_TYPE },
    { "torch", "Size", C_SIZE },
    { "collections", "OrderedDict", C_DICT },
    { "collections", "defaultdict", C_EMPTY_DICT },
    { "builtins", "dict", C_DICT },
    { "__builtin__", "dict", C_DICT },
};

static const struct {
    const char *name;
    enum stored_type type;
    int64_t bytes;
} storages[] = {
    { "FloatStorage", STORED_F32, 4 },      { "HalfStorage", STORED_F16, 2 },
    { "BFloat16Storage", STORED_BF16, 2 },  { "DoubleStorage", STORED_F64, 8 },
    { "CharStorage", STORED_I8, 1 },        { "ByteStorage", STORED_U8, 1 },
    { "ShortStorage", STORED_I16, 2 },      { "IntStorage", STORED_I32, 4 },
    { "LongStorage", STORED_I64, 8 },       { "BoolStorage", STORED_BOOL, 1 },
    { "UntypedStorage", N_STORED, 1 },      { "ComplexFloatStorage", N_STORED, 8 },
    { "ComplexDoubleStorage", N_STORED, 16 }, { "QInt8Storage", N_STORED, 1 },
    { "QUInt8Storage", N_STORED, 1 },       { "QInt32Storage", N_STORED, 4 },
    { "QUInt4x2Storage", N_STORED, 1 },     { "QUInt2x4Storage", N_STORED, 1 },
};

static const char *const types[N_STORED] = {
    [STORED_F32] = "float32", [STORED_F16] = "float16", [STORED_BF16] = "bfloat16", [STORED_F64] = "float64",
    [STORED_I8] = "int8", [STORED_U8] = "uint8", [STORED_I16] = "int16", [STORED_I32] = "int32",
    [STORED_I64] = "int64", [STORED_BOOL] = "bool", [STORED_F8_E4M3] = "float8_e4m3fn",
    [STORED_F8_E5M2] = "float8_e5m2",
};

static bool same(const char *text, size_t n, const char *word)
{
    return strlen(word) == n && !memcmp(text, word, n);
}

static uint32_t make_class(struct unpickler *p, enum pickle_class what, size_t of, struct err *e)
{
    const uint32_t v = unpickle_new(p, P_CLASS, e);

    if (v) {
        p->value[v].what = (unsigned char)what;
        p->value[v].of = (uint32_t)of;
    }
    return v;
}

uint32_t unpickle_class(struct unpickler *p, const char *module, size_t module_bytes, const char *name,
                        size_t name_bytes, struct err *e)
{
    const bool torch = same(module, module_bytes, "torch");

    for (size_t i = 0; i < LEN(classes); i++)
        if (same(module, module_bytes, classes[i].module) && same(name, name_bytes, classes[i].name))
            return make_class(p, classes[i].what, 0, e);
    if (torch || same(module, module_bytes, "torch.storage") || same(module, module_bytes, "torch.cuda"))
        for (size_t i = 0; i < LEN(storages); i++)
            if (same(name, name_bytes, storages[i].name))
                return make_class(p, C_STORAGE, i, e);
    for (size_t i = 0; torch && i < LEN(types); i++)
        if (same(name, name_bytes, types[i]))
            return make_class(p, C_TYPE, i, e);
    return V_OTHER;
}

/* ---- tensors ---- */

static uint32_t wrong(struct err *e, const char *what)
{
    err_set(e, E_FORMAT, "%s", what);
    return 0;
}

static bool counts(const struct unpickler *p, uint32_t tuple)
{
    const struct pickle_value *t = &p->value[tuple];

    if (t->kind != P_TUPLE || t->n > WEIGHTS_MAX_DIM)
        return false;
    for (int64_t i = 0; i < t->n; i++)
        if (p->value[unpickle_item(p, tuple, i)].kind != P_INT)
            return false;
    return true;
}

/* Only forms are checked here; whether the numbers fit the storage is when it is known where that lies. */
static uint32_t make_tensor(struct unpickler *p, uint32_t args, bool typed, struct err *e)
{
    uint32_t arg[7] = { 0 }, v;
    const int64_t n = p->value[args].n, need = typed ? 7 : 4;
    struct pickle_value *t;

    if (n < need)
        return wrong(e, "a tensor has too few arguments");
    for (int64_t i = 0; i < need; i++)
        arg[i] = unpickle_item(p, args, i);
    if (p->value[arg[0]].kind == P_OTHER)
        return V_OTHER;
    if (p->value[arg[0]].kind != P_STORAGE || p->value[arg[1]].kind != P_INT)
        return wrong(e, "a tensor has no storage or no offset");
    if (!counts(p, arg[2]) || !counts(p, arg[3]) || p->value[arg[2]].n != p->value[arg[3]].n)
        return wrong(e, "a tensor's sizes and strides are not two lists of as many, at most 8, whole numbers");
    v = unpickle_new(p, P_TENSOR, e);
    if (!v)
        return 0;
    t = &p->value[v];
    t->of = p->value[arg[0]].of;
    t->n = p->value[arg[1]].n;
    t->first = arg[2];
    t->last = arg[3];
    t->what = (unsigned char)p->storage[t->of].type;
    if (typed) {
        const struct pickle_value *type = &p->value[arg[6]];
        t->what = type->kind == P_CLASS && type->what == C_TYPE ? (unsigned char)type->of : N_STORED;
    }
    return v;
}

/* ('storage', class, key, location, elements[, (key of a part, offset, elements)]) */
uint32_t unpickle_persistent(struct unpickler *p, uint32_t id, struct err *e)
{
    const int64_t n = p->value[id].kind == P_TUPLE ? p->value[id].n : 0;
    const struct pickle_value *item[6] = { 0 };
    struct pickle_storage s = { .view_n = -1 }, *more;
    uint32_t v;

    for (int64_t i = 0; i < n && i < 6; i++)
        item[i] = &p->value[unpickle_item(p, id, i)];
    if (n && unpickle_is(p, unpickle_item(p, id, 0), "module"))
        return V_OTHER;                                 /* a class and its source */
    if (n < 5 || n > 6 || !unpickle_is(p, unpickle_item(p, id, 0), "storage") || item[2]->kind != P_STR
        || item[4]->kind != P_INT || item[4]->n < 0)
        return wrong(e, "what stands for a storage is not ('storage', type, key, location, size)");
    if (item[1]->kind != P_CLASS || item[1]->what != C_STORAGE)
        return wrong(e, "a storage is of a type that torch does not have");
    s.key = item[2]->text;
    s.key_bytes = (uint32_t)item[2]->n;
    s.type_name = storages[item[1]->of].name;
    s.type = storages[item[1]->of].type;
    s.element_bytes = storages[item[1]->of].bytes;
    s.n = item[4]->n;
    if (n == 6 && item[5]->kind == P_TUPLE && item[5]->n == 3) {
        const uint32_t view = unpickle_item(p, id, 5);
        const struct pickle_value *at = &p->value[unpickle_item(p, view, 1)];
        const struct pickle_value *size = &p->value[unpickle_item(p, view, 2)];
        if (at->kind != P_INT || size->kind != P_INT || at->n < 0 || size->n < 0 || at->n > s.n
            || size->n > s.n - at->n)
            return wrong(e, "a part of a storage is not inside it");
        s.view_at = at->n;
        s.view_n = size->n;
    } else if (n == 6 && item[5]->kind != P_NONE) {
        return wrong(e, "a part of a storage is not (key, offset, size)");
    }
    more = unpickle_grow(p, p->storage, &p->cap_storage, p->n_storage, sizeof s, e);
    v = more ? unpickle_new(p, P_STORAGE, e) : 0;
    if (!v)
        return 0;
    p->storage = more;
    p->value[v].of = p->n_storage;
    p->storage[p->n_storage++] = s;
    return v;
}

/* ---- calls ---- */

/* OrderedDict() or, by Python 2, OrderedDict([[key, value], ..]) */
static uint32_t make_dict(struct unpickler *p, uint32_t args, bool items, struct err *e)
{
    const uint32_t v = unpickle_new(p, P_DICT, e), list = p->value[args].n ? unpickle_item(p, args, 0) : V_NONE;

    if (!v || !items || (p->value[list].kind != P_LIST && p->value[list].kind != P_TUPLE))
        return v;
    for (uint32_t c = p->value[list].first; c; c = p->cell[c].next) {
        const uint32_t pair = p->cell[c].value;
        const enum pickle_kind kind = p->value[pair].kind;
        if ((kind != P_LIST && kind != P_TUPLE) || p->value[pair].n != 2)
            return wrong(e, "a dict is made of something that is no list of pairs");
        if (unpickle_append(p, v, unpickle_item(p, pair, 0), e) || unpickle_append(p, v, unpickle_item(p, pair, 1), e))
            return 0;
    }
    return v;
}

static uint32_t make_parameter(struct unpickler *p, uint32_t args, struct err *e)
{
    const uint32_t v = p->value[args].n ? unpickle_item(p, args, 0) : V_NONE;
    const enum pickle_kind kind = p->value[v].kind;

    return kind == P_TENSOR || kind == P_OTHER ? v : wrong(e, "a parameter holds no tensor");
}

/* A tensor with attributes or of a class of its own: the function that makes the plain one, and its arguments. */
static uint32_t make_from_type(struct unpickler *p, uint32_t args, struct err *e)
{
    uint32_t f, inner;

    if (p->value[args].n < 3)
        return wrong(e, "a tensor with attributes has too few arguments");
    f = unpickle_item(p, args, 0);
    inner = unpickle_item(p, args, 2);
    if (p->value[f].kind != P_CLASS || p->value[f].what == C_FROM_TYPE || p->value[inner].kind != P_TUPLE)
        return V_OTHER;
    return unpickle_call(p, f, inner, e);
}

uint32_t unpickle_call(struct unpickler *p, uint32_t callee, uint32_t args, struct err *e)
{
    if (p->value[callee].kind == P_OTHER)
        return V_OTHER;
    if (p->value[callee].kind != P_CLASS)
        return wrong(e, "something is called that is no function");
    if (p->value[args].kind != P_TUPLE)
        return wrong(e, "a function's arguments are no tuple");
    switch ((enum pickle_class)p->value[callee].what) {
    case C_TENSOR: return make_tensor(p, args, false, e);
    case C_TENSOR_TYPED: return make_tensor(p, args, true, e);
    case C_PARAMETER: return make_parameter(p, args, e);
    case C_FROM_TYPE: return make_from_type(p, args, e);
    case C_SIZE: return p->value[args].n == 1 ? unpickle_item(p, args, 0) : V_OTHER;
    case C_DICT: return make_dict(p, args, true, e);
    case C_EMPTY_DICT: return make_dict(p, args, false, e);
    case C_STORAGE:
    case C_TYPE: break;
    }
    return V_OTHER;
}
