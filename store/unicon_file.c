#include "store/unicon_file.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "store/aside.h"
#include "store/json_conf.h"
#include "store/safetensors.h"
#include "store/torch_pickle.h"
#include "store/torch_save.h"
#include "store/unicon_tables.h"

static const char lora_name[] = "pytorch_lora_weights.safetensors", config_name[] = "unicon.json";
static const char pth_name[] = "model.pth", safe_name[] = "model.safetensors";

static const struct {
    const char *name, *trigger;
} published[] = {
    { "depth", "depth_map, " }, { "edge", "edge_map, " }, { "pose", "pose_map, " }, { "id", "" }, { "appearance", "" },
};

static const char *published_trigger(const char *name)
{
    for (size_t i = 0; i < sizeof published / sizeof *published; i++)
        if (!strcmp(name, published[i].name))
            return published[i].trigger;
    return "";
}

/* ---- paths ---- */

static int join(char out[UNICON_MAX_PATH], const char *dir, const char *name, struct err *e)
{
    const int n = snprintf(out, UNICON_MAX_PATH, "%s/%s", dir, name);

    return n > 0 && n < UNICON_MAX_PATH ? OK : err_set(e, E_ARG, "the path is too long");
}

static bool is_there(const char *dir, const char *name)
{
    char path[UNICON_MAX_PATH];
    struct stat st;

    return !join(path, dir, name, NULL) && !stat(path, &st);
}

static bool is_directory(const char *path)
{
    struct stat st;

    return !stat(path, &st) && S_ISDIR(st.st_mode);
}

/* The last part of a directory's path, cut between characters if it is too long. */
static void name_of(char out[UNICON_MAX_NAME], const char *dir)
{
    char *real = realpath(dir, NULL);
    const char *path = real ? real : dir, *slash = strrchr(path, '/');
    int n;

    path = slash && slash[1] ? slash + 1 : path;
    n = (int)strlen(path);
    if (n >= UNICON_MAX_NAME)
        for (n = UNICON_MAX_NAME - 1; n > 0 && ((unsigned char)path[n] & 0xC0) == 0x80; n--)
            ;
    snprintf(out, UNICON_MAX_NAME, "%.*s", n, path);
    free(real);
}

/* ---- the configuration ---- */

static void conf_copy(struct json_conf *c, char *out, size_t size, const char *key)
{
    const char *text = json_conf_text(c, key, "");

    for (const char *p = text; *p; p++)
        if ((unsigned char)*p < 0x20 || *p == 0x7F)
            json_conf_fail(c, "'%s' has a control character", key);
    if ((size_t)snprintf(out, size, "%s", text) >= size)
        json_conf_fail(c, "'%s' has %zu bytes; %zu are possible", key, strlen(text), size - 1);
}

/* Whether there is a y_lora; all names have to be known. */
static int conf_adapters(struct json_conf *c)
{
    bool has[3] = { false, false, false };
    int n = 0, k;

    json_conf_item(c, "adapter_names", 0, &n);
    for (int i = 0; i < n && !c->rc; i++) {
        const char *name = json_conf_item(c, "adapter_names", i, &n);
        for (k = UNICON_XY; k <= UNICON_Y && name && strcmp(name, unicon_folder[k]); k++)
            ;
        if (!name || k > UNICON_Y)
            json_conf_fail(c, "adapter_names: '%.40s' is not known; there are xy_lora, yx_lora and y_lora",
                           name ? name : "?");
        else
            has[k] = true;
    }
    if (n && !c->rc && !(has[UNICON_XY] && has[UNICON_YX]))
        json_conf_fail(c, "adapter_names has no %s", unicon_folder[has[UNICON_XY] ? UNICON_YX : UNICON_XY]);
    return n ? has[UNICON_Y] : -1;
}

