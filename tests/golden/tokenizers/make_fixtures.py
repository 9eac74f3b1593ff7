#!/usr/bin/env python3
"""Makes the tokenizer fixtures beside this script with the package `tokenizers` (0.23): small tokenizers of every kind that we read,
trained on text made up here, and what the package does with a corpus of hard strings. Everything follows from the seed.

    make_fixtures.py            writes FOLDER/NAME/tokenizer.json, FOLDER/NAME/expected.json, FOLDER/corpus.json, FOLDER/steps.json

corpus.json    list of strings
expected.json  {"before": ids, "after": ids,                 what add_special_tokens puts around the ids of every string
                "stride": n,                              the cases are for every n-th string of the corpus
                "cases": [{"ids": [..], "keep": s, "skip": s}, ..],   ids without special tokens, and their decode: "keep" with special
                                                             tokens, where it is not the string; "skip" without, where it is not "keep"
                "decodes": [{"ids": [..], "keep": s, "skip": s}, ..], random ids
                "vocab_size": n}
steps.json     {"texts": [..], "tokens": [[..], ..],
                "normalizers": [{"step": json, "results": [text, ..]}, ..],             of the texts
                "pre_tokenizers": [{"step": json, "results": [[piece, ..], ..]}, ..],   of the texts
                "decoders": [{"step": json, "results": [text, ..]}, ..]}                of the lists of tokens
"""
import json
import os
import random

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

HERE = os.path.dirname(os.path.abspath(__file__))
SEED = 20

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
DEEPSEEK = (r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
            r"|\s*[\r\n]+|\s+(?!\S)|\s+")
GPT4O = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
         r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
         r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")


# ------------------------------------------------------------------------------------------------------- made-up text

SYLLABLES = {
    "latin": "ka lo mi ne ru sta ven ing er the an or tion qu pre con ly s".split(),
    "accents": "é à ñu ção über ö å ß ž ł ień ő ča œu ï".split(),
    "greek": "κα λο μι νε ρου στα ση ών ή".split(),
    "cyrillic": "ка ло ми не ру ста вен ный ё щи ъе".split(),
    "arabic": "مَ كتا ب ال سل ام في من لا".split(),
    "hebrew": "של ום בית עִ ב רי".split(),
    "devanagari": "नम स्ते क्षा भा र त है में".split(),
    "thai": "สวัส ดี ครับ ไทย น้ำ".split(),
    "cjk": list("的一是不了人我在有他这为之大来以个中上们到说国和地也子时道出而要于就下得可你年生自会那后能对着事其里所去行过家十用发"),
    "kana": "こん にち は ありが とう カ タ ナ ッ プ ー ゞ".split(),
    "hangul": "안 녕 하 세 요 한 국 어 각".split(),
    "emoji": "😀 👍🏽 👨‍👩‍👧 🇩🇪 ❤️ 🏳️‍🌈 ✨".split(),
    "code": ["def ", "return ", "(x)", "{\n", "}\n", "    ", "\t", "==", "->", "#include <", "std::", ";\n", "'s", "I'm", "don't", "\"\""],
    "digits": list("0123456789") + ["2024", "3.14", "٣", "१"],
}


def sentence(rng, kinds=None):
    words = []
    for _ in range(rng.randint(3, 12)):
        kind = rng.choice(kinds or list(SYLLABLES))
        word = "".join(rng.choice(SYLLABLES[kind]) for _ in range(rng.randint(1, 4)))
        if rng.random() < 0.1:
            word = word.upper()
        words.append(word)
    return rng.choice(["", "", " ", "\n"]).join([""]) + " ".join(words) + rng.choice([".", "!", "?", "...", "\n", "\r\n", "", " "])


def training_text(kinds=None, n=3000):
    rng = random.Random(SEED)
    return [sentence(rng, kinds) for _ in range(n)]


