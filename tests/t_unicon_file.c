/* tests/t_unicon_file.c: UniCon checkpoints: as training leaves them, under other names, written and read again; what
 * does not fit is refused in one line; configurations. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "store/safetensors.h"
#include "store/unicon_file.h"
#include "tests/base_kit.h"
#include "tests/kit.h"
#include "tests/tap.h"

#define CORPUS "tests/corpus/unicon/"
#define DOWN "down_blocks.0.attentions.0.transformer_blocks.0"
#define MID "mid_block.attentions.0.transformer_blocks.0"

static const char *const part_name[] = { "xy_lora", "yx_lora", "y_lora", "post" };

/* ---- the fixtures of tests/reference/unicon_files.py ---- */

/* Element i of a tensor there. */
static float formula(const char *part, const char *name, int64_t i)
{
    int64_t s = '/';

    for (const char *p = part; *p; p++)
        s += (unsigned char)*p;
    for (const char *p = name; *p; p++)
        s += (unsigned char)*p;
    return (float)((7 * i + s) % 101 - 50) / 64;
}

static bool has_values(const struct weights *t, const char *part, int n)
{
    struct err e = { 0 };
    float f[1024];
    bool ok = t->n == n;

    for (int i = 0; i < t->n && ok; i++) {
        const struct weights_entry *w = &t->entry[i];
        ok = weights_count(w) <= (int64_t)LEN(f) && !weights_read(w, f, F32, &e);
        for (int64_t k = 0; ok && k < weights_count(w); k++)
            ok = fabsf(f[k] - formula(part, w->name, k)) <= 0;
        if (!ok)
            tap_note("%s: '%s' has other values", part, w->name);
    }
    if (t->n != n)
        tap_note("%s: %d tensors", part, t->n);
    return ok;
}

static struct unicon_file *open_file(const char *path, const char *config)
{
    struct unicon_file *f = NULL;
    struct err e = { 0 };

    if (unicon_file_open(&f, path, config, &e))
        tap_note("%s", e.text);
    return f;
}

static bool is(const struct unicon_file *f, const char *name, const char *trigger, enum joint_post kind, bool y)
{
    const struct joint_weights *w = f ? &f->weights : NULL;
    const bool ok = w && !strcmp(f->name, name) && !strcmp(f->trigger, trigger) && w->kind == kind &&
                    w->scale >= 1 && w->scale <= 1 && (w->y != NULL) == y && w->xy == &f->xy && w->yx == &f->yx &&
                    w->post == &f->post && (!y || w->y == &f->y);

    if (!ok && f)
        tap_note("'%s', '%s', kind %d", f->name, f->trigger, (int)w->kind);
    return ok;
}

static bool is_depth(const struct unicon_file *f)
{
    return has_values(&f->xy, "xy_lora", 16) && has_values(&f->yx, "yx_lora", 16) &&
           has_values(&f->y, "y_lora", 32) && has_values(&f->post, "post", 2);
}

static void test_fixtures(void)
{
    struct unicon_file *f = open_file(CORPUS "depth", NULL);

    tap_ok(is(f, "depth", "depth_map, ", JOINT_CONV_FUSE, true) && is_depth(f), "as training leaves it");
    tap_ok(f && weights_get(&f->xy, DOWN ".attn1n.to_out.0.down.weight") &&
               weights_get(&f->y, MID ".attn2.to_k.up.weight") && weights_get(&f->post, MID ".conv1n.weight") &&
               !weights_get(&f->y, DOWN ".attn1n.to_q.down.weight"),
           "the names of core");
    unicon_file_close(f);
    f = open_file(CORPUS "depth/", NULL);
    tap_ok(is(f, "depth", "depth_map, ", JOINT_CONV_FUSE, true), "a name with a slash behind");
    unicon_file_close(f);
    f = open_file(CORPUS "odd.json", NULL);
    tap_ok(is(f, "odd", "odd_map, ", JOINT_CONV, false) && has_values(&f->xy, "xy_lora", 16) &&
               has_values(&f->yx, "yx_lora", 16) && has_values(&f->post, "post", 2) &&
               f->xy.entry[0].type == STORED_F16 && f->yx.entry[0].type == STORED_BF16,
           "other names and types, by a configuration");
    unicon_file_close(f);
    f = open_file(CORPUS "variant", CORPUS "odd.json");
    tap_ok(is(f, "odd", "odd_map, ", JOINT_CONV, false), "a directory and a configuration");
    unicon_file_close(f);
    f = open_file(CORPUS "variant", NULL);
    tap_ok(is(f, "variant", "", JOINT_CONV, false), "a directory without one");
    unicon_file_close(f);
}