int unicon_config_parse(struct unicon_config *out, const char *text, size_t n, struct err *e)
{
    struct unicon_config u = { .kind = -1, .y = -1 };
    struct json_conf c;

    if (!json_conf_open(&c, "model configuration", text, n, e)) {
        conf_copy(&c, u.name, sizeof u.name, "model_name");
        conf_copy(&c, u.trigger, sizeof u.trigger, "trigger_word");
        conf_copy(&c, u.path, sizeof u.path, "checkpoint_path");
        u.has_trigger = json_conf_get(&c, "trigger_word") != NULL;
        u.kind = json_conf_choice(&c, "post_joint", unicon_kind, -1);
        u.y = conf_adapters(&c);
    }
    if (json_conf_close(&c))
        return E_FORMAT;
    *out = u;
    return OK;
}

static int read_config(struct unicon_config *out, const char *path, struct err *e)
{
    struct map m = { 0 };
    int rc = map_open(&m, path, e);

    if (rc)
        return rc;
    if (safetensors_looks(m.base, m.size) || torch_pickle_looks(m.base, m.size))
        rc = err_set(e, E_FORMAT, "it is a single file of weights, a base model or a plain LoRA; a UniCon checkpoint "
                     "is a directory with %s, %s and %s", unicon_folder[UNICON_XY], unicon_folder[UNICON_YX], pth_name);
    else
        rc = unicon_config_parse(out, (const char *)m.base, m.size, e);
    map_close(&m);
    return rc;
}

/* Where a configuration's checkpoint is. */
static int follow(char dir[UNICON_MAX_PATH], const char *config, const char *path, struct err *e)
{
    const char *slash = strrchr(config, '/');
    const int n = slash && *path != '/' ? (int)(slash - config) + 1 : 0;

    if (!*path)
        return err_set(e, E_FORMAT, "'%s' has no checkpoint_path", config);
    if (snprintf(dir, UNICON_MAX_PATH, "%.*s%s", n, config, path) >= UNICON_MAX_PATH)
        return err_set(e, E_ARG, "the path is too long");
    if (!is_directory(dir) && is_directory(path))
        snprintf(dir, UNICON_MAX_PATH, "%s", path);
    return is_directory(dir) ? OK : err_set(e, E_IO, "there is no directory '%s', which '%s' names", dir, config);
}

/* ---- reading ---- */

static bool ends(const char *name, const char *with)
{
    const size_t n = strlen(name), m = strlen(with);

    return n > m && !strcmp(name + n - m, with);
}

/* How many .safetensors a folder has; the last one's name, or that of the usual one. */
static int count_weights(char out[UNICON_MAX_PATH], const char *dir)
{
    DIR *d = opendir(dir);
    struct dirent *item;
    bool usual = false;
    int n = 0;

    while (d && (item = readdir(d)))
        if (ends(item->d_name, ".safetensors") && item->d_name[0] != '.') {
            if (!usual)
                snprintf(out, UNICON_MAX_PATH, "%s", item->d_name);
            usual |= !strcmp(item->d_name, lora_name);
            n++;
        }
    if (d)
        closedir(d);
    return n;
}

static int missing_folder(const char *dir, int part, struct err *e)
{
    if (part == UNICON_XY && (is_there(dir, "model_index.json") || is_there(dir, "unet")))
        return err_set(e, E_FORMAT, "it is a base model, not a UniCon checkpoint: it has no folder '%s'",
                       unicon_folder[part]);
    if (part == UNICON_XY && (is_there(dir, lora_name) || is_there(dir, "adapter_model.safetensors")))
        return err_set(e, E_FORMAT, "it is a plain LoRA, not a UniCon checkpoint: it has no folder '%s'",
                       unicon_folder[part]);
    return err_set(e, E_FORMAT, "it has no folder '%s'%s", unicon_folder[part], part == UNICON_Y
                   ? ", which its configuration names" : "; a checkpoint has xy_lora, yx_lora and model.pth, and "
                   "most have y_lora");
}

