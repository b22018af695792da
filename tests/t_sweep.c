/* tests/t_sweep.c: sweeps: corners and points between them, what is refused; then runs of unicon-sample with --sweep
 * and --sheet: points are the pictures that their values make alone, cells are the pictures. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "jobs/sample_sweep.h"
#include "store/image_file.h"
#include "store/unicon_file.h"
#include "tests/adapters.h"
#include "tests/tap.h"
#include "tests/tiny.h"

#define LEN(a) (sizeof(a) / sizeof *(a))

static char tmp[] = "/tmp/t_sweep.XXXXXX";

/* ---- points ---- */

static const struct { const char *sweep, *steps, *points; } good[] = {
    { "x-noise,y-noise=1,0:1,1:0,1", "9", "x-noise 1, y-noise 0|x-noise 1, y-noise 0.25|x-noise 1, y-noise 0.5"
      "|x-noise 1, y-noise 0.75|x-noise 1, y-noise 1|x-noise 0.75, y-noise 1|x-noise 0.5, y-noise 1"
      "|x-noise 0.25, y-noise 1|x-noise 0, y-noise 1" },
    { "cfg=1:2", "4", "cfg 1|cfg 1.33333|cfg 1.66667|cfg 2" },
    { "cfg=1.23456789:2", "2", "cfg 1.23456789|cfg 2" },
    { "cfg=1:3:7.5", "3", "cfg 1|cfg 3|cfg 7.5" },
    { "cfg=0:1:0", "4", "cfg 0|cfg 0.666667|cfg 0.666667|cfg 0" },
    { "steps=10:20", "4", "steps 10|steps 13|steps 17|steps 20" },
    { "seed=5:7", "3", "seed 5|seed 6|seed 7" },
    { "seed=9007199254740992:0", "2", "seed 9007199254740992|seed 0" },
    { "depth.y-noise,y2.y-noise=0,1:1,0", "3", "depth.y-noise 0, y2.y-noise 1|depth.y-noise 0.5, y2.y-noise 0.5"
      "|depth.y-noise 1, y2.y-noise 0" },
    { "cond-guidance,joint-scale=0,1:4,0", "2", "cond-guidance 0, joint-scale 1|cond-guidance 4, joint-scale 0" },
};

static void test_points(void)
{
    for (size_t i = 0; i < LEN(good); i++) {
        struct spec s = spec_new("sample");
        struct sweep w = { 0 };
        struct err e = { 0 };
        char all[1024] = "", text[SWEEP_TEXT];
        size_t n = 0;
        int rc = spec_set(&s, "sweep", good[i].sweep, &e);

        rc = rc ? rc : spec_set(&s, "sweep-steps", good[i].steps, &e);
        rc = rc ? rc : sweep_open(&w, &s, &e);
        for (int64_t p = 0; p < w.n && !rc; p++) {
            sweep_text(text, &w, p);
            n += (size_t)snprintf(all + n, sizeof all - n, "%s%s", p ? "|" : "", text);
        }
        tap_ok(!rc && !strcmp(all, good[i].points), "%s in %s: %s %s", good[i].sweep, good[i].steps, all, e.text);
        sweep_close(&w);
        spec_free(&s);
    }
}

static const struct { const char *sweep, *says; } bad[] = {
    { "cfg", "want OPTION" }, { "=1:2", "names of options" }, { "cfg,=1:2", "names of options" },
    { "cfg=1", "one corner" }, { "cfg=", "corner 1: --cfg ''" }, { "cfg=1:", "corner 2: --cfg ''" },
    { "cfg=1:a", "corner 2: --cfg 'a': want a number" }, { "cfg=1:101", "corner 2: --cfg '101': want a number" },
    { "cfg=1:nan", "corner 2" }, { "cfg,eta=1:2", "corner 1 has fewer values" },
    { "cfg=1,2:3", "corner 1 has more values" }, { "cfg,eta=1,1:2,1,0", "corner 2 has more values" },
    { "prompt=1:2", "'prompt' takes no number" }, { "y=1:2", "'y' takes no number" },
    { "nothing=1:2", "no option 'nothing'" }, { "width=8:16", "'width' is the same for all" },
    { "count=1:2", "'count' is the same" }, { "sweep-steps=2:3", "'sweep-steps' is the same" },
    { "depth.cfg=1:2", "leave out 'depth.'" }, { "cfg,cfg=1,1:2,2", "'cfg' is named twice" },
    { "steps=1:2.5", "corner 2: --steps '2.5'" }, { "seed=0:9007199254740993000", "too large" },
    { "y-noise=0:x", "'x' is no number for y-noise" }, { "cond-guidance=1:2:", "corner 3" },
    { "cfg=1:2:3:4:5:6:7:8:9:1:2:3:4:5:6:7:8:9:1:2:3:4:5:6:7:8:9:1:2:3:4:5:6:7:8:9:1:2:3:4:5:6:7:8:9:1:2:3:4:5:6:7:8:"
      "9:1:2:3:4:5:6:7:8:9:1:2:3:4:5", "more than 64 corners" },
    { "cfg,eta,steps,seed,x-noise,y-noise,joint-scale,cond-guidance,clip-skip=1:2", "more than 8 options" },
};

