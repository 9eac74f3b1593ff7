"""Writes expectations.json: texts, and the scores that Python's packages and LongBench's rules give them.

    python make_metrics.py [--longbench FOLDER] > expectations.json

Made with Python 3.11 (Unicode 14), rouge 1.0.1, jieba 0.42.1 and fuzzywuzzy 0.18.0 without python-Levenshtein (with it
fuzzywuzzy counts edits and scores differ). Running it again gives the same bytes. --longbench compares each score with
what metrics.py in that folder says (a checkout of LongBench). It also writes jieba/, a dictionary and a model of made-up
words and numbers in the package's format.

    cases: [[prediction, [answers], [qa_f1, rouge_l, code_sim, exact_match]], ...]
    broken: the same with prediction and answers as hexadecimal bytes that are not all UTF-8
    others: [[metric, prediction, [answers], [classes], score], ...]: of metrics that not every answer suits
    jieba: SHA-256 over the package's dict.txt and finalseg/prob_{start,trans,emit}.py
    cuts, chinese: [[text, [its words]], ...] and rows as in others, by the package's dictionary
    small_cuts, small_chinese: the same by the made-up one
    first_line: [[text, its first line that is not empty], ...]
    points: [[[scores], round(100 * sum / n, 2)], ...]
    words, spaces, digits, zh_punctuation: [[first, last], ...] of the code points that \\w, str.isspace and \\d take,
        and that qa_f1_zh drops
    lower: [[text, text.lower()], ...]; assigned: [[first, last], ...] of Python's Unicode
"""
import argparse, collections, hashlib, json, pathlib, random, re, string, sys, tempfile, unicodedata, warnings
warnings.simplefilter("ignore")
import jieba
import jieba.finalseg
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


# ---- metrics that some data sets are scored by ----
def ranges_of(*ranges): return "".join(chr(c) for first, last in ranges for c in range(first, last + 1))


ZH_PUNCTUATION = string.punctuation + ranges_of(
    (0x2013, 0x2014), (0x2018, 0x2019), (0x201B, 0x201F), (0x2026, 0x2027), (0x3001, 0x3003), (0x300B, 0x3011), (0x3014, 0x301F),
    (0x3030, 0x3030), (0x303E, 0x303F), (0xFE4F, 0xFE4F), (0xFF01, 0xFF0D), (0xFF0F, 0xFF0F), (0xFF1A, 0xFF20), (0xFF3B, 0xFF40),
    (0xFF5B, 0xFF64))


def share_of(number, prediction):
    numbers = re.findall(r"\d+", prediction)
    return numbers.count(number) / len(numbers) if numbers else 0.0


def count(prediction, answer, classes): return share_of(answer, prediction)
def retrieval(prediction, answer, classes): return share_of(re.search(r"Paragraph (\d+)", answer)[1], prediction)
def retrieval_zh(prediction, answer, classes): return share_of(re.search(r"段落(\d+)", answer)[1], prediction)


def classification(prediction, answer, classes):
    named = [name for name in classes if name in prediction]
    at = 0
    while at < len(named):  # removing passes over the next one
        if named[at] in answer and named[at] != answer: named.remove(named[at])
        at += 1
    return 1 / len(named) if answer in named else 0.0


CUT = jieba.cut


def qa_f1_zh(prediction, answer, classes=()):
    def kept(text):
        words = ("".join("".join(c for c in word.lower() if c not in ZH_PUNCTUATION).split()) for word in CUT(text))
        return [word for word in words if word]
    p, a = kept(prediction), kept(answer)
    same = sum((collections.Counter(p) & collections.Counter(a)).values())
    if not same: return 0.0
    precision, recall = same / len(p), same / len(a)
    return 2 * precision * recall / (precision + recall)


def rouge_l_zh(prediction, answer, classes=()): return rouge_l(" ".join(CUT(prediction)), " ".join(CUT(answer)))


OTHERS = {f.__name__: f for f in (classification, retrieval, retrieval_zh, count, qa_f1_zh, rouge_l_zh)}


def other(name, prediction, answers, classes=()):
    return [name, prediction, answers, list(classes), float(max([0.0] + [OTHERS[name](prediction, a, classes) for a in answers]))]


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


NUMBERS = ["7", "07", "17", "7.5", "Paragraph 7", "paragraph 7", "Paragraph 17", "Paragraph 7.", "Paragraph", "Paragraph x 7", "段落7",
           "段落 7", "段落17", "第7段", "7段落", "٧", "７", "²", "½", "-7", "7th", "no", "", "1,000", "Paragraph ٧", "段落７", "\n", "and"]
CLASSES = [["Location", "Other location", "Location of a city", "City", "Other", "location"], ["a", "ab", "abc", "b", "bc", "c"],
           ["a", "aa", "aaa", "aaaa", "b"], ["体育", "体育新闻", "新闻", "国际新闻", "国际"], ["x", "x", "xx", "y"], [""], ["Date"]]


