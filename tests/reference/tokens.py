#!/usr/bin/env python3
"""tokens.bin: what transformers' slow CLIPTokenizer (without ftfy) makes of 5,000 strings in many scripts, of 300 with
"!" as the pad token, as SD2 has it, and of 300 that are not UTF-8 (decoded with errors="replace"). One line of text,
then records, little endian:

    u8 special (1: "!" is the pad token)  u16 n_bytes  u16 n_ids  bytes (UTF-8)  n_ids * u16

Characters come from Unicode 3.2, from blocks that later versions left alone, or are named one by one, so that another
version of libunistring says the same. The vocabulary is store/builtin/clip_merges.txt. A 1 MB word is too large to
store: t_bpe.c makes one itself."""
import json
import os
import random
import struct
import tempfile
import unicodedata

import regex
import transformers
from transformers import CLIPTokenizer
from transformers.models.clip.tokenization_clip import bytes_to_unicode

SEED, COUNT, COUNT_SPECIAL, COUNT_BROKEN = 20240521, 5000, 300, 300
HERE = os.path.dirname(os.path.abspath(__file__))
MERGES = os.path.join(HERE, "../../store/builtin/clip_merges.txt")


def tokenizer(directory, pad):
    merges = open(MERGES, encoding="utf-8").read().strip().split("\n")[1:]
    words = list(bytes_to_unicode().values())
    words += [w + "</w>" for w in words] + ["".join(m.split()) for m in merges] + ["<|startoftext|>", "<|endoftext|>"]
    path = os.path.join(directory, "vocab.json")
    json.dump({w: i for i, w in enumerate(words)}, open(path, "w"))
    return CLIPTokenizer(path, MERGES, pad_token=pad)


def block(first, last):
    """The characters of a block that Unicode 3.2 knew."""
    return [chr(c) for c in range(first, last + 1) if unicodedata.ucd_3_2_0.category(chr(c)) not in ("Cn", "Cs")]


ASCII = [chr(c) for c in range(33, 127)]
LATIN = block(0xC0, 0x17F) + block(0x1E00, 0x1EFF) + list("abcdefghijklmnopqrstuvwxyz") * 8
MARKS = block(0x300, 0x34F) + block(0x483, 0x486) + block(0x591, 0x5C4) + block(0x20D0, 0x20EA)
GREEK = block(0x370, 0x3FF) + block(0x1F00, 0x1FFF)
SIGMA = list("ΣΣΣσςΑΒγΔ'.:1_-\u0345\u0301\u00AD\u2019\u00B7\u1D2C")
CYRILLIC = block(0x400, 0x4FF)
ARABIC = block(0x600, 0x6ED) + block(0xFB50, 0xFDFB) + block(0xFE70, 0xFEFC)
HEBREW = block(0x591, 0x5F4) + block(0xFB1D, 0xFB4F)
INDIC = block(0x901, 0x970) + block(0x981, 0x9FA) + block(0xB82, 0xBF2) + block(0xD02, 0xD6F)
THAI = block(0xE01, 0xE5B) + block(0xE81, 0xEDD) + block(0xF00, 0xFCF) + block(0x1000, 0x1059)
JAMO = block(0x1100, 0x11F9) + [chr(c) for c in range(0x1100, 0x1113)] * 3 + [chr(c) for c in range(0x1161, 0x1176)] * 6
HANGUL = [chr(c) for c in range(0xAC00, 0xD7A4, 37)] + [chr(c) for c in range(0xAC00, 0xD7A4, 28 * 7)]
HAN = [chr(c) for c in range(0x4E00, 0x9FA6, 41)] + [chr(c) for c in range(0x3400, 0x4DB6, 97)]
HAN += [chr(c) for c in range(0x20000, 0x2A6D7, 2011)] + block(0xF900, 0xFA6A)[::7] + block(0x2F800, 0x2FA1D)[::23]
HAN_EDGE = [chr(c) for c in (0x33FF, 0x3400, 0x4DB5, 0x4DC0, 0x4DFF, 0x4E00, 0x9FA5, 0xA000, 0xF8FF, 0xF900, 0xFA0E,
                             0xFB00, 0x20000, 0x2A6D6, 0x2F7FF, 0x2F800, 0x2FA1D, 0x2FA1E, 0x3007, 0x2F00, 0x2A700,
                             0x2B734, 0x2B740, 0x2B81D, 0x2B820, 0x2CEA1, 0x9FBB, 0xFAD9)]
