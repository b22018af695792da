/* cmd/cli.c: see cli.h. */
#include "cmd/cli.h"

#include <errno.h>
#include <signal.h>
#include <string.h>

#ifndef UNICON_VERSION
#error "UNICON_VERSION is not defined: the Makefile passes it to what is below cmd/"
#endif

/* Two options belong to no table. */
static const struct spec_key extra[] = {
    { .name = "help", .type = SPEC_FLAG, .help = "show this and stop" },
    { .name = "version", .type = SPEC_FLAG, .help = "show the version and stop" },
};

enum { N_EXTRA = sizeof extra / sizeof *extra, MAX_OPTION = 2 * SPEC_MAX_KEY + N_EXTRA, HELP_AT = 26, HELP_TO = 79 };

struct parse {
    struct cli *c;
    struct spec *spec;
    char **arg, **end;          /* those not read yet */
    struct err *e;
};

/* ---- options of all tables, numbered ---- */

static int n_option(const struct parse *p)
{
    return p->spec->kind->n_key + p->c->shared.kind->n_key + N_EXTRA;
}

static const struct spec_key *option(const struct parse *p, int i)
{
    const int n = p->spec->kind->n_key, m = p->c->shared.kind->n_key;

    return i < n ? &p->spec->kind->key[i] : i < n + m ? &p->c->shared.kind->key[i - n] : &extra[i - n - m];
}

/* ---- --help ---- */

/* Words from column HELP_AT to HELP_TO; `at` is where the line stands. */
static void wrap(FILE *f, int at, const char *text)
{
    bool first = true;

    if (at > HELP_AT - 2) {
        fputc('\n', f);
        at = 0;
    }
    while (*text) {
        const int n = (int)strcspn(text, " ");
        if (first || at + 1 + n > HELP_TO) {
            if (!first) {
                fputc('\n', f);
                at = 0;
            }
            fprintf(f, "%*s", HELP_AT - at, "");
            at = HELP_AT;
        } else {
            fputc(' ', f);
            at++;
        }
        fprintf(f, "%.*s", n, text);
        at += n;
        first = false;
        text += n + (text[n] == ' ');
    }
    fputc('\n', f);
}

static void help_option(FILE *f, const struct spec_key *k)
{
    char head[64], text[512];
    size_t n;

    if (k->group)
        fprintf(f, "\n%s:\n", k->group);
    n = (size_t)(k->letter ? snprintf(head, sizeof head, "  -%c, --%s", k->letter, k->name)
                           : snprintf(head, sizeof head, "      --%s", k->name));
    if (k->value || k->choices)
        n += (size_t)snprintf(head + n, sizeof head - n, " %s", k->value ? k->value : "WORD");
    fputs(head, f);
    n = (size_t)snprintf(text, sizeof text, "%s", k->help);
    if (k->choices)
        n += (size_t)snprintf(text + n, sizeof text - n, ": %s", k->choices);
    if (k->standard)
        snprintf(text + n, sizeof text - n, " (default %s)", *k->standard ? k->standard : "empty");
    wrap(f, (int)strlen(head), text);
}

static void help(const struct parse *p, FILE *f)
{
    fprintf(f, "usage: %s [OPTION]...\n%s\n", p->c->prog, p->c->about ? p->c->about : "");
    for (int i = 0; i < n_option(p); i++)
        help_option(f, option(p, i));
    fprintf(f, "\nExit status: 0 done, 1 failed, 2 wrong usage, 75 try again.\n");
}

/* ---- parsing ---- */

/* The option that `name` (n bytes) is, or is the only beginning of. NULL with e set. */
static const struct spec_key *find(struct parse *p, const char *name, size_t n)
{
    const struct spec_key *found = NULL, *near[2];
    char whole[64], other[256] = "";
    int n_found = 0, d[2];

    for (int i = 0; i < n_option(p); i++) {
        const struct spec_key *k = option(p, i);
        if (strncmp(k->name, name, n))
            continue;
        if (!k->name[n])
            return k;
        found = k;
        n_found++;
        snprintf(other + strlen(other), sizeof other - strlen(other), "%s--%s", *other ? ", " : "", k->name);
    }
    if (n_found == 1)
        return found;
    if (n_found) {
        err_set(p->e, E_ARG, "--%.*s could be %s", (int)n, name, other);
        return NULL;
    }
    snprintf(whole, sizeof whole, "%.*s", n < sizeof whole ? (int)n : 0, name);
    d[0] = spec_nearest(p->spec->kind, whole, &near[0]);
    d[1] = spec_nearest(p->c->shared.kind, whole, &near[1]);
    spec_set(d[1] < d[0] ? &p->c->shared : p->spec, whole, NULL, p->e);         /* says what is near */
    return NULL;
}

