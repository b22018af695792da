/* tests/fuzz/f_schedule.c: any text as a sampling schedule. The first byte says how many inputs, how many steps and
 * which form. pair_parse() refuses the text with E_ARG and a sentence of one line, or makes a plan in which every input
 * takes its steps in order, each once, and to the end unless the published form lets it stop earlier. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "core/diffusion/pair.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(bool ok)
{
    if (!ok)
        abort();
}

static void walks_in_order(const struct pair_plan *p, int k, bool official)
{
    int at = p->start[k];

    for (int i = 0; i < p->n_row; i++) {
        must(p->row[i].step[k] == at && at >= PAIR_HELD && at < p->n_step);
        must(at != PAIR_HELD || !p->row[i].walks[k]);
        at += p->row[i].walks[k];
    }
    must(official ? at > 0 : at == PAIR_HELD || at == p->n_step);
    must(at == PAIR_HELD || p->row[p->n_row - 1].walks[k]);
}

static void text_fits(const struct pair_plan *p, const char *const *names)
{
    const size_t n = pair_text(NULL, 0, p, names, NULL);
    char *text = malloc(n + 1);

    if (!text)
        return;
    must(pair_text(text, n + 1, p, names, NULL) == n && strlen(text) == n && (n == 0) == (p->n_row == 0));
    free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const names[] = { "x", "y", "y2" };
    static const int steps[] = { 1, 2, 7, 20, 50, 100, 999, 1001 };
    const int how = size ? data[0] : 0, n_input = how % 3 + 1, N = steps[how / 3 % 8];
    const int official = how / 24 & PAIR_OFFICIAL;
    struct pair_plan p = { .n_row = 77 };
    struct err e = { 0 };
    char *text = malloc(size + 1);
    int rc;

    if (!text)
        return 0;
    if (size)
        memcpy(text, data + 1, size - 1);
    text[size ? size - 1 : 0] = '\0';
    rc = pair_parse(&p, text, names, n_input, N, official, &e);
    must(rc == OK || rc == E_ARG);
    if (rc) {
        must(e.code == rc && !strncmp(e.text, "schedule, ", 10) + !strncmp(e.text, "schedule: ", 10) == 1);
        must(!strchr(e.text, '\n') && p.n_row == 77 && !p.row);
    } else {
        must(p.n_input == n_input && p.n_step == N && p.n_row >= 0 && p.n_row <= 1 + n_input * (N - 1));
        for (int k = 0; k < n_input; k++)
            walks_in_order(&p, k, official);
        text_fits(&p, names);
        pair_free(&p);
    }
    free(text);
    return 0;
}