/* ---- checkpoints written by hand, with one thing changed ---- */

enum { MAX_ITEM = 80, RANK = 4, TEXT = 12 };

static float zeros[64 * 64];

struct made {
    struct safetensors_item item[MAX_ITEM];
    char name[MAX_ITEM][160];
    int n;
};

static void add(struct made *m, const char *name, int64_t rows, int64_t columns)
{
    snprintf(m->name[m->n], sizeof m->name[0], "%s", name);
    m->item[m->n] = (struct safetensors_item){ m->name[m->n], STORED_F32, 2, { rows, columns }, zeros };
    m->n++;
}

static void add_adapter(struct made *m, const char *block, int64_t C, const char *attn)
{
    static const char *const proj[] = { "to_q", "to_k", "to_v", "to_out.0" };
    char name[160];

    for (int p = 0; p < 4; p++) {
        const bool text = !strcmp(attn, "attn2") && (p == 1 || p == 2);
        snprintf(name, sizeof name, "unet.%s.%s.%s.lora.down.weight", block, attn, proj[p]);
        add(m, name, RANK, text ? TEXT : C);
        snprintf(name, sizeof name, "unet.%s.%s.%s.lora.up.weight", block, attn, proj[p]);
        add(m, name, C, RANK);
    }
}

static const struct {
    const char *block;
    int64_t C;
} blocks[] = { { DOWN, 8 }, { MID, 16 }, { "up_blocks.1.attentions.0.transformer_blocks.0", 8 },
               { "up_blocks.1.attentions.1.transformer_blocks.0", 8 } };

static void fill(struct made *m, int part)
{
    char name[160];

    m->n = 0;
    for (size_t b = 0; b < LEN(blocks); b++) {
        if (part < 2)
            add_adapter(m, blocks[b].block, blocks[b].C, "attn1n");
        if (part == 2) {
            add_adapter(m, blocks[b].block, blocks[b].C, "attn1");
            add_adapter(m, blocks[b].block, blocks[b].C, "attn2");
        }
        if (part == 3) {
            snprintf(name, sizeof name, "%s.conv1n.weight", blocks[b].block);
            add(m, name, 2 * blocks[b].C, 2 * blocks[b].C);
        }
    }
}

/* Of the tensors whose names have `where` in them: other sizes, another name for the part `where`, a type; DROP leaves
 * them out, ADD adds one of that name. */
enum action { NOTHING, DROP, ADD, SIZES, RENAME, TYPE, FLAT };

struct change {
    int part;
    enum action action;
    const char *where;
    int64_t rows, columns;          /* TYPE: rows is the type */
    const char *to;
};

static void change(struct made *m, const struct change *c)
{
    char old[160];
    int n = 0;

    if (c->action == ADD)
        add(m, c->where, c->rows, c->columns);
    for (int i = 0; i < m->n && c->action != ADD; i++) {
        struct safetensors_item item = m->item[i];
        char *at = strstr(m->name[i], c->where);
        if (at && c->action == DROP)
            continue;
        snprintf(old, sizeof old, "%s", m->name[i]);
        if (at && c->action == RENAME)
            snprintf(m->name[n], sizeof m->name[0], "%.*s%s%s", (int)(at - m->name[i]), old, c->to,
                     old + (at - m->name[i]) + strlen(c->where));
        else
            snprintf(m->name[n], sizeof m->name[0], "%s", old);
        if (at && c->action == SIZES) {
            item.dim[0] = c->rows ? c->rows : item.dim[0];
            item.dim[1] = c->columns ? c->columns : item.dim[1];
        }
        if (at && c->action == TYPE)
            item.type = (enum stored_type)c->rows;
        if (at && c->action == FLAT)
            item.n_dim = 1;
        item.name = m->name[n];
        m->item[n++] = item;
    }
    m->n = c->action == ADD ? m->n : n;
}

static void make_folder(const char *path)
{
    struct stat st;

    if (stat(path, &st))
        base_mkdir(path);
}

static const char *lora_path(const char *dir, const char *part)
{
    make_folder(base_path("%s/%s", dir, part));
    return base_path("%s/%s/pytorch_lora_weights.safetensors", dir, part);
}

