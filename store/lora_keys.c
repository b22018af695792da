#include "store/lora_keys.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_LAYER = 1600, NAME_BYTES = 96, FRONT_BYTES = 48 };

struct name {
    char flat[NAME_BYTES], own[NAME_BYTES];     /* '_' for every '.'; diffusers' name */
};

struct lora_names {
    struct name name[MAX_LAYER];                /* sorted by flat */
    int n;
};

struct pair {
    const char *own, *original;
};

static void flatten(char *text)
{
    for (; *text; text++)
        *text = *text == '.' ? '_' : *text;
}

static bool ends(const char *name, const char *with)
{
    const size_t n = strlen(name), m = strlen(with);

    return n >= m && !strcmp(name + n - m, with);
}

static bool begins(const char *name, const char *with)
{
    return !strncmp(name, with, strlen(with));
}

/* ---- the layers of a UNet ---- */

static void add(struct lora_names *n, const char *own, const char *original, const char *own_layer,
                const char *original_layer)
{
    const char *const front[] = { own, original }, *const back[] = { own_layer, original_layer };

    for (int i = 0; i < 2 && n->n < MAX_LAYER; i++) {
        struct name *to = &n->name[n->n++];

        snprintf(to->own, sizeof to->own, "%s%s", own, own_layer);
        snprintf(to->flat, sizeof to->flat, "%s%s", front[i], back[i]);
        flatten(to->flat);
    }
}

static void add_resnet(struct lora_names *n, const char *own, const char *original)
{
    static const struct pair layer[] = {
        { "conv1", "in_layers.2" },
        { "time_emb_proj", "emb_layers.1" },
        { "conv2", "out_layers.3" },
        { "conv_shortcut", "skip_connection" },
    };

    for (size_t i = 0; i < sizeof layer / sizeof *layer; i++)
        add(n, own, original, layer[i].own, layer[i].original);
}

static void add_attention(struct lora_names *n, const char *own, const char *original)
{
    static const char *const layer[] = {
        "proj_in",
        "transformer_blocks.0.attn1.to_q",
        "transformer_blocks.0.attn1.to_k",
        "transformer_blocks.0.attn1.to_v",
        "transformer_blocks.0.attn1.to_out.0",
        "transformer_blocks.0.attn2.to_q",
        "transformer_blocks.0.attn2.to_k",
        "transformer_blocks.0.attn2.to_v",
        "transformer_blocks.0.attn2.to_out.0",
        "transformer_blocks.0.ff.net.0.proj",
        "transformer_blocks.0.ff.net.2",
        "proj_out",
    };

    for (size_t i = 0; i < sizeof layer / sizeof *layer; i++)
        add(n, own, original, layer[i], layer[i]);
}

/* Layer l of a block; i counts over all blocks, as the original layout does. */
static void add_layer(struct lora_names *n, bool down, int b, int l, int i, bool attends)
{
    const char *side = down ? "down" : "up", *original_side = down ? "input" : "output";
    char own[FRONT_BYTES], original[FRONT_BYTES];

    snprintf(own, sizeof own, "%s_blocks.%d.resnets.%d.", side, b, l);
    snprintf(original, sizeof original, "%s_blocks.%d.0.", original_side, i);
    add_resnet(n, own, original);
    if (!attends)
        return;
    snprintf(own, sizeof own, "%s_blocks.%d.attentions.%d.", side, b, l);
    snprintf(original, sizeof original, "%s_blocks.%d.1.", original_side, i);
    add_attention(n, own, original);
}