KANA = block(0x3041, 0x30FF) + block(0xFF66, 0xFF9F) + block(0x3000, 0x303F) + block(0x3200, 0x33FE)
EMOJI = [chr(c) for c in list(range(0x1F600, 0x1F640)) + list(range(0x1F440, 0x1F4FD)) + list(range(0x2600, 0x2700, 3))]
EMOJI += ["\u200D", "\uFE0F", "\u20E3", "\U0001F468", "\U0001F469", "\U0001F467", "\u2764", "\U0001F1E9", "\U0001F1EA"]
EMOJI += [chr(c) for c in range(0x1F3FB, 0x1F400)] * 3 + ["\u200D"] * 20 + ["\U000E0067", "\U000E007F"]
DIGITS = [c for c in block(0x21, 0xFFFF) if unicodedata.category(c)[0] == "N"]
DIGITS += [chr(c) for c in range(0x1D7CE, 0x1D800)] + list("0123456789") * 20
SPACES = [" ", "  ", "\t", "\n", "\r", "\r\n", "\x0B", "\x0C", "\x1C", "\x1D", "\x1E", "\x1F", "\x85", "\xA0", "\u1680",
          "\u180E", "\u2000", "\u2003", "\u2007", "\u200A", "\u200B", "\u2028", "\u2029", "\u202F", "\u205F", "\u3000",
          "\u2060", "\uFEFF"]
CONTROL = [chr(c) for c in list(range(1, 32)) + list(range(127, 160))]
CONTROL += ["\u00AD", "\u200C", "\u200E", "\u202A", "\u2066", "\uFFF9", "\uFFFD", "\U000E0001", "\u061C", "\u070F"]
PRIVATE = ["\uE000", "\uF8FF", "\U000F0000", "\U0010FFFD", "\uFFFE", "\uFFFF", "\U0001FFFE", "\u0378", "\u0379",
           "\u0530", "\uFDD0", "\U000E0FFF", "\U000EFFFF", "\u2E7F", "\u2065", "\uFFF0"]
CASES = list("İIıi̇ſßẞǅǄǆǇǈΐΰﬁﬆŉǰᾈᾳᾼῼϴθΩÅKⅣⅳⓐⒶ")
CASES += list("\U00010400\U00010428\u1E9E\u13A0\u10A0\u2C00")
PUNCT = block(0x2010, 0x205E) + block(0x2190, 0x22FF)[::5] + list("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~") * 6
WORDS = """a photo of an astronaut riding horse on mars best quality extremely detailed golden retriever depth_map
edge_map pose_map hed_map masterpiece
8k v1.5 don't it's WE'RE I'LL they'd SHE'D i'm I'M you've YOU'VE can't 'tis rock'n'roll
high-resolution (blurry:1.3) trending, artstation; by_Greg_Rutkowski #art @home http://example.com/?q=1&r=2 C++ 3.14159
1,000,000 naïve café Straße ΟΔΥΣΣΕΥΣ ИВАН مرحبا
שלום नमस्ते สวัสดี 안녕하세요 猫 こんにちは e\u0301clair supercalifragilistic"""
WORDS = WORDS.split()
TAILS = [t for s in ("s", "t", "re", "ve", "m", "ll", "d") for t in (s, s.upper(), s.title())]
TAILS += ["\u017F", "\u017Fo", "so", "x"]
SPECIAL = ["<|startoftext|>", "<|endoftext|>", "<|STARTOFTEXT|>", "<|EndOfText|>", "<|\u017Ftartoftext|>",
           "<|endoftext|", "|endoftext|>", "<|endof text|>", "<|startof\u0001text|>", "<", "|", ">", "<|",
           "<|startoftext|><|endoftext|>", "<|<|endoftext|>|>", "<|endo\uFFFDftext|>", "\u03A3<|endoftext|>", "!", "!!"]

