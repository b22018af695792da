/* jobs/spec.c: checking values and keeping them. Every text that comes in, from argv or JSON, passes read_value. */
#include "jobs/spec.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- kinds and keys ---- */

const struct spec_kind *spec_kind_of(const char *name)
{
    static const struct spec_kind *const kinds[] = { &spec_sample, &spec_shared };

    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (!strcmp(name, kinds[i]->name))
            return kinds[i];
    return NULL;
}

const struct spec_key *spec_key_of(const struct spec_kind *k, const char *name)
{
    for (int i = 0; k && i < k->n_key; i++)
        if (!strcmp(name, k->key[i].name))
            return &k->key[i];
    return NULL;
}

/* Letters to change, add or leave out; Levenshtein's distance, names of up to 31 bytes. */
static int distance(const char *a, const char *b)
{
    int row[32];
    const int n = (int)strlen(b);

    for (int j = 0; j <= n; j++)
        row[j] = j;
    for (int i = 1; *a; a++, i++) {
        int diagonal = row[0];
        row[0] = i;
        for (int j = 1; j <= n; j++) {
            const int above = row[j], changed = diagonal + (*a != b[j - 1]);
            row[j] = above < row[j - 1] ? above + 1 : row[j - 1] + 1;
            if (changed < row[j])
                row[j] = changed;
            diagonal = above;
        }
    }
    return row[n];
}

int spec_nearest(const struct spec_kind *k, const char *name, const struct spec_key **best)
{
    int least = 1000;

    *best = NULL;
    for (int i = 0; i < k->n_key && strlen(name) < 64; i++) {
        const int d = distance(name, k->key[i].name);
        if (d < least) {
            least = d;
            *best = &k->key[i];
        }
    }
    return least;
}

/* ---- text ---- */

/* The beginning of a text for a message: one line, whole characters. */
static const char *excerpt(const char *text, char buf[64])
{
    size_t n = strlen(text), end = n;

    if (n > 56) {
        for (end = 52; end > 48 && ((unsigned char)text[end] & 0xC0) == 0x80; end--)
            ;
    }
    for (size_t i = 0; i < end; i++)
        buf[i] = (unsigned char)text[i] < 32 || text[i] == 127 ? '?' : text[i];
    memcpy(buf + end, end < n ? "..." : "", end < n ? 4 : 1);
    return buf;
}

/* Length of the UTF-8 character at s, 0 if it is none (overlong forms and surrogates are none). */
static int utf8(const unsigned char *s)
{
    static const uint32_t least[5] = { 0, 0, 0x80, 0x800, 0x10000 };
    const int n = s[0] < 0x80 ? 1 : s[0] >> 5 == 6 ? 2 : s[0] >> 4 == 14 ? 3 : s[0] >> 3 == 30 ? 4 : 0;
    uint32_t c = n == 1 ? s[0] : s[0] & (0xFFu >> (n + 1));

    for (int i = 1; i < n; i++) {
        if ((s[i] & 0xC0) != 0x80)
            return 0;
        c = c << 6 | (s[i] & 0x3F);
    }
    return n > 1 && (c < least[n] || c > 0x10FFFF || (c >= 0xD800 && c < 0xE000)) ? 0 : n;
}

static bool is_utf8(const char *text)
{
    const unsigned char *s = (const unsigned char *)text;

    while (*s) {
        const int n = utf8(s);
        if (!n)
            return false;
        s += n;
    }
    return true;
}

static bool whole(const char *text, bool negative)
{
    text += negative && *text == '-';
    return *text && text[strspn(text, "0123456789")] == '\0';
}

static bool read_int(const char *text, int64_t *out)
{
    errno = 0;
    *out = whole(text, true) ? strtoll(text, NULL, 10) : 0;
    return whole(text, true) && !errno;
}

static bool read_uint64(const char *text, uint64_t *out)
{
    errno = 0;
    *out = whole(text, false) ? strtoull(text, NULL, 10) : 0;
    return whole(text, false) && !errno;
}

/* Digits, point and exponent alone: strtod would take nan, inf and hexadecimals too. */
static bool read_double(const char *text, double *out)
{
    char *end = NULL;

    if (!*text || text[strspn(text, "0123456789+-.eE")])
        return false;
    *out = strtod(text, &end);
    return !*end && end != text && isfinite(*out);
}

