/* tests/fuzz/image_target.h: what the fuzz targets of picture formats share: bytes go to one codec, and whatever it
 * says must hang together. Memory is the checker's business, so all samples are read. */
#ifndef UNICON_TESTS_FUZZ_IMAGE_TARGET_H
#define UNICON_TESTS_FUZZ_IMAGE_TARGET_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "store/exif.h"
#include "store/image_codec.h"
#include "store/image_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(bool ok)
{
    if (!ok)
        abort();
}

static void must_explain(int rc, const struct err *e)
{
    must(rc == E_FORMAT || rc == E_NOMEM || rc == E_NONE);
    must(e->code == rc && e->text[0] && !strpbrk(e->text, "\r\n"));
}

static void look_at(const struct image *m)
{
    const unsigned char *px = m->px;
    const size_t n = (size_t)(m->H * m->W * m->C) * pixel_bytes(m->type);
    volatile unsigned sum = 0;

    must(m->H >= 1 && m->W >= 1 && m->H <= IMAGE_MAX_SIDE && m->W <= IMAGE_MAX_SIDE && m->C >= 1 && m->C <= 4);
    for (size_t i = 0; i < n; i += n < 4096 ? 1 : 61)
        sum += px[i];
    sum += px[n - 1];
    (void)sum;
}

static int image_target(const struct image_codec *codec, const uint8_t *data, size_t size)
{
    struct image m = { 0 }, turned = { 0 };
    struct err e = { 0 };
    char *text = NULL;
    int orientation = 0, rc = codec->load(&m, &orientation, data, size, &e);

    if (rc) {
        must(!m.px);
        must_explain(rc, &e);
    } else {
        must(orientation >= 1 && orientation <= 8);
        look_at(&m);
        if (m.H * m.W < 1 << 16) {
            must(!image_turn(&turned, &m, orientation, &e));
            look_at(&turned);
        }
    }
    err_clear(&e);
    rc = codec->spec(&text, data, size, &e);
    if (rc)
        must_explain(rc, &e);
    else
        must(strlen(text) <= SPEC_MAX_BYTES);
    orientation = exif_orientation(data, size);
    must(orientation >= 1 && orientation <= 8);
    free(text);
    image_free(&m);
    image_free(&turned);
    return 0;
}

#endif