POOLS = [ASCII, LATIN, LATIN + MARKS, GREEK, SIGMA, CYRILLIC, CYRILLIC + MARKS, ARABIC, HEBREW, INDIC, THAI, JAMO,
         HANGUL + JAMO, HAN, HAN_EDGE, KANA, EMOJI, DIGITS, PUNCT, CASES, CASES + ASCII, CONTROL + ASCII,
         PRIVATE + ASCII, GREEK + MARKS + SPACES]
POOLS.append([c for p in POOLS for c in p])


ALONE = SPACES + CONTROL + PRIVATE + HAN_EDGE                           # each of these once between letters


def run(r, pool, most):
    return "".join(r.choice(pool) for _ in range(r.randint(1, most)))


def piece(r):
    k = r.randrange(12)
    if k < 4:
        return run(r, r.choice(POOLS), 9)
    if k < 7:
        return r.choice(WORDS)
    if k == 7:
        return r.choice(["'", "\u2019", "x'", "!'", "''"]) + r.choice(TAILS)
    if k == 8:
        return r.choice(SPECIAL)
    if k == 9:
        return run(r, SPACES, 3)
    if k == 10:
        return r.choice(WORDS).upper()
    return r.choice(ASCII) * r.randint(1, 12)


def string(r, i):
    if i < len(ALONE):
        return "a" + ALONE[i] + "B"
    if i % 500 == 499:                                                  # one long word
        return "".join(r.choice(r.choice(["aaaabcdeinorst", "ab", ".,!", HANGUL])) for _ in range(r.randint(200, 900)))
    if i % 97 == 96:
        return run(r, r.choice(POOLS), 60)
    if i == 250:
        return ""
    gap = r.choice(["", " ", " ", " ", "mixed"])
    return "".join(piece(r) + (r.choice(SPACES) if gap == "mixed" else gap) for _ in range(r.randint(1, 5)))


def broken(r):
    """Bytes that are mostly well-formed, with some changed, lost or cut."""
    raw = bytearray(("a " + "".join(piece(r) for _ in range(3)) + "Z").encode("utf-8"))
    for _ in range(r.randint(1, 6)):
        i = r.randrange(len(raw))
        k = r.randrange(4)
        if k == 0:
            raw[i] = r.randint(1, 255)
        elif k == 1 and len(raw) > 1:
            del raw[i]
        elif k == 2:
            raw[i:i] = r.choice([b"\xED\xA0\x80", b"\xC0\xAF", b"\xF4\x90\x80\x80", b"\xE2\x82", b"\xF0\x9F\x98",
                                 b"\xFF", b"\x80\x80", b"\xE0\x80\xAF", b"\xF8\x88\x80\x80\x80", b"\xEF\xBF\xBE"])
        else:
            raw[i:i] = bytes(r.randint(0x80, 0xFF) for _ in range(r.randint(1, 5)))
    return bytes(raw)


def main():
    r = random.Random(SEED)
    with tempfile.TemporaryDirectory() as d, open(os.path.join(HERE, "tokens.bin"), "wb") as f:
        plain, padded = tokenizer(d, "<|endoftext|>"), tokenizer(d, "!")
        assert plain.fix_text is None, "ftfy is installed"
        f.write(b"tokens.py, %d + %d + %d strings of seed %d, transformers %s, regex %s, Unicode %s\n" % (
            COUNT, COUNT_SPECIAL, COUNT_BROKEN, SEED, transformers.__version__.encode(), regex.__version__.encode(),
            unicodedata.unidata_version.encode()))
        for i in range(COUNT + COUNT_SPECIAL + COUNT_BROKEN):
            special = COUNT <= i < COUNT + COUNT_SPECIAL
            raw = broken(r) if i >= COUNT + COUNT_SPECIAL else string(r, i).encode("utf-8")
            text = raw.decode("utf-8", errors="replace")
            if special:
                text = "".join(c + ("!" * r.randint(1, 3) if r.random() < 0.15 else "") for c in text)
                raw = text.encode("utf-8")
            ids = (padded if special else plain)(text, add_special_tokens=False).input_ids
            f.write(struct.pack("<BHH", special, len(raw), len(ids)) + raw + struct.pack("<%dH" % len(ids), *ids))


main()