static void add_block(struct lora_names *n, const struct unet_config *u, int b)
{
    const int L = u->layers_per_block, first = b * (L + 1);
    const bool last = b == u->n_stage - 1;
    char own[FRONT_BYTES], original[FRONT_BYTES];

    for (int l = 0; l < L; l++)
        add_layer(n, true, b, l, 1 + first + l, u->down_attends[b]);
    for (int l = 0; l < L + 1; l++)
        add_layer(n, false, b, l, first + l, u->up_attends[b]);
    if (last)
        return;
    snprintf(own, sizeof own, "down_blocks.%d.downsamplers.0.", b);
    snprintf(original, sizeof original, "input_blocks.%d.0.", first + L + 1);
    add(n, own, original, "conv", "op");
    snprintf(own, sizeof own, "up_blocks.%d.upsamplers.0.", b);
    snprintf(original, sizeof original, "output_blocks.%d.%d.", first + L, u->up_attends[b] ? 2 : 1);
    add(n, own, original, "conv", "conv");
}

static int by_flat(const void *a, const void *b)
{
    return strcmp(((const struct name *)a)->flat, ((const struct name *)b)->flat);
}

int lora_names_new(struct lora_names **out, const struct unet_config *u, struct err *e)
{
    struct lora_names *n;

    if (u->n_stage < 1 || u->n_stage > UNET_MAX_STAGE || u->layers_per_block < 1 ||
        u->layers_per_block > UNET_MAX_LAYERS)
        return err_set(e, E_ARG, "a UNet of %d stages with %d layers", u->n_stage, u->layers_per_block);
    n = arena_fault_now() ? NULL : calloc(1, sizeof *n);
    if (!n)
        return err_set(e, E_NOMEM, "out of memory");
    add(n, "", "", "conv_in", "input_blocks.0.0");
    add(n, "", "", "conv_out", "out.2");
    add(n, "time_embedding.", "time_embed.", "linear_1", "0");
    add(n, "time_embedding.", "time_embed.", "linear_2", "2");
    add_resnet(n, "mid_block.resnets.0.", "middle_block.0.");
    add_attention(n, "mid_block.attentions.0.", "middle_block.1.");
    add_resnet(n, "mid_block.resnets.1.", "middle_block.2.");
    for (int b = 0; b < u->n_stage; b++)
        add_block(n, u, b);
    qsort(n->name, (size_t)n->n, sizeof *n->name, by_flat);
    *out = n;
    return OK;
}

void lora_names_free(struct lora_names *n)
{
    free(n);
}

/* A UNet's layer by its flat name. */
static bool unet_layer(struct lora_key *out, const struct lora_names *n, const char *module, size_t size)
{
    const struct name *found;
    struct name want = { { 0 }, { 0 } };

    if (size >= sizeof want.flat)
        return false;
    memcpy(want.flat, module, size);
    flatten(want.flat);
    found = bsearch(&want, n->name, (size_t)n->n, sizeof want, by_flat);
    if (found)
        snprintf(out->target, sizeof out->target, "%s.weight", found->own);
    return found != NULL;
}

/* A text encoder's layer by its flat name, "text_model_encoder_layers_0_self_attn_q_proj". */
static bool text_layer(struct lora_key *out, const char *module, size_t size)
{
    static const struct pair layer[] = {
        { "self_attn.q_proj", "self_attn_q_proj" },     { "self_attn.k_proj", "self_attn_k_proj" },
        { "self_attn.v_proj", "self_attn_v_proj" },     { "self_attn.out_proj", "self_attn_out_proj" },
        { "mlp.fc1", "mlp_fc1" },                       { "mlp.fc2", "mlp_fc2" },
        { "self_attn.q_proj", "self_attn_to_q" },       { "self_attn.k_proj", "self_attn_to_k" },
        { "self_attn.v_proj", "self_attn_to_v" },       { "self_attn.out_proj", "self_attn_to_out_0" },
    };
    static const char front[] = "text_model_encoder_layers_";
    char flat[NAME_BYTES], *end;
    long i;

    if (size >= sizeof flat)
        return false;
    memcpy(flat, module, size);
    flat[size] = 0;
    flatten(flat);
    if (!begins(flat, front) || flat[sizeof front - 1] < '0' || flat[sizeof front - 1] > '9')
        return false;
    i = strtol(flat + sizeof front - 1, &end, 10);
    if (i < 0 || i > 99 || *end != '_')
        return false;
    for (size_t k = 0; k < sizeof layer / sizeof *layer; k++)
        if (!strcmp(end + 1, layer[k].original)) {
            snprintf(out->target, sizeof out->target, "text_model.encoder.layers.%ld.%s.weight", i, layer[k].own);
            return true;
        }
    return false;
}