static int run_extra(struct parse *p, const struct spec_key *k)
{
    FILE *f = p->c->out ? p->c->out : stdout;

    if (k == &extra[0])
        help(p, f);
    else
        fprintf(f, "%s (unicon) %s\n", p->c->prog, UNICON_VERSION);
    p->c->stop = true;
    return OK;
}

/* value: what came with the option, or NULL. */
static int take(struct parse *p, const struct spec_key *k, const char *value)
{
    const bool shared = spec_key_of(p->c->shared.kind, k->name) == k;

    if (k->type == SPEC_FLAG && value)
        return err_set(p->e, E_ARG, "--%s takes no value", k->name);
    if (k >= extra && k < extra + N_EXTRA)
        return run_extra(p, k);
    if (k->type != SPEC_FLAG && !value) {
        if (p->arg == p->end)
            return err_set(p->e, E_ARG, "--%s needs a value: %s", k->name, k->choices ? k->choices : k->value);
        value = *p->arg++;
    }
    return spec_set(shared ? &p->c->shared : p->spec, k->name, value, p->e);
}

static int take_long(struct parse *p, const char *text)
{
    const size_t n = strcspn(text, "=");
    const struct spec_key *k = find(p, text, n);

    return k ? take(p, k, text[n] ? text + n + 1 : NULL) : E_ARG;
}

static int take_letters(struct parse *p, const char *text)
{
    for (; *text && !p->c->stop; text++) {
        const struct spec_key *k = NULL;
        int rc;
        for (int i = 0; i < n_option(p) && !k; i++)
            k = option(p, i)->letter == *text ? option(p, i) : NULL;
        if (!k)
            return err_set(p->e, E_ARG, "no option -%c", *text > ' ' && *text < 127 ? *text : '?');
        if (k->type != SPEC_FLAG)
            return take(p, k, text[1] ? text + 1 : NULL);
        rc = take(p, k, NULL);
        if (rc)
            return rc;
    }
    return OK;
}

static int take_all(struct parse *p)
{
    bool options = true;
    int rc = OK;

    while (p->arg < p->end && !rc && !p->c->stop) {
        const char *text = *p->arg++;
        if (options && !strcmp(text, "--"))
            options = false;
        else if (options && !strncmp(text, "--", 2))
            rc = take_long(p, text + 2);
        else if (options && text[0] == '-' && text[1])
            rc = take_letters(p, text + 1);
        else
            rc = err_set(p->e, E_ARG, "'%.60s' is no option: files and values follow the option they belong to", text);
    }
    return rc;
}

int cli_parse(struct cli *c, struct spec *spec, int argc, char **argv, struct err *e)
{
    struct parse p = { c, spec, argv + (argc > 0), argv + argc, e };
    int rc;

    c->shared = spec_new("shared");
    if (!spec->kind)
        return err_set(e, E_BUG, "a command line for an unknown kind of job");
    rc = take_all(&p);
    c->usage = rc == E_ARG;
    return rc;
}

int cli_finish(struct cli *c, int rc, const struct err *e)
{
    FILE *f = c->err ? c->err : stderr, *out = c->out ? c->out : stdout;
    struct err full = { 0 };

    spec_free(&c->shared);
    if (!rc && (fflush(out) || ferror(out))) {
        rc = err_set(&full, E_IO, "writing the results: %s", strerror(errno));
        e = &full;
    }
    if (!rc)
        return 0;
    fprintf(f, c->usage ? "%s: %s (%s --help lists the options)\n" : "%s: %s\n", c->prog,
            e && e->text[0] ? e->text : "failed", c->prog);
    if (c->usage || rc == E_ARG)
        return 2;
    if (rc == E_CANCEL && cli_signal())
        return 128 + cli_signal();
    return rc == E_BUSY ? 75 : 1;
}

/* ---- signals ---- */

static volatile sig_atomic_t caught;

static void on_signal(int number)
{
    caught = number;
    signal(SIGINT, SIG_DFL);
    signal(SIGTERM, SIG_DFL);
}

void cli_catch_signals(void)
{
    static const int numbers[] = { SIGINT, SIGTERM };
    struct sigaction action = { .sa_handler = on_signal, .sa_flags = SA_RESTART }, was;

    sigemptyset(&action.sa_mask);
    caught = 0;
    for (int i = 0; i < 2; i++)
        if (!sigaction(numbers[i], NULL, &was) && was.sa_handler != SIG_IGN)
            sigaction(numbers[i], &action, NULL);
}

int cli_signal(void)
{
    return caught;
}
