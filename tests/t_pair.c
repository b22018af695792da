/* tests/t_pair.c: schedules of pairs against the rows that the published code makes (tests/reference/schedules.txt),
 * and what that code does not have: held inputs, checks, messages, tasks, text. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/arena.h"
#include "core/diffusion/pair.h"
#include "core/diffusion/sampler.h"
#include "tests/kit.h"
#include "tests/tap.h"

static const char *const names[] = { "x", "y", "y2", "y3", "y4", "y5", "y6", "y7" };

/* ---- goldens ---- */

enum { MAX_ROW = 1024 };

struct golden {
    char text[2048];
    int n_input, N, n_row;
    int step[PAIR_MAX_INPUT][MAX_ROW];
    bool walks[PAIR_MAX_INPUT][MAX_ROW], guide[MAX_ROW];
};

static bool next_is(FILE *f, const char *word)
{
    const long at = ftell(f);
    char got[16];

    if (fscanf(f, "%15s", got) == 1 && !strcmp(got, word))
        return true;
    fseek(f, at, SEEK_SET);
    return false;
}

/* A mark per row, in pieces. */
static bool read_marks(FILE *f, char *mark, int n)
{
    int len = 0, got;

    for (; len < n && fscanf(f, "%127s", mark + len) == 1; len += got)
        got = (int)strlen(mark + len);
    return len == n;
}

static bool read_text(FILE *f, struct golden *g)
{
    char line[256];
    int c;

    g->text[0] = '\0';
    do {
        if (!fgets(line, sizeof line, f) || strlen(g->text) + strlen(line) >= sizeof g->text)
            return false;
        memcpy(g->text + strlen(g->text), line, strlen(line) + 1);
        c = ungetc(fgetc(f), f);
    } while (c == ' ');
    return true;
}

static bool read_rows(FILE *f, struct golden *g)
{
    static char mark[MAX_ROW + 128];

    g->n_input = 0;
    if (fscanf(f, "%d %d", &g->N, &g->n_row) != 2 || g->n_row < 1 || g->n_row > MAX_ROW)
        return false;
    while (g->n_input < PAIR_MAX_INPUT && next_is(f, "input")) {
        const int k = g->n_input++;
        int step;
        if (fscanf(f, "%d", &step) != 1 || !read_marks(f, mark, g->n_row))
            return false;
        for (int i = 0; i < g->n_row; i++) {
            g->step[k][i] = step;
            g->walks[k][i] = mark[i] == '+';
            step += g->walks[k][i];
        }
    }
    if (!next_is(f, "guide") || !read_marks(f, mark, g->n_row))
        return false;
    for (int i = 0; i < g->n_row; i++)
        g->guide[i] = mark[i] == '1';
    return g->n_input > 0;
}

static bool as_official(const struct golden *g)
{
    struct pair_plan p = { 0 };
    struct err e = { 0 };
    bool ok = pair_parse(&p, g->text, names, g->n_input, g->N, PAIR_OFFICIAL, &e) == OK && p.n_row == g->n_row
        && p.n_input == g->n_input && p.n_step == g->N;

    for (int i = 0; ok && i < g->n_row; i++) {
        ok &= p.row[i].guide == g->guide[i] && !p.row[i].free;
        for (int k = 0; k < g->n_input; k++)
            ok &= p.row[i].step[k] == g->step[k][i] && p.row[i].walks[k] == g->walks[k][i];
    }
    for (int k = 0; ok && k < g->n_input; k++)
        ok &= p.start[k] == g->step[k][0];
    if (!ok)
        tap_note("N %d, %d rows and not %d, %s: %s", g->N, p.n_row, g->n_row, e.text, g->text);
    pair_free(&p);
    return ok;
}

/* Every input that is not held takes every step from its start to the last once, in order, where it stands. */
static bool steps_once(const struct pair_plan *p)
{
    bool ok = true;

    for (int k = 0; k < p->n_input; k++) {
        int at = p->start[k];
        for (int i = 0; i < p->n_row; i++) {
            ok &= p->row[i].step[k] == at && (at != PAIR_HELD || !p->row[i].walks[k]);
            at += p->row[i].walks[k];
        }
        ok &= at == PAIR_HELD || at == p->n_step;
    }
    return ok;
}

