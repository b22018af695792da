/* tests/t_cli.c: argv to specs, --help, exit codes, signals; and the bar, drawn into memory with a clock that the test
 * sets. */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cmd/bar.h"
#include "cmd/cli.h"
#include "tests/kit.h"
#include "tests/tap.h"

enum { MAX_ARG = 12 };

/* Memory that a FILE writes to. */
struct page {
    FILE *f;
    char *text;
    size_t size;
};

static void page_open(struct page *p)
{
    *p = (struct page){ 0 };
    p->f = open_memstream(&p->text, &p->size);
    if (!p->f) {
        puts("Bail out! no memory");
        exit(1);
    }
}

static const char *page_read(struct page *p)
{
    fflush(p->f);
    return p->text;
}

static void page_close(struct page *p)
{
    fclose(p->f);
    free(p->text);
}

struct session {
    struct spec spec;
    struct cli cli;
    struct page out, err;
    struct err e;
    int rc;
};

static void session_run(struct session *s, const char *const *arg)
{
    const char *argv[MAX_ARG + 1] = { "unicon-sample" };
    int argc = 1;

    for (; argc < MAX_ARG && arg[argc - 1]; argc++)
        argv[argc] = arg[argc - 1];
    *s = (struct session){ .spec = spec_new("sample"), .cli = { .prog = "unicon-sample", .about = "Draws." } };
    page_open(&s->out);
    page_open(&s->err);
    s->cli.out = s->out.f;
    s->cli.err = s->err.f;
    s->rc = cli_parse(&s->cli, &s->spec, argc, (char **)argv, &s->e);
}

static int session_end(struct session *s)
{
    const int code = cli_finish(&s->cli, s->rc, &s->e);

    spec_free(&s->spec);
    page_read(&s->out);
    page_read(&s->err);
    return code;
}

static void session_close(struct session *s)
{
    page_close(&s->out);
    page_close(&s->err);
}

/* ---- command lines ---- */

#define HEAD(kind) "{\"kind\":\"" kind "\",\"version\":1"

static const struct { const char *arg[MAX_ARG]; const char *spec, *shared; } taken[] = {
    { { NULL }, "", "" },
    { { "--steps", "20", "--prompt=a fox" }, ",\"prompt\":\"a fox\",\"steps\":20", "" },
    { { "--prompt=", "--cfg=3" }, ",\"cfg\":3.0", "" },
    { { "--prompt=a=b", "--negative", "-blur" }, ",\"prompt\":\"a=b\",\"negative\":\"-blur\"", "" },
    { { "--negative", "--steps", "--steps", "7" }, ",\"negative\":\"--steps\",\"steps\":7", "" },
    { { "--ste", "9", "--base=m", "--coun=2" }, ",\"base\":\"m\",\"count\":2,\"steps\":9", "" },
    { { "--x", "in.png", "--x-noise", "0.5" }, ",\"x\":\"in.png\",\"x-noise\":0.5", "" },
    { { "--neg", "a" }, ",\"negative\":\"a\"", "" },
    { { "-o", "a.png" }, ",\"out\":\"a.png\"", "" },
    { { "-oa.png" }, ",\"out\":\"a.png\"", "" },
    { { "-qvo", "a.png" }, ",\"out\":\"a.png\"", ",\"quiet\":true,\"verbose\":true" },
    { { "-vqoa" }, ",\"out\":\"a\"", ",\"quiet\":true,\"verbose\":true" },
    { { "-o", "-" }, ",\"out\":\"-\"", "" },
    { { "--lora", "a", "--lora=b:2" }, ",\"lora\":[\"a\",\"b:2\"]", "" },
    { { "--memory", "6G", "--threads=2", "--plan", "--dry-run" }, "",
      ",\"threads\":2,\"memory\":6442450944,\"plan\":true,\"dry-run\":true" },
    { { "--steps=3", "--steps=4", "--" }, ",\"steps\":4", "" },
};