/* Several are one too many for the official code, unless one has the usual name. */
static int find_adapter(char out[UNICON_MAX_PATH], const char *dir, int part, struct err *e)
{
    char path[UNICON_MAX_PATH], name[UNICON_MAX_PATH] = "";
    int n, rc = join(path, dir, unicon_folder[part], e);

    if (rc)
        return rc;
    if (!is_directory(path))
        return missing_folder(dir, part, e);
    n = count_weights(name, path);
    if (n > 1 && strcmp(name, lora_name))
        return err_set(e, E_FORMAT, "folder '%s' has %d .safetensors and none is called %s", unicon_folder[part], n,
                       lora_name);
    if (!n)
        return err_set(e, E_FORMAT, "folder '%s' has no .safetensors", unicon_folder[part]);
    return join(out, path, name, e);
}

static int find_post(char out[UNICON_MAX_PATH], const char *dir, struct err *e)
{
    const char *const name[] = { pth_name, safe_name };

    for (int i = 0; i < 2; i++)
        if (is_there(dir, name[i]))
            return join(out, dir, name[i], e);
    return err_set(e, E_FORMAT, "it has neither %s nor %s, where the projections of joint attention are", pth_name,
                   safe_name);
}

static int read_part(struct unicon_file *f, int part, const char *dir, struct err *e)
{
    struct weights *const table[] = { &f->xy, &f->yx, &f->y, &f->post };
    char path[UNICON_MAX_PATH];
    struct unicon_picker k = { .part = part };
    int rc = part == UNICON_POST ? find_post(path, dir, e) : find_adapter(path, dir, part, e);

    rc = rc ? rc : weights_file_open(&f->file[part], path, e);
    if (rc)
        return rc;
    rc = weights_file_select(table[part], f->file[part], part == UNICON_POST ? unicon_pick_post : unicon_pick_lora, &k,
                             e);
    rc = rc ? rc : unicon_picked(&k, e);
    return rc ? err_in(e, "%s", path + strlen(dir) + 1) : OK;
}

static int read_parts(struct unicon_file *f, const char *dir, const struct unicon_config *u, struct err *e)
{
    int kind = u->kind, rc = OK;

    f->weights = (struct joint_weights){ .xy = &f->xy, .yx = &f->yx, .post = &f->post, .scale = 1 };
    for (int part = UNICON_XY; part <= UNICON_POST && !rc; part++) {
        if (part == UNICON_Y && (u->y == 0 || (u->y < 0 && !is_there(dir, unicon_folder[UNICON_Y]))))
            continue;
        rc = read_part(f, part, dir, e);
        if (part == UNICON_Y && !rc)
            f->weights.y = &f->y;
    }
    rc = rc ? rc : unicon_check(&kind, &f->weights, e);
    f->weights.kind = kind == JOINT_CONV_FUSE ? JOINT_CONV_FUSE : JOINT_CONV;
    return rc;
}

static int read_all(struct unicon_file *f, const char *path, const char *config, struct err *e)
{
    struct unicon_config u = { .kind = -1, .y = -1 };
    char dir[UNICON_MAX_PATH], own[UNICON_MAX_PATH];
    struct stat st;
    int rc = OK;

    if (stat(path, &st))
        return err_set(e, E_IO, "%s", errno == ENOENT ? "there is no such directory, and checkpoints are not "
                       "downloaded" : strerror(errno));
    if (!S_ISDIR(st.st_mode)) {
        rc = config ? err_set(e, E_ARG, "it is no directory, and there is a configuration already") : OK;
        rc = rc ? rc : read_config(&u, path, e);
        rc = rc ? rc : follow(dir, path, u.path, e);
    } else {
        if (snprintf(dir, sizeof dir, "%s", path) >= (int)sizeof dir)
            return err_set(e, E_ARG, "the path is too long");
        if (!config && is_there(dir, config_name) && !join(own, dir, config_name, NULL))
            config = own;
        rc = config ? read_config(&u, config, e) : OK;
        if (rc == E_FORMAT)
            err_in(e, "'%s'", config);
    }
    rc = rc ? rc : read_parts(f, dir, &u, e);
    if (rc)
        return rc;
    if (*u.name)
        snprintf(f->name, sizeof f->name, "%s", u.name);
    else
        name_of(f->name, dir);
    snprintf(f->trigger, sizeof f->trigger, "%s", u.has_trigger ? u.trigger : published_trigger(f->name));
    return OK;
}

