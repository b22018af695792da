/* tests/t_unpickle.c: pickles made by hand, as data.pkl of a zip: every operation, every way in which one can lie. */
#include <stdio.h>
#include <string.h>

#include "core/arena.h"
#include "core/weights.h"
#include "store/torch_pickle.h"
#include "tests/bytes.h"
#include "tests/kit.h"
#include "tests/tap.h"
#include "tests/zipper.h"

static struct arena meta;

static int parse(struct weights *t, const struct bytes *b, struct err *e)
{
    arena_release(&meta, 0);
    err_clear(e);
    return torch_pickle_parse(t, &meta, b->p, b->n, e);
}

static const struct {
    const char *why, *pickle;
    size_t n;
    const char *text;           /* of the only tensor, NULL: refused, "": an empty table */
    const char *part;           /* of the message */
} pickles[] = {
    { "a tensor", P(DICT_OF(TENSOR)), "F32 (2,2)", "" },
    { "without a protocol", P("}(" STR("\1", "a") TENSOR "u."), "F32 (2,2)", "" },
    { "SETITEM", P("}" STR("\1", "a") TENSOR "s."), "F32 (2,2)", "" },
    { "DICT", P("(" STR("\1", "a") TENSOR "d."), "F32 (2,2)", "" },
    { "DUP and POP", P(DICT_OF(TENSOR "20")), "F32 (2,2)", "" },
    { "POP_MARK",
      P(DICT_OF("(K\1K\2"
                "1" TENSOR)),
      "F32 (2,2)", "" },
    { "the memo, in lines", P("}p0\n0g0\n(" STR("\1", "a") TENSOR "u."), "F32 (2,2)", "" },
    { "LONG_BINPUT",
      P("}r\0\1\0\0"
        "0j\0\1\0\0(" STR("\1", "a") TENSOR "u."),
      "F32 (2,2)", "" },
    { "the first rebuild", P(DICT_OF("ctorch._utils\n_rebuild_tensor\n(" STORAGE("K\4") "K\1K\3\x85K\1\x85tR")),
      "F32 (3)", "" },
    { "a type of its own",
      P(DICT_OF("ctorch._utils\n_rebuild_tensor_v3\n(" STORAGE_OF(
          "torch.storage\nUntypedStorage", "K\x10") "K\1K\3\x85K\2\x85\x89}ctorch\nfloat8_e4m3fn\ntR")),
      "F8_E4M3 (3)", "" },
    { "bytes as numbers",
      P(DICT_OF("ctorch._utils\n_rebuild_tensor_v3\n(" STORAGE_OF(
          "torch\nUntypedStorage", "K\x10") "K\2K\2\x85K\1\x85\x89}ctorch\nfloat32\ntR")),
      "F32 (2)", "" },
    { "a type that torch does not have",
      P(DICT_OF("ctorch._utils\n_rebuild_tensor_v3\n(" STORAGE_OF("torch\nUntypedStorage",
                                                                  "K\x10") "K\0K\3\x85K\2\x85\x89}ctorch\nuint99\ntR")),
      NULL, "UntypedStorage" },
    { "Python 2's OrderedDict, from pairs", P("ccollections\nOrderedDict\n](](U\1a" TENSOR "ee\x85R."), "F32 (2,2)",
      "" },
    { "a dict from no pairs", P("ccollections\nOrderedDict\n](](U\1aee\x85R."), NULL, "list of pairs" },
    { "OBJ", P(DICT_OF("(cos\nsystem\nK\1o")), "", "" },
    { "INST", P(DICT_OF("(K\1ios\nsystem\n")), "", "" },
    { "INST of a dict", P("(icollections\nOrderedDict\n(U\1a" TENSOR "u."), "F32 (2,2)", "" },
    { "os.system is nothing", P(DICT_OF("cos\nsystem\nU\4true\x85R")), "", "" },
    { "what it gives is nothing too", P(DICT_OF("cos\nsystem\nU\4true\x85R)R(K\1K\2u(K\1e]b")), "", "" },
    { "NEWOBJ and NEWOBJ_EX",
      P(DICT_OF("ca\nb\n)\x81"
                "0ca\nb\n)}\x92}b")),
      "", "" },
    { "a set and a frozen one",
      P(DICT_OF("\x8f(K\1K\2\x90"
                "0(K\1\x91")),
      "", "" },
    { "bytes", P(DICT_OF("C\2ab0B\1\0\0\0a0\x8e\1\0\0\0\0\0\0\0a0\x96\1\0\0\0\0\0\0\0a")), "", "" },
    { "floats, long ones, old ones",
      P(DICT_OF("G12345678"
                "0F1.5\n0L12345678901234567890123L\n0I-7\n0I01\n0\x8b\1\0\0\0\xff"
                "0\x8a\0")),
      "", "" },
    { "an old string as key", P("}(S'a'\n" TENSOR "u."), "F32 (2,2)", "" },
    { "an old unicode key", P("}(Va\n" TENSOR "u."), "F32 (2,2)", "" },
    { "no elements, a far stride",
      P(DICT_OF(TENSOR_WITH(STORAGE("K\4"), "K\4", "K\0K\7\x86", "J\xff\xff\xff\x7fK\1\x86"))), "F32 (0,7)", "" },
    { "a view that ends with the storage", P(DICT_OF(TENSOR_WITH(STORAGE("K\4"), "K\1", "K\2\x85", "K\2\x85"))),
      "F32 (2)", "" },
    { "a smaller storage than the entry", P(DICT_OF(TENSOR_WITH(STORAGE("K\3"), "K\0", "K\3\x85", "K\1\x85"))),
      "F32 (3)", "" },
    { "a tensor in a list is not found", P(DICT_OF("](" TENSOR "e")), "", "" },

    { "one element past the storage", P(DICT_OF(TENSOR_WITH(STORAGE("K\3"), "K\0", "K\4\x85", "K\1\x85"))), NULL,
      "element 4" },
    { "a stride past the storage", P(DICT_OF(TENSOR_WITH(STORAGE("K\4"), "K\1", "K\2\x85", "K\3\x85"))), NULL,
      "element 4" },
    { "an offset past the storage", P(DICT_OF(TENSOR_WITH(STORAGE("K\4"), "K\5", "K\0\x85", "K\1\x85"))), NULL,
      "element 5" },
    { "a negative offset", P(DICT_OF(TENSOR_WITH(STORAGE("K\4"), "J\xff\xff\xff\xff", "K\1\x85", "K\1\x85"))), NULL,
      "element -1" },
    { "a negative size", P(DICT_OF(TENSOR_WITH(STORAGE("K\4"), "K\0", "J\xff\xff\xff\xff\x85", "K\1\x85"))), NULL,
      "negative" },
    { "a negative stride", P(DICT_OF(TENSOR_WITH(STORAGE("K\4"), "K\3", "K\2\x85", "J\xff\xff\xff\xff\x85"))), NULL,
      "negative" },
    { "sizes that overflow",
      P(DICT_OF(TENSOR_WITH(STORAGE("K\4"), "K\0", "\x8a\x08\0\0\0\0\0\0\0\x7f\x8a\x08\0\0\0\0\0\0\0\x7f\x86",
                            "K\0K\0\x86"))),
      NULL, "too large" },
    { "strides that overflow",
      P(DICT_OF(TENSOR_WITH(STORAGE("K\4"), "K\0", "K\3K\3\x86", "\x8a\x08\0\0\0\0\0\0\0\x7fK\0\x86"))), NULL,
      "too large" },
    { "an offset that overflows",
      P(DICT_OF(TENSOR_WITH(STORAGE("K\4"), "\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f", "K\1\x85", "K\1\x85"))), NULL,
      "begins at" },
    { "a size that is no int64",
      P(DICT_OF(TENSOR_WITH(STORAGE("K\4"), "K\0", "\x8a\x09\0\0\0\0\0\0\0\0\1\x85", "K\1\x85"))), NULL,
      "whole numbers" },
    { "more sizes than strides", P(DICT_OF(TENSOR_WITH(STORAGE("K\4"), "K\0", "K\1K\1\x86", "K\1\x85"))), NULL,
      "strides" },
    { "nine sizes",
      P(DICT_OF(TENSOR_WITH(STORAGE("K\4"), "K\0", "(K\1K\1K\1K\1K\1K\1K\1K\1K\1t", "(K\1K\1K\1K\1K\1K\1K\1K\1K\1t"))),
      NULL, "at most 8" },
    { "a size that is a float", P(DICT_OF(TENSOR_WITH(STORAGE("K\4"), "K\0", "G12345678\x85", "K\1\x85"))), NULL,
      "whole numbers" },
    { "more elements than the entry", P(DICT_OF(TENSOR_WITH(STORAGE("K\5"), "K\0", "K\1\x85", "K\1\x85"))), NULL,
      "5 elements" },
    { "so many that bytes overflow",
      P(DICT_OF(TENSOR_WITH(STORAGE("\x8a\x08\1\0\0\0\0\0\0\x40"), "K\0", "K\1\x85", "K\1\x85"))), NULL, "elements" },
    { "a negative number of elements",
      P(DICT_OF(TENSOR_WITH(STORAGE("J\xff\xff\xff\xff"), "K\0", "K\1\x85", "K\1\x85"))), NULL, "storage" },
    { "a storage of an unknown type",
      P(DICT_OF(TENSOR_WITH(STORAGE_OF("torch\nFooStorage", "K\4"), "K\0", "K\1\x85", "K\1\x85"))), NULL, "type" },
    { "a storage that is not there",
      P(DICT_OF(TENSOR_WITH("(" STR("\7", "storage") "ctorch\nFloatStorage\n" STR("\1", "9") STR("\3", "cpu") "K\4tQ",
                            "K\0", "K\1\x85", "K\1\x85"))),
      NULL, "archive/data/9" },
    { "a key that leads elsewhere",
      P(DICT_OF(TENSOR_WITH("(" STR("\7", "storage") "ctorch\nFloatStorage\n" STR("\x0a", "../version")
                                STR("\3", "cpu") "K\4tQ",
                            "K\0", "K\1\x85", "K\1\x85"))),
      NULL, "not in the zip" },
    { "a persistent id of another kind", P(DICT_OF("U\5hello\x85Q")), NULL, "('storage'" },
    { "a persistent id in text", P(DICT_OF("P123\n")), NULL, "operation 0x50" },
    { "a tensor without a storage", P(DICT_OF(TENSOR_WITH("K\1", "K\0", "K\1\x85", "K\1\x85"))), NULL, "no storage" },
    { "a tensor without arguments", P(DICT_OF(REBUILD ")R")), NULL, "too few" },
    { "arguments that are no tuple", P(DICT_OF(REBUILD "}R")), NULL, "no tuple" },
    { "a parameter that holds a number", P(DICT_OF("ctorch._utils\n_rebuild_parameter\nK\1\x85R")), NULL, "no tensor" },
    { "a number that is called", P(DICT_OF("K\1)R")), NULL, "no function" },
    { "a number with attributes", P(DICT_OF("K\1}b")), NULL, "attributes" },
    { "a number with items", P(DICT_OF("K\1(K\1e")), NULL, "holds none" },
    { "a tuple that grows", P(DICT_OF(")(K\1e")), NULL, "holds none" },
    { "a key without a value", P("}(" STR("\1", "a") "u."), NULL, "no value" },
    { "no mark", P("}K\1t."), NULL, "no mark" },
    { "an empty stack", P("\x80\2."), NULL, "nothing is on the stack" },
    { "a mark where a value is needed", P("(."), NULL, "nothing is on the stack" },
    { "a mark in a tuple", P("K\1(K\1\x87."), NULL, "too few" },
    { "an empty place in the memo", P("h\7."), NULL, "place 7" },
    { "a memo of four thousand million", P("}r\xff\xff\xff\xff."), NULL, "no place" },
    { "protocol 6", P("\x80\6}."), NULL, "protocol 6" },
    { "an operation that there is not", P("\x80\2\xff."), NULL, "0xff" },
    { "extensions", P("\x80\2\x82\1."), NULL, "0x82" },
    { "buffers from elsewhere", P("\x80\5\x97."), NULL, "0x97" },
    { "a string past the end",
      P("X\xff\xff\xff\x7f"
        "a."),
      NULL, "bytes more" },
    { "a string of 2^64 bytes",
      P("\x8d\xff\xff\xff\xff\xff\xff\xff\xff"
        "a."),
      NULL, "bytes more" },
    { "a long number past the end",
      P("\x8b\xff\xff\xff\xff"
        "a."),
      NULL, "bytes more" },
    { "a frame past the end", P("\x80\4\x95\xff\0\0\0\0\0\0\0}."), NULL, "frame" },
    { "a line without an end", P("cos"), NULL, "line" },
    { "a number that is none", P("I1x\n."), NULL, "no number" },
    { "no digits", P("I-\n."), NULL, "no number" },
    { "a string that is not in quotes", P("Sabc\n."), NULL, "quotes" },
    { "a string with an escape", P("S'a\\x41'\n."), NULL, "backslash" },
    { "no STOP", P("\x80\2}"), NULL, "1 bytes more" },
    { "nothing", P(""), NULL, "1 bytes more" },
    { "a number, no dict", P("K\1."), NULL, "not a dict" },
    { "an empty name", P("}(" STR("\0", "") TENSOR "u."), NULL, "no name" },
    { "a zero in a name", P("}(" STR("\3", "a\0b") TENSOR "u."), NULL, "zero byte" },
    { "no UTF-8", P("}(" STR("\2", "a\xff") TENSOR "u."), NULL, "0xff" },
    { "a name twice", P("}(" STR("\1", "a") TENSOR STR("\1", "a") TENSOR "u."), NULL, "'a' is there twice" },
    { "a name twice by nesting", P("}(" STR("\3", "a.b") TENSOR STR("\1", "a") "}(" STR("\1", "b") TENSOR "uu."), NULL,
      "'a.b' is there twice" },
    { "a dict in itself", P("}q\0(" STR("\1", "a") "h\0u."), NULL, "holds itself" },
    { "a dict in itself, twice removed", P("}q\0(" STR("\1", "a") "}(" STR("\1", "b") "h\0uu."), NULL,
      "'a.b' holds itself" },
    { "a list in itself is not looked into", P("}(" STR("\1", "a") "]q\0h\0au."), "", "" },
    { "a tuple of itself is none of our business", P(DICT_OF("]q\0(h\0h\0ta")), "", "" },
};