/* Our own rule gives the published rows for all inputs that are not held. Of the goldens with STEPS > 50 those whose
 * last step is N - 1 are those that end clean, for their levels have two digits. */
static bool as_ours(const struct golden *g, int *n_held, int *n_refused)
{
    struct pair_plan p = { 0 };
    struct err e = { 0 };
    bool clean = true, ok;
    int rc, held = 0;

    for (int k = 0; k < g->n_input; k++)
        clean &= g->step[k][g->n_row - 1] == g->N - 1;
    rc = pair_parse(&p, g->text, names, g->n_input, g->N, 0, &e);
    ok = clean ? rc == OK : rc == E_ARG && strstr(e.text, "would stay noisy");
    for (int k = 0; ok && !rc && k < g->n_input; k++)
        held += p.start[k] == PAIR_HELD;
    if (ok && !rc) {
        ok = steps_once(&p) && p.n_row == (held == g->n_input ? 0 : g->n_row);
        for (int k = 0; k < g->n_input; k++) {
            ok &= (p.start[k] == PAIR_HELD) == (g->step[k][0] == g->N - 1);
            for (int i = 0; ok && i < p.n_row && p.start[k] != PAIR_HELD; i++)
                ok &= p.row[i].step[k] == g->step[k][i] && p.row[i].walks[k] == g->walks[k][i];
        }
    }
    if (!ok)
        tap_note("without PAIR_OFFICIAL: N %d, %s: %s", g->N, e.text, g->text);
    *n_held += held;
    *n_refused += rc == E_ARG;
    pair_free(&p);
    return ok;
}

/* Noise A = 0, 0.01 .. 1, as a number and as text. */
static int wrong_starts(FILE *f)
{
    int N, want, n_wrong = fscanf(f, "%d", &N) != 1;

    for (int i = 0; i <= 100 && !n_wrong; i++) {
        struct pair_plan p = { 0 }, q = { 0 };
        char text[32];
        const double A = strtod((snprintf(text, sizeof text, "0.%02d", i), i == 100 ? "1" : text), NULL);
        n_wrong += fscanf(f, "%d", &want) != 1 || pair_from_levels(&p, &A, 1, N, PAIR_OFFICIAL, NULL)
            || p.start[0] != want;
        pair_free(&p);
        snprintf(text, sizeof text, i == 100 ? "x=1:0" : "x=.%02d:0", i);
        n_wrong += pair_parse(&p, text, names, 1, N, PAIR_OFFICIAL, NULL) || p.start[0] != want;
        n_wrong += pair_parse(&q, text, names, 1, N, 0, NULL) || q.start[0] != (i ? want : PAIR_HELD);
        pair_free(&p);
        pair_free(&q);
    }
    return n_wrong;
}

static void test_goldens(void)
{
    static struct golden g;
    FILE *f = fopen("tests/reference/schedules.txt", "r");
    char word[16] = "";
    int n_text = 0, n_plan = 0, n_wrong = 0, n_other = 0, n_start = 0, bad_start = 0, n_held = 0, n_refused = 0;

    while (f && !feof(f) && fscanf(f, "%15s", word) == 1) {
        if (!strcmp(word, "schedule")) {
            n_text += read_text(f, &g);
        } else if (!strcmp(word, "N") && read_rows(f, &g)) {
            n_plan++;
            n_wrong += !as_official(&g);
            n_other += g.N > 50 && !as_ours(&g, &n_held, &n_refused);
        } else if (!strcmp(word, "starts")) {
            n_start++;
            bad_start += wrong_starts(f) > 0;
        } else {
            n_wrong++;
            break;
        }
        word[0] = '\0';
    }
    if (f)
        fclose(f);
    tap_ok(n_text == 64 && n_plan == 7 * n_text && !n_wrong && !word[0],
           "%d plans of %d schedules have the published rows, walks and guidance", n_plan, n_text);
    tap_ok(n_held > 5 && n_refused > 5 && !n_other,
           "our own rule: the same rows, each step once, %d inputs held, %d schedules end noisy", n_held, n_refused);
    tap_ok(n_start == 14 && !bad_start, "first steps of 101 noise levels for %d numbers of steps", n_start);
}

