#!/usr/bin/env python3
"""Writes runtime/model/tokenizer_tables_internal.h: where the package `tokenizers` knows another Unicode than our libraries.

The package matches patterns with Unicode 16 and normalizes with an older Unicode; PCRE2 and utf8proc of Debian 12 have Unicode 14
(as has Python 3.11's unicodedata, which stands for them here). Run with Python 3.11 and tokenizers 0.23:

    make_unicode_tables.py > runtime/model/tokenizer_tables_internal.h
"""
import sys
import unicodedata

from tokenizers import Regex, normalizers, pre_tokenizers

assert unicodedata.unidata_version == "14.0.0", "needs a Python with Unicode 14"
CODE_POINTS = [c for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF]
TEXT = "".join(map(chr, CODE_POINTS))
CATEGORIES = "Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp".split()


def matched(pattern):
    """The code points that a pattern of one character matches in the package."""
    kept = set()
    for piece, _ in pre_tokenizers.Split(Regex(pattern), "removed").pre_tokenize_str(TEXT):
        kept.update(map(ord, piece))
    return [c for c in CODE_POINTS if c not in kept]


def ranges(code_points):
    out = []
    for c in sorted(code_points):
        if out and out[-1][1] == c - 1:
            out[-1][1] = c
        else:
            out.append([c, c])
    return out


def additions():
    rows = []
    for category in CATEGORIES:
        new = [c for c in matched("\\p{%s}" % category) if unicodedata.category(chr(c)) == "Cn"]
        rows += [(first, last, category) for first, last in ranges(new)]
    return sorted(rows)


def plain_in_normalization(added):
    """Code points that the package's normalizers treat as characters without decomposition and of combining class 0."""
    odd = set()
    tests = [c for c in CODE_POINTS if c != 10]
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        lines = getattr(normalizers, form)().normalize_str("\n".join(map(chr, tests))).split("\n")
        odd.update(c for c, line in zip(tests, lines) if line != unicodedata.normalize(form, chr(c)))
    nfd, nfc = normalizers.NFD(), normalizers.NFC()
    for c in tests:
        for mark in "\u0301\u0327\u0334\u0345\u093c":
            for text in ("a" + chr(c) + mark, "a" + mark + chr(c)):
                if nfd.normalize_str(text) != unicodedata.normalize("NFD", text):
                    odd.add(c)
        parts = unicodedata.decomposition(chr(c)).split()
        if len(parts) == 2 and not parts[0].startswith("<"):
            pair = "".join(chr(int(p, 16)) for p in parts)
            if nfc.normalize_str(pair) != unicodedata.normalize("NFC", pair):
                odd.update(map(ord, pair))
    for first, last, _ in added:
        odd.update(range(first, last + 1))
    return ranges(odd)


def category(added):
    table = {}
    for first, last, name in added:
        table.update(dict.fromkeys(range(first, last + 1), name))
    return lambda c: table.get(c) or unicodedata.category(chr(c))


def newer_numeric(added):
    """Numbers that the package's own test (Rust's, Unicode 17) knows beyond its patterns; its words agree with our rule."""
    of = category(added)
    tests = [c for c in CODE_POINTS if chr(c) not in "a ,"]
    cut = pre_tokenizers.Digits(True).pre_tokenize_str("".join("a" + chr(c) for c in tests) + "a")
    numeric = {ord(s) for s, _ in cut if len(s) == 1 and s != "a"}
    words = {ord(s[1]) for s, _ in pre_tokenizers.Whitespace().pre_tokenize_str(" ".join("a" + chr(c) + "a" for c in tests)) if len(s) == 3}
    ours_numeric = {c for c in tests if of(c)[0] == "N"}
    ours_words = {c for c in tests if of(c)[0] in "LM" or of(c) in ("Nd", "Nl", "Pc") or c in (0x200C, 0x200D) or 0x24B6 <= c <= 0x24E9
                  or 0x1F130 <= c <= 0x1F149 or 0x1F150 <= c <= 0x1F169 or 0x1F170 <= c <= 0x1F189}
    assert not ours_numeric - numeric and ours_words == words, (ours_numeric - numeric, ours_words ^ words)
    return ranges(numeric - ours_numeric)


def table(rows, width=110):
    line, lines = " ", []
    for row in rows:
        text = " {" + ", ".join(("0x%X" % v) if isinstance(v, int) else "'%s', '%s'" % (v[0], v[1]) for v in row) + "},"
        if len(line) + len(text) > width:
            lines.append(line)
            line = " "
        line += text
    return "\n".join(lines + [line])


def main():
    added = additions()
    plain = plain_in_normalization(added)
    numeric = newer_numeric(added)
    print("""// Written by tests/golden/tokenizers/make_unicode_tables.py; not edited by hand.
// clang-format off
#pragma once

#include <cstdint>

namespace ds::unicode {

/// Characters that the package's patterns know (Unicode 16) and Unicode 14 does not, with their general category.
struct Addition {
  uint32_t first, last;
  char major, minor;
};
inline constexpr Addition kAdditions[] = {
%s
};

/// Characters newer than the package's normalizers: they neither decompose nor compose, combining class 0.
struct Range {
  uint32_t first, last;
};
inline constexpr Range kPlainInNormalization[] = {
%s
};

/// Numbers that the package's own test knows (Unicode 17), its patterns not yet.
inline constexpr Range kNewerNumeric[] = {
%s
};

}  // namespace ds::unicode""" % (table(added), table(plain), table(numeric)))


if __name__ == "__main__":
    sys.exit(main())