def hard_strings():
    rng = random.Random(SEED + 1)
    out = [
        "", " ", "  ", "   ", "\n", "\n\n", "\r\n", "\r\n\r\n", "\r", "\t", " \n", "\n ", "  \n  ", " \t \r\n \t ", "a", " a", "a ", "  a  ",
        "Hello, world!", "Hello world", " Hello  world ", "hello\nworld\n", "x\n\n\ny", "x   y", "x \n y", "trailing   ", "\n\n  indented\n\tmore\n",
        "I'm you're he's WE'LL They'D I'VE don't DON'T can'T 'S 'sS 'LL'll 'ſ 'ſa 'Reason 've'm", "O'Neill's rock'n'roll ''s '''t", "’s it’s",
        "0", "12", "123", "1234", "12345678901234567890", "3.14159", "1,000,000", "v1.2.3-rc4", "٣٤٥٦", "१२३४", "½⅓Ⅷ②", "x1y2z3", "1a2b", "𝟘𝟙𝟚𝟛𝟜",
        "a\u00a0b", "\u00a0", "\u00a0\u00a0x", "a\u2003b\u2009c\u202fd\u205fe\u3000f", "\u1680x", "\u180ex", "a\u180e b", "\u200bx\u200b", "a\u2028b\u2029c",
        "\u0085x\u0085", "x\u000by\u000cz", "\ufeffbom", "zero\u0000byte", "\u0001\u0002\u001b[31m", "\u007f\u0080\u009f", "\ue000private\uf8ff", "\uffff\ufffe",
        "e\u0301", "é", "é e\u0301 E\u0301", "a\u0323\u0307", "a\u0307\u0323", "\u0301start", "q\u0307\u0323\u0301", "o\u0302\u0301 ồ", "Å Å Å", "ﬁ ﬂ ﬃ", "ǆ Ǆ", "ẛ̣",
        "각 각", "\u1100\u1161\u11a8", "가\u11a8", "ᄀ", "x\u0345\u0301", "\u0958 क\u093c", "ｆｕｌｌ　ｗｉｄｔｈ １２３", "①②③ ㎏ ㏂", "ſ K Å ϓ", "İ ı I i",
        "😀", "😀😀😀", "👍🏽", "👨‍👩‍👧‍👦", "🇩🇪🇫🇷", "❤️", "🏳️‍🌈", "a😀b", " 😀 ", "☃︎☃️", "\U0001fae8 \U0001fadc", "👩🏽‍🚀's",
        "你好，世界！", "的一是不了", "こんにちは世界", "カタカナ ｶﾀｶﾅ", "안녕하세요 세계", "漢字かな交じり文123ABC", "\u3400\U00020000\U00031350", "。、「」", "第1章　はじめに",
        "שלום עולם", "עִבְרִית", "مرحبا بالعالم", "العَرَبِيَّة", "שלום hello عالم", "\u202eabc\u202c", "नमस्ते दुनिया", "क्षत्रिय", "สวัสดีครับ", "ไทยไม่มีช่องว่าง", "Привет, мир!", "ПРИВЕТ", "Γειά σου Κόσμε", "ΣΑΣ", "ÀÉÎÕÜ àéîõü", "Straße STRASSE ẞ", "Ærøskøbing", "Zażółć gęślą jaźń",
        "\U00010d40\U00010d41 \U00011f50", "\U000105c0\U00010d50\U00010d70", "\u1c89\u1c8a \ua7cb", "\U0001cc00", "\u0897a", "\U00013460", "\u32ff \ua7f2 \U00011935\U00011930",
        "a\U0010ffffb", "\U000e0041", "\ud7ff\ue000", "\u1abf\u0327\u0301", "a\u0c3c\u0327",
        "def f(x):\n    return x + 1\n", "if (a == b) {\r\n\tfoo();\r\n}\r\n", "#include <vector>\nstd::vector<int> v{1, 2, 3};", "<html><body class=\"a\">&nbsp;</body></html>", "SELECT * FROM t WHERE id = 'x''y';",
        "https://example.com/a/b?c=d&e=f#g", "user@example.com", "C:\\path\\to\\file", "$100.00 €50 £20 ¥1000", "a+b=c; x^2 != y**2", "--flag=value -x", "...", "!!!???", "?!", "—–-", "“quoted” ‘single’", "(((nested)))", "[a]{b}<c>", "~`@#$%^&*_+|\\", "a_b_c __init__", "CamelCaseWordsHTTPServer", "ALLCAPS lower Mixed", "ǅabc ǅ ʰʱ",
        "▁", "▁▁", "a▁b", "▁ a ▁", " ▁", "Ġ", "ĠaĊ", "<0x0A>", "<0x41><0xE4>", "<unk>", "<s>", "</s>", "<s>a</s>", " <s> a </s> ", "<s", "s>", "<<s>>", "<s><s>", "\n<s>\n",
        "<|begin_of_text|>", "<|begin_of_text|>Hi<|eot_id|>", "a <|eot_id|> b", "a  <|eot_id|>  b", "<|eot_id|", "<|eot_id|><|eot_id|>\n\n", "<|start_header_id|>user<|end_header_id|>\n\nHi!<|eot_id|>", "x<|endoftext|>y", " <|endoftext|> ", "<|im_start|>system\nYou are.<|im_end|>\n<|im_start|>user\n",
        "<tool_call>{\"a\": 1}</tool_call>", "<tool_call> x </tool_call>", "<LEFT>", "a  <LEFT>  b", "a<LEFT>b", " <LEFT><LEFT> ", "\n \t<LEFT>\u3000x", "a  <RIGHT>  b", "<RIGHT>\n\n<RIGHT> \u00a0x", "  <BOTH>  <BOTH>  ", "a<BOTH>b", "x <BOTH>\n<LEFT> <RIGHT> y",
        "word", "a word b", "sword", "words", "word word", "(word)", "wordé", "é word_", "word1", "1word", "word\u0301", "\u200dword", "ⓐword", "²word", "naïve", "nai\u0308ve", "a naïve b", "foo bar", "foobar", "foo barfoo bar", "  foo bar  ", "long added token", "long added tokens", "long added", "long  added token",
        "a" * 100, "ab" * 80, " " * 100, "\n" * 60, "1" * 61, "é" * 40, "e\u0301" * 40, "😀" * 20, "的" * 50, "-" * 70, " a" * 50, "\t" * 33, "\r\n" * 20, "the" * 60, "x" + " " * 40 + "y", "x" + " \n" * 20 + "y", "'" * 15, "a'" * 15, "\u0301\u0327" * 20,
        "thequickbrownfoxjumpsoverthelazydog" * 8, "Pneumonoultramicroscopicsilicovolcanoconiosis",
    ]
    while len(out) < 330:
        kinds = None if rng.random() < 0.4 else [rng.choice(list(SYLLABLES))]
        text = sentence(rng, kinds)
        if rng.random() < 0.3:
            at = rng.randint(0, len(text))
            text = text[:at] + rng.choice(["<s>", "<|eot_id|>", "<|im_end|>", "<LEFT>", "<RIGHT>", "  ", "\n\n", "\u3000", "\u0301", "\ufffd"]) + text[at:]
        out.append(text[:120])
    for _ in range(40):  # any characters at all
        pool = [(0x20, 0x7E), (0x80, 0x24F), (0x300, 0x36F), (0x370, 0x5FF), (0x900, 0x11FF), (0x2000, 0x2BFF), (0x3000, 0xD7FF), (0xE000, 0xFFFF), (0x10000, 0x1FFFF)]
        out.append("".join(chr(rng.randint(*rng.choice(pool))) for _ in range(rng.randint(1, 16))))
    return out