/* ---- rows ---- */

/* "0+ 1 1+, - - -": per input each row's step, - for held, with a + where it walks. */
static bool rows_are(const char *schedule, int n_input, int N, int flags, const char *want)
{
    struct pair_plan p = { 0 };
    struct err e = { 0 };
    char got[512] = "";
    bool ok = pair_parse(&p, schedule, names, n_input, N, flags, &e) == OK;

    for (int k = 0; ok && k < n_input; k++)
        for (int i = 0; i < p.n_row; i++) {
            const size_t at = strlen(got);
            const char *before = i ? " " : k ? ", " : "";
            if (p.row[i].step[k] == PAIR_HELD)
                snprintf(got + at, sizeof got - at, "%s-", before);
            else
                snprintf(got + at, sizeof got - at, "%s%d", before, p.row[i].step[k]);
            if (p.row[i].walks[k])
                snprintf(got + strlen(got), sizeof got - strlen(got), "+");
        }
    ok = ok && !strcmp(got, want);
    if (!ok)
        tap_note("'%s': '%s' %s", schedule, got, e.text);
    pair_free(&p);
    return ok;
}

static void test_rows(void)
{
    bool ok = rows_are("x=1:0 y=0", 2, 3, 0, "0+ 1+ 2+, - - -");

    ok &= rows_are("[(0,1),(1,1),0]", 2, 3, 0, "0+ 1+ 2+, - - -");
    ok &= rows_are("x=0 y=1:0 | y=0 x=0:0 guide", 2, 3, 0, "- - -, 0+ 1+ 2+");
    ok &= rows_are("x=1:0 y=0", 2, 1, 0, "0+, -");
    tap_ok(ok, "what is 0 throughout is held");
    ok = rows_are("x=1:0 y=0", 2, 3, PAIR_OFFICIAL, "0+ 1+ 2+, 2 2 2+");
    ok &= rows_are("x=0 y=0", 2, 3, PAIR_OFFICIAL, "2+, 2+");
    ok &= rows_are("x=1:0.5 y=1", 2, 3, PAIR_OFFICIAL, "0+ 1+, 0 0+");
    tap_ok(ok, "PAIR_OFFICIAL holds nothing and may end anywhere");
    ok = rows_are("x=1:0 y=1 | x=0 y=1:0", 2, 4, 0, "0+ 1+ 2+ 3 3 3 3+, 0 0 0 0+ 1+ 2+ 3+");
    ok &= rows_are("[(0,1),(0,0),0],[(1,1),(0,1),0]", 2, 4, 0, "0+ 1+ 2+ 3 3 3 3+, 0 0 0 0+ 1+ 2+ 3+");
    ok &= rows_are("x=1:0 y=1 y2=0|x=0 y=1:0.5 y2=0|x=0 y=0.5:0 y2=0", 3, 3, 0,
                   "0+ 1+ 2 2 2+, 0 0 0+ 1+ 2+, - - - - -");
    tap_ok(ok, "what comes down to 0 early waits at the last step and takes it at the end");
    ok = rows_are("x=0 y=0", 2, 9, 0, "") && rows_are("[(1,1),(1,1),0]", 2, 1, 0, "");
    tap_ok(ok, "if all are held there are no rows");
    ok = rows_are("x=1:0 y=1:0", 2, 2, 0, "0+ 1+, 0+ 1+") && rows_are("x=1e-300:0", 1, 4, 0, "3+");
    ok &= rows_are("x=1:0 y=.7:0", 2, 10, 0, "0+ 1+ 2+ 3+ 4+ 5+ 6+ 7+ 8+ 9+, 2 2+ 3+ 4+ 5+ 6 6+ 7+ 8+ 9+");
    ok &= rows_are("x=1:0 y=0.5:0", 2, 5, 0, "0+ 1+ 2+ 3+ 4+, 2 2+ 3 3+ 4+");
    ok &= rows_are("x=1:0.5 y=1:0.5 | x=0.5 y=0.5 guide | x=0.5:0 y=0.5:0", 2, 5, 0, "0+ 1+ 2+ 3+ 4+, 0+ 1+ 2+ 3+ 4+");
    tap_ok(ok, "short walks are stretched; a segment that goes nowhere adds no row");
}

