"""Words, sentences and direction, against expectations worked out by hand and what Unicode lays down."""

import random
import time
from itertools import accumulate, pairwise

import pytest
import regex

from fl_i2moe.model.words import direction, sentences, words

WORDS = {  # "|" stands for a cut at a space, "¦" for one where the words touch
    "plain": "The|quick,|brown|fox.",
    "contractions": "don't|can’t|rock'n'roll|l'homme|don´t|dogs'|'tis",
    "hyphens": "a|well-known|twenty-one|co‑author|pre-|and|post-war|well--¦known",
    "numbers": "3.5|1,000|1'000|$5|€10|5€|50%|-5|±0.1|20°C|H₂O|m²|5½|(3.5,|$1,000.50)",
    "numbers behind marks": "x=¦-5|x=¦$5|A-5|5-3",
    "dates": "2024-01-05|10:30|24/7|1990–2000|05.01.2024",
    "web": "see|https://a.com/x?y=1&z=(2).|(www.foo.org),|me.too@x.co.uk,|<a.com/b>|ftp://é.fr/ü",
    "tags": "@user|@user@host.social:|#well-known|(#tag)|C#|C++|#2024!",
    "tags, other scripts": "#日本語|#स्वतंत्रता|#привет_мир|#ภาษาไทย|＃タグ",
    "emoji": "ok|👍🏽|👩‍👩‍👧|❤️|❤|1️⃣|#️⃣|🏴󠁧󠁢󠁥󠁮󠁧󠁿|👨🏿‍🚀!|🏽|©",
    "emoji that touch": "great¦😀¦😀!|🇩🇪¦🇫🇷¦🇯🇵",
    "emoticons": ":-)|:)|:D|;-P|:/|<3|^_^|¯\\_(ツ)_/¯",
    "emoticons that touch": "great¦:-)|Thanks¦:))|note:|C:\\|n<¦30",
    "punctuation": "¿Qué?|¡Sí!|...|--|wait...|Hello...¦world|yes¦(no)¦maybe|f()|—|!?",
    "quotes": '"a"|“a”¦b|»Hallo«|„Tag“,|‘x’|say:¦"hello"|{"a",¦"b"}|word—¦"quoted"',
    "code": "snake_case|file.txt|a→¦b|&amp;|R&D|<b>¦bold¦</b>|U.S.A.|e.g.,",
    "German": "Die|Straße|ist|schön;|„Ja!“,|rief|sie.",
    "French": "Qu'est-ce|que|c'est|?|«|Rien|»",
    "Russian": "Привет,|мир!|Что-то|«новое».",
    "Greek": "Καλημέρα,|κόσμε·|τι|κάνεις;",
    "Chinese": "我¦爱¦北¦京。¦“你¦好”¦价¦格¦$5，¦见¦http://t.cn/a1¦谢¦谢！",
    "Japanese": "日¦本¦語¦の¦「テキスト」¦で¦す。¦カタカナ、¦コーヒー",
    "Korean": "한국어|텍스트를|읽는다.|(서울)",
    "Arabic": "مَرْحَبًا،|بِالعَالَمِ!|(نص)|٣٫٥|كتاب؟",
    "Hebrew": 'שָׁלוֹם|עולם,|צה"ל|ג\'ורג\'|"כן"',
    "Hindi": "हिन्दी|में|क्षत्रिय।|(किताब)",
    "Tamil": "தமிழ்|மொழி,|க்ஷ!",
    "Thai": "ส¦วั¦ส¦ดี|น้ำ|เ¦ป็¦น!",
    "invisible": "\u200eabc|a\u200b¦b|\ufeffBOM|soft\u00adhyphen|\u200f(נ)|می\u200cخواهم",
    "accents apart": "e\u0301te\u0301|n\u0303andu\u0301.",
}

SENTENCES = {  # "|" stands for an end at white space, "¦" for one where the sentences touch
    "plain": "Hi there.|He left!|Did he?|Yes.",
    "inside a word": "It cost $3.5 at example.com, i.e. little.|See https://a.com/?q=a!b for more.",
    "lower case": "Well... perhaps… e.g. this. iOS.|What?|no.",
    "quotes": 'He said "Stop!"|(She did.)|“Why?”|‘So.’',
    "spaced": "Wait . . .|Now - and. - then",
    "lines": "One line\nand the same.\n|- an item.\n|and another",
    "emoji": "Great!|😀 Next :-)",
    "Chinese": "你好。¦他说：“好！”¦行？",
    "Japanese": "今日は。¦「はい。」¦行く！",
    "Arabic": "مرحبا؟|نعم۔|لا",
    "Hindi": "यह है।|वह है।",
    "Thai": "สวัสดี ครับ",
}