static bool changes(const struct change c[3], int part)
{
    for (int i = 0; i < 3 && c && c[i].action; i++)
        if (c[i].part == part)
            return true;
    return false;
}

/* In the test's own folder; the changes are made in their order, up to the first that is none. What is not changed is a
 * link to the first checkpoint made: a file of its own would be flushed to the disk. */
static void make(const char *dir, const struct change c[3])
{
    static struct made m;
    static char first[4][300];
    struct err e = { 0 };

    make_folder(base_path("%s", dir));
    for (int part = 0; part < 4; part++) {
        const char *path = part == 3 ? base_path("%s/model.safetensors", dir) : lora_path(dir, part_name[part]);
        const bool changed = changes(c, part);
        if (!changed && *first[part] && !link(first[part], path))
            continue;
        fill(&m, part);
        for (int i = 0; changed && i < 3 && c[i].action; i++)
            if (c[i].part == part)
                change(&m, &c[i]);
        if (safetensors_write(path, m.item, m.n, NULL, &e)) {
            tap_note("%s", e.text);
            exit(1);
        }
        if (!changed && !*first[part])
            snprintf(first[part], sizeof first[part], "%s", path);
    }
}

static const struct {
    const char *why;
    struct change c[3];
    const char *part;           /* of the message; NULL: it is taken */
} cases[] = {
    { "as it is", { { 0 } }, NULL },
    { "projections in the decoder alone", { { 3, DROP, DOWN, 0, 0, 0 } }, NULL },
    { "projections and adapters in the decoder alone",
      { { 3, DROP, DOWN, 0, 0, 0 }, { 0, DROP, DOWN, 0, 0, 0 }, { 1, DROP, DOWN, 0, 0, 0 } }, NULL },
    { "a rank of y's own", { { 2, SIZES, ".down.", 2, 0, 0 }, { 2, SIZES, ".up.", 0, 2, 0 } }, NULL },
    { "copies of xy in y's file", { { 2, ADD, "unet." DOWN ".attn1n.to_q.lora.down.xy_lora.weight", 4, 8, 0 } }, NULL },
    { "copies of adapters beside projections", { { 3, ADD, DOWN ".attn1n.to_q.lora_A.xy_lora.weight", 4, 8, 0 } },
      NULL },
    { "an optimizer beside projections", { { 3, ADD, "optimizer.state.0.exp_avg", 4, 8, 0 } }, NULL },
    { "projections under 'unet.'", { { 3, RENAME, "mid_block", 0, 0, "unet.mid_block" } }, NULL },
    { "peft's names", { { 0, RENAME, ".lora.down", 0, 0, ".lora_A" }, { 0, RENAME, ".lora.up", 0, 0, ".lora_B.x" } },
      NULL },
    { "diffusers' older names", { { 2, RENAME, ".lora.", 0, 0, ".lora_linear_layer." } }, NULL },
    { "a down without an up", { { 0, DROP, MID ".attn1n.to_v.lora.up", 0, 0, 0 } },
      "xy_lora: tensor '" MID ".attn1n.to_v.up.weight' is missing" },
    { "an up without a down", { { 2, DROP, MID ".attn2.to_k.lora.down", 0, 0, 0 } },
      "y_lora: tensor '" MID ".attn2.to_k.down.weight' is missing" },
    { "no attn2", { { 2, DROP, ".attn2.", 0, 0, 0 } }, "attn2.to_q.down.weight' is missing" },
    { "ranks of one pair", { { 1, SIZES, MID ".attn1n.to_q.lora.up", 0, 3, 0 } }, "no common rank" },
    { "ranks of two pairs",
      { { 1, SIZES, MID ".attn1n.to_q.lora.up", 0, 3, 0 }, { 1, SIZES, MID ".attn1n.to_q.lora.down", 3, 0, 0 } },
      "yx_lora: '" MID ".attn1n.to_q.down.weight' has rank 3, others have 4" },
    { "a width inside a block", { { 0, SIZES, DOWN ".attn1n.to_k.lora.up", 7, 0, 0 } }, "do not fit" },
    { "an input inside a block", { { 0, SIZES, DOWN ".attn1n.to_k.lora.down", 0, 7, 0 } }, "do not fit" },
    { "sizes of text that differ", { { 2, SIZES, MID ".attn2.to_v.lora.down", 0, 24, 0 } }, "do not fit" },
    { "a width that differs between adapters",
      { { 1, SIZES, DOWN, 9, 9, 0 }, { 1, SIZES, "lora.down", 4, 0, 0 }, { 1, SIZES, "lora.up", 0, 4, 0 } },
      "block '" DOWN "' has width 8 in xy_lora, 9 in yx_lora" },
    { "a block in xy alone", { { 1, DROP, MID, 0, 0, 0 } }, "block '" MID "' is in xy_lora and not in yx_lora" },
    { "a block in yx alone", { { 0, DROP, MID, 0, 0, 0 } }, "block '" MID "' is in yx_lora and not in xy_lora" },
    { "a block that y has not", { { 2, DROP, MID, 0, 0, 0 } }, "block '" MID "' is in xy_lora and not in y_lora" },
    { "kinds that differ", { { 3, SIZES, "up_blocks.1.attentions.1", 8, 8, 0 } }, "a conv, where a conv_fuse is" },
    { "a projection of no kind", { { 3, SIZES, MID, 24, 24, 0 } }, "neither conv nor conv_fuse" },
    { "one value too many", { { 3, SIZES, MID, 33, 33, 0 } }, "neither conv nor conv_fuse" },
    { "a projection that is not square", { { 3, SIZES, MID, 32, 16, 0 } }, "neither conv nor conv_fuse" },
    { "a projection less", { { 3, DROP, "up_blocks.1.attentions.1", 0, 0, 0 } },
      "projections: tensor 'up_blocks.1.attentions.1.transformer_blocks.0.conv1n.weight' is missing; "
      "'up_blocks.1.attentions.0" },
    { "no projection", { { 3, DROP, "conv1n", 0, 0, 0 } }, "no conv1n or post1n" },
    { "a projection without adapters", { { 3, ADD, "down_blocks.1.attentions.0.transformer_blocks.0.conv1n.weight", 8,
      8, 0 } }, "do not have" },
    { "a bias", { { 3, ADD, MID ".conv1n.bias", 16, 1, 0 } }, "'" MID ".conv1n.bias' is not known" },
    { "projections of two models", { { 3, RENAME, MID ".conv1n", 0, 0, MID ".post1n.a" },
      { 3, RENAME, DOWN ".conv1n", 0, 0, DOWN ".post1n.b" } }, "several models" },
    { "a projection twice", { { 3, ADD, MID ".post1n.a.weight", 32, 32, 0 } }, "twice" },
    { "post1n without a model", { { 3, RENAME, MID ".conv1n", 0, 0, MID ".post1n" } }, "not known" },
    { "a base model's weights", { { 3, ADD, "conv_in.weight", 8, 8, 0 } },
      "'conv_in.weight' is no part of a UniCon checkpoint; is it a base" },
    { "a plain LoRA as xy", { { 0, RENAME, "attn1n", 0, 0, "attn1" } }, "is of a plain LoRA, not of xy_lora" },
    { "xy as y", { { 2, RENAME, "attn2", 0, 0, "attn1n" } }, "belongs into xy_lora or yx_lora" },
    { "kohya's names", { { 0, ADD, "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight", 4, 4, 0 } },
      "plain LoRA" },
    { "an alpha", { { 0, ADD, "unet." MID ".attn1n.to_q.alpha", 1, 1, 0 } }, "not known" },
    { "a base model as an adapter", { { 0, ADD, MID ".attn1.to_q.weight", 1, 1, 0 } }, "is no part of" },
    { "a block by another name", { { 0, RENAME, "mid_block", 0, 0, "mid" } }, "not known" },
    { "a block with a number of three digits",
      { { 0, RENAME, "transformer_blocks.0", 0, 0, "transformer_blocks.000" } }, "not known" },
    { "doubles", { { 1, TYPE, MID ".attn1n.to_k.lora.up", STORED_F64, 0, 0 } }, "no matrix of F32" },
    { "a vector", { { 1, FLAT, MID ".attn1n.to_k.lora.up", 0, 0, 0 } }, "no matrix of F32" },
    { "nothing", { { 1, DROP, "", 0, 0, 0 } }, "yx_lora: there are no tensors" },
};

