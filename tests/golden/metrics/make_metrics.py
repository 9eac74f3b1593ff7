"""Writes expectations.json: texts, and the scores that Python's packages and LongBench's rules give them.

    python make_metrics.py [--longbench FOLDER] > expectations.json

Made with Python 3.11 (Unicode 14), rouge 1.0.1 and fuzzywuzzy 0.18.0 without python-Levenshtein (with it fuzzywuzzy
counts edits and scores differ). Running it again gives the same bytes. --longbench compares each score with what
metrics.py in that folder says (a checkout of LongBench; needs jieba).

    cases: [[prediction, [answers], [qa_f1, rouge_l, code_sim, exact_match]], ...]
    broken: the same with prediction and answers as hexadecimal bytes that are not all UTF-8
    first_line: [[text, its first line that is not empty], ...]
    points: [[[scores], round(100 * sum / n, 2)], ...]
    words, spaces: [[first, last], ...] of the code points that \\w and str.isspace take
    lower: [[text, text.lower()], ...]; assigned: [[first, last], ...] of Python's Unicode
"""
import argparse, collections, json, random, re, string, sys, unicodedata, warnings
warnings.simplefilter("ignore")
from fuzzywuzzy import fuzz
import difflib
from rouge import Rouge

assert unicodedata.unidata_version == "14.0.0", "needs a Python with Unicode 14"
assert fuzz.SequenceMatcher is difflib.SequenceMatcher, "python-Levenshtein is installed: fuzzywuzzy would count edits"
# The package walks back through two sentences recursively; the score is what it gives where that goes well.
sys.setrecursionlimit(100_000)
rng = random.Random(20260)
ROUGE = Rouge()


def words_of(text):
    kept = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(?:a|an|the)\b", " ", kept).split()


def qa_f1(prediction, answer):
    p, a = words_of(prediction), words_of(answer)
    same = sum((collections.Counter(p) & collections.Counter(a)).values())
    if not same: return 0.0
    precision, recall = same / len(p), same / len(a)
    return 2 * precision * recall / (precision + recall)


def rouge_l(prediction, answer):
    try:
        return ROUGE.get_scores([prediction], [answer], avg=True)["rouge-l"]["f"]
    except ValueError:
        return 0.0


def code_sim(prediction, answer):
    lines = (line for line in prediction.lstrip("\n").split("\n") if not any(mark in line for mark in ("`", "#", "//")))
    return fuzz.ratio(next(lines, ""), answer) / 100


def exact_match(prediction, answer):
    return float(prediction.strip() == answer.strip())


METRICS = [qa_f1, rouge_l, code_sim, exact_match]


def scores(prediction, answers):
    return [float(max([0.0] + [metric(prediction, answer) for answer in answers])) for metric in METRICS]


# ---- texts ----
EDGES = ["", " ", ".", "..", "...", ". .", " . ", "\n", "\n\n", "\t", "a", "the", "The.", "a an the", "A.An.THE", "the-end",
         "a.m.", "an_the",
         "x", "x.", ".x", "x..y", "x . y", "x.y.", "yes", "Yes!", " yes ", "yes\n", "no", "\u3000yes\u3000", "yes\x1c",
         "yes\x00", "\ufeffyes",
         "`", "```", "# x", "// x", "\n# x\nx", "`x`\nx\ny", "```python\nx = 1\n```", "x # y\nz", "x / y", "http://a.b\nx = 1",
         "\r\nx", "x\r\ny"]
UNICODE = ["İstanbul", "ISTANBUL", "istanbul", "i̇stanbul", "ıstanbul", "ΟΔΥΣΣΕΥΣ", "ὈΔΥΣΣΕΎΣ", "οδυσσευς", "ΣΑΣ. Σ", "Σ",
           "ΑΣ'", "ΑΣ'Α", "Α\u0301Σ", "aΣ:b", "ⓐΣ", "ªΣ",
           "ⅣΣ Ⅳ", "straße STRASSE", "ẞ ß", "ǅ ǆ Ǆ", "Ω Ω", "K k", "café", "cafe\u0301", "CAFÉ", "a\u0301 an\u0308 the\u0302",
           "the\u200dend", "the\u00adend", "the\u200bend",
           "naïve the naïve", "don’t", "don't", "“quoted”", "¿qué?", "A½", "a² b", "²the", "the²", "a٣", "一", "一二三", "the一",
           "的的的", "東京タワー", "東京 タワー", "ア ｱ", "한국어 문장.", "한국어 문장",
           "👍", "👍🏽", "👨‍👩‍👧", "👍 the 👍", "e\u0301\u0323", "نص عربي", "ไทย ภาษา", "हिन्दी", "x\u00a0y", "x\u2003y\u2028z",
           "x\u1680y", "x\u180ey", "x\u200by", "x\u0085y", "𝒜 𝒷", "Ａ ａ",
           "！？", "the，end", "a…b", "x・y", "。", "一。二。"]