static void test_refused(void)
{
    for (size_t i = 0; i < LEN(bad); i++) {
        struct spec s = spec_new("sample");
        struct sweep w = { 0 };
        struct err e = { 0 };
        const int rc = spec_set(&s, "sweep", bad[i].sweep, &e) ? OK : sweep_open(&w, &s, &e);

        tap_ok(rc == E_ARG && strstr(e.text, bad[i].says) && strstr(e.text, "--sweep '"), "%s", e.text);
        sweep_close(&w);
        spec_free(&s);
    }
}

static bool has_items(const struct spec *s, const char *key, const char *a, const char *b)
{
    return spec_count(s, key) == (b ? 2 : 1) && !strcmp(spec_item(s, key, 0), a)
        && (!b || !strcmp(spec_item(s, key, 1), b));
}

/* A point's spec: values set, of lists that checkpoint's alone; nothing of the sweep. */
static void test_specs(void)
{
    struct spec s = spec_new("sample"), one = { 0 };
    struct sweep w = { 0 };
    struct err e = { 0 };
    bool ok = !spec_set(&s, "sweep", "cfg,id.y-noise,cond-guidance=1,0,3:2,1,5", &e)
        && !spec_set(&s, "sweep-steps", "3", &e) && !spec_set(&s, "y-noise", "id=0.9", &e)
        && !spec_set(&s, "y-noise", "depth=0.1", &e) && !spec_set(&s, "cond-guidance", "1", &e)
        && !spec_set(&s, "cond-guidance", "id=2", &e) && !spec_set(&s, "cfg", "7", &e) && !sweep_open(&w, &s, &e);

    ok = ok && !sweep_spec(&one, &w, &s, 1, &e);
    tap_ok(ok && spec_double(&one, "cfg") == 1.5 && has_items(&one, "y-noise", "depth=0.1", "id=0.5")
           && has_items(&one, "cond-guidance", "id=2", "4") && !spec_is_set(&one, "sweep")
           && !spec_is_set(&one, "sweep-steps") && spec_is_set(&s, "sweep"), "the spec of a point %s", e.text);
    spec_free(&one);
    sweep_close(&w);
    spec_unset(&s, "sweep");
    tap_ok(sweep_open(&w, &s, &e) == E_ARG && strstr(e.text, "--sweep-steps"), "%s", e.text);
    sweep_close(&w);
    spec_unset(&s, "sweep-steps");
    ok = !sweep_open(&w, &s, &e) && w.n == 1 && !w.n_key && !sweep_spec(&one, &w, &s, 0, &e);
    tap_ok(ok && spec_double(&one, "cfg") == 7, "without a sweep there is one point, the spec itself");
    spec_free(&one);
    sweep_close(&w);
    spec_free(&s);
}

/* ---- runs ---- */