static void test_cases(void)
{
    for (size_t i = 0; i < LEN(cases); i++) {
        struct unicon_file *f = NULL;
        struct err e = { 0 };
        char name[40], dir[300];
        int rc;

        snprintf(name, sizeof name, "case%zu", i);
        snprintf(dir, sizeof dir, "%s", base_path("%s", name));
        make(name, cases[i].c);
        rc = unicon_file_open(&f, dir, NULL, &e);
        if (cases[i].part)
            tap_ok(rc == E_FORMAT && e.code == rc && !f && strstr(e.text, cases[i].part) && strstr(e.text, dir),
                   "%s: %s", cases[i].why, e.text);
        else
            tap_ok(!rc && f && f->weights.y && f->post.n && f->weights.kind == JOINT_CONV_FUSE, "%s%s", cases[i].why,
                   e.text);
        unicon_file_close(f);
    }
}

/* ---- directories ---- */

static bool refused(const char *path, const char *config, int code, const char *part)
{
    struct unicon_file *f = NULL;
    struct err e = { 0 };
    const int rc = unicon_file_open(&f, path, config, &e);
    const bool ok = tap_ok(rc == code && e.code == code && !f && strstr(e.text, part) && !strchr(e.text, '\n'),
                           "refused: %s", e.text);

    unicon_file_close(f);
    return ok;
}