# --------------------------------------------------------------------------------------------------------- tokenizers

def added(tok, extra=()):
    """Added tokens of every kind, after the special ones."""
    tok.add_tokens([AddedToken("<LEFT>", lstrip=True, normalized=False), AddedToken("<RIGHT>", rstrip=True, normalized=False),
                    AddedToken("<BOTH>", lstrip=True, rstrip=True, normalized=False), AddedToken("word", single_word=True, normalized=False),
                    AddedToken("naïve", normalized=True), AddedToken("foo bar", normalized=True, single_word=True),
                    AddedToken("long added", normalized=False), AddedToken("long added token", normalized=False), *extra])


def train(tok, text, size, special, alphabet=()):
    tok.train_from_iterator(text, trainers.BpeTrainer(vocab_size=size, special_tokens=special, show_progress=False,
                                                      initial_alphabet=list(alphabet), max_token_length=24))


def byte_level(size, kinds=None, **model):
    tok = Tokenizer(models.BPE(**model))
    tok.decoder = decoders.ByteLevel()
    return tok, lambda special: train(tok, training_text(kinds), size, special, pre_tokenizers.ByteLevel.alphabet())


def split_byte_level(*patterns):
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(p), "isolated") for p in patterns]
                                   + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def make_llama3():
    tok, fit = byte_level(620, ignore_merges=True)
    tok.pre_tokenizer = split_byte_level(LLAMA3)
    fit([])
    tok.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"])
    bos = tok.token_to_id("<|begin_of_text|>")
    tok.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), processors.TemplateProcessing(
        single="<|begin_of_text|> $A", pair="<|begin_of_text|> $A <|begin_of_text|>:1 $B:1", special_tokens=[("<|begin_of_text|>", bos)])])
    added(tok)
    data = json.loads(tok.to_str())
    # ignore_merges matters where a word of the vocabulary is not what the merges make: take some merges away.
    data["model"]["merges"] = [m for i, m in enumerate(data["model"]["merges"]) if i % 17 != 5 or i < 100]
    return data