int unicon_file_open(struct unicon_file **out, const char *path, const char *config, struct err *e)
{
    struct unicon_file *f = arena_fault_now() ? NULL : calloc(1, sizeof *f);
    struct err mine;
    int rc;

    e = e ? e : &mine;
    if (f)
        f->path = arena_fault_now() ? NULL : strdup(path);
    rc = f && f->path ? read_all(f, path, config, e) : err_set(e, E_NOMEM, "out of memory");
    if (rc) {
        unicon_file_close(f);
        return err_in(e, "UniCon checkpoint '%s'", path);
    }
    *out = f;
    return OK;
}

void unicon_file_close(struct unicon_file *f)
{
    if (!f)
        return;
    for (int i = 0; i < 4; i++)
        weights_file_close(f->file[i]);
    free(f->path);
    free(f);
}

/* ---- writing ---- */

/* "B.attn1n.to_q.down.weight" as "unet.B.attn1n.to_q.lora.down.weight"; a projection keeps its name. */
static char *written_name(struct arena *a, const char *name, int part, struct err *e)
{
    const size_t room = strlen(name) + sizeof "unet..lora";
    char *out = arena_push(a, room, e);
    int n = (int)strlen(name) - (int)strlen(ends(name, ".up.weight") ? ".up.weight" : ".down.weight");

    if (!out)
        return NULL;
    if (part == UNICON_POST)
        return memcpy(out, name, strlen(name) + 1);
    snprintf(out, room, "unet.%.*s.lora%s", n, name, name + n);
    return out;
}

/* The tensors of one table, dense and in F32: as they lie, or converted. */
static struct safetensors_item *make_items(struct arena *a, const struct weights *t, int part, struct err *e)
{
    struct safetensors_item *item = arena_push_zero(a, sizeof *item * (size_t)t->n, e);

    for (int i = 0; i < t->n && item; i++) {
        const struct weights_entry *w = &t->entry[i];
        item[i].name = written_name(a, w->name, part, e);
        item[i].type = STORED_F32;
        item[i].n_dim = w->n_dim;
        item[i].data = w->data;
        memcpy(item[i].dim, w->dim, sizeof w->dim);
        if (w->type != STORED_F32 || !weights_is_dense(w)) {
            float *f = item[i].name ? arena_push(a, sizeof *f * (size_t)weights_count(w), e) : NULL;
            item[i].data = f && !weights_read(w, f, F32, e) ? f : NULL;
        }
        if (!item[i].name || !item[i].data)
            return NULL;
    }
    return item;
}

/* Room for make_items. */
static size_t items_bytes(const struct weights *t)
{
    size_t n = ARENA_ALIGN;

    for (int i = 0; i < t->n; i++) {
        n += sizeof(struct safetensors_item) + strlen(t->entry[i].name) + 3 * ARENA_ALIGN;
        n += sizeof(float) * (size_t)weights_count(&t->entry[i]);
    }
    return n;
}

static int make_directory(const char *path, bool *made, struct err *e)
{
    *made = !mkdir(path, 0777);
    if (*made || (errno == EEXIST && is_directory(path)))
        return OK;
    return err_set(e, E_IO, "cannot make the directory '%s': %s", path, strerror(errno));
}

static int write_part(const char *dir, const struct weights *t, int part, bool pth, struct err *e)
{
    char path[UNICON_MAX_PATH];
    struct safetensors_item *item = NULL;
    struct arena a = { 0 };
    bool made = false;
    int rc = join(path, dir, part < UNICON_POST ? unicon_folder[part] : pth ? pth_name : safe_name, e);

    if (!rc && part < UNICON_POST)
        rc = make_directory(path, &made, e);
    if (!rc && part < UNICON_POST) {
        char file[UNICON_MAX_PATH];
        rc = join(file, path, lora_name, e);
        if (!rc)
            snprintf(path, sizeof path, "%s", file);
    }
    rc = rc ? rc : arena_init(&a, "UniCon checkpoint", ARENA_HOST, items_bytes(t), e);
    item = rc ? NULL : make_items(&a, t, part, e);
    if (!rc && !item)
        rc = e->code;
    if (!rc && part == UNICON_POST && pth)
        rc = torch_save(path, item, t->n, e);
    else if (!rc)
        rc = safetensors_write(path, item, t->n, NULL, e);
    arena_free(&a);
    if (rc && made) {
        *strrchr(path, '/') = '\0';
        rmdir(path);
    }
    return rc;
}