static void test_directories(void)
{
    const struct safetensors_item one = { "a", STORED_F32, 1, { 4 }, zeros };
    struct err e = { 0 };
    char dir[300];

    snprintf(dir, sizeof dir, "%s", base_path("place"));
    refused("tests/corpus/no such place", NULL, E_IO, "there is no such directory");
    refused(CORPUS "depth/model.pth", NULL, E_FORMAT, "a single file of weights");
    refused(CORPUS "depth/xy_lora/pytorch_lora_weights.safetensors", NULL, E_FORMAT, "a single file of weights");
    refused(CORPUS, NULL, E_FORMAT, "no folder 'xy_lora'");
    refused(CORPUS "depth/xy_lora", NULL, E_FORMAT, "a plain LoRA");
    refused(CORPUS "odd.json", CORPUS "odd.json", E_ARG, "a configuration already");
    refused(CORPUS "depth", CORPUS "odd.json", E_FORMAT, "a conv_fuse, where a conv is");
    refused(CORPUS "depth", CORPUS "none.json", E_IO, "none.json");
    base_mkdir(dir);
    base_text(base_path("place/model_index.json"), "{}");
    refused(dir, NULL, E_FORMAT, "a base model");
    make("place", NULL);
    refused(base_path("place/../none"), NULL, E_IO, "no such directory");
    unlink(base_path("place/y_lora/pytorch_lora_weights.safetensors"));
    refused(dir, NULL, E_FORMAT, "folder 'y_lora' has no .safetensors");
    if (safetensors_write(base_path("place/y_lora/a.safetensors"), &one, 1, NULL, &e) ||
        safetensors_write(base_path("place/y_lora/b.safetensors"), &one, 1, NULL, &e))
        exit(1);
    refused(dir, NULL, E_FORMAT, "folder 'y_lora' has 2 .safetensors");
    unlink(base_path("place/y_lora/a.safetensors"));
    refused(dir, NULL, E_FORMAT, "y_lora/b.safetensors: tensor 'a'");
    unlink(base_path("place/y_lora/b.safetensors"));
    rmdir(base_path("place/y_lora"));
    base_text(base_path("place/unicon.json"), "{\"adapter_names\": [\"xy_lora\", \"yx_lora\", \"y_lora\"]}");
    refused(dir, NULL, E_FORMAT, "place': it has no folder 'y_lora'");
    base_text(base_path("place/unicon.json"), "{\"model_name\": ");
    refused(dir, NULL, E_FORMAT, "unicon.json': model configuration: not JSON, line 1");
    unlink(base_path("place/unicon.json"));
    unlink(base_path("place/model.safetensors"));
    refused(dir, NULL, E_FORMAT, "neither model.pth nor model.safetensors");
    base_text(base_path("place/model.pth"), "no weights");
    refused(dir, NULL, E_FORMAT, "model.pth");
    base_text(base_path("lost.json"), "{\"checkpoint_path\": \"weights/depth\"}");
    refused(base_path("lost.json"), NULL, E_IO, "there is no directory");
    base_text(base_path("lost.json"), "{}");
    refused(base_path("lost.json"), NULL, E_FORMAT, "no checkpoint_path");
}

