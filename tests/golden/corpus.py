#!/usr/bin/env python3
"""Writes the tokenizer's test corpus: text of many kinds, the same bytes on every machine.

The corpus is generated, not stored: data/tokens.json holds its SHA-256 and what llama.cpp made of
it. Random choices come from a generator of our own, since those of Python's random module may
change between versions; no Unicode tables are consulted for the same reason.

    corpus.py            the whole corpus on stdout
    corpus.py --special  a short text full of special-token markers, for --tokenize --special
"""
import sys

MASK = (1 << 64) - 1


class Rng:
    """splitmix64 (Steele, Lea, Flood 2014)."""

    def __init__(self, seed):
        self.state = seed

    def next(self):
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return z ^ (z >> 31)

    def below(self, n):
        return self.next() % n

    def between(self, low, high):
        return low + self.below(high - low + 1)

    def pick(self, items):
        return items[self.below(len(items))]


# Common words of English, and some of ours.
WORDS = """the of and to in a is that for it as was with be by on not he his but at are this have
from or had an they which one you were all her she there would their we him been has when who will
no more if out so up said what its about than into them can only other time new some could these
two may first then do any like my now over such our man me even most made after also did many off
before must well back through years where much your way down should because long each just state
people those too mister little good world make very year still see own work men day get here old
life both between being under three never know same last another while us might great go come since
against right came take used himself few house American use place during high without again home
around small however found mrs part school thought went say general once upon every don't does got
united left number course war until always away something fact water though less public put think
almost hand enough far took head yet government system set better told nothing night end why called
didn't eyes find going look asked later knew point next program city business give group toward
young days let room word days cache block token memory daemon engine kernel vector prefix latency
tokenization unbelievably antidisestablishmentarianism restored offloading quantisation""".split()

CONTRACTIONS = ["don't", "I'm", "we're", "they've", "he'll", "she'd", "it's", "DON'T", "I'M",
                "WE'RE", "Y'all'd've", "'tis", "rock'n'roll", "o'clock", "don\u2019t", "it\u2019s",
                "'s", "'re", "''ll", "'S 'T 'RE 'VE 'M 'LL 'D", "x'y", "dogs'", "'quoted'", "'d",
                "can't've", "l'\u00e9t\u00e9", "'\u00e9", "a'\u4e2d"]

# Ranges of letters and signs: (name, first, last).
SCRIPTS = [
    ("latin-1", 0xC0, 0xFF), ("latin extended", 0x100, 0x24F), ("ipa", 0x250, 0x2AF),
    ("greek", 0x391, 0x3C9), ("cyrillic", 0x410, 0x44F), ("armenian", 0x561, 0x586),
    ("hebrew", 0x5D0, 0x5EA), ("arabic", 0x621, 0x64A), ("devanagari", 0x905, 0x94D),
    ("bengali", 0x995, 0x9A8), ("tamil", 0xB95, 0xBB9), ("thai", 0xE01, 0xE30),
    ("tibetan", 0xF40, 0xF47), ("georgian", 0x10D0, 0x10F0), ("hangul jamo", 0x1100, 0x1112),
    ("ethiopic", 0x1200, 0x1246), ("cherokee", 0x13A0, 0x13EF), ("khmer", 0x1780, 0x17A2),
    ("vietnamese", 0x1EA0, 0x1EF9), ("hiragana", 0x3041, 0x3096), ("katakana", 0x30A1, 0x30FA),
    ("cjk", 0x4E00, 0x9FA5), ("hangul", 0xAC00, 0xD7A3), ("cjk extension b", 0x20000, 0x20FFF),
    ("gothic", 0x10330, 0x1034A), ("cuneiform", 0x12000, 0x12040),
    ("mathematical", 0x1D400, 0x1D433), ("fullwidth", 0xFF21, 0xFF5A)]

DIGITS = [0x660, 0x6F0, 0x966, 0x9E6, 0xE50, 0xFF10, 0x1D7CE]  # zeros of other scripts' digits
NUMERALS = ("\u00b2\u00b3\u00b9\u00bc\u00bd\u00be\u2070\u2075\u2160\u2164\u216b\u2460\u2473\u3007"
            "\u4e00\u5343\u09f4\u0bf0\U00010107")

EMOJI = ["\U0001f600", "\U0001f602", "\u2764\ufe0f", "\U0001f44d\U0001f3fd", "\U0001f1e9\U0001f1ea",
         "\U0001f1ef\U0001f1f5", "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466",
         "\U0001f469\U0001f3fe\u200d\U0001f4bb", "\U0001f3f3\ufe0f\u200d\U0001f308",
         "\U0001f9d1\u200d\U0001f680", "1\ufe0f\u20e3", "#\ufe0f\u20e3",
         "\U0001f3f4\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f",
         "\u2603", "\u2728", "\U0001fae0", "\U0001f937\u200d\u2642\ufe0f", "\u00a9\ufe0f", "\u203c"]