/* What the published demo makes of its sliders: noise 0, 0.05, .. 1 for 50 and for 20 steps; a rough y in 50. */
static void test_known(void)
{
    static const int n50[21] = { 49, 46, 44, 41, 39, 36, 34, 31, 29, 26, 24, 22, 19, 17, 14, 12, 9, 7, 4, 2, 0 };
    static const int rough[20] = { 5, 5, 6, 7, 8, 8, 9, 10, 11, 11, 12, 13, 14, 14, 15, 16, 17, 17, 18, 19 };
    struct pair_plan p = { 0 }, q = { 0 };
    bool ok = true;

    for (int i = 0; i <= 20; i++) {
        const double A[] = { i * 5 / 100.0, 1 };
        ok &= pair_from_levels(&p, A, 2, 50, 0, NULL) == OK && p.start[0] == (i ? n50[i] : PAIR_HELD) && !p.start[1];
        ok &= pair_from_levels(&q, A, 2, 20, PAIR_OFFICIAL, NULL) == OK && q.start[0] == (i < 20 ? 19 - i : 0);
        ok &= p.n_row == 50 && steps_once(&p) && q.n_row == 20;
        pair_free(&p);
        pair_free(&q);
    }
    tap_ok(ok, "noise levels of the demo");
    ok = pair_parse(&p, pair_task("coarse-y"), names, 2, 20, 0, NULL) == OK;
    for (int i = 0; i < 20; i++)
        ok &= p.row[i].step[0] == i && p.row[i].step[1] == rough[i];
    pair_free(&p);
    tap_ok(ok, "a rough y in 20 steps");
}

static void test_flags(void)
{
    static const char schedule[] = "x=1:0.6 y=1:0.6 guide|free y=0.6:0.2 x=0.6:0.2|x=0.2:0 y=0.2:0 free guide";
    struct pair_plan p = { 0 };
    bool ok = pair_parse(&p, schedule, names, 2, 11, 0, NULL) == OK && p.n_row == 11;

    for (int i = 0; i < p.n_row; i++)
        ok &= p.row[i].guide == (i <= 4 || i > 8) && p.row[i].free == (i > 4);
    pair_free(&p);
    tap_ok(ok, "guide and free hold in their segments; the row between two belongs to the earlier");
}

/* ---- refusals ---- */

