"""Pictures in every variant of PNG, JPEG and TIFF that we read, what Pillow makes of them, and what Pillow's resize and
convert give: writes the files of tests/corpus/images.

    python tests/reference/images.py

Pillow 10.2.0 and numpy 1.24.4. (Pillow 13's resize runs down the columns first where that is less work, which changes
a byte here and there; the published code of the method is older.) The tests are tests/t_image.c and
tests/t_image_file.c.

    load FILE H W C TYPE OFFSET NEAR     pixels as they are stored: H*W*C samples, little-endian, at OFFSET of
                                         expected.bin; ours may differ by NEAR
    turn FILE H W C TYPE OFFSET NEAR     and as EXIF turns them
    bad FILE WORDS                   refused with these words
    resize FILTER C TYPE KIND H W TO_H TO_W HASH
    convert C TO_C HASH              of a picture of 64x64 pixels

HASH is FNV-1a, 64 bits, of the bytes; inputs of resize and convert come from a generator that both sides have.
"""
import io
import os
import struct
import sys
import zlib

sys.dont_write_bytecode = True

import numpy as np
import PIL
from PIL import Image, ImageOps

assert PIL.__version__ == "10.2.0", "the bytes of resize depend on the version"

here = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "corpus", "images")
index, blob = [], bytearray()
TYPES = {"uint8": "u8", "uint16": "u16", "float32": "f32"}
H, W = 9, 13


def noise(n, seed):
    out, s = np.zeros(n, np.uint32), seed
    for i in range(n):
        s = (s * 1664525 + 1013904223) & 0xFFFFFFFF
        out[i] = s >> 8
    return out


