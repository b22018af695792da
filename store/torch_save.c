/* store/torch_save.c: the zip of APPNOTE.TXT 6.3 (what store/torch_zip.c reads) around a pickle of protocol 2.
 *
 *     archive/data.pkl    {name: torch._utils._rebuild_tensor_v2(storage k, 0, size, stride, False, OrderedDict())}
 *     archive/byteorder   "little"
 *     archive/data/<k>    the numbers of tensor k
 *     archive/version     "3\n"
 *
 * torch.save pads the local header in front of each entry so that readers can map the numbers where they lie. */
#include "store/torch_save.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "store/aside.h"

enum {
    ALIGN = 64,
    LOCAL_BYTES = 30,
    EXTRA_ZIP64 = 1,
    EXTRA_PAD = 0x4246,         /* "FB", as torch names its padding */
    FIRST_DAY = 1 << 5 | 1,     /* 1 January 1980: the same tensors give the same file */
    VERSION = 20, VERSION64 = 45,
    BATCH = 1000,               /* items that the pickle sets at once */
    ITEM_BYTES = 512,           /* of the pickle, more than one tensor takes beside its name */
    MAX_ITEMS = 1 << 20,
    NAME_BYTES = 32
};

static const uint64_t narrow_limit = UINT32_MAX;

/* ---- CRC-32 (ISO 3309), eight bytes at a time ---- */

struct crc {
    uint32_t table[8][256];
};

static void crc_init(struct crc *c)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t x = i;
        for (int k = 0; k < 8; k++)
            x = x >> 1 ^ (x & 1 ? 0xEDB88320u : 0);
        c->table[0][i] = x;
    }
    for (int t = 1; t < 8; t++)
        for (int i = 0; i < 256; i++)
            c->table[t][i] = c->table[t - 1][i] >> 8 ^ c->table[0][c->table[t - 1][i] & 255];
}