static bool is_json(const struct spec *s, const char *head, const char *want)
{
    struct err e = { 0 };
    char *json = NULL, text[512];
    bool ok;

    snprintf(text, sizeof text, "%s%s}", head, want);
    ok = !spec_to_json(&json, s, &e) && !strcmp(json, text);
    if (!ok)
        tap_note("%s", json ? json : e.text);
    free(json);
    return ok;
}

static void test_taken(void)
{
    for (size_t i = 0; i < LEN(taken); i++) {
        struct session s;
        bool ok;
        session_run(&s, taken[i].arg);
        ok = s.rc == OK && !s.cli.stop && is_json(&s.spec, HEAD("sample"), taken[i].spec)
            && is_json(&s.cli.shared, HEAD("shared"), taken[i].shared);
        tap_ok(ok && session_end(&s) == 0 && !s.out.size && !s.err.size, "command line %zu: %s", i,
               taken[i].arg[0] ? taken[i].arg[0] : "nothing");
        session_close(&s);
    }
}

static const struct { const char *arg[MAX_ARG]; const char *says; } wrong[] = {
    { { "--steps" }, "--steps needs a value: N" },
    { { "--sampler" }, "--sampler needs a value: ddim ddpm" },
    { { "-o" }, "--out needs a value: PATH" },
    { { "--steps", "0" }, "--steps '0': want a whole number from 1 to 1000" },
    { { "--steps=" }, "--steps ''" },
    { { "--stpes", "5" }, "no option --stpes; did you mean --steps?" },
    { { "--memroy=5" }, "no option --memroy; did you mean --memory?" },
    { { "--verbsoe" }, "no option --verbsoe; did you mean --verbose?" },
    { { "--q", "a" }, "--q could be --quiet, --quality" },
    { { "--quite-unknown" }, "no option --quite-unknown" },
    { { "--s", "5" }, "--s could be --schedule, --steps, --sampler, --seed, --sweep, --sweep-steps, --save-latents, "
      "--sheet, --show-schedule" },
    { { "--x-", "5" }, "--x- could be --x-mask, --x-noise, --x-sample" },
    { { "--plan=on" }, "--plan takes no value" },
    { { "--help=1" }, "--help takes no value" },
    { { "-x" }, "no option -x" },
    { { "-qz" }, "no option -z" },
    { { "-\n" }, "no option -?" },
    { { "picture.png" }, "'picture.png' is no option" },
    { { "--", "--steps" }, "'--steps' is no option" },
    { { "-" }, "'-' is no option" },
    { { "" }, "'' is no option" },
    { { "--=5" }, "could be" },
    { { "--steps", "5", "--seed", "-1" }, "--seed '-1'" },
};

static void test_wrong(void)
{
    for (size_t i = 0; i < LEN(wrong); i++) {
        struct session s;
        char first[600];
        int code;
        session_run(&s, wrong[i].arg);
        code = session_end(&s);
        snprintf(first, sizeof first, "unicon-sample: %s", wrong[i].says);
        tap_ok(code == 2 && !s.out.size && !strncmp(s.err.text, "unicon-sample: ", 15)
               && strstr(s.err.text, !strcmp(wrong[i].says, "could be") ? "could be" : first)
               && strstr(s.err.text, " (unicon-sample --help lists the options)\n"), "%.*s",
               (int)strcspn(s.err.text, "\n"), s.err.text);
        session_close(&s);
    }
}

/* ---- --help and --version ---- */