def others():
    answers = {"retrieval": ["Paragraph 7", "Paragraph 17", "Paragraph 07", "see Paragraph x, Paragraph 3 or Paragraph 7", "Paragraph ٧",
                             "Paragraph 7a"],
               "retrieval_zh": ["段落7", "段落17", "见段落，段落3或段落7", "段落７", "段落٧"],
               "count": ["7", "17", "07", "", "x", "７"]}
    for name, pool in answers.items():
        for answer in pool:
            for text in rng.sample(NUMBERS, 9): yield name, text, [answer], ()
        for _ in range(20): yield name, text_of(NUMBERS, 6), [rng.choice(pool) for _ in range(rng.randint(1, 2))], ()
    for classes in CLASSES:
        for answer in classes + ["none"]:
            for text in classes: yield "classification", text, [answer], classes
            for _ in range(5): yield "classification", text_of(classes + ["is", ","], 4, rng.choice(["", " "])), [answer], classes
    yield "classification", "Date", ["x", "Date"], ["Date", "x"]


# ---- Chinese text ----
HAN = ("的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里用道行所然家种事成方多经么"
       "去法学如都同现当没动面起看定天分还进好小部其些主样理心她本前开但因只从想实日军者意无力它与长把机十民第公此已工使情明性知全三")
ZH_MARKS = ["，", "。", "！", "：", "“", "”", "（", "）", "《", "》", "、", "…", "—", "．", "・", " ", "\n", "\r\n", "\t", "　", "a", "B", "3", "3.14", "12%",
            "v1.0", "C++", "AT&T", "foo_bar", "x-y", "1,000", ".", "..", "%", "+", "#", "é", "한국", "あ", "😀", "１２", "Ａ", "〇", "\u3400", "\u9fd5",
            "\u9fd6", "\u2028", "3.", ".5", "T恤", "卡拉OK", "50%的"]
ZH_TEXTS = ["报告由王小明在二零一九年签署。", "我昨天坐火车到了上海虹桥站", "她在云栖软件园附近租了一间办公室", "李建国博士毕业后在武汉大学教了二十年计算机图形学",
            "工程师每个季度都要亲自检查十二台服务器等设备的运行状况", "会议总结：一、通过预算；二、下周三（5月8日）再议。",
            "答案是：段落7", "无法回答", "是的", "羽毛球拍卖得很快", "已经结婚的和尚未结婚的职员", "长春市长春节致辞", "AT&T公司的C++程序员买了3.14%的股份"]


def zh_text(words):
    pools = [words, HAN, HAN, ZH_MARKS]
    kind = rng.random()
    if kind < 0.3: return text_of(words, 9, "")
    if kind < 0.6: return text_of(HAN, 30, "")
    return "".join(rng.choice(rng.choice(pools)) for _ in range(rng.randint(0, 30)))


def zh_sections(prefix, words, texts, count):
    texts = ["", " ", "。", "a", *texts] + [zh_text(words) for _ in range(count)]
    pairs = [(t, [t]) for t in texts[:12]] + [(rng.choice(texts), [rng.choice(texts) for _ in range(rng.randint(1, 2))]) for _ in range(count)]
    pairs += [(changed(t, 0.15, HAN), [t]) for t in texts[4:44]]
    return {prefix + "cuts": [[t, list(CUT(t))] for t in texts],
            prefix + "chinese": [other(name, p, a) for p, a in pairs for name in ("qa_f1_zh", "rouge_l_zh")]}