/* The usual name wins over others, as in the official loader; y_lora is not read where the configuration has none;
 * checkpoint_path may start at the current directory. */
static void test_choices(void)
{
    const struct safetensors_item one = { "a", STORED_F32, 1, { 4 }, zeros };
    struct unicon_file *f;
    struct err e = { 0 };

    make("depth-v2.1", NULL);
    if (safetensors_write(base_path("depth-v2.1/xy_lora/a.safetensors"), &one, 1, NULL, &e))
        exit(1);
    f = open_file(base_path("depth-v2.1"), NULL);
    tap_ok(is(f, "depth-v2.1", "", JOINT_CONV_FUSE, true), "the usual name wins over others");
    unicon_file_close(f);
    base_text(base_path("depth-v2.1/unicon.json"),
              "{\"model_name\": \"edge\", \"adapter_names\": [\"xy_lora\", \"yx_lora\"], \"more\": 1}");
    f = open_file(base_path("depth-v2.1"), NULL);
    tap_ok(is(f, "edge", "edge_map, ", JOINT_CONV_FUSE, false), "its own configuration; y_lora is not wanted");
    unicon_file_close(f);
    base_text(base_path("here.json"), "{\"checkpoint_path\": \"" CORPUS "depth\", \"trigger_word\": \"\"}");
    f = open_file(base_path("here.json"), NULL);
    tap_ok(is(f, "depth", "", JOINT_CONV_FUSE, true) && is_depth(f), "a path from the current directory");
    unicon_file_close(f);
}

/* ---- configurations ---- */

static void test_config(void)
{
    static const struct {
        const char *text, *part;
    } bad[] = {
        { "", "line 1" }, { "[]", "not a JSON object" }, { "{\"model_name\": 3}", "'model_name' is 3" },
        { "{\"model_name\": \"a\\nb\"}", "control character" },
        { "{\"model_name\": \"0123456789012345678901234567890123456789012345678901234567890123\"}", "63 are possible" },
        { "{\"post_joint\": \"linear\"}", "post_joint \"linear\" is not supported" },
        { "{\"adapter_names\": [\"z_lora\"]}", "'z_lora' is not known" },
        { "{\"adapter_names\": [\"xy_lora\", \"y_lora\"]}", "no yx_lora" },
        { "{\"adapter_names\": [\"y_lora\"]}", "no xy_lora" },
        { "{\"adapter_names\": [1]}", "adapter_names" }, { "{\"adapter_names\": 7}", "adapter_names" },
        { "{\"model_name\": \"a\", \"model_name\": \"a\"}", "duplicate" },
    };
    static const char good[] = "{\"model_name\": \"012345678901234567890123456789012345678901234567890123456789012\", "
                               "\"post_joint\": \"conv\", \"trigger_word\": \"\", \"checkpoint_path\": \"a/b\", "
                               "\"adapter_names\": [\"y_lora\", \"yx_lora\", \"xy_lora\"]}";
    struct unicon_config u, v;
    struct err e = { 0 };

    for (size_t i = 0; i < LEN(bad); i++) {
        memset(&u, 0xA5, sizeof u);
        memset(&v, 0xA5, sizeof v);
        tap_ok(unicon_config_parse(&u, bad[i].text, strlen(bad[i].text), &e) == E_FORMAT &&
                   strstr(e.text, bad[i].part) && !memcmp(&u, &v, sizeof u),
               "refused: %s", e.text);
    }
    tap_ok(!unicon_config_parse(&u, good, strlen(good), &e) && strlen(u.name) == 63 && u.kind == JOINT_CONV &&
               u.y == 1 && u.has_trigger && !u.trigger[0] && !strcmp(u.path, "a/b"),
           "all of it is read");
    tap_ok(!unicon_config_parse(&u, "{}", 2, &e) && !u.name[0] && u.kind == -1 && u.y == -1 && !u.has_trigger &&
               !u.path[0],
           "nothing is said");
}

/* ---- writing ---- */

