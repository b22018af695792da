/* store/exif.h: the one thing that pictures need from their EXIF block: which way up they are. */
#ifndef UNICON_STORE_EXIF_H
#define UNICON_STORE_EXIF_H

#include <stddef.h>

/* Tag 274 of the first directory of a TIFF structure ("II*\0.." or "MM\0*..", as in JPEG's APP1 after "Exif\0\0" and
 * in PNG's eXIf): 1..8, or 1 where it is missing, out of range or out of bounds. */
int exif_orientation(const unsigned char *tiff, size_t size);

#endif