WORDS = "a an the The of and to in is was cat dog Dog dog. cat, red blue 3 3.14 U.S. it's run runs".split() + [".", "..", "\n",
    "-", "—"]
CODE = ["    return x", "return x;", "int main() {", "}", "", "    self.value = value", "# comment", "// comment", "```",
        "x = a // b", "print(f\"{x}\")", "if (i < n && a[i] == b[j]) {",
        "for i in range(len(values)):", "\t\treturn None", "const auto& item = items[i];", "import os, sys",
        "    public static void main(String[] args) {", "# x\n    y = 2"]


def text_of(pool, most, joiner=" "):
    return joiner.join(rng.choice(pool) for _ in range(rng.randint(0, most)))


def changed(text, rate, alphabet):
    """The text with some characters deleted, replaced or added."""
    out = []
    for c in text:
        r = rng.random()
        if r < rate: continue
        out.append(rng.choice(alphabet) if r < 2 * rate else c)
        if rng.random() < rate: out.append(rng.choice(alphabet))
    return "".join(out)


def pairs():
    for text in EDGES + UNICODE:
        yield text, [text]
    for text in EDGES:
        yield text, [rng.choice(EDGES)]
        yield rng.choice(EDGES), [text, rng.choice(EDGES)]
    for _ in range(110):
        yield rng.choice(UNICODE), [rng.choice(UNICODE), rng.choice(UNICODE)]
        yield " ".join(rng.sample(UNICODE, 3)), [" ".join(rng.sample(UNICODE, 3))]
    yield "x", []
    yield "the cat", ["a dog", "cat", "The cat!"]
    # Words of few kinds: repeated ones, and many longest common subsequences of one length.
    for kinds in ("ab", "abc", "abcdefgh"):
        for _ in range(60):
            pool = list(kinds) + ["."] * (len(kinds) // 2)
            yield text_of(pool, 24), [text_of(pool, 24)]
    for _ in range(150):
        yield text_of(WORDS, 14), [text_of(WORDS, 14) for _ in range(rng.randint(1, 3))]
    for _ in range(60):
        yield text_of(WORDS, 30, rng.choice(["", "  ", " . ", "\n"])), [text_of(WORDS, 30)]
    # Code, and lines of it that are alike.
    for _ in range(80):
        yield text_of(CODE, 4, "\n"), [rng.choice(CODE)]
        line = rng.choice(CODE)
        yield changed(line, 0.15, "abx(){} \n"), [line]
    # Characters at random, some of several bytes.
    for alphabet in ("ab", "abc .", "aA.'Σσ ", "日本語ab", "é\u0301e ,the", "0123456789abcdef"):
        for _ in range(25):
            text = "".join(rng.choice(alphabet) for _ in range(rng.randint(0, 40)))
            yield text, [changed(text, 0.2, alphabet), "".join(rng.choice(alphabet) for _ in range(rng.randint(0, 40)))]
    # From 200 characters of the answer on frequent ones begin no block.
    for length in (198, 199, 200, 201, 202, 299, 300, 301, 450):
        for alphabet in ("ab", "abcdefghijklmnopqrstuvwxyz ", string.ascii_letters + string.digits + " (){};=",
            "".join(map(chr, range(0x4E00, 0x4E00 + 150)))):
            answer = "".join(rng.choice(alphabet) for _ in range(length))
            yield changed(answer, 0.08, alphabet), [answer]
        words = text_of(WORDS + list("uvwxyz"), 2 * length // 3)
        yield changed(words, 0.03, "abc. "), [words[:length]]
    # Sentences over which Python needs a deeper stack than its default.
    yield " ".join(str(i % 97) for i in range(700)), [" ".join(str(i % 89) for i in range(700))]


BROKEN = [b"\xff", b"\xff\xfe", b"x\xc3", b"\xc3(", b"\xe2\x82", b"\xe2\x82x", b"\xe2(\xa1", b"\xf0\x9f\x98",
          b"\xf0\x9f\x98 the \xf0\x28", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf4\x90\x80\x80",
          b"the\xffend", b"caf\xe9", b"caf\xe9 the caf\xe9", b"\xef\xbf\xbd", b"\xe2\x82\xe2\x82\xac", b"\x80\x80x", b"yes\xff",
          b"\xf8\x88\x80\x80\x80", b"\xe1\x80\xc3\xa9."]


def broken_pairs():
    for text in BROKEN:
        yield text, text
        for _ in range(2): yield text, rng.choice(BROKEN)
        yield text, text.decode("utf-8", "replace").encode()
        yield b"the " + text + b". x " + rng.choice(BROKEN), b"x " + text


def points():
    lists = [[0.0], [1.0], [0.0, 1.0], [1 / 3, 2 / 3], [0.00125], [0.00375], [0.02675, 0.0],
        [0.1] * 10, [0.7] * 3, [1.0] * 7 + [0.0] * 9, [0.12345, 0.12355]]
    lists += [[k / 1600] for k in range(1, 12)] + [[k / 800, 0.0] for k in range(1, 12)]  # ties
    lists += [[rng.random() for _ in range(rng.randint(1, 200))] for _ in range(20)]
    lists += [[rng.randint(0, 8) / 8 for _ in range(rng.choice([16, 64, 160, 200]))] for _ in range(20)]
    return [[s, round(100 * running(s) / len(s), 2)] for s in lists]


def running(values):
    total = 0.0
    for v in values: total += v
    return total


def ranges(test):
    out = []
    for c in range(0x110000):
        if 0xD800 <= c <= 0xDFFF or not test(chr(c)): continue
        if out and out[-1][1] == c - 1: out[-1][1] = c
        else: out.append([c, c])
    return out


def lower_texts():
    """Every character that changes, 256 code points to a text; then what may stand around a final sigma."""
    texts = collections.defaultdict(str)
    for c in range(0x110000):
        if chr(c).lower() != chr(c): texts[c >> 8] += chr(c) + " "
    for text in texts.values(): yield text
    for around in ("x{}Σ", "{}Σ", "xΣ{}", "xΣ{}x"):
        for first in (0x21, 0xA0, 0x2B0, 0x370, 0x483, 0x559, 0x5D0, 0x2010, 0x2070, 0x2160, 0x24B0, 0x3000, 0xA670, 0xFE10, 0xFF00, 0x1F128, 0x1F170):
            yield " ".join(around.format(chr(c)) for c in range(first, first + 48) if unicodedata.category(chr(c)) != "Cn")


def check_with(folder, cases):
    sys.path.insert(0, folder)
    import metrics
    theirs = [metrics.qa_f1_score, metrics.rouge_score, metrics.code_sim_score]
    for prediction, answers, ours in cases:
        for score, metric in zip(ours, theirs):
            best = max([0.0] + [metric(prediction, a, all_classes=[]) for a in answers])
            assert best == score, (metric.__name__, prediction, answers, best, score)
    print(f"LongBench agrees on {len(cases)} cases", file=sys.stderr)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--longbench", help="folder with LongBench's metrics.py")
    options = parser.parse_args()
    cases = [[p, answers, scores(p, answers)] for p, answers in pairs()]
    if options.longbench: check_with(options.longbench, cases)
    broken = [[p.hex(), [a.hex()], scores(p.decode("utf-8", "replace"), [a.decode("utf-8", "replace")])]
    for p, a in broken_pairs()]
    lines = ["", "x", "\nx\ny", "\n\n\n", "x\r\ny", " \nx", "\r\nx", "x\n"]
    sections = {
        "cases": cases,
        "broken": broken,
        "first_line": [[t, t.lstrip("\n").split("\n")[0]] for t in lines],
        "points": points(),
        "lower": [[t, t.lower()] for t in lower_texts()],
        "words": ranges(lambda c: re.match(r"\w", c)),
        "spaces": ranges(str.isspace),
        "assigned": ranges(lambda c: unicodedata.category(c) != "Cn"),
    }
    flat = {"words", "spaces", "assigned"}
    body = ",\n".join(json.dumps(name) + ": [" + ("" if name in flat else "\n") +
                      ("," if name in flat else ",\n").join(json.dumps(row, separators=(",", ":")) for row in rows) + "]"
                      for name, rows in sections.items())
    print("{" + body + "}")
    counts = [sum(1 for c in cases if 0 < c[2][m] < 1) for m in range(4)]
    print(f"{len(cases)} cases; between 0 and 1: {counts}; {len(broken)} broken", file=sys.stderr)


main()