static const struct { const char *text; int flags; const char *says; } wrong[] = {
    { "", 0, "schedule, segment 1: input 'x' has no level: say x=FROM:TO or x=LEVEL" },
    { "x=1:0", 0, "segment 1: input 'y' has no level" },
    { "x=1:0 y=0 |", 0, "segment 2: input 'x' has no level" },
    { "x=1:0 y=0 x=1:0", 0, "segment 1: input 'x' has two levels" },
    { "x=1:0 z=0", 0, "segment 1: there is no input 'z'; there is 'x', 'y'" },
    { "x=1:0 =0", 0, "no input ''" },
    { "x=1:0 y=0 | x=0 y=0 wait", 0, "segment 2: 'wait' is none of NAME=FROM:TO, NAME=LEVEL, guide, free" },
    { "y2x", 0, "'y2x' is none of" },
    { "x=1:0 y = 0", 0, "'y' is none of" },
    { "x=1:0 y=", 0, "'y=': want y=FROM:TO or y=LEVEL, numbers from 0 to 1" },
    { "x=1: y=0", 0, "'x=1:': want" },
    { "x=1:0:0 y=0", 0, "'x=1:0:0': want" },
    { "x=0x1:0 y=0", 0, "'x=0x1:0': want" },
    { "x=nan y=0", 0, "'x=nan': want" },
    { "x=inf:0 y=0", 0, "'x=inf:0': want" },
    { "x=+1:0 y=0", 0, "'x=+1:0': want" },
    { "x=1:-0 y=0", 0, "'x=1:-0': want" },
    { "x=.:0 y=0", 0, "'x=.:0': want" },
    { "x=1,0 y=0", 0, "'x=1,0': want" },
    { "x=1.01:0 y=0", 0, "segment 1, input 'x': level 1.01 is not in [0,1]" },
    { "x=1:0 y=1:1e9", 0, "segment 1, input 'y': level 1e+09 is not in [0,1]" },
    { "x=1e999:0 y=0", 0, "level inf is not in [0,1]" },
    { "x=1:0 y=0.2:0.4", 0, "segment 1, input 'y': from 0.2 to 0.4 noise rises; it can only fall" },
    { "x=1:0.4 y=0 | x=0.5:0 y=0", 0, "segment 2, input 'x': begins at 0.5, but segment 1 ends at 0.4: a gap" },
    { "x=1:0 y=0 | x=0 y=1:0", 0, "segment 2, input 'y': begins at 1, but segment 1 ends at 0: a gap" },
    { "x=1:0.5 y=1:0.5 | x=0.5:0 y=0.1:0", PAIR_OFFICIAL, "segment 2, input 'y': begins at 0.1, but segment 1 ends" },
    { "[(0,.5),(0,.5),0],[(.5,1),(.9,1),0]", PAIR_OFFICIAL, "segment 2, input 'y': begins at 0.9, but segment 1 ends" },
    { "[(0,.5),(0,.5),0],[(.5,1),(.51,1),0]", 0, "segment 2, input 'y': begins at 0.51, but segment 1 ends at 0.5: a" },
    { "x=1:0.5 y=1:0", 0, "segment 1, input 'x': ends at 0.5 and would stay noisy: the last segment has to end at 0" },
    { "[(0,1),(.5,.5),0]", 0, "input 'y': ends at 0.5 and would stay noisy: the last segment has to end at 1" },
    { "[(0,1),(1,.5),0]", PAIR_OFFICIAL, "input 'y': from 1 to 0.5 noise rises (1 is clean)" },
    { "[(0,1),(1,1.5),0]", PAIR_OFFICIAL, "input 'y': level 1.5 is not in [0,1]" },
    { "[", 0, "segment 1: want '(' at its end" },
    { "[(0,1),(1,1),0", 0, "segment 1: want ']' at its end" },
    { "[(0,1),(1,1)]", 0, "segment 1: want ',' at ]" },
    { "[(0,1),0]", 0, "segment 1: want '(' at 0]" },
    { "[(0,1),(1,1),(1,1),0]", 0, "segment 1: levels of more than 2 inputs" },
    { "[(0,1),(1,1),2]", 0, "segment 1: want the guidance flag, 0 or 1, at 2]" },
    { "[(0,1),(1,1),10]", 0, "segment 1: want ']' at 0]" },
    { "[(0;1),(1,1),0]", 0, "segment 1: want ',' at ;1),(1,1),0]" },
    { "[(0,-1),(1,1),0]", 0, "segment 1: want a number from 0 to 1 at -1),(1,1),0]" },
    { "[(0,1),(1,1),0] x", 0, "segment 1: want ',' and another segment, or nothing more, at x" },
    { "[(0,1),(1,1),0],", 0, "segment 2: want '[' at its end" },
    { "[[(0,1),(1,1),0]", 0, "segment 1: want ']' at its end" },
    { "[[(0,1),(1,1),0]]]", 0, "segment 1: want nothing more at ]" },
    { "[0-49,49-49,1,0]", 0, "segment 1: want '(' at 0-49,49-49,1,0]" },
};