/* The names and sizes in two files, apart from those of the first with `without` in them, and their bits. */
static bool same_file(const char *a, const char *b, const char *without)
{
    struct weights_file *p = NULL, *q = NULL;
    struct err e = { 0 };
    int n = 0;
    bool ok = !weights_file_open(&p, a, &e) && !weights_file_open(&q, b, &e);

    for (int i = 0; ok && i < p->table.n; i++) {
        const struct weights_entry *w = &p->table.entry[i], *v = weights_get(&q->table, w->name);
        float x[1024], y[1024];
        if (strstr(w->name, without))
            continue;
        n++;
        ok = v && v->type == STORED_F32 && v->n_dim == w->n_dim && !memcmp(v->dim, w->dim, sizeof w->dim);
        ok = ok && weights_count(w) <= (int64_t)LEN(x) && !weights_read(w, x, F32, &e) && !weights_read(v, y, F32, &e);
        ok = ok && !memcmp(x, y, sizeof *x * (size_t)weights_count(w));
        if (!ok)
            tap_note("'%s'", w->name);
    }
    ok = ok && n == q->table.n && n > 0;
    if (e.code)
        tap_note("%s", e.text);
    weights_file_close(p);
    weights_file_close(q);
    return ok;
}

#define LORA "/pytorch_lora_weights.safetensors"

static void test_round(void)
{
    struct unicon_file *f = open_file(CORPUS "depth", NULL), *g;
    struct err e = { 0 };
    char dir[300], a[600], b[400];
    bool ok = f != NULL;

    snprintf(dir, sizeof dir, "%s", base_path("pose"));
    for (int again = 0; again < 2 && ok; again++) {
        ok = !unicon_file_write(dir, &f->weights, NULL, NULL, true, &e);
        g = ok ? open_file(dir, NULL) : NULL;
        tap_ok(ok && is(g, "pose", "pose_map, ", JOINT_CONV_FUSE, true) && is_depth(g), "written and read again%s%s",
               again ? ", over itself" : "", e.text);
        unicon_file_close(g);
    }
    for (int part = 0; part < 3; part++) {
        snprintf(a, sizeof a, "%s/%s" LORA, dir, part_name[part]);
        snprintf(b, sizeof b, CORPUS "depth/%s" LORA, part_name[part]);
        tap_ok(same_file(b, a, ".xy_lora."), "%s: the names and bits that training writes", part_name[part]);
    }
    snprintf(a, sizeof a, "%s/model.pth", dir);
    tap_ok(same_file(CORPUS "depth/model.pth", a, "lora"), "model.pth: the names and bits that training writes");
    snprintf(a, sizeof a, "%s/unicon.json", dir);
    g = open_file(a, NULL);
    tap_ok(is(g, "pose", "pose_map, ", JOINT_CONV_FUSE, true) && is_depth(g), "opened by its configuration");
    unicon_file_close(g);
    unicon_file_close(f);

    f = open_file(CORPUS "odd.json", NULL);
    ok = f && !unicon_file_write(base_path("two"), &f->weights, "mine", "\"\xc3\xa9\", ", false, &e);
    g = ok ? open_file(base_path("two"), NULL) : NULL;
    tap_ok(is(g, "mine", "\"\xc3\xa9\", ", JOINT_CONV, false) && has_values(&g->xy, "xy_lora", 16) &&
               has_values(&g->yx, "yx_lora", 16) && has_values(&g->post, "post", 2) &&
               g->yx.entry[3].type == STORED_F32,
           "16 bits become 32, projections as safetensors%s", e.text);
    unicon_file_close(g);
    unicon_file_close(f);
}

/* A tensor that lies across its rows is written along them. */
static void test_transposed(void)
{
    struct unicon_file *f = open_file(CORPUS "depth", NULL), *g = NULL;
    struct weights_entry *w = f ? weights_get(&f->post, DOWN ".conv1n.weight") : NULL;
    struct err e = { 0 };
    float x[16][16], y[16][16];
    bool ok = w && w->n_dim == 2 && w->dim[0] == 16 && !weights_read(w, x, F32, &e);

    if (ok) {
        w->stride[0] = 1;
        w->stride[1] = 16;
        ok = !unicon_file_write(base_path("across"), &f->weights, NULL, NULL, true, &e);
    }
    g = ok ? open_file(base_path("across"), NULL) : NULL;
    w = g ? weights_get(&g->post, DOWN ".conv1n.weight") : NULL;
    ok = w && weights_is_dense(w) && !weights_read(w, y, F32, &e);
    for (int i = 0; ok && i < 16; i++)
        for (int k = 0; k < 16; k++)
            ok = ok && !memcmp(&x[i][k], &y[k][i], sizeof x[i][k]);
    tap_ok(ok, "a tensor that lies across its rows%s", e.text);
    unicon_file_close(g);
    unicon_file_close(f);
}