def make_qwen2():
    tok, fit = byte_level(560)
    tok.normalizer = normalizers.NFC()
    tok.pre_tokenizer = split_byte_level(QWEN2)
    fit([])
    tok.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False)
    tok.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    added(tok, [AddedToken("<tool_call>", normalized=False), AddedToken("</tool_call>", normalized=False)])
    return json.loads(tok.to_str())


def make_gpt2(prefix):
    tok, fit = byte_level(420, ["latin", "code", "accents", "digits"] if not prefix else ["latin", "cyrillic", "cjk"])
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=True)
    fit(["<|endoftext|>"])
    tok.post_processor = processors.ByteLevel(trim_offsets=True)
    data = json.loads(tok.to_str())
    if not prefix:  # as GPT-2's own file: no type, merges as text
        del data["model"]["type"]
        data["model"]["merges"] = [" ".join(m) for m in data["model"]["merges"]]
        data["model"]["continuing_subword_prefix"] = data["model"]["end_of_word_suffix"] = ""
    return data


def make_deepseek():
    tok, fit = byte_level(430, ["cjk", "kana", "latin", "digits", "devanagari"])
    tok.pre_tokenizer = split_byte_level(r"\p{N}{1,3}", r"[一-龥\u3040-ゟ゠-ヿ]+", DEEPSEEK)
    fit([])
    tok.add_special_tokens(["<s>", "</s>"])
    tok.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B:1", special_tokens=[("<s>", tok.token_to_id("<s>"))])
    return json.loads(tok.to_str())


def make_gpt4o():
    tok, fit = byte_level(420, ["latin", "code", "greek", "emoji", "hangul"])
    tok.pre_tokenizer = split_byte_level(GPT4O)
    fit([])
    tok.add_special_tokens(["<|endoftext|>"])
    return json.loads(tok.to_str())


BYTES = ["<0x%02X>" % b for b in range(256)]


def sentence_piece(size, special, kinds=None):
    """Vocabulary and merges of a BPE with byte fall-back over text whose spaces are U+2581."""
    tok = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tok.pre_tokenizer = pre_tokenizers.Metaspace()
    train(tok, training_text(kinds), size, special + BYTES)
    data = json.loads(tok.to_str())
    data["added_tokens"] = [t for t in data["added_tokens"] if t["content"] in special]
    data["pre_tokenizer"] = None
    return data