SPACES = [" ", "  ", "\t", "\u00a0", "\u2003", "\u2009", "\u200a", "\u202f", "\u205f", "\u3000",
          "\u1680", "\u200b", "\u2060", "\ufeff", "\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\r",
          "\r\n", "\n", "\n\n", " \n", "\n ", "\t\t", " \t", "\u180e"]

PUNCTUATION = list("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~") + [
    "\u2014", "\u2013", "\u2026", "\u201c", "\u201d", "\u2018", "\u00ab", "\u00bb", "\u00bf",
    "\u00a1", "\u3001", "\u3002", "\uff0c", "\u20ac", "\u00a3", "\u00a5", "\u20bf", "\u221e",
    "\u2260", "\u2192", "\u00d7", "\u00b0", "\u00a7", "\u2020", "\u2022", "\ufffd", "\u2500",
    "\u2588"]

SPECIALS = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<repo_name>", "<file_sep>",
            "<gh_stars>", "<issue_start>", "<jupyter_code>", "<empty_output>", "<|im_start|",
            "|im_end|>", "< |im_end|>", "<|IM_END|>", "<|im_end|>>", "<<|im_end|>", "<s>", "</s>",
            "[INST]", "<unk>", "<0x0A>", "\u0120the", "\u010a", "\u2581the"]


def sentence(rng):
    words = []
    for _ in range(rng.between(3, 18)):
        roll = rng.below(24)
        word = rng.pick(CONTRACTIONS) if roll == 0 else rng.pick(WORDS)
        if roll == 1:
            word = word.upper()
        elif roll == 2:
            word = word.capitalize()
        elif roll == 3:
            word += rng.pick([",", ";", ":", " -", "\u2014", "'s", "..."])
        words.append(word)
    words[0] = words[0][:1].upper() + words[0][1:]
    return " ".join(words) + rng.pick([".", ".", ".", "?", "!", "...", '."', " :-)"])


def english(rng):
    return " ".join(sentence(rng) for _ in range(rng.between(2, 6))) + rng.pick(["\n", "\n\n"])


def identifier(rng):
    words = [rng.pick(WORDS).replace("'", "") for _ in range(rng.between(1, 3))]
    style = rng.below(4)
    if style == 0:
        return "_".join(words)
    if style == 1:
        return words[0] + "".join(w.capitalize() for w in words[1:])
    if style == 2:
        return "_".join(w.upper() for w in words)
    return "".join(w[0] for w in words) + str(rng.below(100))


def code(rng):
    indent = rng.pick(["    ", "\t", "  "])
    name, a, b = identifier(rng), identifier(rng), identifier(rng)
    number = rng.below(10 ** rng.between(1, 12))
    return rng.pick([
        f"static int {name}(const struct {a} *{b}, size_t n)\n{{\n"
        f"{indent}for (size_t i = 0; i < n; i++) {{\n"
        f"{indent}{indent}if ({b}[i].{a} != 0x{number:x}u)\n"
        f"{indent}{indent}{indent}return -EINVAL; /* {sentence(rng)} */\n"
        f"{indent}}}\n{indent}return 0;\n}}\n\n",
        f"def {name}(self, {a}=None, *args, **{b}):\n{indent}\"\"\"{sentence(rng)}\"\"\"\n"
        f"{indent}return [{a}[{number % 97}:-1] for {b} in range({number}) if not {b} % 2]\n\n\n",
        f"#include <{name}.h>\n#define {a.upper()} ({number}UL << 3)\n\n",
        f"{{\"{name}\": [{number}, -{number}.5e-7, null], "
        f"\"{a}\": {{\"{b}\": \"\\u00e9\\n\\t\"}}}}\n",
        f"<div class=\"{name}\" id='{a}'><a href=\"https://example.org/{b}?q={number}&x=%20y#{a}\">"
        f"{sentence(rng)}</a></div>\n",
        f"SELECT {a}, COUNT(*) FROM {name} WHERE {b} >= '{number}' GROUP BY 1 ORDER BY 2 DESC;\n",
        f"$ grep -rn --include='*.[ch]' \"{a}\" ./{name}/ | awk '{{print $2}}' | sort -u"
        f" > /tmp/{b}.{number}\r\n",
        f"{indent * rng.between(1, 12)}}} else if (!{name} && ({a} || {b} == NULL)) {{"
        f" // {number}\n",
        f"# {sentence(rng)}\n- [{name}](./{a}.md) **{b}** `{number}`\n| {a} | {b} |\n|---|---|\n"])