/* ---- names of tensors ---- */

/* Marks of other adapters: anywhere in a name, or ('$') at its end. */
static const struct {
    const char *mark, *kind;
} refused[] = {
    { ".dora_scale", "a DoRA" },
    { ".lora_magnitude_vector", "a DoRA" },
    { ".hada_", "a LoHa" },
    { ".lokr_", "a LoKr" },
    { ".oft_", "an OFT" },
    { ".lora_mid.", "a LoCon with a Tucker decomposition" },
    { ".lora_embedding_", "a LoRA of an embedding" },
    { ".vera_lambda", "a VeRA" },
    { ".on_input$", "an (IA)3" },
    { ".diff$", "an adapter of full differences" },
    { ".diff_b$", "an adapter of full differences" },
    { ".lora_B.bias$", "a LoRA with biases" },
    { ".attn1n.", "a UniCon adapter" },
};

/* What other kind of adapter a name belongs to, or NULL. */
static const char *other_kind(const char *name)
{
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        const char *mark = refused[i].mark;
        const size_t n = strlen(mark) - 1, m = strlen(name);

        if (mark[n] == '$' ? m >= n && !strncmp(name + m - n, mark, n) : strstr(name, mark) != NULL)
            return refused[i].kind;
    }
    return NULL;
}

static void refuse(struct lora_key *out, const char *kind)
{
    out->role = LORA_KEY_REFUSED;
    out->kind = kind ? kind : "an adapter of an unknown kind";
}

/* "lora_unet_<flat name>.lora_down.weight" */
static void parse_kohya(struct lora_key *out, const struct lora_names *n, const char *name)
{
    const size_t size = strcspn(name, ".");
    const char *rest = name + size;
    const bool unet = begins(name, "lora_unet_"), te1 = begins(name, "lora_te1_");
    const size_t front = unet ? 10 : te1 ? 9 : 8;

    if (!strcmp(rest, ".lora_down.weight"))
        out->role = LORA_KEY_DOWN;
    else if (!strcmp(rest, ".lora_up.weight"))
        out->role = LORA_KEY_UP;
    else if (!strcmp(rest, ".alpha"))
        out->role = LORA_KEY_ALPHA;
    else {
        refuse(out, other_kind(rest));
        return;
    }
    out->part = unet ? LORA_UNET : LORA_TEXT;
    snprintf(out->group, sizeof out->group, "%.*s", (int)size, name);
    if (!unet && !te1 && !begins(name, "lora_te_"))
        out->role = LORA_KEY_FOREIGN;                   /* the second text encoder of SDXL */
    else if (!(unet ? unet_layer(out, n, name + front, size - front) : text_layer(out, name + front, size - front)))
        out->role = LORA_KEY_FOREIGN;
}

struct ending {
    const char *text;
    enum lora_key_role role;
};

static const struct ending endings[] = {
    { "_lora.down.weight", LORA_KEY_DOWN },             { "_lora.up.weight", LORA_KEY_UP },
    { ".lora.down.weight", LORA_KEY_DOWN },             { ".lora.up.weight", LORA_KEY_UP },
    { ".lora_linear_layer.down.weight", LORA_KEY_DOWN }, { ".lora_linear_layer.up.weight", LORA_KEY_UP },
    { ".lora_down.weight", LORA_KEY_DOWN },             { ".lora_up.weight", LORA_KEY_UP },
    { ".lora_A.weight", LORA_KEY_DOWN },                { ".lora_B.weight", LORA_KEY_UP },
    { "_lora.alpha", LORA_KEY_ALPHA },                  { ".lora.alpha", LORA_KEY_ALPHA },
    { ".alpha", LORA_KEY_ALPHA },
};