static void test_help(void)
{
    static const char *const args[][4] = { { "--help" }, { "--steps=3", "--hel", "--no-such" } };
    struct session s;
    bool ok = true, fits = true;
    char word[64];

    for (int i = 0; i < 2; i++) {
        session_run(&s, args[i]);
        ok &= s.rc == OK && s.cli.stop && session_end(&s) == 0 && !s.err.size;
        if (i == 0)
            session_close(&s);
    }
    for (int t = 0; t < 2; t++) {
        const struct spec_kind *k = t ? &spec_shared : &spec_sample;
        for (int i = 0; i < k->n_key; i++) {
            const char *at, *next;
            snprintf(word, sizeof word, " --%s%s", k->key[i].name,
                     k->key[i].value ? " " : k->key[i].choices ? " WORD" : "");
            at = strstr(s.out.text, word);
            next = at ? strstr(at + 1, "\n      --") : NULL;
            snprintf(word, sizeof word, "%s", k->key[i].standard && *k->key[i].standard ? k->key[i].standard : "");
            if (!at || (*word && (!strstr(at, word) || (next && strstr(at, word) > next))))
                tap_note("--%s, default '%s'", k->key[i].name, word);
            ok &= at && (!*word || (strstr(at, word) && (!next || strstr(at, word) < next)));
            ok &= !k->key[i].group || strstr(s.out.text, k->key[i].group);
        }
    }
    for (const char *l = s.out.text; *l; l += strcspn(l, "\n") + (strchr(l, '\n') != NULL))
        fits &= strcspn(l, "\n") < 80;
    tap_ok(ok && strstr(s.out.text, "usage: unicon-sample [OPTION]...\nDraws.\n\nModel:\n") == s.out.text,
           "--help on standard output: every option, group and default");
    tap_ok(fits && strstr(s.out.text, "  -o, --out PATH          file to write"), "in lines of less than 80 columns");
    session_close(&s);
    session_run(&s, (const char *const[]){ "--version", NULL });
    tap_ok(s.rc == OK && s.cli.stop && session_end(&s) == 0
           && !strcmp(s.out.text, "unicon-sample (unicon) " UNICON_VERSION "\n"), "--version");
    session_close(&s);
}

static const struct { int rc, code; const char *text, *says; } ends[] = {
    { OK, 0, "", "" },
    { E_IO, 1, "no such file", "unicon-sample: no such file\n" },
    { E_ARG, 2, "cannot be", "unicon-sample: cannot be\n" },
    { E_CANCEL, 1, "stopped", "unicon-sample: stopped\n" },
    { E_BUSY, 75, "device is busy", "unicon-sample: device is busy\n" },
    { E_BUG, 1, "", "unicon-sample: failed\n" },
};

static void test_ends(void)
{
    struct cli full = { .prog = "unicon-sample" };
    const char *says;
    struct page err;
    bool ok;

    for (size_t i = 0; i < LEN(ends); i++) {
        struct session s;
        int code;
        session_run(&s, (const char *const[]){ NULL });
        s.rc = ends[i].rc;
        err_set(&s.e, s.rc, "%s", ends[i].text);
        code = session_end(&s);
        tap_ok(code == ends[i].code && !strcmp(s.err.text ? s.err.text : "", ends[i].says), "status %d ends with %d",
               ends[i].rc, code);
        session_close(&s);
    }
    full.out = fopen("/dev/full", "w");
    if (!full.out) {
        tap_skip("a full disk", "no /dev/full here");
        return;
    }
    page_open(&err);
    full.err = err.f;
    fputs("out.png\n", full.out);
    ok = cli_finish(&full, OK, NULL) == 1;
    says = page_read(&err);
    tap_ok(ok && !strncmp(says, "unicon-sample: writing the results: ", 36), "%.*s", (int)strcspn(says, "\n"), says);
    fclose(full.out);
    page_close(&err);
}

/* ---- the bar ---- */

static int64_t clock_ms;

static int64_t test_clock(void *ctx)
{
    (void)ctx;
    return clock_ms;
}

static struct bar bar_for_test(FILE *f, enum bar_style style, int width)
{
    struct bar b;

    bar_init(&b, f, false, false);
    b.style = style;
    b.width = width;
    b.now_ms = test_clock;
    return b;
}

/* What a terminal shows at the end: the text after the last carriage return. */
static bool shows(struct page *p, const char *want)
{
    const char *text = page_read(p), *last = strrchr(text, '\r');
    char line[600];
    bool ok;

    snprintf(line, sizeof line, "\r%s\033[K", want);
    ok = last && !strcmp(last, line);
    if (!ok)
        tap_note("'%s', want '%s'", last ? last + 1 : "", want);
    return ok;
}