def sp_decoder(data):
    data["decoder"] = json.loads(decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                                    decoders.Strip(" ", 1, 0)]).__getstate__())


def bos_template(data, single="<s> $A"):
    tok = Tokenizer.from_str(json.dumps(data))
    tok.post_processor = processors.TemplateProcessing(single=single, pair=single + " $B:1",
                                                       special_tokens=[("<s>", tok.token_to_id("<s>")), ("</s>", tok.token_to_id("</s>"))])
    return tok


def make_llama2():
    data = sentence_piece(760, ["<unk>", "<s>", "</s>"], ["latin", "accents", "cyrillic", "code", "digits", "cjk"])
    data["normalizer"] = json.loads(normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]).__getstate__())
    sp_decoder(data)
    tok = bos_template(data)
    added(tok)
    return json.loads(tok.to_str())


def make_mistral():
    data = sentence_piece(700, ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"], ["latin", "accents", "greek", "arabic", "digits"])
    data["pre_tokenizer"] = json.loads(pre_tokenizers.Metaspace(prepend_scheme="first", split=False).__getstate__())
    sp_decoder(data)
    tok = bos_template(data)
    added(tok)
    return json.loads(tok.to_str())


def make_gemma():
    data = sentence_piece(620, ["<unk>", "<s>", "</s>"], ["latin", "kana", "thai", "digits"])
    data["normalizer"] = json.loads(normalizers.Replace(" ", "▁").__getstate__())
    data["pre_tokenizer"] = json.loads(pre_tokenizers.Split(" ", "merged_with_previous").__getstate__())
    data["decoder"] = json.loads(decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]).__getstate__())
    return json.loads(bos_template(data, "<s> $A </s>").to_str())


def make_unknowns(fuse):
    """No byte fall-back, few characters: unknown ones are seen; a normalizer and a pre-tokenizer of many steps; Metaspace's decoder."""
    tok = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=fuse))
    tok.normalizer = normalizers.Sequence([normalizers.Strip(), normalizers.NFKC(), normalizers.Replace(Regex(r"\s{2,}"), " "), normalizers.Replace("ß", "ss")])
    tok.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(prepend_scheme="always"), pre_tokenizers.Digits(individual_digits=fuse),
                                                 pre_tokenizers.Split(Regex(r"[,.!?]+"), "contiguous")])
    train(tok, training_text(["latin", "digits", "greek"]), 260, ["<unk>", "<s>", "</s>"])
    tok.decoder = decoders.Metaspace()
    data = json.loads(bos_template(json.loads(tok.to_str()), "<s> $A </s>").to_str())
    if not fuse:
        data["decoder"] = None
    tok = Tokenizer.from_str(json.dumps(data))
    added(tok)
    return json.loads(tok.to_str())