def fnv(data):
    h = 0xCBF29CE484222325
    for b in bytes(data):
        h = ((h ^ b) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return "%016x" % h


def draw(shape, bits, seed):
    """Noise over a ramp, so that rows and columns cannot be taken for each other."""
    n = int(np.prod(shape))
    return (noise(n, seed) >> (24 - bits)).astype(np.uint16 if bits > 8 else np.uint8).reshape(shape)


def note(what, name, px, near=0):
    px = np.ascontiguousarray(px)
    px = px.reshape(px.shape[0], px.shape[1], -1)
    index.append("%s %s %d %d %d %s %d %d" % ((what, name) + px.shape + (TYPES[str(px.dtype)], len(blob), near)))
    blob.extend(px.astype(px.dtype.newbyteorder("<")).tobytes())


def put(name, data):
    with open(os.path.join(here, name), "wb") as f:
        f.write(data)


def pillow(data, C):
    with Image.open(io.BytesIO(data)) as im:
        return np.array(im.convert({1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[C])).reshape(im.size[1], im.size[0], C)


def file(name, data, px=None, check=True, near=0):
    """px: what is stored, where Pillow cannot say or to be held against it; else as Pillow reads it."""
    put(name, data)
    if px is None:
        with Image.open(io.BytesIO(data)) as im:
            C = {"1": 1, "L": 1, "LA": 2, "P": 3, "RGB": 3, "CMYK": 3, "YCbCr": 3, "RGBA": 4}[im.mode]
        px = pillow(data, C)
    else:
        px = px.reshape(px.shape[0], px.shape[1], -1)
        if check:
            assert np.array_equal(pillow(data, px.shape[2]), px), name
    note("load", name, px, near)


def bad(name, data, words):
    put(name, data)
    index.append("bad %s %s" % (name, words))


# -- PNG ---------------------------------------------------------------------------------------------------------


def chunk(kind, data=b""):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def pack(row, bits):
    """(W,C) samples to bytes, big-endian."""
    row = row.reshape(-1)
    if bits == 16:
        return row.astype(">u2").tobytes()
    if bits == 8:
        return row.astype("u1").tobytes()
    all_bits = ((row[:, None] >> np.arange(bits - 1, -1, -1)) & 1).astype("u1").reshape(-1)
    return np.packbits(all_bits).tobytes()


def filtered(rows, bpp):
    """Each row with another of the five filters."""
    out, before = b"", None
    for y, row in enumerate(rows):
        x = np.frombuffer(row, "u1").astype(int)
        up = np.zeros_like(x) if before is None else before
        left = np.concatenate([np.zeros(bpp, int), x])[:len(x)]
        corner = np.concatenate([np.zeros(bpp, int), up])[:len(x)]
        p = left + up - corner
        d = np.abs(np.stack([p - left, p - up, p - corner]))
        paeth = np.where((d[0] <= d[1]) & (d[0] <= d[2]), left, np.where(d[1] <= d[2], up, corner))
        guess = [0 * x, left, up, (left + up) // 2, paeth][y % 5]
        out += bytes([y % 5]) + ((x - guess) & 255).astype("u1").tobytes()
        before = x
    return out


def png(px, colour, bits, interlace=0, before=b"", after=b""):
    h, w, C = px.shape
    bpp = max(1, C * bits // 8)
    if interlace:
        raw = b""
        for x0, y0, dx, dy in ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
                               (0, 1, 1, 2)):
            part = px[y0::dy, x0::dx]
            if part.size:
                raw += filtered([pack(r, bits) for r in part], bpp)
    else:
        raw = filtered([pack(r, bits) for r in px], bpp)
    head = struct.pack(">IIBBBBB", w, h, bits, colour, 0, 0, interlace)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + before + chunk(b"IDAT", zlib.compress(raw, 9)) + after
            + chunk(b"IEND"))


def exif(order, orientation):
    """A directory of three entries, the orientation in the middle."""
    o = {"II": "<", "MM": ">"}[order]
    tags = [struct.pack(o + "HHII", 256, 4, 1, 99), struct.pack(o + "HHIHH", 274, 3, 1, orientation, 0),
            struct.pack(o + "HHII", 305, 2, 2, 0)]
    return order.encode() + struct.pack(o + "HIH", 42, 8, 3) + b"".join(tags) + struct.pack(o + "I", 0)


def pngs():
    for bits in (1, 2, 4, 8, 16):
        px = draw((H, W, 1), bits, bits)
        want = px * (255 // ((1 << bits) - 1)) if bits < 8 else px
        for interlace in (0, 1):
            name = "gray%d%s" % (bits, "_laced" * interlace)
            data = png(px, 0, bits, interlace)
            file(name + ".png", data, want.astype(px.dtype), bits < 16)
        hole = int(px[2, 3, 0])
        full = 65535 if bits == 16 else 255
        alpha = np.where(px == hole, 0, full).astype(px.dtype)
        file("gray%d_hole.png" % bits, png(px, 0, bits, 0, chunk(b"tRNS", struct.pack(">H", hole))),
             np.concatenate([want.astype(px.dtype), alpha], 2), False)
    for colour, C in ((4, 2), (2, 3), (6, 4)):
        for bits in (8, 16):
            px = draw((H, W, C), bits, 40 + C + bits)
            for interlace in (0, 1):
                file("c%d_%d%s.png" % (C, bits, "_laced" * interlace), png(px, colour, bits, interlace), px, bits == 8)
    for bits in (8, 16):
        px = draw((H, W, 3), bits, 60 + bits)
        alpha = np.full((H, W, 1), 65535 if bits == 16 else 255, px.dtype)
        alpha[4, 5] = 0
        file("rgb%d_hole.png" % bits, png(px, 2, bits, 0, chunk(b"tRNS", struct.pack(">HHH", *px[4, 5].tolist()))),
             np.concatenate([px, alpha], 2), bits == 8)
    for bits in (1, 2, 4, 8):
        n = 1 << bits if bits < 8 else 200
        px = draw((H, W, 1), bits, 70 + bits) % n
        palette = draw((n, 3), 8, 80 + bits)
        for interlace in (0, 1):
            file("palette%d%s.png" % (bits, "_laced" * interlace),
                 png(px, 3, bits, interlace, chunk(b"PLTE", palette.tobytes())), palette[px[..., 0]])
        alpha = np.full(n, 255, np.uint8)
        alpha[:n // 2 + 1] = draw((n // 2 + 1,), 8, 90 + bits)
        file("palette%d_alpha.png" % bits,
             png(px, 3, bits, 0, chunk(b"PLTE", palette.tobytes()) + chunk(b"tRNS", alpha[:n // 2 + 1].tobytes())),
             np.concatenate([palette[px[..., 0]], alpha[px]], 2))
    px = draw((H, W, 3), 8, 100)
    extras = (chunk(b"gAMA", struct.pack(">I", 22727)) + chunk(b"iCCP", b"x\0\0" + zlib.compress(b"no profile at all"))
              + chunk(b"sBIT", b"\5\6\5") + chunk(b"tEXt", b"Comment\0hello") + chunk(b"abCd", b"private"))
    data = png(px, 2, 8, 0, extras, chunk(b"tIME", b"\x07\xe4\1\1\0\0\0"))
    file("extras.png", data, px, False)
    for orientation in range(1, 9):
        block = chunk(b"eXIf", exif("MM" if orientation & 1 else "II", orientation))
        late = orientation in (3, 6)
        data = png(px, 2, 8, 0, b"" if late else block, block if late else b"")
        file("turn%d.png" % orientation, data, px)
        with Image.open(io.BytesIO(data)) as im:
            im.load()
            note("turn", "turn%d.png" % orientation, np.array(ImageOps.exif_transpose(im)))


def bad_pngs():
    px = draw((H, W, 3), 8, 100)
    good = png(px, 2, 8)

    def head(w, h, bits=8, colour=2):
        return good[:8] + chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, bits, colour, 0, 0, 0)) + good[33:]
    at = good.index(b"IDAT")
    bad("crc.png", good[:-16] + bytes([good[-16] ^ 1]) + good[-15:], "CRC")
    bad("damaged.png", good[:at + 20] + bytes([good[at + 20] ^ 1]) + good[at + 21:], "")
    bad("short_rows.png", head(W, H + 1), "Not enough")
    bad("wide.png", head(70000, 4), "Invalid IHDR")
    bad("vast.png", head(65536, 65536), "more than")
    bad("dense.png", head(60000, 20000), "cut short or forged")
    bad("no_side.png", head(0, 4), "Invalid IHDR")
    bad("no_palette.png", head(W, H, 8, 3), "PLTE")
    bad("odd_bits.png", head(W, H, 4, 2), "Invalid IHDR")
    bad("magic.png", b"\x89PNX" + good[4:], "no PNG, JPEG or TIFF")
    bad("text.jpg", b"this is not a picture\n", "no PNG, JPEG or TIFF")
    bad("gif.gif", b"GIF89a\1\0\1\0\0\0\0;", "no PNG, JPEG or TIFF")
    bad("empty.png", b"", "empty")


# -- JPEG --------------------------------------------------------------------------------------------------------


def smooth(h, w, C):
    y, x = np.mgrid[0:h, 0:w]
    planes = [128 + 100 * np.sin(0.3 * (c + 1) * x / 2 + 0.2 * y) * np.cos(0.25 * y - c) for c in range(C)]
    return np.clip(np.stack(planes, 2), 0, 255).astype(np.uint8)


def jpeg(px, **options):
    f = io.BytesIO()
    mode = {1: "L", 3: "RGB", 4: "CMYK"}[px.shape[2]]
    Image.fromarray(px[..., 0] if px.shape[2] == 1 else px, mode).save(f, "JPEG", **options)
    return f.getvalue()


def jpegs():
    gray, rgb, cmyk = smooth(13, 19, 1), smooth(13, 19, 3), smooth(13, 19, 4)
    file("gray.jpg", jpeg(gray, quality=80))
    for name, s in (("444", 0), ("422", 1), ("420", 2)):
        file("rgb_%s.jpg" % name, jpeg(rgb, quality=85, subsampling=s))
        file("rgb_%s_progressive.jpg" % name, jpeg(rgb, quality=85, subsampling=s, progressive=True))
    file("rgb_kept.jpg", jpeg(rgb, quality=85, keep_rgb=True))
    file("restart.jpg", jpeg(smooth(40, 50, 3), quality=60, subsampling=2, restart_marker_blocks=2))
    file("gray_progressive.jpg", jpeg(gray, quality=80, progressive=True))
    data = jpeg(cmyk, quality=90)
    file("cmyk.jpg", data)
    at = data.index(b"Adobe")
    assert data[at + 11] == 0
    file("ycck.jpg", data[:at + 11] + b"\2" + data[at + 12:])
    file("cmyk_no_adobe.jpg", data[:at - 4] + data[at + 12:])
    file("one.jpg", jpeg(rgb[:1, :1], quality=95))
    data = jpeg(rgb, quality=85, icc_profile=b"not a profile", comment=b"a comment")
    file("extras.jpg", data[:2] + b"\xff\xff\xff" + data[2:] + b"and more after the end")
    small = smooth(6, 10, 3)
    for orientation in range(1, 9):
        block = b"Exif\0\0" + exif("II" if orientation & 1 else "MM", orientation)
        name, data = "turn%d.jpg" % orientation, jpeg(small, quality=75, exif=block)
        file(name, data)
        with Image.open(io.BytesIO(data)) as im:
            note("turn", name, np.array(ImageOps.exif_transpose(im)))
    good = jpeg(rgb, quality=85, subsampling=0)

    def sides(data, w, h, n=None):
        at = data.index(b"\xff\xc0") if b"\xff\xc0\0\x11" in data else data.index(b"\xff\xc2")
        return data[:at + 5] + struct.pack(">HH", h, w) + data[at + 9:]
    bad("vast.jpg", sides(good, 65500, 65500), "cut short")
    bad("vast_progressive.jpg", sides(jpeg(rgb, progressive=True), 65500, 65500), "cut short")
    bad("taller.jpg", sides(good, 19, 40), "pixels are missing")
    bad("no_side.jpg", sides(good, 0, 9), "Empty JPEG image")
    bad("no_end.jpg", good[:-2], "pixels are missing")
    bad("scans.jpg", scans(jpeg(gray, progressive=True)), "more than 100 scans")
    at = good.index(b"\xff\xc0")
    bad("twelve_bits.jpg", good[:at + 4] + b"\x0c" + good[at + 5:], "12")
    bad("no_tables.jpg", good[:at] + b"\xff\xd9", "")


def scans(data):
    """The first scan of a progressive file, a hundred times more."""
    at = data.index(b"\xff\xda")
    end = min(data.index(m, at + 2) for m in (b"\xff\xc4", b"\xff\xda"))
    return data[:end] + data[at:end] * 100 + data[end:]


# -- TIFF --------------------------------------------------------------------------------------------------------

FORMAT = {"u": 1, "i": 2, "f": 3}


def tiff(px, photometric, bits=None, order="II", big=False, rows=None, tile=None, planar=False, fmt=None, extra=None,
         palette=None, orientation=None, deflate=False, white=None, lsb=False, more=()):
    """px (H,W,C) samples; strips of `rows` rows, or tiles."""
    o = {"II": "<", "MM": ">"}[order]
    h, w, C = px.shape
    bits = bits or px.dtype.itemsize * 8
    fmt = FORMAT[px.dtype.kind] if fmt is None else fmt

    def rows_of(part):
        if bits >= 8:
            return part.astype(part.dtype.newbyteorder(o)).tobytes()
        return b"".join(pack(r, bits) for r in part)
    blocks = []
    for plane in ([px[..., c:c + 1] for c in range(C)] if planar else [px]):
        if tile:
            for y in range(0, h, tile):
                for x in range(0, w, tile):
                    part = np.zeros((tile, tile, plane.shape[2]), px.dtype)
                    inside = plane[y:y + tile, x:x + tile]
                    part[:inside.shape[0], :inside.shape[1]] = inside
                    blocks.append(rows_of(part))
        else:
            for y in range(0, h, rows or h):
                blocks.append(rows_of(plane[y:y + (rows or h)]))
    if lsb:
        blocks = [bytes(int("{:08b}".format(b)[::-1], 2) for b in block) for block in blocks]
    if deflate:
        blocks = [zlib.compress(b) for b in blocks]
    offset_type = 16 if big else 4
    size = {1: 1, 2: 1, 3: 2, 4: 4, 16: 8}
    code = {1: "B", 2: "B", 3: "H", 4: "I", 16: "Q"}
    first = 16 if big else 8
    offsets, at = [], first
    for b in blocks:
        offsets.append(at)
        at += len(b)
    at += at & 1
    tags = {256: (4, [w]), 257: (4, [h]), 258: (3, [bits] * C), 259: (3, [8 if deflate else 1]),
            262: (3, [photometric]), 277: (3, [C]), 284: (3, [2 if planar else 1]), 339: (3, [fmt] * C)}
    if tile:
        tags.update({322: (3, [tile]), 323: (3, [tile]), 324: (offset_type, offsets),
                     325: (offset_type, [len(b) for b in blocks])})
    else:
        tags.update({273: (offset_type, offsets), 278: (3, [rows or h]), 279: (offset_type, [len(b) for b in blocks])})
    if orientation:
        tags[274] = (3, [orientation])
    if extra is not None:
        tags[338] = (3, extra)
    if palette is not None:
        tags[320] = (3, palette.T.reshape(-1).tolist())
    if lsb:
        tags[266] = (3, [2])
    for number, value in more:
        tags[number] = value
    entry, word = (20, 8) if big else (12, 4)
    after = at + (8 if big else 2) + entry * len(tags) + word
    directory, tail = b"", b""
    for number in sorted(tags):
        kind, values = tags[number]
        data = struct.pack(o + "%d%s" % (len(values), code[kind]), *values)
        directory += struct.pack(o + ("HHQ" if big else "HHI"), number, kind, len(values))
        if len(data) <= word:
            directory += data.ljust(word, b"\0")
        else:
            directory += struct.pack(o + ("Q" if big else "I"), after + len(tail))
            tail += data + b"\0" * (len(data) & 1)
    head = order.encode() + (struct.pack(o + "HHHQ", 43, 8, 0, at) if big else struct.pack(o + "HI", 42, at))
    body = (head + b"".join(blocks)).ljust(at, b"\0")
    return body + struct.pack(o + ("Q" if big else "H"), len(tags)) + directory + b"\0" * word + tail


def saved(px, mode, **options):
    f = io.BytesIO()
    Image.fromarray(px[..., 0] if px.ndim == 3 and px.shape[2] == 1 else px, mode).save(f, "TIFF", **options)
    return f.getvalue()


def tiffs():
    for bits in (1, 2, 4, 8, 16):
        px = draw((H, W, 1), bits, 200 + bits)
        want = (px * (255 // ((1 << bits) - 1)) if bits < 8 else px).astype(px.dtype)
        full = want.dtype.type(65535 if bits == 16 else 255)
        file("gray%d.tif" % bits, tiff(px, 1, bits, rows=4), want, bits < 16)
        file("gray%d_white_mm.tif" % bits, tiff(px, 0, bits, "MM", rows=2), full - want, bits < 16)
        file("gray%d_tiled.tif" % bits, tiff(px, 1, bits, tile=16, deflate=True), want, False)
        if bits < 16:
            file("gray%d_lsb.tif" % bits, tiff(px, 1, bits, lsb=True), want)
        if bits < 16:
            palette = draw((1 << bits, 3), 16, 220 + bits)
            file("palette%d.tif" % bits, tiff(px, 3, bits, palette=palette),
                 (palette[px[..., 0]] >> 8).astype(np.uint8))
    for bits in (8, 16):
        kind = np.uint16 if bits == 16 else np.uint8
        rgb, rgba = draw((H, W, 3), bits, 240 + bits), draw((H, W, 4), bits, 250 + bits)
        la = draw((H, W, 2), bits, 260 + bits)
        small = bits == 8
        for order in ("II", "MM"):
            file("rgb%d_%s.tif" % (bits, order), tiff(rgb, 2, order=order, rows=5), rgb, small)
            file("rgb%d_planar_%s.tif" % (bits, order), tiff(rgb, 2, order=order, rows=4, planar=True), rgb, False)
        file("rgb%d_big.tif" % bits, tiff(rgb, 2, big=True, rows=5), rgb, False)
        wide = draw((40, 35, 3), bits, 270 + bits)
        file("rgb%d_tiled.tif" % bits, tiff(wide, 2, tile=16, deflate=True), wide, False)
        file("rgb%d_tiled_planar.tif" % bits, tiff(wide, 2, tile=16, planar=True, deflate=True, order="MM"), wide,
             False)
        file("rgba%d.tif" % bits, tiff(rgba, 2, extra=[2]), rgba, small)
        file("rgbx%d.tif" % bits, tiff(rgba, 2, extra=[0]), rgba[..., :3].copy(), small)
        file("rgbax%d_planar.tif" % bits, tiff(draw((H, W, 5), bits, 280), 2, extra=[2, 0], planar=True),
             draw((H, W, 5), bits, 280)[..., :4].copy(), False)
        file("la%d.tif" % bits, tiff(la, 1, extra=[2]), la, small)
        file("cmyk%d.tif" % bits, tiff(rgba, 5), None if small else cmyk16(rgba), small)
        pre = rgba.copy()
        pre[..., :3] = np.minimum(pre[..., :3], pre[..., 3:])
        pre[0, 0] = 0
        if small:
            file("rgba8_associated.tif", tiff(pre, 2, extra=[1]))
        else:
            a = np.maximum(pre[..., 3:].astype(np.int64), 1)
            pre16 = pre.copy()
            pre16[..., :3] = (65535 * pre[..., :3].astype(np.int64) + a // 2) // a
            file("rgba16_associated.tif", tiff(pre, 2, extra=[1]), pre16, False)
    real = ((noise(H * W, 300).astype(np.float64) / (1 << 23) - 1) * 30).astype(np.float32).reshape(H, W, 1)
    real[0, :5, 0] = [np.nan, np.inf, -np.inf, -0.0, 1e-40]
    for order in ("II", "MM"):
        file("f32_%s.tif" % order, tiff(real, 1, order=order, rows=3), real, False)
        half = real.astype(np.float16)
        file("f16_%s.tif" % order, tiff(half, 1, order=order), half.astype(np.float32), False)
        double = real.astype(np.float64) / 3
        file("f64_%s.tif" % order, tiff(double, 1, order=order), double.astype(np.float32), False)
    rgb = ((noise(H * W * 3, 301).astype(np.float64) / (1 << 24))).astype(np.float32).reshape(H, W, 3)
    file("f32_rgb_planar.tif", tiff(rgb, 2, planar=True, tile=16, deflate=True), rgb, False)
    with Image.open(os.path.join(here, "f32_II.tif")) as im:
        assert np.array_equal(np.array(im).view("u4"), real[..., 0].view("u4"))
    rgb, big = draw((H, W, 3), 8, 310), smooth(40, 50, 3)
    for name in ("tiff_lzw", "packbits", "tiff_adobe_deflate", "tiff_deflate"):
        file("rgb_%s.tif" % name, saved(rgb, "RGB", compression=name), rgb)
    file("described.tif", saved(rgb, "RGB", description="what another program says"), rgb)
    one = Image.fromarray((draw((H, 40), 1, 320) * 255), "L").convert("1")
    for name in ("group3", "group4", "tiff_ccitt"):
        f = io.BytesIO()
        one.save(f, "TIFF", compression=name)
        file("fax_%s.tif" % name, f.getvalue())
    file("jpeg_rgb.tif", saved(big, "RGB", compression="jpeg", quality=80))
    file("jpeg_gray.tif", saved(big[..., :1], "L", compression="jpeg", quality=80))
    f = io.BytesIO()
    Image.fromarray(big).convert("YCbCr").save(f, "TIFF", compression="jpeg", quality=80)
    file("jpeg_ycbcr.tif", f.getvalue())
    f = io.BytesIO()
    Image.fromarray(big).convert("CMYK").save(f, "TIFF", compression="jpeg", quality=80)
    file("jpeg_cmyk.tif", f.getvalue())
    turns()


def cmyk16(px):
    p = px.astype(np.int64)
    light = 65535 - p[..., 3:]
    return (light - (2 * p[..., :3] * light + 65535) // 131070).astype(np.uint16)


def turns():
    px = draw((H, W, 3), 8, 100)
    way = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}      # Image.Transpose: what undoes each orientation
    for orientation in range(1, 9):
        name = "turn%d.tif" % orientation
        file(name, tiff(px, 2, orientation=orientation, order="MM" if orientation & 1 else "II"), px, False)
        im = Image.fromarray(px)
        note("turn", name, np.array(im if way[orientation] is None else im.transpose(way[orientation])))
    # The library's own conversion, which rounds otherwise. Pillow 10 takes such a file for RGB.
    ycc = Image.fromarray(smooth(H, W, 3)).convert("YCbCr")
    data = [tiff(np.array(ycc), 6, more=((530, (3, [1, 1])),), orientation=o) for o in (1, 4)]
    file("ycbcr.tif", data[0], np.array(ycc.convert("RGB")), False, 2)
    file("turn_ycbcr.tif", data[1], np.array(ycc.convert("RGB")), False, 2)
    note("turn", "turn_ycbcr.tif", np.array(ycc.convert("RGB"))[::-1], 2)


def inside(data, patch):
    """Overwritten in the middle of the first strip; the tags are as they were."""
    with Image.open(io.BytesIO(data)) as im:
        at = im.tag_v2[273][0] + im.tag_v2[279][0] // 2
    return data[:at] + patch + data[at + len(patch):]


def bad_tiffs():
    rgb = draw((H, W, 3), 8, 400)
    gray = rgb[..., :1].copy()
    bad("int32.tif", tiff(gray.astype(np.uint32), 1), "samples of 32 bits")
    bad("signed.tif", tiff(gray.astype(np.int8), 1), "samples of 8 bits of format 2")
    bad("vast.tif", tiff(gray, 1, more=((256, (4, [65536])), (257, (4, [65536])))), "")
    bad("wide.tif", tiff(gray, 1, more=((256, (4, [70000])),)), "sides are")
    bad("too_vast.tif", tiff(rgb, 2, more=((256, (4, [65536])), (257, (4, [60000])))), "more than")
    bad("no_colour.tif", tiff(gray, 1, more=((262, (3, [1, 2])),)), "")
    bad("packed.tif", tiff(gray, 1, more=((259, (3, [4711])),)), "compression 4711")
    bad("old_jpeg.tif", tiff(rgb, 6, more=((259, (3, [6])),)), "compression 6")
    bad("two_samples.tif", tiff(draw((H, W, 2), 8, 1), 2), "")
    bad("taller.tif", tiff(gray, 1, more=((257, (4, [H + 30])), (278, (3, [H + 30])))), "")
    bad("tiny_tiles.tif", tiff(gray, 1, tile=16, more=((322, (4, [1 << 31])), (323, (4, [1 << 31])))), "")
    f = io.BytesIO()
    Image.fromarray(smooth(40, 50, 3)).convert("YCbCr").save(f, "TIFF", compression="jpeg", quality=80)
    bad("short_jpeg.tif", inside(f.getvalue(), b"\xff\xd9"), "")
    f = io.BytesIO()
    Image.fromarray((draw((40, 40), 1, 320) * 255), "L").convert("1").save(f, "TIFF", compression="group4")
    bad("short_fax.tif", inside(f.getvalue(), b"\0" * 40), "")
    bad("inks.tif", tiff(draw((H, W, 4), 8, 1), 5, more=((332, (3, [2])),)), "inks")


# -- resize and convert ------------------------------------------------------------------------------------------

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
SHAPES = ((1, 1, 5, 7), (5, 7, 1, 1), (1, 40, 1, 13), (40, 1, 13, 1), (16, 16, 8, 8), (17, 31, 40, 23), (64, 3, 5, 90),
          (3, 200, 2, 33), (48, 64, 31, 37), (50, 50, 50, 20), (20, 50, 60, 50), (33, 47, 47, 33), (105, 15, 87, 17),
          (128, 128, 127, 129), (300, 2, 2, 300))


def samples(shape, kind):
    px = (noise(int(np.prod(shape)), shape[0] * 1000 + shape[1]) >> 16).astype(np.uint8).reshape(shape)
    return (px > 127).astype(np.uint8) * 255 if kind == "hard" else px


def resizes():
    for h, w, to_h, to_w in SHAPES:
        for f in range(4):
            method = (Image.NEAREST, Image.BILINEAR, Image.BICUBIC, Image.LANCZOS)[f]
            for kind in ("soft", "hard"):
                for C in (1, 2, 3, 4):
                    px = samples((h, w, C), kind)
                    im = Image.fromarray(px[..., 0] if C == 1 else px, MODES[C]).resize((to_w, to_h), method)
                    index.append("resize %d %d u8 %s %d %d %d %d %s"
                                 % (f, C, kind, h, w, to_h, to_w, fnv(im.tobytes())))
            px = samples((h, w, 1), "soft").astype(np.float32) / np.float32(7) - np.float32(11)
            out = np.array(Image.fromarray(px[..., 0], "F").resize((to_w, to_h), method), "<f4")
            index.append("resize %d 1 f32 soft %d %d %d %d %s" % (f, h, w, to_h, to_w, fnv(out.tobytes())))


def converts():
    for C in (1, 2, 3, 4):
        px = samples((64, 64, C), "soft")
        im = Image.fromarray(px[..., 0] if C == 1 else px, MODES[C])
        if C in (2, 4):
            im = im.convert("RGBA")
            im = Image.alpha_composite(Image.new("RGBA", im.size, (255,) * 4), im)
        rgb = im.convert("RGB")
        index.append("convert %d 3 %s" % (C, fnv(rgb.tobytes())))
        index.append("convert %d 1 %s" % (C, fnv(rgb.convert("L").tobytes())))


for name in os.listdir(here):
    os.remove(os.path.join(here, name))
pngs()
bad_pngs()
jpegs()
tiffs()
bad_tiffs()
resizes()
converts()
put("expected.bin", bytes(blob))
put("expected.txt", ("\n".join(index) + "\n").encode())