static bool read_size(const char *text, uint64_t *out)
{
    static const char units[] = "KMGT";
    const size_t n = strlen(text);
    char digits[24];
    const char *unit = n ? strchr(units, text[n - 1] & ~0x20) : NULL;
    int shift;

    if (!n || n > sizeof digits - 1 || (text[n - 1] >= '0' && text[n - 1] <= '9'))
        return n && n <= sizeof digits - 1 && read_uint64(text, out);
    if (!unit || !*unit)
        return false;
    memcpy(digits, text, n - 1);
    digits[n - 1] = '\0';
    shift = 10 * (int)(unit - units + 1);
    if (!read_uint64(digits, out) || *out > UINT64_MAX >> shift)
        return false;
    *out <<= shift;
    return true;
}

/* Place of a word among those between single spaces, -1 if it is none of them. */
static int place(const char *choices, const char *word)
{
    const size_t n = strlen(word);

    for (int i = 0; n && *choices; i++) {
        const size_t m = strcspn(choices, " ");
        if (m == n && !memcmp(choices, word, n))
            return i;
        choices += m + (choices[m] == ' ');
    }
    return -1;
}

/* ---- values ---- */

/* Text to the numbers of v; what is text itself is only checked. Without regard to ranges. */
static bool read_value(const struct spec_key *k, const char *text, struct spec_value *v)
{
    switch (k->type) {
    case SPEC_FLAG:
        v->i = !strcmp(text, "on");
        return v->i || !strcmp(text, "off");
    case SPEC_INT: return read_int(text, &v->i);
    case SPEC_UINT64: return read_uint64(text, &v->u);
    case SPEC_DOUBLE: return read_double(text, &v->d);
    case SPEC_SIZE: return read_size(text, &v->u);
    case SPEC_CHOICE:
        v->i = place(k->choices, text);
        return v->i >= 0;
    case SPEC_PATH:
    case SPEC_LIST: return *text;
    default: return true;
    }
}

static struct spec_value standard_of(const struct spec_key *k)
{
    struct spec_value v = { 0 };

    if (k->type == SPEC_CHOICE)
        v.i = -1;
    if (k->standard)
        read_value(k, k->standard, &v);
    return v;
}

static bool in_range(const struct spec_key *k, const struct spec_value *v)
{
    const struct spec_value standard = standard_of(k);

    if (k->type == SPEC_INT)
        return (k->standard && v->i == standard.i) || ((double)v->i >= k->low && (double)v->i <= k->high);
    return k->type != SPEC_DOUBLE || (k->standard && v->d == standard.d) || (v->d >= k->low && v->d <= k->high);
}

/* "ddim, ddpm or euler" */
static const char *listed(const char *choices, char *buf, size_t size)
{
    size_t n = 0;

    for (; *choices && n + 8 < size; choices++) {
        const char *rest = strchr(choices + 1, ' ');
        if (*choices == ' ')
            n += (size_t)snprintf(buf + n, size - n, "%s", rest ? ", " : " or ");
        else
            buf[n++] = *choices;
    }
    buf[n] = '\0';
    return buf;
}

static int refuse(const struct spec_key *k, const char *text, struct err *e)
{
    char some[64], words[256], outside[64] = "";
    const struct spec_value standard = standard_of(k);
    const double d = k->type == SPEC_INT ? (double)standard.i : standard.d;

    if (k->standard && (d < k->low || d > k->high))
        snprintf(outside, sizeof outside, ", or %s", k->standard);
    excerpt(text, some);
    switch (k->type) {
    case SPEC_FLAG: return err_set(e, E_ARG, "--%s '%s': want on or off", k->name, some);
    case SPEC_INT:
        return err_set(e, E_ARG, "--%s '%s': want a whole number from %.0f to %.0f%s", k->name, some, k->low, k->high,
                       outside);
    case SPEC_UINT64:
        return err_set(e, E_ARG, "--%s '%s': want a whole number from 0 to %" PRIu64, k->name, some, UINT64_MAX);
    case SPEC_DOUBLE:
        return err_set(e, E_ARG, "--%s '%s': want a number from %g to %g%s", k->name, some, k->low, k->high, outside);
    case SPEC_SIZE:
        return err_set(e, E_ARG, "--%s '%s': want a number of bytes, such as 6G or 800M", k->name, some);
    case SPEC_CHOICE:
        return err_set(e, E_ARG, "--%s '%s': want %s", k->name, some, listed(k->choices, words, sizeof words));
    default: return err_set(e, E_ARG, "--%s '%s': want %s", k->name, some, k->value);
    }
}