def write(name, data, stride=1):
    folder = os.path.join(HERE, name)
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, "tokenizer.json")
    with open(path, "w", encoding="utf-8") as f:
        json.dump(data, f, ensure_ascii=False, separators=(",", ":"))
        f.write("\n")
    tok = Tokenizer.from_file(path)
    rng = random.Random(name)

    def decoded(ids, text=None):
        entry = {"ids": ids}
        keep, skip = (tok.decode(ids, skip_special_tokens=flag) for flag in (False, True))
        if keep != text:
            entry["keep"] = keep
        if skip != keep:
            entry["skip"] = skip
        return entry

    nothing = tok.encode("", add_special_tokens=False).ids
    around = tok.encode("x", add_special_tokens=True).ids
    inner = tok.encode("x", add_special_tokens=False).ids
    at = next(i for i in range(len(around)) if around[i:i + len(inner)] == inner)
    before, after = around[:at], around[at + len(inner):]
    cases = []
    for text in hard_strings()[::stride]:
        ids = tok.encode(text, add_special_tokens=False).ids
        assert tok.encode(text, add_special_tokens=True).ids == before + ids + after, (name, text)
        cases.append(decoded(ids, text))
    assert nothing == []
    known = sorted(tok.get_vocab(with_added_tokens=True).values())
    decodes = [decoded([rng.choice(known) for _ in range(rng.randint(1, 14))]) for _ in range(60 // stride)]
    decodes += [decoded([rng.choice(known[:300]) for _ in range(rng.randint(1, 14))]) for _ in range(40 // stride)]
    expected = {"before": before, "after": after, "stride": stride, "vocab_size": tok.get_vocab_size(with_added_tokens=True), "cases": cases, "decodes": decodes}
    with open(os.path.join(folder, "expected.json"), "w", encoding="utf-8") as f:
        json.dump(expected, f, ensure_ascii=False, separators=(",", ":"))
        f.write("\n")
    print(name, len(known), os.path.getsize(path), os.path.getsize(os.path.join(folder, "expected.json")))


# ------------------------------------------------------------------------------------------------------------- steps

STEP_TEXTS = ["the-final--countdown", "-a-", "--", "a", " ", "", "  two  spaces ", "x1y22z333", "１２ Ⅷ ½ ٣٤", "a\u00a0b\u3000c\u180ed\u200be", "line\nline\r\n\r\nend\n",
              "word_1 wörd-2 ⓐⓑ ²x a\u200db", "WORD 's 'S 'ſ K", "e\u0301\u0327 \u0327\u0301 각 ﬁ Å ①", "▁a ▁▁b", "日本語テキスト、です。", "👨‍👩‍👧 ok 🇩🇪",
              "\u1c89\u1c8a\u0897\U00010d40\U00013460", "a\u000bb\u0085c", "foo.bar(baz)", "ab12cd", "\t tab\t ", "\u0301x", "A.B", "aXbXXc", "\U0001f130\U0001f170z", "²³¹ a²b ¼½¾ x¾"]


def steps():
    norms = [normalizers.NFC(), normalizers.NFD(), normalizers.NFKC(), normalizers.NFKD(), normalizers.Strip(), normalizers.Strip(left=True, right=False),
             normalizers.Strip(left=False, right=True), normalizers.Prepend("▁"), normalizers.Prepend("ab"), normalizers.Replace(" ", "▁"), normalizers.Replace("--", ""),
             normalizers.Replace(Regex(r"\s+"), "_"), normalizers.Replace(Regex(r"(?i)word|x"), "<$0>"),
             normalizers.Sequence([normalizers.NFD(), normalizers.Replace(Regex(r"\p{M}"), "")]), normalizers.Sequence([])]
    pres = [pre_tokenizers.ByteLevel(add_prefix_space=a, use_regex=r) for a in (False, True) for r in (False, True)]
    for behavior in ("isolated", "removed", "merged_with_previous", "merged_with_next", "contiguous"):
        for invert in (False, True):
            pres += [pre_tokenizers.Split("-", behavior, invert), pre_tokenizers.Split(Regex(r"\w+|[^\w\s]+"), behavior, invert)]
        pres += [pre_tokenizers.Split(Regex(r"x*"), behavior), pre_tokenizers.Split(Regex(r"(?=[A-Z\d])"), behavior)]
    patterns = [LLAMA3, QWEN2, DEEPSEEK, GPT4O, r"\bw|\Be", r"^.|.$", r"\A.|.\z", r".\Z", r"\h+", r"[\h\s]+", r"[^\S\n]+", r"\S+", r"\D+", r"\W+", r"\P{L}+", r"\p{^L}+", r"(?i)[a-k]+|'s",
                r"(?i:k)", r"(?<=a)b|(?<!-)-", r"(?>a|ab)b?", r"a{,2}", r"\p{Nd}{2,}?", r"\x{65e5}\u672C", r"\n|\t|\v|\f|\x0d", r"(a)|(?:b)|(c)", r"(?#note)-", r"[a\-z]+", r"[-a]+", r"[a-]+", r"[^a]",
                r"[\w-]+", r"[^\w]+", r"\p{Lu}+|\p{M}+|\p{P}+|\p{S}+|\p{Zs}+|\p{Nl}+|\p{No}+", r"a?+|b", r"[.()]+", r"{", r"x{1,2}", r"é|\p{Lm}", r"\.|\(|\)|\_|\-", r"\w+"]
    pres += [pre_tokenizers.Split(Regex(p), "isolated") for p in patterns[:4]]
    pres += [pre_tokenizers.Split(Regex(p), "removed") for p in patterns]
    pres += [pre_tokenizers.Metaspace(prepend_scheme=s, split=p) for s in ("always", "never", "first") for p in (True, False)]
    pres += [pre_tokenizers.Digits(individual_digits=d) for d in (False, True)] + [pre_tokenizers.Whitespace(), pre_tokenizers.WhitespaceSplit()]
    pres += [pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="first"), pre_tokenizers.Digits()])]
    tokens = [["▁Hello", "▁", "world"], ["Ġa", "Ċ", "é", "日", "Ã", "©"], ["<0xE6>", "<0x97>", "<0xA5>", "x"], ["<0xE6>", "<0x97>", "x", "<0xFF>"], ["<0xE6>", "<0x97>", "<0xA5>", "<0xE6>"],
              [" a", " b "], ["  ", " ", "a", "  "], [], [""], ["▁▁a▁", "b▁"], ["<0x4g>", "<0x+f>", "<0x0a>", "<0X41>"], ["æ", "Ĺ", "¥"], ["æ", "Ĺ"], ["<", "0x41>"], ["▁", "▁x"], ["Ã", "a", "Ã"]]
    R, F, B = decoders.Replace, decoders.Fuse, decoders.ByteFallback
    decs = [decoders.ByteLevel(), decoders.Metaspace(), decoders.Metaspace(prepend_scheme="never"), R("▁", " "), R(Regex(r"▁+"), "_"), B(), F(), decoders.Strip(" ", 1, 0),
            decoders.Sequence([R("▁", " "), B(), F(), decoders.Strip(" ", 1, 0)]), decoders.Sequence([R("▁", " "), B(), F(), decoders.Strip(" ", 2, 0), F()]),
            decoders.Sequence([B(), F(), R("a", "bb")]), decoders.Sequence([B(), decoders.Metaspace()]), decoders.Sequence([F(), decoders.Metaspace()]), decoders.Sequence([]),
            decoders.Sequence([F(), B()]), decoders.Sequence([R("▁", ""), decoders.ByteLevel(), R("a", "")])]
    def js(step):
        return json.loads(step.__getstate__())
    data = {"texts": STEP_TEXTS, "tokens": tokens,
            "normalizers": [{"step": js(n), "results": [n.normalize_str(t) for t in STEP_TEXTS]} for n in norms],
            "pre_tokenizers": [{"step": js(p), "results": [[s for s, _ in p.pre_tokenize_str(t)] for t in STEP_TEXTS]} for p in pres],
            "decoders": [{"step": js(d), "results": [d.decode(t) for t in tokens]} for d in decs]}
    path = os.path.join(HERE, "steps.json")
    with open(path, "w", encoding="utf-8") as f:
        json.dump(data, f, ensure_ascii=False, separators=(",", ":"))
        f.write("\n")
    print("steps", os.path.getsize(path))


def main():
    with open(os.path.join(HERE, "corpus.json"), "w", encoding="utf-8") as f:
        json.dump(hard_strings(), f, ensure_ascii=True, separators=(",", ":"))
        f.write("\n")
    write("llama3", make_llama3())
    write("qwen2", make_qwen2())
    write("gpt2", make_gpt2(False), 2)
    write("gpt2-prefix", make_gpt2(True), 4)
    write("deepseek", make_deepseek(), 3)
    write("gpt4o", make_gpt4o(), 3)
    write("llama2", make_llama2())
    write("mistral", make_mistral(), 2)
    write("gemma", make_gemma(), 3)
    write("unknowns", make_unknowns(False), 3)
    write("unknowns-fused", make_unknowns(True), 3)
    steps()


if __name__ == "__main__":
    main()