/* Where the module's name ends, or NULL; *adapter, *n_adapter: what stands between "lora_A." and ".weight". */
static const char *find_ending(struct lora_key *out, const char *name, const char **adapter, int *n_adapter)
{
    const char *at, *dot;

    for (size_t i = 0; i < sizeof endings / sizeof *endings; i++)
        if (ends(name, endings[i].text)) {
            out->role = endings[i].role;
            return name + strlen(name) - strlen(endings[i].text);
        }
    at = strstr(name, ".lora_A.");
    at = at ? at : strstr(name, ".lora_B.");
    if (!at || !ends(name, ".weight"))
        return NULL;
    *adapter = at + 8;
    dot = strrchr(name, '.');
    *n_adapter = (int)(dot - *adapter);
    if (*n_adapter < 1 || memchr(*adapter, '.', (size_t)*n_adapter))
        return NULL;
    out->role = at[6] == 'A' ? LORA_KEY_DOWN : LORA_KEY_UP;
    return at;
}

/* The module's name without what older diffusers put into it: ".processor", and "to_out" for "to_out.0". */
static void clean(char *module)
{
    char *at = strstr(module, ".processor.");

    if (at)
        memmove(at, at + strlen(".processor"), strlen(at + strlen(".processor")) + 1);
    if (ends(module, ".to_out"))
        memcpy(module + strlen(module), ".0", 3);
}

static void parse_dotted(struct lora_key *out, const struct lora_names *n, const char *name)
{
    static const char *const second[] = { "text_encoder_2.", "text_encoder_3.", "transformer." };
    const char *const all = name, *adapter = "", *end;
    char module[LORA_KEY_MAX];
    bool known, unet = true;
    int n_adapter = 0;

    out->role = LORA_KEY_OTHER;
    if (begins(name, "base_model.model.")) {
        out->peft = true;
        name += strlen("base_model.model.");
    }
    end = find_ending(out, name, &adapter, &n_adapter);
    if (!end || end - name > (int)sizeof module - 4 || other_kind(name)) {
        if (other_kind(name) || strstr(name, "lora"))
            refuse(out, other_kind(name));
        return;
    }
    snprintf(module, sizeof module, "%.*s", (int)(end - name), name);
    snprintf(out->group, sizeof out->group, "%.*s %.*s", (int)(end - all), all, n_adapter, adapter);
    clean(module);
    name = module;
    if (begins(name, "text_encoder.") || begins(name, "text_model.")) {
        unet = false;
        name += begins(name, "text_encoder.") ? strlen("text_encoder.") : 0;
    } else if (begins(name, "unet.")) {
        name += strlen("unet.");
    }
    known = unet ? unet_layer(out, n, name, strlen(name)) : text_layer(out, name, strlen(name));
    out->part = unet ? LORA_UNET : LORA_TEXT;
    for (size_t i = 0; i < sizeof second / sizeof *second; i++)
        known &= !begins(name, second[i]);
    if (!known)
        out->role = out->role == LORA_KEY_ALPHA ? LORA_KEY_OTHER : LORA_KEY_FOREIGN;
}

void lora_key_parse(struct lora_key *out, const struct lora_names *n, const char *name)
{
    *out = (struct lora_key){ .role = LORA_KEY_OTHER };
    if (strlen(name) >= LORA_KEY_MAX)
        return;
    if (begins(name, "lora_unet_") || begins(name, "lora_te_") || begins(name, "lora_te1_") ||
        begins(name, "lora_te2_") || begins(name, "lora_te3_"))
        parse_kohya(out, n, name);
    else
        parse_dotted(out, n, name);
}