static bool untouched(const struct pair_plan *p)
{
    return p->n_row == 77 && !p->row && !p->n_input;
}

static void test_refusals(void)
{
    char many[64 * 16 + 64] = "x=1:0";
    struct pair_plan p = { .n_row = 77 };
    struct err e = { 0 };
    bool ok = true;

    for (size_t i = 0; i < LEN(wrong); i++) {
        const bool as_told = pair_parse(&p, wrong[i].text, names, 2, 10, wrong[i].flags, &e) == E_ARG
            && e.code == E_ARG && strstr(e.text, wrong[i].says) && !strncmp(e.text, "schedule, segment ", 18);
        if (!as_told || !untouched(&p))
            tap_note("'%s': %s", wrong[i].text, e.text);
        ok &= as_told && untouched(&p);
    }
    tap_ok(ok, "%d wrong schedules: which segment, which input, what is wrong", (int)LEN(wrong));
    ok = pair_parse(&p, "x=1:0", names, 0, 10, 0, &e) == E_ARG && pair_parse(&p, "x=1:0", names, 9, 10, 0, &e) == E_ARG;
    ok &= strstr(e.text, "9 inputs: want 1 to 8") && pair_parse(&p, "x=1:0", names, 1, 0, 0, &e) == E_ARG;
    ok &= pair_parse(&p, "x=1:0", names, 1, SAMPLER_MAX_STEP + 1, 0, &e) == E_ARG && strstr(e.text, "want 1 to 1001");
    ok &= untouched(&p);
    tap_ok(ok, "numbers of inputs and steps");
    for (int i = 1; i < PAIR_MAX_SEGMENT; i++)
        memcpy(many + strlen(many), "|x=0", 5);
    ok = pair_parse(&p, many, names, 1, 10, 0, &e) == OK && p.n_row == 10;
    pair_free(&p);
    p.n_row = 77;
    memcpy(many + strlen(many), "|x=0", 5);
    ok &= pair_parse(&p, many, names, 1, 10, 0, &e) == E_ARG && strstr(e.text, "more than 64 segments");
    ok &= untouched(&p);
    tap_ok(ok, "64 segments and no more");
    arena_fault_at(1);
    ok = pair_parse(&p, "x=1:0", names, 1, 10, 0, &e) == E_NOMEM && untouched(&p);
    arena_fault_at(0);
    tap_ok(ok, "out of memory");
    pair_free(&(struct pair_plan){ 0 });
}

/* The published check leaves out the last input; steps fit together where levels need not. */
static void test_gap(void)
{
    static const char near[] = "x=1:0.5 y=0 | x=0.45:0 y=0";
    struct pair_plan p = { 0 };
    struct err e = { 0 };
    bool ok = pair_parse(&p, near, names, 2, 10, PAIR_OFFICIAL, &e) == OK && p.n_row == 10;

    pair_free(&p);
    ok &= pair_parse(&p, near, names, 2, 100, PAIR_OFFICIAL, &e) == E_ARG && strstr(e.text, "'x': begins at 0.45");
    ok &= pair_parse(&p, near, names, 2, 10, 0, &e) == E_ARG && strstr(e.text, "input 'x': begins at 0.45");
    tap_ok(ok, "a gap is one of steps in the published form, of levels in ours");
}

static void test_levels(void)
{
    static const double bad[][2] = { { 1, NAN }, { 1, -0.1 }, { 1, 1.1 }, { 1, INFINITY } };
    struct pair_plan p = { 0 }, q = { 0 };
    struct err e = { 0 };
    bool ok = pair_from_levels(&p, (const double[]){ 1, 0.35, 0 }, 3, 50, 0, &e) == OK;

    ok &= pair_parse(&q, "y2=0 y=0.35:0 x=1:0", names, 3, 50, 0, &e) == OK && p.n_row == q.n_row;
    for (int i = 0; ok && i < p.n_row; i++)
        ok &= !memcmp(p.row[i].step, q.row[i].step, sizeof p.row[i].step)
            && !memcmp(p.row[i].walks, q.row[i].walks, sizeof p.row[i].walks);
    tap_ok(ok && p.start[1] == 31 && p.start[2] == PAIR_HELD, "levels alone are a schedule of one segment");
    pair_free(&p);
    pair_free(&q);
    ok = true;
    for (size_t i = 0; i < LEN(bad); i++)
        ok &= pair_from_levels(&p, bad[i], 2, 50, 0, &e) == E_ARG && strstr(e.text, "input 2: level ") && !p.row;
    ok &= pair_from_levels(&p, bad[0], 0, 50, 0, &e) == E_ARG && pair_from_levels(&p, bad[0], 1, 0, 0, &e) == E_ARG;
    tap_ok(ok, "levels that are none");
}