/* As text that reads back to the same, checked before anything is written. */
static char *config_text(const char *name, const char *trigger, const struct joint_weights *w, struct err *e)
{
    struct unicon_config back;
    json_t *top = json_pack("{s:s, s:s, s:s, s:s, s:[s,s]}", "model_name", name, "checkpoint_path", ".", "post_joint",
                            unicon_kind[w->kind], "trigger_word", trigger, "adapter_names", unicon_folder[UNICON_XY],
                            unicon_folder[UNICON_YX]);
    char *text;

    if (top && w->y)
        json_array_append_new(json_object_get(top, "adapter_names"), json_string(unicon_folder[UNICON_Y]));
    text = top ? json_dumps(top, JSON_INDENT(4)) : NULL;
    json_decref(top);
    if (!text) {
        err_set(e, E_ARG, "name and trigger have to be text in UTF-8");
    } else if (unicon_config_parse(&back, text, strlen(text), e) || strcmp(back.name, name) ||
               strcmp(back.trigger, trigger)) {
        e->code = E_ARG;
        free(text);
        text = NULL;
    }
    return text;
}

/* What is there must not be taken for a part of what is written. */
static int check_place(const char *dir, const struct joint_weights *w, bool pth, struct err *e)
{
    if (!pth && is_there(dir, pth_name))
        return err_set(e, E_ARG, "there is a %s, which would be read instead of %s", pth_name, safe_name);
    if (!w->y && is_there(dir, unicon_folder[UNICON_Y]))
        return err_set(e, E_ARG, "there is a %s of another checkpoint", unicon_folder[UNICON_Y]);
    return OK;
}

static int check_weights(const struct joint_weights *w, struct err *e)
{
    int kind = w->kind;

    if (!w->xy || !w->yx || !w->post)
        return err_set(e, E_ARG, "%s, %s or the projections are missing", unicon_folder[UNICON_XY],
                       unicon_folder[UNICON_YX]);
    if (w->scale < 1 || w->scale > 1)
        return err_set(e, E_ARG, "a scale of %g cannot be written: these files stand for 1", w->scale);
    if (unicon_check(&kind, w, e))
        return e->code = E_ARG;
    return OK;
}

static int write_all(const char *dir, const struct joint_weights *w, const char *text, bool pth, struct err *e)
{
    const struct weights *const table[] = { w->xy, w->yx, w->y, w->post };
    char path[UNICON_MAX_PATH];
    int rc = OK;

    for (int part = UNICON_XY; part < UNICON_POST && !rc; part++)
        rc = table[part] ? write_part(dir, table[part], part, pth, e) : OK;
    rc = rc ? rc : join(path, dir, config_name, e);
    rc = rc ? rc : aside_write(path, text, strlen(text), e);
    return rc ? rc : write_part(dir, w->post, UNICON_POST, pth, e);
}

int unicon_file_write(const char *directory, const struct joint_weights *w, const char *name, const char *trigger,
                      bool pth, struct err *e)
{
    char own[UNICON_MAX_NAME];
    struct err mine;
    char *text = NULL;
    bool made = false;
    int rc;

    e = e ? e : &mine;
    rc = check_weights(w, e);
    rc = rc ? rc : check_place(directory, w, pth, e);
    rc = rc ? rc : make_directory(directory, &made, e);
    if (!rc) {
        name_of(own, directory);
        name = name ? name : own;
        text = config_text(name, trigger ? trigger : published_trigger(name), w, e);
        rc = text ? write_all(directory, w, text, pth, e) : e->code;
    }
    free(text);
    if (rc && made)
        rmdir(directory);
    return rc ? err_in(e, "writing the UniCon checkpoint '%s'", directory) : OK;
}