static uint32_t crc_of(const struct crc *c, const unsigned char *p, size_t n)
{
    uint32_t x = UINT32_MAX;

    for (; n >= 8; n -= 8, p += 8) {
        uint32_t next = 0;
        x ^= (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
        for (int i = 0; i < 4; i++) {
            next ^= c->table[7 - i][x >> 8 * i & 255];
            next ^= c->table[3 - i][p[4 + i]];
        }
        x = next;
    }
    for (; n; n--)
        x = x >> 8 ^ c->table[0][(x ^ *p++) & 255];
    return ~x;
}

/* ---- the pickle ---- */

struct pickle {
    unsigned char *p;
    size_t n;                   /* room for it all was made before */
};

static void put(struct pickle *k, const void *bytes, size_t n)
{
    memcpy(k->p + k->n, bytes, n);
    k->n += n;
}

static void put_number(struct pickle *k, uint64_t x, int bytes)
{
    for (int i = 0; i < bytes; i++)
        k->p[k->n++] = (unsigned char)(x >> 8 * i);
}

static void put_raw(struct pickle *k, const char *text)
{
    put(k, text, strlen(text));
}

static void put_text(struct pickle *k, const char *text)
{
    put_raw(k, "X");
    put_number(k, strlen(text), 4);
    put_raw(k, text);
}

static void put_int(struct pickle *k, int64_t x)
{
    if (x <= INT32_MAX) {
        put_raw(k, "J");
        put_number(k, (uint64_t)x, 4);
    } else {
        put_raw(k, "\x8a\x08");
        put_number(k, (uint64_t)x, 8);
    }
}

static void put_tensor(struct pickle *k, const struct safetensors_item *t, int index)
{
    static const char *const storage[] = { [STORED_F32] = "FloatStorage", [STORED_F16] = "HalfStorage",
                                           [STORED_BF16] = "BFloat16Storage" };
    int64_t stride[WEIGHTS_MAX_DIM], numel = 1;
    char key[12];

    for (int i = t->n_dim - 1; i >= 0; i--) {
        stride[i] = numel;
        numel *= t->dim[i];
    }
    put_text(k, t->name);
    put_raw(k, "ctorch._utils\n_rebuild_tensor_v2\n((");
    put_text(k, "storage");
    put_raw(k, "ctorch\n");
    put_raw(k, storage[t->type]);
    put_raw(k, "\n");
    snprintf(key, sizeof key, "%d", index);
    put_text(k, key);
    put_text(k, "cpu");
    put_int(k, numel);
    put_raw(k, "tQ");
    put_int(k, 0);
    put_raw(k, "(");
    for (int i = 0; i < t->n_dim; i++)
        put_int(k, t->dim[i]);
    put_raw(k, "t(");
    for (int i = 0; i < t->n_dim; i++)
        put_int(k, stride[i]);
    put_raw(k, "t\x89" "ccollections\nOrderedDict\n)RtR");
}

static void put_dict(struct pickle *k, const struct safetensors_item *item, int n)
{
    put_raw(k, "\x80\2}");
    for (int i = 0; i < n; i++) {
        if (i % BATCH == 0)
            put_raw(k, "(");
        put_tensor(k, &item[i], i);
        if (i % BATCH == BATCH - 1 || i == n - 1)
            put_raw(k, "u");
    }
    put_raw(k, ".");
}

/* ---- the zip ---- */

struct entry {
    char name[NAME_BYTES];
    const void *data;
    uint64_t bytes, at;
    uint32_t crc;
};

struct writer {
    struct aside aside;
    uint64_t at, narrow;
    struct crc crc;
};

static void w_put(struct writer *w, const void *bytes, size_t n)
{
    aside_put(&w->aside, bytes, n);
    w->at += n;
}

static void w_number(struct writer *w, uint64_t x, int bytes)
{
    unsigned char le[8];

    for (int i = 0; i < bytes; i++)
        le[i] = (unsigned char)(x >> 8 * i);
    w_put(w, le, (size_t)bytes);
}

static bool wide(const struct writer *w, uint64_t x)
{
    return x >= w->narrow;
}

static void w_narrow(struct writer *w, uint64_t x)
{
    w_number(w, wide(w, x) ? UINT32_MAX : x, 4);
}

/* What the local header and the directory say alike: from "version needed" to the length of the name. */
static void w_common(struct writer *w, const struct entry *z, bool is_wide)
{
    w_number(w, is_wide ? VERSION64 : VERSION, 2);
    w_number(w, 0, 2);                              /* flags */
    w_number(w, 0, 2);                              /* stored */
    w_number(w, 0, 2);                              /* time */
    w_number(w, FIRST_DAY, 2);
    w_number(w, z->crc, 4);
    w_number(w, wide(w, z->bytes) ? UINT32_MAX : z->bytes, 4);
    w_number(w, wide(w, z->bytes) ? UINT32_MAX : z->bytes, 4);
    w_number(w, strlen(z->name), 2);
}

static void w_entry(struct writer *w, struct entry *z)
{
    static const char blank[ALIGN + 4];
    const size_t name = strlen(z->name), wide_bytes = wide(w, z->bytes) ? 20 : 0;
    size_t pad;

    z->at = w->at;
    z->crc = crc_of(&w->crc, z->data, (size_t)z->bytes);
    pad = 4 + (ALIGN - (size_t)((w->at + LOCAL_BYTES + name + wide_bytes + 4) % ALIGN)) % ALIGN;
    w_put(w, "PK\3\4", 4);
    w_common(w, z, wide_bytes);
    w_number(w, wide_bytes + pad, 2);
    w_put(w, z->name, name);
    if (wide_bytes) {
        w_number(w, EXTRA_ZIP64, 2);
        w_number(w, 16, 2);
        w_number(w, z->bytes, 8);
        w_number(w, z->bytes, 8);
    }
    w_number(w, EXTRA_PAD, 2);
    w_number(w, pad - 4, 2);
    w_put(w, blank, pad - 4);
    w_put(w, z->data, (size_t)z->bytes);
}

/* 64-bit fields stand in for those that are too small, and only for them: size, size again, place. */
static void w_directory_entry(struct writer *w, const struct entry *z)
{
    const int extra = (wide(w, z->bytes) ? 16 : 0) + (wide(w, z->at) ? 8 : 0);

    w_put(w, "PK\1\2", 4);
    w_number(w, extra ? VERSION64 : VERSION, 2);
    w_common(w, z, extra);
    w_number(w, extra ? extra + 4 : 0, 2);
    w_number(w, 0, 2);                              /* comment */
    w_number(w, 0, 2);                              /* disk */
    w_number(w, 0, 2);                              /* attributes, inside and outside */
    w_number(w, 0, 4);
    w_narrow(w, z->at);
    w_put(w, z->name, strlen(z->name));
    if (extra) {
        w_number(w, EXTRA_ZIP64, 2);
        w_number(w, (uint64_t)extra, 2);
    }
    if (wide(w, z->bytes)) {
        w_number(w, z->bytes, 8);
        w_number(w, z->bytes, 8);
    }
    if (wide(w, z->at))
        w_number(w, z->at, 8);
}

static void w_end(struct writer *w, uint64_t n, uint64_t at)
{
    const uint64_t bytes = w->at - at, end64 = w->at;
    const bool many = n >= UINT16_MAX;

    if (many || wide(w, bytes) || wide(w, at)) {
        w_put(w, "PK\6\6", 4);
        w_number(w, 44, 8);                         /* bytes that follow */
        w_number(w, VERSION64, 2);
        w_number(w, VERSION64, 2);
        w_number(w, 0, 8);                          /* disks */
        w_number(w, n, 8);
        w_number(w, n, 8);
        w_number(w, bytes, 8);
        w_number(w, at, 8);
        w_put(w, "PK\6\7", 4);
        w_number(w, 0, 4);
        w_number(w, end64, 8);
        w_number(w, 1, 4);
    }
    w_put(w, "PK\5\6", 4);
    w_number(w, 0, 4);                              /* disks */
    w_number(w, many ? UINT16_MAX : n, 2);
    w_number(w, many ? UINT16_MAX : n, 2);
    w_narrow(w, bytes);
    w_narrow(w, at);
    w_number(w, 0, 2);                              /* comment */
}

static void w_all(struct writer *w, struct entry *z, int n)
{
    uint64_t directory;

    crc_init(&w->crc);
    for (int i = 0; i < n; i++)
        w_entry(w, &z[i]);
    directory = w->at;
    for (int i = 0; i < n; i++)
        w_directory_entry(w, &z[i]);
    w_end(w, (uint64_t)n, directory);
}

/* ---- */

static int by_name(const void *a, const void *b)
{
    const struct safetensors_item *p = *(const struct safetensors_item *const *)a;
    const struct safetensors_item *q = *(const struct safetensors_item *const *)b;

    return strcmp(p->name, q->name);
}

static int check_item(const struct safetensors_item *t, struct err *e)
{
    struct weights_entry w = { .name = t->name, .type = t->type, .n_dim = t->n_dim };
    int64_t stride = 1;

    if ((unsigned)t->type > STORED_BF16)
        return err_set(e, E_ARG, "tensor '%.200s' is %s; F32, F16 and BF16 can be written", t->name ? t->name : "?",
                       stored_name(t->type));
    for (int i = t->n_dim - 1; i >= 0 && t->n_dim <= WEIGHTS_MAX_DIM; i--) {
        w.dim[i] = t->dim[i];
        w.stride[i] = stride;
        if (t->dim[i] > 0 && __builtin_mul_overflow(stride, t->dim[i], &stride))
            return err_set(e, E_ARG, "tensor '%.200s' is too large", t->name ? t->name : "?");
    }
    return weights_check(&w, SIZE_MAX, e) ? err_set(e, E_ARG, "%s", e->text) : OK;
}

/* E_ARG unless every tensor can be written and no name is there twice. */
static int check(const struct safetensors_item *item, int n, struct arena *a, struct err *e)
{
    const struct safetensors_item **order = arena_push(a, sizeof(*order) * (size_t)n, e);

    if (!order)
        return e->code;
    for (int i = 0; i < n; i++) {
        if (check_item(&item[i], e))
            return E_ARG;
        order[i] = &item[i];
    }
    if (n > 1)
        qsort(order, (size_t)n, sizeof *order, by_name);
    for (int i = 1; i < n; i++)
        if (!strcmp(order[i - 1]->name, order[i]->name))
            return err_set(e, E_ARG, "tensor '%s' is there twice", order[i]->name);
    return OK;
}

static uint64_t item_bytes(const struct safetensors_item *t)
{
    uint64_t n = stored_bytes(t->type);

    for (int i = 0; i < t->n_dim; i++)
        n *= (uint64_t)t->dim[i];
    return n;
}

/* The entries in their order, with the pickle. */
static struct entry *plan(const struct safetensors_item *item, int n, struct arena *a, struct err *e)
{
    struct entry *z = arena_push_zero(a, sizeof *z * ((size_t)n + 3), e);
    struct pickle k = { 0 };
    size_t room = ITEM_BYTES;

    for (int i = 0; i < n; i++)
        room += strlen(item[i].name) + ITEM_BYTES;
    k.p = z ? arena_push(a, room, e) : NULL;
    if (!k.p)
        return NULL;
    put_dict(&k, item, n);
    z[0] = (struct entry){ .name = "archive/data.pkl", .data = k.p, .bytes = k.n };
    z[1] = (struct entry){ .name = "archive/byteorder", .data = "little", .bytes = 6 };
    for (int i = 0; i < n; i++) {
        z[2 + i] = (struct entry){ .data = item[i].data, .bytes = item_bytes(&item[i]) };
        snprintf(z[2 + i].name, NAME_BYTES, "archive/data/%d", i);
    }
    z[2 + n] = (struct entry){ .name = "archive/version", .data = "3\n", .bytes = 2 };
    return z;
}

static int save(struct writer *w, const char *path, const struct safetensors_item *item, int n, struct arena *a,
                struct err *e)
{
    struct entry *z;
    int rc = check(item, n, a, e);

    if (rc)
        return err_in(e, "writing '%s'", path);
    z = plan(item, n, a, e);
    if (!z)
        return err_in(e, "writing '%s'", path);
    rc = aside_open(&w->aside, path, e);
    if (rc)
        return rc;
    w_all(w, z, n + 3);
    rc = aside_commit(&w->aside, e);
    aside_abandon(&w->aside);
    return rc;
}

int torch_save_narrow(const char *path, const struct safetensors_item *item, int n, uint64_t narrow, struct err *e)
{
    struct writer w = { .narrow = narrow < narrow_limit ? narrow : narrow_limit };
    struct arena a = { 0 };
    struct err mine;
    int rc;

    e = e ? e : &mine;
    if (n < 0 || n > MAX_ITEMS)
        return err_set(e, E_ARG, "'%s': %d tensors; 0 to %d can be written", path, n, MAX_ITEMS);
    rc = arena_init(&a, "torch_save", ARENA_HOST, (size_t)(n + 4) * (WEIGHTS_MAX_NAME + 2 * ITEM_BYTES), e);
    rc = rc ? rc : save(&w, path, item, n, &a, e);
    arena_free(&a);
    return rc;
}

int torch_save(const char *path, const struct safetensors_item *item, int n, struct err *e)
{
    return torch_save_narrow(path, item, n, narrow_limit, e);
}