def write_small_dictionary(folder):
    """Made-up words over some characters of HAN, and a made-up model, as the package keeps its own."""
    han = HAN[:40]
    words = {"".join(rng.choice(han) for _ in range(rng.choice([1, 2, 2, 2, 3, 4]))) for _ in range(160)}
    words |= {"AT&T", "C++", "T恤", "卡拉OK", "3.14", "foo_bar", "的", "一"}
    words = sorted(words)
    lines = [f"{word} {rng.choice([0, 1, 2, 3, 3, 3, 50, 50, 1000, 200000])} {rng.choice(['n', 'v', 'nz'])}" for word in words]
    lines.append(f"{words[5]} 7")  # the last of two counts, both in the total
    def table(value): return "P=" + json.dumps(value, indent=1, sort_keys=True).replace('"', "'") + "\n"
    def log(): return -round(rng.uniform(0.1, 9), rng.choice([0, 2, 12]))
    emit = {s: {c: log() for c in han + "报告明" if rng.random() < 0.8} for s in "BEMS"}
    # Steps of equal probability, where letters decide.
    for s in "BEMS": emit[s]["所"] = -2.0
    (folder / "finalseg").mkdir(parents=True, exist_ok=True)
    (folder / "dict.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    start = {"B": -0.5, "E": -3.14e+100, "M": -3.14e+100, "S": -0.5}
    trans = {"B": {"E": -0.5, "M": -0.5}, "E": {"B": -0.5, "S": -0.5}, "M": {"E": -0.5, "M": -0.5}, "S": {"B": -0.5, "S": -0.5}}
    for name, value in (("start", start), ("trans", trans), ("emit", emit)):
        (folder / "finalseg" / f"prob_{name}.py").write_text(table(value), encoding="utf-8")
    small = jieba.Tokenizer(str(folder / "dict.txt"))
    small.tmp_dir = tempfile.mkdtemp()
    model = jieba.finalseg
    kept = model.start_P, model.trans_P, model.emit_P
    def cut(text):
        model.start_P, model.trans_P, model.emit_P = start, trans, emit
        try: return list(small.cut(text, cut_all=False))
        finally: model.start_P, model.trans_P, model.emit_P = kept
    return cut, words


def jieba_sha256(folder):
    files = ["dict.txt"] + [f"finalseg/prob_{name}.py" for name in ("start", "trans", "emit")]
    return hashlib.sha256(b"".join((pathlib.Path(folder) / f).read_bytes() for f in files)).hexdigest()


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


def check_with(folder, cases, others):
    sys.path.insert(0, folder)
    import metrics
    by_name = {"rouge_l_zh": metrics.rouge_zh_score} | {name: getattr(metrics, name + "_score") for name in OTHERS if name != "rouge_l_zh"}
    for name, prediction, answers, classes, ours in others:
        best = max([0.0] + [by_name[name](prediction, a, all_classes=classes) for a in answers])
        assert best == ours, (name, prediction, answers, best, ours)
    theirs = [metrics.qa_f1_score, metrics.rouge_score, metrics.code_sim_score]
    for prediction, answers, ours in cases:
        for score, metric in zip(ours, theirs):
            best = max([0.0] + [metric(prediction, a, all_classes=[]) for a in answers])
            assert best == score, (metric.__name__, prediction, answers, best, score)
    for c in map(chr, range(0x110000)):
        assert (metrics.normalize_zh_answer(c) == "") == (c in ZH_PUNCTUATION or c.isspace()), hex(ord(c))
    print(f"LongBench agrees on {len(cases)} and {len(others)} cases", file=sys.stderr)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--longbench", help="folder with LongBench's metrics.py")
    options = parser.parse_args()
    cases = [[p, answers, scores(p, answers)] for p, answers in pairs()]
    broken = [[p.hex(), [a.hex()], scores(p.decode("utf-8", "replace"), [a.decode("utf-8", "replace")])]
    for p, a in broken_pairs()]
    roundings = points()
    global rng, CUT
    rng = random.Random(20261)
    rows = [other(*row) for row in others()]
    jieba.setLogLevel(60)
    words = [line.split(" ")[0] for line in open(jieba.__path__[0] + "/dict.txt", encoding="utf-8")]
    whole = zh_sections("", rng.sample(words, 2000), ZH_TEXTS, 40)
    if options.longbench: check_with(options.longbench, cases, rows + whole["chinese"])
    CUT, words = write_small_dictionary(pathlib.Path(__file__).parent / "jieba")
    small = zh_sections("small_", words, [], 30)
    lines = ["", "x", "\nx\ny", "\n\n\n", "x\r\ny", " \nx", "\r\nx", "x\n"]
    sections = {
        "cases": cases,
        "broken": broken,
        "others": rows,
        "jieba": [jieba_sha256(jieba.__path__[0])],
        **whole,
        **small,
        "first_line": [[t, t.lstrip("\n").split("\n")[0]] for t in lines],
        "points": roundings,
        "lower": [[t, t.lower()] for t in lower_texts()],
        "words": ranges(lambda c: re.match(r"\w", c)),
        "spaces": ranges(str.isspace),
        "digits": ranges(lambda c: re.match(r"\d", c)),
        "zh_punctuation": ranges(lambda c: c in ZH_PUNCTUATION),
        "assigned": ranges(lambda c: unicodedata.category(c) != "Cn"),
    }
    flat = {"words", "spaces", "digits", "zh_punctuation", "assigned", "jieba"}
    def text_of_row(name, row):
        return json.dumps(row, separators=(",", ":"), ensure_ascii=not name.endswith(("cuts", "chinese")))
    body = ",\n".join(json.dumps(name) + ": [" + ("" if name in flat else "\n") +
                      ("," if name in flat else ",\n").join(text_of_row(name, row) for row in rows) + "]"
                      for name, rows in sections.items())
    print("{" + body + "}")
    counts = [sum(1 for c in cases if 0 < c[2][m] < 1) for m in range(4)]
    between = collections.Counter(r[0] for r in rows + whole["chinese"] + small["small_chinese"] if 0 < r[4] < 1)
    print(f"{len(cases)} cases; between 0 and 1: {counts}; {len(broken)} broken; of the others {dict(between)}", file=sys.stderr)


main()