ALPHABET = [
    *"aZé9.,'\"-_@#:/([)]%$€°!?… \t\n\r\x1c\u2029\u00a0\u3000日のカー한가กัำक्षिمَא״«»“”¿。「」<3=xD\x00",
    *"\u200b\u200c\u200d\u200e\u200f\u2067\u2069\ufeff\u00ad\u0301\u20e3\ufe0f\u0600\u0d4e\ud800😀👩❤©🏽🇩🇪\U000e0067",
]


def random_texts(count):
    draw = random.Random(0)
    for _ in range(count):
        size = draw.randrange(16)
        yield "".join(
            chr(draw.randrange(0x110000)) if draw.random() < 0.1 else draw.choice(ALPHABET) for _ in range(size)
        )


def cut(text, spans):
    return [text[start:end] for start, end in spans]


@pytest.mark.parametrize("name", list(WORDS))
def test_words_are_those_that_people_see(name):
    marked = WORDS[name]
    text = marked.replace("¦", "").replace("|", " ")
    assert cut(text, words(text)) == marked.replace("¦", "|").split("|")


@pytest.mark.parametrize("name", list(SENTENCES))
def test_sentences(name):
    marked = SENTENCES[name]
    text = marked.replace("¦", "").replace("|", " ")
    assert cut(text, sentences(text)) == marked.replace("¦", "|").replace("\n|", "|").split("|")


@pytest.mark.parametrize("gap", ["\n\n", "\r\n \r\n", "\u2029", "\n\t\n\n"])
def test_a_paragraph_ends_a_sentence(gap):
    text = f"no stop{gap}and on"
    assert cut(text, sentences(text)) == ["no stop", "and on"]
    assert len(sentences("no stop\r\nand on")) == 1


def test_spans_hold_everything_but_white_space():
    for text in random_texts(4000):
        for spans in (words(text), sentences(text)):
            assert all(part and part == part.strip() for part in cut(text, spans)), ascii(text)
            outside = [0, *(i for span in spans for i in span), len(text)]
            assert outside == sorted(outside), ascii(text)
            assert not "".join(text[a:b] for a, b in zip(outside[::2], outside[1::2], strict=True)).strip(), ascii(text)
        assert not any(map(str.isspace, "".join(cut(text, words(text))))), ascii(text)
        assert {x for span in sentences(text) for x in span} <= {x for span in words(text) for x in span}, ascii(text)


def test_words_that_touch_are_cut_where_unicode_cuts():
    """No cut inside a grapheme cluster, nor (but for flags with something invisible between them) inside a word."""
    for text in random_texts(4000):
        clusters = set(accumulate(map(len, regex.findall(r"\X", text))))
        boundaries = {match.start() for match in regex.finditer(r"\b", text, regex.WORD)}
        cuts = {end for (_, end), (start, _) in pairwise(words(text)) if start == end}
        assert cuts <= clusters, ascii(text)
        assert cuts <= boundaries or regex.search(r"\p{RI}[\p{M}\p{Cf}\p{Lo}\p{Sk}]+\p{RI}", text), ascii(text)


def test_plain_chunks_are_as_the_others():
    """Those of ASCII letters and digits are not looked into; behind an é the rules are applied."""
    for text in ["a", "3", "A1", "www", "xD", "8", "a.", "a...", "3:", "x;!?", "D,", "xD!"]:
        assert words(text) == [(0, len(text))]
        assert cut(f"é{text}", words(f"é{text}")) == [f"é{text}"]


KINDS = [
    *[
        "a",
        ".",
        "-",
        "_",
        ":",
        "日",
        "\u0301",
        "\u200e",
        "\u0600",
        "🇩",
        "😀",
        "👩\u200d",
        "क्",
        "a.",
        "a-",
        "a+",
        "a@",
        "1/",
    ],
    *[
        "a/",
        "@a.",
        "#a",
        "www.",
        "a://",
        ":(",
        "$1",
        '"a',
        ".)",
        "a´",
        "a\u200c",
        "🇩\u200d",
        "\u0600🇩",
        "a! ",
        "\r\n",
        "__-",
    ],
]


@pytest.mark.parametrize("kind", KINDS, ids=ascii)
def test_time_grows_with_length(kind):
    """In quadratic time, 20,000 characters take seconds."""
    text = (kind * 20_000)[:20_000]
    start = time.process_time()
    sentences(text + "é")
    assert time.process_time() - start < 0.8


def test_direction_is_that_of_the_first_strong_character():
    rtl = ["שלום", "(مرحبا) hi", "12 עולם abc", "\u200f!", "\u2067abc\u2069 א", "\u2066abc\nא", "\u2069א"]
    ltr = ["", "123 !", "abc אבג", "日本", "\u200e א", "\u2067אב\u2069abc", "\u2068א", "\u2066\u2067א\u2069א\u2069a"]
    assert [direction(text) for text in rtl] == ["rtl"] * len(rtl)
    assert [direction(text) for text in ltr] == ["ltr"] * len(ltr)


def test_nothing_but_white_space():
    for text in ["", " ", "\n\n\u3000\x1c\u2029"]:
        assert words(text) == sentences(text) == []