/* ---- tasks and text ---- */

static void test_tasks(void)
{
    static const struct { const char *name; int x, y; } first[] = {      /* of 50 steps */
        { "y2x", 0, PAIR_HELD }, { "x2y", PAIR_HELD, 0 }, { "joint", 0, 0 },
        { "coarse-y", 0, 14 }, { "coarse-x", 24, 0 }, { "noisy-x2y", 44, 0 }
    };
    const char *const *list = pair_task_names();
    struct pair_plan p = { 0 };
    bool ok = true;
    size_t n = 0;

    for (; list[n]; n++) {
        ok &= n < LEN(first) && !strcmp(list[n], first[n].name)
            && pair_parse(&p, pair_task(list[n]), names, 2, 50, 0, NULL) == OK;
        ok &= p.start[0] == first[n].x && p.start[1] == first[n].y && p.n_row == 50 && steps_once(&p);
        pair_free(&p);
    }
    tap_ok(ok && n == LEN(first), "%d tasks", (int)n);
    tap_ok(!pair_task("y2z") && !pair_task("") && !pair_task("y2x "), "names that are no tasks");
}

static void test_text(void)
{
    static const char plain[] = "   0  x 0 walks   y 0 waits\n   1  x 1 waits   y 0 walks\n"
                                "   2  x 1 walks   y 1 walks   free\n";
    double time[11] = { 999, [5] = 20.5 };
    char buf[4096], small[20];
    struct pair_plan p = { 0 };
    bool ok = pair_parse(&p, "x=1:0 y=0 y2=0.5:0 guide", names, 3, 11, 0, NULL) == OK;
    size_t n = pair_text(buf, sizeof buf, &p, names, time);

    ok &= n == strlen(buf) && !strncmp(buf, "   0  x  0 t=999  walks   y held   y2  5 t=20.5 waits   guide\n", 61);
    ok &= strstr(buf, "\n  10  x 10 t=0    walks   y held   y2 10 t=0    walks   guide\n") != NULL;
    tap_ok(ok, "a line per row, in columns");
    memset(small, 'z', sizeof small);
    ok = pair_text(small, 10, &p, names, time) == n && !memcmp(small, "   0  x  \0z", 11);
    ok &= pair_text(NULL, 0, &p, names, time) == n && pair_text(buf, n + 1, &p, names, time) == n && strlen(buf) == n;
    ok &= pair_text(buf, n, &p, names, time) == n && strlen(buf) == n - 1;
    pair_free(&p);
    tap_ok(ok, "as much as fits");
    ok = pair_parse(&p, "x=1:0 y=1 | x=0 y=1:0 free", names, 2, 2, 0, NULL) == OK;
    ok &= pair_text(buf, sizeof buf, &p, names, NULL) == sizeof plain - 1 && !strcmp(buf, plain);
    pair_free(&p);
    ok &= pair_parse(&p, "x=0", names, 1, 2, 0, NULL) == OK && !pair_text(buf, sizeof buf, &p, names, NULL) && !*buf;
    pair_free(&p);
    tap_ok(ok, "without times; nothing for no rows");
}

int main(void)
{
    test_goldens();
    test_rows();
    test_known();
    test_flags();
    test_refusals();
    test_gap();
    test_levels();
    test_tasks();
    test_text();
    return tap_done();
}