def numbers(rng):
    out = []
    for _ in range(rng.between(8, 24)):
        digits = "".join(str(rng.below(10)) for _ in range(rng.between(1, 24)))
        out.append(rng.pick([
            digits, "-" + digits, digits[:3] + "." + digits[3:], "1e" + digits[:3], "0x" + digits,
            digits[:2] + ":" + digits[2:4], "2026-0" + digits[:1], "$" + digits, digits + "%",
            digits + "km", "v" + digits[:2] + "." + digits[2:4], "x" + digits + "y",
            digits[:3] + "," + digits[3:6],
            "".join(chr(rng.pick(DIGITS) + rng.below(10)) for _ in range(4)),
            rng.pick(NUMERALS) + digits, digits + rng.pick(NUMERALS)]))
    return rng.pick([" ", "  ", ", ", "\t", "\n", ""]).join(out) + "\n"


def scripts(rng):
    _, first, last = rng.pick(SCRIPTS)
    words = ["".join(chr(rng.between(first, last)) for _ in range(rng.between(1, 9)))
             for _ in range(rng.between(4, 14))]
    if rng.below(4) == 0:
        words.insert(rng.below(len(words)), rng.pick(WORDS) + words[0])
    separator = rng.pick([" ", " ", "", ", ", "\u3001"])
    return separator.join(words) + rng.pick(["\n", "\u3002\n", "!\n"])


def emoji(rng):
    parts = []
    for _ in range(rng.between(5, 20)):
        parts.append(rng.pick(EMOJI))
        if rng.below(3) == 0:
            parts.append(rng.pick([" ", rng.pick(WORDS), "!", "\u200d", "\ufe0f",
                                   str(rng.below(1000))]))
    return "".join(parts) + "\n"


def combining(rng):
    out = []
    for _ in range(rng.between(10, 30)):
        out.append(chr(rng.between(0x61, 0x7A)))
        for _ in range(rng.pick([0, 0, 1, 1, 2, 7])):
            out.append(chr(rng.between(0x300, 0x36F)))
        if rng.below(5) == 0:
            out.append(rng.pick([" ", "'", "\u0301", " \u0301", "\u0947", "\u0e34", "\u05b8"]))
    return "".join(out) + "\n"


def whitespace(rng):
    out = []
    for _ in range(rng.between(8, 24)):
        out.append(rng.pick(SPACES) * rng.pick([1, 1, 1, 2, 3]))
        if rng.below(2) == 0:
            out.append(rng.pick([rng.pick(WORDS), rng.pick(PUNCTUATION), str(rng.below(100)),
                                 "\u4e2d"]))
    return "".join(out)


def long_runs(rng):
    unit = rng.pick([" ", " ", "\n", "\t", "=", "-", "a", "0", "9", "!", "\u00e9", "\u4e2d",
                     "\U0001f600", "\u00a0", " \n", "ab", "'", "\u0301", "ha"])
    return unit * rng.between(20, 300) + rng.pick(["x", "\n", " x\n", "7", "."])


def punctuation(rng):
    return "".join(rng.pick(PUNCTUATION) * rng.pick([1, 1, 1, 2, 3]) +
                   rng.pick(["", "", " ", rng.pick(WORDS), "\n"])
                   for _ in range(rng.between(10, 40)))


def controls(rng):
    return "".join(chr(rng.pick([rng.below(32), 127, rng.between(128, 159)])) +
                   rng.pick(["", "", " ", "a", "\n"]) for _ in range(rng.between(8, 30)))


def markers(rng):
    return "".join(rng.pick(SPECIALS) +
                   rng.pick(["", " ", "\n", rng.pick(WORDS), " " + rng.pick(WORDS)])
                   for _ in range(rng.between(3, 10))) + "\n"


def any_code_point(rng):
    """All planes: unassigned and private ones too, whose bytes a vocabulary may lack."""
    out = []
    for _ in range(rng.between(10, 30)):
        point = rng.below([0x800, 0x10000, 0x20000, 0x110000][rng.below(4)])
        if not 0xD800 <= point <= 0xDFFF:
            out.append(chr(point))
    return "".join(out) + "\n"


KINDS = [(english, 14), (code, 16), (numbers, 8), (scripts, 16), (emoji, 6), (combining, 5),
         (whitespace, 8), (long_runs, 5), (punctuation, 6), (controls, 2), (markers, 3),
         (any_code_point, 2)]


def corpus(seed=20261122, size_bytes=230000):
    rng = Rng(seed)
    wheel = [kind for kind, weight in KINDS for _ in range(weight)]
    out = bytearray()
    while len(out) < size_bytes:
        out += rng.pick(wheel)(rng).encode("utf-8")
    return bytes(out)


def special_text(seed=7, size_bytes=12000):
    rng = Rng(seed)
    out = bytearray()
    while len(out) < size_bytes:
        kind = rng.pick([markers, markers, markers, english, code, whitespace, emoji])
        out += kind(rng).encode("utf-8")
    return bytes(out)


if __name__ == "__main__":
    if sys.argv[1:] not in ([], ["--special"]):
        sys.exit("usage: corpus.py [--special]")
    sys.stdout.buffer.write(special_text() if sys.argv[1:] else corpus())
