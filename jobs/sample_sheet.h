/* jobs/sample_sheet.h: --sheet: what a sample job was given and what it made, on one picture.
 *
 *     struct sample_sheet s;
 *     if (sample_sheet_open(&s, &in, spec, &sweep, held, e)) ...   what was given is on it already
 *     sample_sheet_put(&s, point, index, k, &picture, e);          each picture as it comes
 *     image_save(path, &s.sheet.image, ..);
 *     sample_sheet_close(&s);
 *
 * The first row holds what was given, as it went into the model: x, its mask, the partners and theirs. Below there is a
 * row for each input that is drawn; pictures lie side by side, or with a sweep its points, 64 at most: more go on in
 * rows below, and so do several pictures of a point. */
#ifndef UNICON_JOBS_SAMPLE_SHEET_H
#define UNICON_JOBS_SAMPLE_SHEET_H

#include "core/sheet.h"
#include "jobs/sample_inputs.h"
#include "jobs/sample_sweep.h"

struct sample_sheet {
    struct sheet sheet;
    int64_t count;                      /* pictures at a point */
    bool swept;
    int n_drawn, first;                 /* inputs that are drawn anywhere; rows above them */
    int place[PAIR_MAX_INPUT];          /* an input's among them, or -1 */
    struct image given[PAIR_MAX_INPUT];     /* for the points at which they are held */
};

/* held: for each point the inputs that stay as they are there, a bit each. Seeds: of in->request, which is that of any
 * point. *s is zeroed first and may be closed whether or not this succeeds. E_ARG if there are too many cells. */
int sample_sheet_open(struct sample_sheet *s, const struct sample_inputs *in, const struct spec *spec,
                      const struct sweep *w, const unsigned *held, struct err *e);
void sample_sheet_close(struct sample_sheet *s);

/* Input k of picture `index` of a point; NULL: as it was given, for one that is held at this point. */
int sample_sheet_put(struct sample_sheet *s, int64_t point, int64_t index, int k, const struct image *picture,
                     struct err *e);

#endif