static void test_line(void)
{
    struct page p;
    struct bar b;
    struct progress progress;
    size_t size;
    bool ok = true;

    page_open(&p);
    clock_ms = 1000000;
    b = bar_for_test(p.f, BAR_LINE, 80);
    progress = bar_progress(&b);
    ok &= !progress_tick(&progress, "sampling", 0, 50)
        && shows(&p, "sampling  0/50 [                                                 ] 0:00 elapsed");
    clock_ms += 14000;
    ok &= !progress_tick(&progress, "sampling", 12, 50)
        && shows(&p, "sampling 12/50 [========>                             ] 0:14 elapsed, 0:44 left");
    size = p.size;
    clock_ms += 499;
    progress_tick(&progress, "sampling", 13, 50);
    page_read(&p);
    tap_ok(ok && p.size == size, "a line with bar, elapsed and left, twice a second at most");
    clock_ms += 3600000;
    progress_tick(&progress, "sampling", 50, 50);
    ok = shows(&p, "sampling 50/50 [==============================================] 1:00:14 elapsed");
    clock_ms += 500;
    progress_tick(&progress, "decoding", 3, 0);
    ok &= shows(&p, "decoding 3 0:00 elapsed");
    clock_ms += 61000;
    progress_tick(&progress, "decoding", 4, 0);
    ok &= shows(&p, "decoding 4 1:01 elapsed");
    progress_tick(&progress, "loading", 5, 10);             /* too early to be drawn, but the clock starts */
    clock_ms += 2000;
    progress_tick(&progress, "loading", 6, 10);
    ok &= shows(&p, "loading  6/10 [======================>                ] 0:02 elapsed, 0:08 left");
    clock_ms += 2000;
    progress_tick(&progress, "loading", 2, 10);
    tap_ok(ok && shows(&p, "loading  2/10 [=========>                                        ] 0:00 elapsed"),
           "a new word or a smaller count begins a stage");
    bar_clear(&b);
    size = p.size;
    bar_clear(&b);
    ok = shows(&p, "") && p.size == size;
    clock_ms += 2000;
    progress_tick(&progress, "loading", 3, 10);
    ok &= shows(&p, "loading  3/10 [==========>                            ] 0:02 elapsed, 0:14 left");
    bar_end(&b);
    ok &= shows(&p, "");
    clock_ms += 2000;
    size = p.size;
    progress_tick(&progress, "loading", 4, 10);
    page_read(&p);
    tap_ok(ok && p.size == size, "cleared for other text, gone at the end");
    page_close(&p);
}

static void test_widths(void)
{
    bool ok = true;

    for (int width = 1; width <= 500; width++) {
        struct page p;
        struct bar b;
        size_t n;
        page_open(&p);
        clock_ms = 0;
        b = bar_for_test(p.f, BAR_LINE, width);
        bar_tick(&b, "a word that is far too long for a stage of anything", 0, INT64_MAX);
        clock_ms = 5000;
        bar_tick(&b, "a word that is far too long for a stage of anything", INT64_MAX / 3, INT64_MAX);
        n = strlen(strrchr(page_read(&p), '\r')) - 4;       /* carriage return, and three to erase the rest */
        ok &= n < (size_t)width || width == 1;
        ok &= n <= 200;
        page_close(&p);
    }
    tap_ok(ok, "never as wide as the terminal, whatever its width");
}

