/* cmd/unicon-sample.c: draw pictures from text and pictures. Options are the keys of a "sample" job. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cmd/bar.h"
#include "cmd/cli.h"
#include "jobs/job_sample.h"
#include "store/image_file.h"
#include "store/map.h"

struct talk {
    struct bar bar;
    bool quiet;
};

static void say(void *ctx, const char *line)
{
    struct talk *t = ctx;

    bar_clear(&t->bar);
    puts(line);
    fflush(stdout);
}

static void warn(void *ctx, const char *line)
{
    struct talk *t = ctx;

    if (t->quiet)
        return;
    bar_clear(&t->bar);
    fprintf(stderr, "unicon-sample: %s\n", line);
}

/* The spec that a picture carries, or the file itself where that is JSON. */
static int replay(struct spec *out, const char *path, struct err *e)
{
    struct map m = { 0 };
    char *text = NULL;
    int rc = map_open(&m, path, e);

    if (rc)
        return err_in(e, "--replay");
    if (m.size && m.base[0] == '{')
        rc = spec_from_json(out, (const char *)m.base, m.size, e);
    else if (!(rc = image_spec(&text, path, e)))
        rc = spec_from_json(out, text, strlen(text), e);
    if (rc == E_NONE)
        rc = err_set(e, E_FORMAT, "no spec in it: it was not made by unicon-sample, or another program rewrote it");
    free(text);
    map_close(&m);
    return rc ? err_in(e, "--replay '%s'", path) : OK;
}

/* What the command line says goes over what the picture says. */
static int complete(struct spec *spec, const struct cli *cli, struct err *e)
{
    const char *path = spec_text(&cli->shared, "replay");
    struct spec whole = spec_new("sample");
    int rc;

    if (!path)
        return OK;
    rc = replay(&whole, path, e);
    if (!rc && strcmp(whole.kind->name, "sample"))
        rc = err_set(e, E_ARG, "--replay '%s': it holds a '%s' job, not one of unicon-sample", path, whole.kind->name);
    rc = rc ? rc : spec_overlay(&whole, spec, e);
    if (rc) {
        spec_free(&whole);
        return rc;
    }
    spec_free(spec);
    *spec = whole;
    return OK;
}

/* Threads that spin while they wait take time from those that work. libgomp reads this once, when the program starts,
 * so the program starts again. */
static void wait_without_spinning(char **argv)
{
    char self[4096];
    const ssize_t n = getenv("OMP_WAIT_POLICY") ? -1 : readlink("/proc/self/exe", self, sizeof self - 1);

    if (n <= 0)
        return;
    self[n] = '\0';
    setenv("OMP_WAIT_POLICY", "passive", 1);
    execv(self, argv);
}

int main(int argc, char **argv)
{
    struct spec spec = spec_new("sample");
    struct cli cli = { .prog = "unicon-sample",
                       .about = "Draw pictures from text, or from text and a picture, with a diffusion model." };
    struct talk talk = { .quiet = false };
    struct err e = { 0 };
    int rc;

    wait_without_spinning(argv);
    rc = cli_parse(&cli, &spec, argc, argv, &e);
    if (!rc && !cli.stop) {
        const struct job_env env = {
            .say = say, .warn = warn, .ctx = &talk, .progress = bar_progress(&talk.bar),
            .plan = spec_flag(&cli.shared, "plan"), .dry_run = spec_flag(&cli.shared, "dry-run"),
            .json = spec_flag(&cli.shared, "json"), .show_schedule = spec_flag(&cli.shared, "show-schedule"),
        };

        talk.quiet = spec_flag(&cli.shared, "quiet");
        bar_init(&talk.bar, stderr, talk.quiet, spec_flag(&cli.shared, "verbose"));
        cli_catch_signals();
        rc = complete(&spec, &cli, &e);
        rc = rc ? rc : job_sample(&spec, &cli.shared, &env, &e);
        bar_end(&talk.bar);
    }
    spec_free(&spec);
    return cli_finish(&cli, rc, &e);
}