/* unicon-sample in tmp with these options, small and quiet; its exit status. */
static int run(const char *fmt, ...)
{
    const char *bin = getenv("BIN");
    char here[2048], more[1024], command[8192];
    va_list args;
    int status;

    va_start(args, fmt);
    vsnprintf(more, sizeof more, fmt, args);
    va_end(args);
    if (!getcwd(here, sizeof here))
        return -1;
    snprintf(command, sizeof command, "bin='%s'; case $bin in /*) ;; *) bin='%s'/$bin ;; esac; cd '%s' && "
             "\"$bin/unicon-sample\" -q --threads 2 %s >said 2>err", bin ? bin : "bin", here, tmp, more);
    status = system(command);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

#define SMALL "--base sd1 --width 48 --height 32 --steps 3 --dtype f32 --cfg 2 --prompt fox "
#define PAIR SMALL "--unicon depth --x x.png --y y.png "

static bool load(struct image *m, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static bool load(struct image *m, const char *fmt, ...)
{
    char path[512], name[128];
    struct err e = { 0 };
    va_list args;

    va_start(args, fmt);
    vsnprintf(name, sizeof name, fmt, args);
    va_end(args);
    snprintf(path, sizeof path, "%s/%s", tmp, name);
    image_free(m);
    return !image_load(m, path, true, &e);
}

static const unsigned char *at(const struct image *m, int64_t y, int64_t x)
{
    return (const unsigned char *)m->px + (y * m->W + x) * m->C;
}

/* Where a picture stands in the sheet, looking from there on; false if it does not. */
static bool find(const struct image *sheet, const struct image *m, int64_t *y, int64_t *x)
{
    for (int64_t i = *y * sheet->W + *x; i < sheet->H * sheet->W; i++) {
        int64_t r = 0;

        *y = i / sheet->W;
        *x = i % sheet->W;
        if (*y + m->H > sheet->H || *x + m->W > sheet->W)
            continue;
        while (r < m->H && !memcmp(at(sheet, *y + r, *x), at(m, r, 0), (size_t)(m->W * m->C)))
            r++;
        if (r == m->H)
            return true;
    }
    return false;
}

static bool same_file(const char *a, const char *b)
{
    char command[512];

    snprintf(command, sizeof command, "cmp -s '%s/%s' '%s/%s'", tmp, a, tmp, b);
    return !system(command);
}

/* Is there a file of this name, and does it have the words? */
static bool said(const char *file, const char *words)
{
    char command[1024];

    snprintf(command, sizeof command, "grep -qF -- '%s' '%s/%s'", words, tmp, file);
    return !system(command);
}

static void test_sheet(void)
{
    struct image sheet = { 0 }, m = { 0 };
    int64_t x = 0, y = 0, top = 0, left = 0;
    const int rc = run(SMALL "--unicon depth --y y.png --count 3 --seed 5 --task joint -o a.png --sheet s.png");
    bool ok = !rc && load(&sheet, "s.png"), order = ok;

    for (int k = 0; k < 2; k++)
        for (int i = 0; i < 3 && ok; i++) {
            ok = load(&m, "a-%d%s.png", i, k ? "_y" : "");
            x = y = 0;
            ok = ok && find(&sheet, &m, &y, &x);
            order = order && (i ? y == top && x > left : y > top);
            top = y;
            left = x;
        }
    tap_ok(ok && order, "cells are the pictures, x in one row, y in the next");
    x = y = 0;
    ok = ok && load(&m, "y.png") && find(&sheet, &m, &y, &x);
    tap_ok(ok && y < top, "what was given stands above them");
    tap_ok(said("said", "s.png") && !run("--replay s.png --sheet t.png -o b.png") && same_file("s.png", "t.png")
           && same_file("a-1_y.png", "b-1_y.png"), "a sheet makes all of it again");
    tap_ok(!run(SMALL "--unicon depth --y y.png --count 2 -o h.png --sheet h_sheet.png") && load(&sheet, "h_sheet.png")
           && load(&m, "y.png") && (x = y = 0, find(&sheet, &m, &y, &x)) && (x++, !find(&sheet, &m, &y, &x))
           && !load(&m, "h-0_y.png"), "what is held is among the inputs and nowhere else");
    tap_ok(!run(SMALL "--unicon depth --y y.png --dry-run --sheet never.png") && !load(&m, "never.png")
           && run(SMALL "--sheet out.png") == 2 && said("err", "a picture of the run is written there")
           && !load(&m, "out.png")
           && run(SMALL "--count 70000 --sheet never.png") == 2 && said("err", "do not fit"),
           "nothing is made where it is only checked, or wrong");
    tap_ok(!run(SMALL "--count 66 --steps 1 -o w.png --sheet w_sheet.tif") && load(&sheet, "w_sheet.tif")
           && load(&m, "w-65.png") && (x = y = 0, find(&sheet, &m, &y, &x)) && load(&m, "w-01.png")
           && (left = x, top = y, x = y = 0, find(&sheet, &m, &y, &x)) && x == left && y < top,
           "of 66 pictures the last ones go on in another row");
    image_free(&sheet);
    image_free(&m);
}

static void test_sweep(void)
{
    struct image sheet = { 0 }, m = { 0 }, alone = { 0 };
    const int rc = run(PAIR "--sweep x-noise,y-noise=1,0:1,1:0,1 --sweep-steps 5 -o p.png --sheet p_sheet.png --json "
                       "--save-latents z.safetensors");
    int64_t x = 0, y = 0, top = 0, left = 0;
    bool ok = !rc && load(&sheet, "p_sheet.png");

    tap_ok(ok && !load(&m, "p-0_y.png") && !load(&m, "p-4.png") && load(&m, "p-0.png") && load(&m, "p-4_y.png")
           && said("said", "{\"image\":\"p-1_y.png\",\"seed\":0,\"point\":1,"
                   "\"sweep\":{\"x-noise\":1.0,\"y-noise\":0.5}}")
           && said("said", "{\"sheet\":\"p_sheet.png\"}") && said("z.safetensors", "\"shape\":[5,4,4,6]"),
           "five points: what is drawn is written and told");
    for (int i = 0; i < 4 && ok; i++) {
        x = y = 0;
        ok = load(&m, "p-%d.png", i) && find(&sheet, &m, &y, &x) && (!i || (y == top && x > left));
        top = y;
        left = x;
    }
    /* the last point holds x: its cell, right of the others, shows what was given */
    ok = ok && load(&m, "x.png") && (x = left, y = top, find(&sheet, &m, &y, &x)) && y == top && x > left;
    tap_ok(ok, "a column for each point; what a point holds is shown as it was given");
    ok = !run("--replay p-1_y.png -o r.png") && same_file("p-1_y.png", "r_y.png") && same_file("p-1.png", "r.png");
    tap_ok(ok, "each picture makes itself again");
    ok = !run(PAIR "--x-noise 0.5 --y-noise 1 -o q.png") && load(&m, "p-3.png") && load(&alone, "q.png")
        && !memcmp(m.px, alone.px, (size_t)(m.H * m.W * m.C));
    tap_ok(ok, "and is what its values draw alone");
    ok = !run("--replay p_sheet.png -o v.png --sheet v_sheet.png") && same_file("p_sheet.png", "v_sheet.png")
        && same_file("p-2_y.png", "v-2_y.png");
    tap_ok(ok, "a sheet makes the whole sweep again");
    ok = !run(SMALL "--sweep cfg=1:3 --sweep-steps 2 --count 2 --batch 2 -o c.png --sheet c_sheet.png")
        && !run(SMALL "--cfg 3 --seed 1 -o d.png") && load(&m, "c-1-1.png") && load(&alone, "d.png")
        && !memcmp(m.px, alone.px, (size_t)(m.H * m.W * m.C)) && load(&sheet, "c_sheet.png")
        && (x = y = 0, find(&sheet, &m, &y, &x)) && load(&m, "c-0-0.png") && (left = x, top = y, x = y = 0,
                                                                             find(&sheet, &m, &y, &x))
        && x < left && y < top;
    tap_ok(ok, "several pictures at each point: a row for each");
    image_free(&sheet);
    image_free(&alone);
    image_free(&m);
}

static void test_checks(void)
{
    struct image m = { 0 };

    tap_ok(run(PAIR "--sweep x-noise,y-noise=1,0:0,0 --sweep-steps 3 -o n.png") == 2
           && said("err", "--sweep, point 2 (x-noise 0, y-noise 0): everything is given") && !load(&m, "n-0.png"),
           "the last point is wrong: nothing is made");
    tap_ok(!run(PAIR "--sweep x-noise=1:0.5 --sweep-steps 3 --plan") && said("said", "1 picture at each of 3 points")
           && !run(PAIR "--sweep x-noise=1:0.5 --sweep-steps 3 --plan --json") && said("said", "\"points\":3,"),
           "--plan tells of all points");
    tap_ok(!run(PAIR "--sweep x-noise=1:0.5 --sweep-steps 2 --show-schedule") && said("said", "point 0: x-noise 1")
           && said("said", "point 1: x-noise 0.5") && said("said", "walks"), "--show-schedule tells of each");
    tap_ok(!run(PAIR "--sweep x-noise=1:0.5 --dry-run -o n.png") && !load(&m, "n-0.png"), "--dry-run makes nothing");
}

/* ---- files ---- */

static bool make_files(void)
{
    struct adapters *a = adapters_open("depth");
    const struct joint_weights w = { &a->xy, &a->yx, &a->y, &a->post, JOINT_CONV_FUSE, 1 };
    struct image m = { 0 };
    struct err e = { 0 };
    char path[64];
    bool ok;

    snprintf(path, sizeof path, "%s/sd1", tmp);
    ok = !tiny_write("sd1", path);
    snprintf(path, sizeof path, "%s/depth", tmp);
    ok = ok && !unicon_file_write(path, &w, "depth", "depth_map, ", true, &e);
    for (int k = 0; k < 2 && ok; k++) {
        ok = !image_new(&m, 32, 48, 3, PIXEL_U8, &e);
        for (int i = 0; i < 32 * 48 * 3 && ok; i++)
            ((unsigned char *)m.px)[i] = (unsigned char)(k ? i / 3 % 48 * 2 + i / 144 * 5 + i % 3 * 20
                                                           : i / 3 % 48 * 7 + i / 144 * 3 + i % 3 * 50);
        snprintf(path, sizeof path, "%s/%s.png", tmp, k ? "y" : "x");
        ok = ok && !image_save(path, &m, NULL, 0, &e);
        image_free(&m);
    }
    adapters_close(a);
    return ok;
}

int main(void)
{
    char command[64];

    if (!mkdtemp(tmp) || !make_files()) {
        printf("Bail out! no files can be made in %s\n", tmp);
        return 1;
    }
    test_points();
    test_refused();
    test_specs();
    test_sheet();
    test_sweep();
    test_checks();
    snprintf(command, sizeof command, "rm -rf '%s'", tmp);
    if (system(command))
        tap_note("%s is left", tmp);
    return tap_done();
}