static void test_log(void)
{
    struct page p;
    struct bar b;

    for (int verbose = 0; verbose < 2; verbose++) {
        const char *want = verbose ? "loading 4/4, 0:03 elapsed\nsampling 20/50, 1:00 elapsed, 1:30 left\n"
                                     "sampling 50/50, 1:30 elapsed\n"
            : "sampling 19/50, 0:57 elapsed, 1:33 left\n";
        page_open(&p);
        clock_ms = 50;
        b = bar_for_test(p.f, BAR_LOG, 0);
        b.verbose = verbose;
        bar_tick(&b, "loading", 0, 4);
        clock_ms += 3000;
        bar_tick(&b, "loading", 4, 4);
        bar_tick(&b, "loading", 4, 4);
        bar_tick(&b, "sampling", 0, 50);
        for (int i = 1; i <= 30; i++) {
            clock_ms += 3000;
            bar_tick(&b, "sampling", i < 30 ? i : 50, 50);
        }
        bar_end(&b);
        tap_ok(!strcmp(page_read(&p), want), verbose ? "and with -v one at the end of each stage"
                                                     : "without a terminal a line a minute");
        if (strcmp(p.text, want))
            tap_note("%s", p.text);
        page_close(&p);
    }
    page_open(&p);
    b = bar_for_test(p.f, BAR_NONE, 0);
    clock_ms += 1000000;
    tap_ok(!bar_tick(&b, "sampling", 1, 1) && !page_read(&p)[0], "nothing with -q");
    page_close(&p);
}

static void test_choice(void)
{
    FILE *f = tmpfile();
    struct bar quiet, log;

    if (!f) {
        tap_skip("a file is no terminal", "no temporary file");
        return;
    }
    setenv("TERM", "xterm", 1);
    bar_init(&quiet, f, true, false);
    bar_init(&log, f, false, true);
    tap_ok(quiet.style == BAR_NONE && log.style == BAR_LOG && log.verbose && !log.now_ms
           && !bar_tick(&log, "sampling", 1, 50) && ftell(f) == 0, "a file is no terminal");
    fclose(f);
}

/* A terminal of our own: the bar is drawn there unless TERM says that it cannot be. */
static void test_terminal(void)
{
    const int master = posix_openpt(O_RDWR | O_NOCTTY);
    const char *name = master >= 0 && !grantpt(master) && !unlockpt(master) ? ptsname(master) : NULL;
    FILE *f = name ? fopen(name, "r+") : NULL;
    struct bar b, dumb;

    if (!f) {
        tap_skip("a terminal", "this machine gives none");
    } else {
        setenv("TERM", "xterm", 1);
        bar_init(&b, f, false, false);
        setenv("TERM", "dumb", 1);
        bar_init(&dumb, f, false, false);
        tap_ok(b.style == BAR_LINE && dumb.style == BAR_LOG, "a terminal gets the line, a dumb one does not");
        fclose(f);
    }
    if (master >= 0)
        close(master);
}

/* ---- signals ---- */

static void test_signals(void)
{
    struct bar b = { .style = BAR_NONE };
    struct session s;
    int status = 0;
    pid_t child;
    bool ok;

    signal(SIGINT, SIG_IGN);
    cli_catch_signals();
    raise(SIGINT);
    ok = cli_signal() == 0 && !bar_tick(&b, "sampling", 1, 50);
    signal(SIGINT, SIG_DFL);
    tap_ok(ok, "a signal that was ignored stays ignored");
    cli_catch_signals();
    raise(SIGTERM);
    session_run(&s, (const char *const[]){ NULL });
    s.rc = err_set(&s.e, E_CANCEL, "stopped");
    tap_ok(cli_signal() == SIGTERM && bar_tick(&b, "sampling", 1, 50) && session_end(&s) == 143,
           "SIGTERM: the tick says stop, the exit code is 143");
    session_close(&s);
    fflush(NULL);
    child = fork();
    if (child == 0) {
        cli_catch_signals();
        raise(SIGTERM);
        raise(SIGINT);
        _exit(0);
    }
    ok = child > 0 && waitpid(child, &status, 0) == child;
    tap_ok(ok && WIFSIGNALED(status) && WTERMSIG(status) == SIGINT, "the second signal ends the process");
}

int main(void)
{
    test_taken();
    test_wrong();
    test_help();
    test_ends();
    test_line();
    test_widths();
    test_log();
    test_choice();
    test_terminal();
    test_signals();
    return tap_done();
}