static void test_pickles(void)
{
    for (size_t i = 0; i < LEN(pickles); i++) {
        struct bytes b = zipper_pickle(pickles[i].pickle, pickles[i].n, false);
        struct weights t = { .n = -1 };
        struct err e;
        char text[100] = "";
        const int rc = parse(&t, &b, &e);
        bool ok = rc == (pickles[i].text ? OK : E_FORMAT);
        if (!rc) {
            ok &= t.n == (pickles[i].text && *pickles[i].text ? 1 : 0);
            if (t.n == 1)
                ok &= !strcmp(weights_text(&t.entry[0], text, sizeof text), pickles[i].text)
                      && !strcmp(t.entry[0].name, "a");
        } else {
            ok &= is_err(&e, E_FORMAT, pickles[i].part) && t.n == -1 && arena_mark(&meta) == 0;
        }
        tap_ok(ok, "pickle: %s%s%s%s", pickles[i].why, rc || *text ? ": " : "", e.text, text);
        bytes_free(&b);
    }
}

/* ---- large ones ---- */

/* head, n times middle, tail; as the only pickle of a zip */
static int parse_many(struct weights *t, const char *head, size_t n_head, const char *middle, size_t n_middle, int n,
                      const char *tail, size_t n_tail, struct err *e)
{
    struct bytes p = { 0 }, b;
    int rc;

    bytes_add(&p, head, n_head);
    for (int i = 0; i < n; i++)
        bytes_add(&p, middle, n_middle);
    bytes_add(&p, tail, n_tail);
    b = zipper_pickle(p.p, p.n, false);
    rc = parse(t, &b, e);
    bytes_free(&b);
    bytes_free(&p);
    return rc;
}

