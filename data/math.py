"""Kind "math": is the answer the truth? Numbers as exact fractions, all else as text.

A truth that is a number takes that number and no expression of it: 17*23 is not 391. 10,100,200 is
a number, as 1,234,567 is; what is a list has spaces or brackets: 10, 100, 200.
"""

import re
from fractions import Fraction

from rewards import MAX_ANSWER

BOX = "\\boxed{"
BOX_END = re.compile(r"\}\s*(?:\$\$?|\\\)|\\\])?\s*\.?")
SPELLINGS = [
    (r"\\(left|right|displaystyle)(?![A-Za-z])|(?<!\\)\\[,!;: ]|~", ""),
    (r"\\(mathrm|textbf|textrm|mbox)(?=\{)", r"\\text"),
    (r"\\[dt]frac(?![A-Za-z])", r"\\frac"),
    (r"\\frac ?([0-9]) ?([0-9])", r"\\frac{\1}{\2}"),
    (r"\\sqrt ?([0-9])", r"\\sqrt{\1}"),
    (r"\\([lgn]e)q(?![A-Za-z])", r"\\\1"),
    (r"\^?°|\^\{\\circ\}", r"^\\circ"),
    (r"\{,\}", ","),
]
TEXT = re.compile(r"\\text\{([^{}]*)\}")
UNIT = re.compile(r"(.*[0-9})])((?:\s*\\(?:text|mathrm)\{[^{}]*\}|\^\\circ)(?:\^[23])?)")
NAMED = re.compile(r"[A-Za-z] ?= ?([^=]*)")  # x = 5
# [0-9] and fullmatch, because \d takes the digits of every script and $ takes a line end
NUMBER = re.compile(
    r"""
    (?:\\?\$)? (?P<sign>[+-]?) (?:\\?\$)?                                  # -12  $12  -$12
    (?: (?P<decimal> (?: [0-9]+ | [1-9][0-9]{0,2}(?:,[0-9]{3})+ )          # 12  1,234
                     (?:\.[0-9]+)? | \.[0-9]+ )                            # 12.5  .5
      | (?P<a>[0-9]+)\ ?/\ ?(?P<b>[0-9]+)                                  # 3/4
      | \\[dt]?frac\ ?(?P<c>\{-?[0-9]+\}|[0-9])                             # \frac{3}{4}
                  \ ?(?P<d>\{[0-9]+\}|[0-9]) )                             # \frac34
    (?:\ ?\\?%)? \$? \.?                                                   # 12%  $12$  12.
    """,
    re.VERBOSE,
)


def unboxed(text):
    r"""What the last \boxed{...} holds, if nothing but a full stop follows it; else the text.

    Both without $...$, \(...\) or \[...\] round them; U+2212 is a minus, {,} a comma."""
    text = text.strip().replace("\u2212", "-").replace("{,}", ",")
    start = text.rfind(BOX)
    end = text.rfind("}")
    if start >= 0 and BOX_END.fullmatch(text, end):
        text = text[start + len(BOX) : end].strip()
    for opening, closing in (("$", "$"), (r"\(", r"\)"), (r"\[", r"\]")):
        body = text.removesuffix(".").rstrip()
        if body.startswith(opening) and body.endswith(closing):
            text = body[len(opening) : -len(closing)].strip()
    return text


def number(text):
    r"""The exact value of a text that is one number and nothing else; None for any other text.

    "-1,234.5" -> -2469/2    "\boxed{\frac{1}{2}}." -> 1/2    "8 or 7", "12x", "17*23" -> None
    $ and % are units that change no value, as for the grader of MATH: "50%" is 50, not 1/2."""
    text = unboxed(text)
    match = NUMBER.fullmatch(text) if len(text) <= MAX_ANSWER else None
    if match is None:
        return None
    if match["decimal"]:
        value = Fraction(match["decimal"].replace(",", ""))
    else:
        denominator = int(match["b"] or match["d"].strip("{}"))
        if denominator == 0:
            return None
        value = Fraction(int(match["a"] or match["c"].strip("{}")), denominator)
    return -value if match["sign"] == "-" else value


def unnamed(text, other):
    """The text without "x =" before it, where the other one has no equation."""
    named = NAMED.fullmatch(text)
    return named[1] if named and "=" not in other else text


def plain(text):
    r"""LaTeX in one of its several spellings: without \text, \left, spaces and the like."""
    for pattern, standard in SPELLINGS:
        text = re.sub(pattern, standard, text)
    text = " ".join(TEXT.sub(r" \1 ", text).split())
    return re.sub(r" ?([^\w ]) ?", r"\1", text)


def equal(answer, truth):
    """Is the answer the truth? Numbers by their value; all else as text, by its LaTeX spelling.

    A unit that the truth has in \\text{...} may be left out, but not be another one."""
    if answer is None:
        return False
    answer, truth = unboxed(answer), unboxed(str(truth))
    answer, truth = unnamed(answer, truth), unnamed(truth, answer)
    if number(truth) is not None:
        return number(answer) == number(truth)
    if answer == truth or len(answer) > MAX_ANSWER:
        return answer == truth
    if plain(answer) == plain(truth):
        return True
    unit = UNIT.fullmatch(truth)
    return unit is not None and equal(plain(answer).removesuffix(plain(unit[2])), unit[1])


def verify(problem, answer):
    return equal(answer, problem["answer"])