/* Everything that can be wrong with a text, before anything changes. */
static int check_text(const struct spec_key *k, const char *text, struct spec_value *v, struct err *e)
{
    const size_t n = strlen(text);

    if (n > SPEC_MAX_TEXT)
        return err_set(e, E_ARG, "--%s: %zu bytes are too many, want at most %d", k->name, n, SPEC_MAX_TEXT);
    if (!is_utf8(text))
        return err_set(e, E_ARG, "--%s: the value is not UTF-8", k->name);
    return read_value(k, text, v) && in_range(k, v) ? OK : refuse(k, text, e);
}

static int add_item(struct spec_value *v, const struct spec_key *k, const char *text, struct err *e)
{
    char *copy, **grown;

    if (v->n_item == SPEC_MAX_ITEM)
        return err_set(e, E_ARG, "--%s: given more than %d times", k->name, SPEC_MAX_ITEM);
    copy = strdup(text);
    grown = copy ? realloc(v->item, sizeof *grown * (size_t)(v->n_item + 1)) : NULL;
    if (!grown) {
        free(copy);
        return err_set(e, E_NOMEM, "out of memory");
    }
    v->item = grown;
    v->item[v->n_item++] = copy;
    v->set = true;
    return OK;
}

static int unknown(const struct spec *s, const char *key, struct err *e)
{
    const struct spec_key *best;
    char some[64];
    const int n = (int)strlen(key), d = spec_nearest(s->kind, key, &best);

    if (best && d <= (n > 4 ? n * 2 / 5 : 1))
        return err_set(e, E_ARG, "no option --%s; did you mean --%s?", excerpt(key, some), best->name);
    return err_set(e, E_ARG, "no option --%s", excerpt(key, some));
}

int spec_set(struct spec *s, const char *key, const char *text, struct err *e)
{
    const struct spec_key *k = spec_key_of(s->kind, key);
    struct spec_value made = { .set = true };
    struct spec_value *v;
    int rc;

    if (!s->kind)
        return err_set(e, E_ARG, "a spec of an unknown kind");
    if (!k)
        return unknown(s, key, e);
    v = &s->value[k - s->kind->key];
    text = !text && k->type == SPEC_FLAG ? "on" : text;
    if (!text)
        return err_set(e, E_ARG, "--%s needs a value", k->name);
    rc = check_text(k, text, &made, e);
    if (rc)
        return rc;
    if (k->type == SPEC_LIST)
        return add_item(v, k, text, e);
    if (k->type == SPEC_STRING || k->type == SPEC_PATH || k->type == SPEC_CHOICE) {
        made.text = strdup(text);
        if (!made.text)
            return err_set(e, E_NOMEM, "out of memory");
    }
    free(v->text);
    *v = made;
    return OK;
}

/* ---- life ---- */

struct spec spec_new(const char *kind)
{
    return (struct spec){ .kind = spec_kind_of(kind) };
}

static void value_free(struct spec_value *v)
{
    for (int i = 0; i < v->n_item; i++)
        free(v->item[i]);
    free(v->item);
    free(v->text);
    *v = (struct spec_value){ 0 };
}

void spec_free(struct spec *s)
{
    for (int i = 0; i < SPEC_MAX_KEY; i++)
        value_free(&s->value[i]);
    *s = (struct spec){ 0 };
}

static int value_copy(struct spec_value *to, const struct spec_value *from, const struct spec_key *k, struct err *e)
{
    struct spec_value made = *from;
    int rc = OK;

    made.text = NULL;
    made.item = NULL;
    made.n_item = 0;
    if (from->text && !(made.text = strdup(from->text)))
        rc = err_set(e, E_NOMEM, "out of memory");
    for (int i = 0; i < from->n_item && !rc; i++)
        rc = add_item(&made, k, from->item[i], e);
    if (rc) {
        value_free(&made);
        return rc;
    }
    value_free(to);
    *to = made;
    return OK;
}

int spec_overlay(struct spec *s, const struct spec *over, struct err *e)
{
    int rc = OK;

    if (s->kind != over->kind || !s->kind)
        return err_set(e, E_ARG, "a '%s' spec over a '%s' spec", over->kind ? over->kind->name : "?",
                       s->kind ? s->kind->name : "?");
    for (int i = 0; i < s->kind->n_key && !rc; i++)
        if (over->value[i].set)
            rc = value_copy(&s->value[i], &over->value[i], &s->kind->key[i], e);
    return rc;
}

void spec_unset(struct spec *s, const char *key)
{
    const struct spec_key *k = spec_key_of(s->kind, key);

    if (k)
        value_free(&s->value[k - s->kind->key]);
}

/* ---- reading ---- */