static bool not_written(const char *dir, const struct joint_weights *w, const char *name, bool pth, int code,
                        const char *part)
{
    struct err e = { 0 };
    const int rc = unicon_file_write(dir, w, name, NULL, pth, &e);

    return tap_ok(rc == code && e.code == code && strstr(e.text, part), "refused: %s", e.text);
}

static void test_not_written(void)
{
    struct unicon_file *f = open_file(CORPUS "depth", NULL);
    struct joint_weights w;
    struct weights fewer;
    struct weights_entry more[17];
    char dir[300];
    struct stat st;

    if (!f)
        exit(1);
    snprintf(dir, sizeof dir, "%s", base_path("never"));
    w = f->weights;
    w.scale = 0.5;
    not_written(dir, &w, NULL, true, E_ARG, "scale of 0.5");
    w = f->weights;
    w.yx = NULL;
    not_written(dir, &w, NULL, true, E_ARG, "yx_lora or the projections are missing");
    w = f->weights;
    w.kind = JOINT_CONV;
    not_written(dir, &w, NULL, true, E_ARG, "a conv_fuse, where a conv is");
    w = f->weights;
    fewer = f->xy;
    fewer.n--;
    w.xy = &fewer;
    not_written(dir, &w, NULL, true, E_ARG, "is missing");
    memcpy(more, f->xy.entry, sizeof *more * 16);
    more[16] = more[15];
    more[16].name = MID ".attn1n.to_v.up.weights";
    fewer = (struct weights){ .entry = more, .n = 17 };
    not_written(dir, &w, NULL, true, E_ARG, "17 tensors");
    not_written(dir, &f->weights, "a\tb", true, E_ARG, "control character");
    not_written(dir, &f->weights, "\xff", true, E_ARG, "UTF-8");
    tap_ok(stat(dir, &st), "nothing was made");
    not_written(base_path("never/never"), &f->weights, NULL, true, E_IO, "cannot make the directory");
    not_written(CORPUS "odd.json", &f->weights, NULL, true, E_IO, "cannot make the directory");
    make("taken", NULL);
    w = f->weights;
    w.y = NULL;
    not_written(base_path("taken"), &w, NULL, true, E_ARG, "there is a y_lora of another");
    base_text(base_path("taken/model.pth"), "");
    not_written(base_path("taken"), &f->weights, NULL, false, E_ARG, "there is a model.pth");
    unicon_file_close(f);
}

static void test_no_memory(void)
{
    struct unicon_file *f = open_file(CORPUS "odd.json", NULL), *g;
    struct err e = { 0 };
    char dir[300];
    bool ok = f != NULL;
    struct stat st;
    long n;
    int rc = E_NOMEM;

    for (n = 1; ok && rc; n++) {
        g = NULL;
        arena_fault_at(n);
        rc = unicon_file_open(&g, CORPUS "odd.json", NULL, &e);
        arena_fault_at(0);
        ok = rc ? rc == E_NOMEM && e.code == rc && !g : is(g, "odd", "odd_map, ", JOINT_CONV, false);
        unicon_file_close(g);
    }
    tap_ok(ok && n > 60, "reading: %ld allocations failed in turn%s%s", n - 2, ok ? "" : ": ", ok ? "" : e.text);
    snprintf(dir, sizeof dir, "%s", base_path("full"));
    for (rc = E_NOMEM, n = 1; ok && rc; n++) {
        arena_fault_at(n);
        rc = unicon_file_write(dir, &f->weights, NULL, NULL, true, &e);
        arena_fault_at(0);
        ok = !rc || (rc == E_NOMEM && e.code == rc && unicon_file_open(&g, dir, NULL, &e) < 0);
        ok = ok && (n > 1 || stat(dir, &st));
    }
    tap_ok(ok && n > 60, "writing: %ld allocations failed in turn%s%s", n - 2, ok ? "" : ": ", ok ? "" : e.text);
    g = open_file(dir, NULL);
    tap_ok(is(g, "full", "", JOINT_CONV, false), "then it is written");
    unicon_file_close(g);
    unicon_file_close(f);
}

int main(void)
{
    base_dir();
    test_fixtures();
    test_cases();
    test_directories();
    test_choices();
    test_config();
    test_round();
    test_transposed();
    test_not_written();
    test_no_memory();
    return tap_done();
}