static void test_large(void)
{
    struct bytes p = { 0 }, b;
    struct weights t;
    struct err e;
    char text[60];
    bool ok;

    ok = parse_many(&t, P(""), P("("), 1000000, P("."), &e) == E_FORMAT && is_err(&e, E_FORMAT, "nothing is on");
    ok &= parse_many(&t, P("}U\1a)"), P("\x85"), 1000000, P("s."), &e) == OK && t.n == 0;
    ok &= parse_many(&t, P("}U\1a("), P("(t"), 1000000, P("ts."), &e) == OK && t.n == 0;
    tap_ok(ok, "a million nested tuples");
    ok = parse_many(&t, P(""), P("}U\1a"), 40, P("}" "ssssssssssssssssssssssssssssssssssssssss."), &e) == E_FORMAT;
    tap_ok(ok && is_err(&e, E_FORMAT, "nested deeper than 32"), "dicts forty deep: %s", e.text);
    ok = parse_many(&t, P("}"), P("K\1"), 5000000, P("."), &e) == E_FORMAT && is_err(&e, E_FORMAT, "more than 4194304");
    tap_ok(ok, "five million numbers: %s", e.text);
    ok = parse_many(&t, P("}"), P("N"), 5000000, P("."), &e) == E_FORMAT && is_err(&e, E_FORMAT, "more than 4194304");
    tap_ok(ok, "five million places on the stack");
    /* each dict holds the one before twice: 2^30 ways to the first */
    bytes_add(&p, P("}q\0"));
    for (int i = 0; i < 30; i++) {
        const int n = snprintf(text, sizeof text, "}U%cxh%cU%cyh%c", 1, i, 1, i);
        bytes_add(&p, text, 3);
        bytes_add(&p, "x", 1);
        bytes_add(&p, (const char[]){ 'h', (char)i, 's', 'U', 1, 'y', 'h', (char)i, 's', 'q', (char)(i + 1) }, 11);
        ok &= n > 0;
    }
    bytes_add(&p, ".", 1);
    b = zipper_pickle(p.p, p.n, false);
    ok = parse(&t, &b, &e) == E_FORMAT && is_err(&e, E_FORMAT, "more than 67108864 places");
    tap_ok(ok, "a tree without end from a hundred bytes: %s", e.text);
    bytes_free(&b);
    bytes_free(&p);
    /* as many tensors as a whole checkpoint, all of one storage */
    bytes_add(&p, P("}("));
    for (int i = 0; i < 3000; i++) {
        snprintf(text, sizeof text, "model.diffusion_model.block.%06d.weight", i);
        bytes_add(&p, (const char[]){ 'U', (char)strlen(text) }, 2);
        bytes_add(&p, text, strlen(text));
        bytes_add(&p, P(TENSOR));
    }
    bytes_add(&p, P("u."));
    b = zipper_pickle(p.p, p.n, false);
    ok = parse(&t, &b, &e) == OK && t.n == 3000 && weights_get(&t, "model.diffusion_model.block.002999.weight");
    tap_ok(ok, "3000 tensors");
    bytes_free(&b);
    bytes_free(&p);
}