/* The key if it is of type a or b. */
static const struct spec_key *typed(const struct spec *s, const char *key, enum spec_type a, enum spec_type b)
{
    const struct spec_key *k = spec_key_of(s->kind, key);

    return k && (k->type == a || k->type == b) ? k : NULL;
}

static struct spec_value value_of(const struct spec *s, const struct spec_key *k)
{
    const struct spec_value *v = k ? &s->value[k - s->kind->key] : NULL;

    return !k ? (struct spec_value){ .i = 0 } : v->set ? *v : standard_of(k);
}

bool spec_is_set(const struct spec *s, const char *key)
{
    const struct spec_key *k = spec_key_of(s->kind, key);

    return k && s->value[k - s->kind->key].set;
}

bool spec_flag(const struct spec *s, const char *key)
{
    return value_of(s, typed(s, key, SPEC_FLAG, SPEC_FLAG)).i != 0;
}

int64_t spec_int(const struct spec *s, const char *key)
{
    return value_of(s, typed(s, key, SPEC_INT, SPEC_INT)).i;
}

uint64_t spec_uint64(const struct spec *s, const char *key)
{
    return value_of(s, typed(s, key, SPEC_UINT64, SPEC_SIZE)).u;
}

double spec_double(const struct spec *s, const char *key)
{
    return value_of(s, typed(s, key, SPEC_DOUBLE, SPEC_DOUBLE)).d;
}

const char *spec_text(const struct spec *s, const char *key)
{
    const struct spec_key *k = typed(s, key, SPEC_STRING, SPEC_PATH);
    const struct spec_value *v;

    if (!k)
        k = typed(s, key, SPEC_CHOICE, SPEC_CHOICE);
    v = k ? &s->value[k - s->kind->key] : NULL;
    return !k ? NULL : v->set ? v->text : k->standard;
}

int spec_choice(const struct spec *s, const char *key)
{
    const struct spec_key *k = typed(s, key, SPEC_CHOICE, SPEC_CHOICE);

    return k ? (int)value_of(s, k).i : -1;
}

int spec_count(const struct spec *s, const char *key)
{
    return value_of(s, typed(s, key, SPEC_LIST, SPEC_LIST)).n_item;
}

const char *spec_item(const struct spec *s, const char *key, int i)
{
    const struct spec_value v = value_of(s, typed(s, key, SPEC_LIST, SPEC_LIST));

    return i >= 0 && i < v.n_item ? v.item[i] : NULL;
}

/* ---- tables ---- */

static int check_key(const struct spec_kind *kind, int i, struct err *e)
{
    const struct spec_key *k = &kind->key[i];
    const bool takes = k->type != SPEC_FLAG, chooses = k->type == SPEC_CHOICE;
    const bool ranged = k->type == SPEC_INT || k->type == SPEC_DOUBLE;
    struct spec_value v;

    if (!k->name || strlen(k->name) < 1 || strlen(k->name) > 31 || !k->help || (i == 0 && !k->group))
        return err_set(e, E_BUG, "key %d has no name, help or heading", i);
    if (!strcmp(k->name, "kind") || !strcmp(k->name, "version") || !strcmp(k->name, "help"))
        return err_set(e, E_BUG, "key '%s' has a name that is taken", k->name);
    if (chooses != !!k->choices || (takes && !chooses) != !!k->value)
        return err_set(e, E_BUG, "key '%s' has choices or a word for its value that do not fit", k->name);
    if (ranged ? !(k->low < k->high) : k->low != 0 || k->high != 0)
        return err_set(e, E_BUG, "key '%s' has a range or default that does not fit", k->name);
    if (k->standard && (k->type == SPEC_FLAG || k->type == SPEC_LIST || !read_value(k, k->standard, &v)))
        return err_set(e, E_BUG, "key '%s': its default '%s' is no value", k->name, k->standard);
    for (int j = 0; j < i; j++)
        if (!strcmp(k->name, kind->key[j].name) || (k->letter && k->letter == kind->key[j].letter))
            return err_set(e, E_BUG, "key '%s' is there twice, or its letter", k->name);
    return OK;
}

int spec_check(const struct spec_kind *k, struct err *e)
{
    int rc = OK;

    if (k->n_key < 1 || k->n_key > SPEC_MAX_KEY)
        return err_set(e, E_BUG, "kind '%s' has %d keys, want 1 to %d", k->name, k->n_key, SPEC_MAX_KEY);
    for (int i = 0; i < k->n_key && !rc; i++)
        rc = check_key(k, i, e);
    return rc;
}
