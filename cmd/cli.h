/* cmd/cli.h: argv to specs, --help, exit codes. Options are the keys of two specs: what to make, and the keys that all
 * programs share.
 *
 *     struct spec spec = spec_new("sample");
 *     struct cli cli = { .prog = "unicon-sample", .about = "Draw pictures from ..." };
 *     struct err e = { 0 };
 *     int rc = cli_parse(&cli, &spec, argc, argv, &e);
 *     if (!rc && !cli.stop)                            --help and --version stop
 *         rc = job_sample(&spec, &env, &e);
 *     spec_free(&spec);
 *     return cli_finish(&cli, rc, &e);                 one message, one exit code
 *
 * As GNU getopt_long has it: --key VALUE, --key=VALUE, names may be cut as long as one option remains, -oVALUE or
 * -o VALUE, flags together (-qv), -- ends options. There are no other arguments. */
#ifndef UNICON_CMD_CLI_H
#define UNICON_CMD_CLI_H

#include <stdio.h>
#include "jobs/spec.h"

struct cli {
    const char *prog, *about;   /* name; one sentence for --help */
    FILE *out, *err;            /* NULL: stdout, stderr */
    struct spec shared;         /* values of the shared keys */
    bool stop;                  /* nothing more to do */
    bool usage;                 /* what failed was the command line: exit 2 */
};

/* On failure `spec` may hold the options before the wrong one. */
int cli_parse(struct cli *c, struct spec *spec, int argc, char **argv, struct err *e);

/* Say what went wrong, if anything did (results that standard output did not take count), and free the shared values.
 * The exit code: 0 done, 1 failed, 2 usage, 75 try again, 130 or 143 stopped by SIGINT or SIGTERM. */
int cli_finish(struct cli *c, int rc, const struct err *e);

/* SIGINT and SIGTERM set a flag that cli_signal() returns (0 before); the next one of either ends the process at once.
 * A signal that was ignored when the program began stays ignored. */
void cli_catch_signals(void);
int cli_signal(void);

#endif