static void test_names(void)
{
    struct bytes p = { 0 }, b;
    struct weights t;
    struct err e;
    char key[WEIGHTS_MAX_NAME + 1];
    bool ok;

    memset(key, 'k', sizeof key);
    for (size_t n = WEIGHTS_MAX_NAME - 1; n <= WEIGHTS_MAX_NAME + 1; n++)
        for (int nested = 0; nested < 2; nested++) {
            bytes_add(&p, P("}"));
            if (nested)
                bytes_add(&p, P("U\3abc}"));
            bytes_add(&p, "X", 1);
            bytes_add_number(&p, nested ? n - 4 : n, 4);
            bytes_add(&p, key, nested ? n - 4 : n);
            bytes_add(&p, P(TENSOR "s"));
            bytes_add(&p, nested ? "s." : ".", nested ? 2 : 1);
            b = zipper_pickle(p.p, p.n, false);
            ok = parse(&t, &b, &e) == (n <= WEIGHTS_MAX_NAME ? OK : E_FORMAT);
            if (n <= WEIGHTS_MAX_NAME)
                ok = ok && t.n == 1 && strlen(t.entry[0].name) == n;
            else
                ok = ok && is_err(&e, E_FORMAT, "1000 bytes");
            tap_ok(ok, "a %sname of %zu bytes", nested ? "nested " : "", n);
            bytes_free(&b);
            bytes_free(&p);
        }
    b = zipper_pickle(P("}(U\x0astate_dict}(U\1b" TENSOR "U\x0astate_dict}U\1c" TENSOR "suK\7}U\1d" TENSOR
                   "sJ\xfe\xff\xff\xff" TENSOR "\x8a\2\xd4\xfe" TENSOR "G12345678" TENSOR "K\1K\2\x86" TENSOR "u."),
                 false);
    ok = parse(&t, &b, &e) == OK && t.n == 5 && weights_get(&t, "b") && weights_get(&t, "state_dict.c")
        && weights_get(&t, "7.d") && weights_get(&t, "-2") && weights_get(&t, "-300");
    tap_ok(ok, "state_dict at the top is left out, whole numbers name, other keys do not%s%s", e.code ? ": " : "",
           e.text);
    bytes_free(&b);
}

int main(void)
{
    struct err e = { 0 };

    if (arena_init(&meta, "test", ARENA_HOST, (size_t)1 << 30, &e))
        return 1;
    test_pickles();
    test_large();
    test_names();
    arena_free(&meta);
    return tap_done();
}
