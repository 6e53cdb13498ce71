"""
Words and sentences of a text in any script, and the direction it is written in.

Words are Unicode's (UAX #29, https://unicode.org/reports/tr29/) as `regex` finds them, but what people write on the web
stays whole. Chinese and hiragana come out character by character, Thai, Lao, Khmer and Burmese grapheme cluster by
grapheme cluster: to find words in them takes a dictionary.
"""

from __future__ import annotations

import re
import unicodedata
from itertools import pairwise

import regex

Span = tuple[int, int]
"""First character and the one behind the last."""

# Letters and digits of scripts that Unicode joins to words, unlike ideographs and Thai; and the marks on them.
_LETTER = r"\p{WB=ALetter}\p{WB=Hebrew_Letter}\p{WB=Numeric}\p{WB=Katakana}\p{WB=ExtendNumLet}\p{WB=Extend}"
_DOMAIN = rf"[{_LETTER}\-]++ (?: \.[{_LETTER}\-]++ )++"
_OF_URL = rf"[{_LETTER}!\#$%&'()*+,\-./:;=?@\[\]~]*+"

# Possessive quantifiers, and looking behind before a long scan, keep the time proportional to the length.
_TOKEN = regex.compile(
    rf"""
    (?P<whole>
        (?: (?<![A-Za-z0-9]) (?: [A-Za-z]{{2,15}}:// | www\. ) {_OF_URL}
          | (?<![\w.%+\-]) {_DOMAIN} / {_OF_URL}
          | (?<![A-Za-z0-9._%+\-]) [A-Za-z0-9._%+\-]++ @ {_DOMAIN}
          | (?<![{_LETTER}]) [\#＃@＠] [\w\u200c\u200d]++ (?: [.@\-] [\w\u200c\u200d]++ )*+
          | (?: [:;=8] [\-^'’o] | [:;=] ) (?: \)++ | \(++ ) (?! [\w()] )
          | (?<!\w) [:;=8xX] [\-^'’]? [DdPpOo03SsXx|/\\*$\[\]] \b (?! [\w/\\] )
          | <3++ \b (?!\w)
          | [\#*] \ufe0f? \u20e3
          | \p{{RI}}{{1,2}}  # not left to \b, which counts back to the first of many flags, for each
        ) (?: (?! \p{{RI}} | \b ) \X | \p{{GCB=SpacingMark}} | (?<=\p{{GCB=Prepend}}) \X )*+  # to where Unicode's ends
    )
  | (?P<opening>
        (?= [\p{{Ps}}\p{{Pi}}¿¡] | \p{{Sc}}\p{{N}} | <[/\p{{L}}] | (?<!\w) (?: ["'] \w | [\-+−±]\p{{N}} ) ) \X+?\b
    )
  | (?P<mark>
        (?: (?! [[\p{{L}}\p{{N}}\p{{ExtPict}}]--[©®™‼⁉]] ) \X )+?\b
    )
  | (?P<segment>
        \X+?\b
        (?: (?: (?<=[{_LETTER}]) [\-‐‑´&] (?=[{_LETTER}])
              | (?<=\p{{N}}) (?: [:/–](?=\p{{N}}) | °(?=[CF]) )
              | (?=[¹²³¼-¾⁰-₎]) | (?<=[₀-₉]) (?=[{_LETTER}]) ) \X+?\b )*+
    )
    """,
    regex.WORD | regex.VERBOSE | regex.VERSION1,
)

_CHUNK = re.compile(r"([A-Za-z0-9]++[.,;:!?]*+)(?!\S)|\S++")
"""What is between white space; the group: nothing to find in it."""
_LINE_BREAK = regex.compile(r"\R")
_END = regex.compile(r"(?: (?P<stop>[.…．]) | \p{STerm} ) [\p{Pe}\p{Pf}\p{QMark}\p{M}\p{Cf}]*+ \Z", regex.VERBOSE)
_GOES_ON = regex.compile(r"[\p{SB=SContinue}\p{STerm}…]")
_LOWER = regex.compile(r"[^\p{L}]*+\p{Ll}")


def words(text: str) -> list[Span]:
    """Words as people see them: Unicode's, and as one word each also URLs, e-mail addresses, @mentions, #hashtags,
    numbers with their signs, hyphenated words, emoji with all that modifies them, and emoticons. Punctuation belongs to
    the word that it touches: opening marks to the one after, others to the one before.

    Returns:
        Spans in order that do not overlap and hold every character but white space (`str.isspace`), which they do not.
    """
    spans = []
    for chunk in _CHUNK.finditer(text):
        start, end = chunk.span()
        tokens = [] if chunk[1] else list(_TOKEN.finditer(text, start, end))
        cores = [i for i, token in enumerate(tokens) if token.lastgroup in ("whole", "segment")]
        for left, right in pairwise(cores):
            first = next((i for i in range(left + 1, right) if tokens[i].lastgroup == "opening"), right)
            spans.append((start, tokens[first].start()))
            start = tokens[first].start()
        spans.append((start, end))
    return spans


def sentences(text: str) -> list[Span]:
    """Sentences, of whole `words`. One ends with a paragraph (an empty line), or behind a terminator of any script and
    what closes behind it. As in UAX #29 it goes on where a comma, dash or terminator follows, and behind a full stop
    where a lower-case letter does; unlike there, in the next line only behind no terminator. Abbreviations are not
    known: "Mr." ends a sentence.

    Returns:
        Spans as those of `words`, but with white space between words.
    """
    found = words(text)
    spans, first = [], 0
    for i, ((start, end), (next_start, next_end)) in enumerate(pairwise(found), 1):
        if _ends(text, start, end, next_start, next_end):
            spans.append((found[first][0], end))
            first = i
    return [*spans, (found[first][0], found[-1][1])] if found else []


def _ends(text: str, start: int, end: int, next_start: int, next_end: int) -> bool:
    line_breaks = _LINE_BREAK.findall(text, end, next_start)
    if len(line_breaks) > 1 or "\u2029" in line_breaks:
        return True
    terminator = None if text[end - 1].isalnum() else _END.search(text, start, end)
    if terminator is None or line_breaks:
        return terminator is not None
    if _GOES_ON.match(text, next_start):
        return False
    return terminator["stop"] is None or not _LOWER.match(text, next_start, next_end)


def direction(text: str) -> str:
    """`"rtl"` if the first letter with a direction is written from right to left, else `"ltr"`; isolates are skipped
    (UAX #9, rules P2 and P3, for the whole text)."""
    depth = 0
    for character in text:
        kind = unicodedata.bidirectional(character)
        if kind in ("LRI", "RLI", "FSI"):
            depth += 1
        elif kind == "PDI":
            depth = max(depth - 1, 0)
        elif kind == "B":  # isolates end with their paragraph
            depth = 0
        elif depth == 0 and kind in ("L", "R", "AL"):
            return "ltr" if kind == "L" else "rtl"
    return "ltr"
