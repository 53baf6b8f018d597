"""rewards.py and the verifier of countdown: tables of texts, half of them written by somebody who
wants to be paid without being right; an independent evaluator; random bytes; and 1 MB of everything
that a policy stuck in a loop writes."""

import operator
import random
import re
import time
from fractions import Fraction

import pytest

import rewards
from data import corpus, pairs
from data.countdown import arithmetic
from data.math import number
from rewards import (
    VOCABULARY,
    accuracy,
    answer_or_all,
    equal,
    extract_answer,
    format_reward,
    language_consistency,
    reflections,
)

GOOD = "<think>\n9+7=16 no\n</think>\n<answer>10+1</answer>"
DEEP = "(" * 5000 + "1" + ")" * 5000
ONES = "+".join("1" * 5000)


# --- The answer --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "response, answer",
    [
        ("<think>x</think><answer>5</answer>", "5"),
        ("<think>x</think>\n<answer>\n 5\t\n</answer>\n<|end|>", "5"),
        ("<answer>5</answer>", "5"),  # no think block at all
        ("x</think><answer>5</answer>", "5"),  # the prompt opened it
        ("<think>x</think><answer>5</answer> so it is", "5"),
        ("<think>x</think><answer></answer>", ""),
        # hostile
        ("<think><answer>5</answer></think>", None),  # within the thinking
        ("<think><answer>5</answer></think><answer>6</answer>", "6"),
        ("<answer>5</answer></think>", None),
        ("<think>x <answer>5</answer>", None),  # never closed
        ("<think>x</think><think><answer>5</answer>", None),  # opened again
        ("</think><answer>5</answer><think>", None),
        ("<think>x</think><answer>5</answer></think><answer>6</answer>", "6"),
        ("<think>x</think><answer>5</answer></think>", None),
        ("<think>x</think><answer>5</answer><answer>6</answer>", "6"),  # the last
        ("<think>x</think><answer>5</answer><answer>6", "5"),  # the last whole one
        ("<think>x</think><answer>5</answer></answer>", "5"),  # doubled tags cost the format only
        ("<think>x</think><answer><answer>5</answer>", "5"),
        ("<think>x</think><answer><answer>5</answer></answer>", "5"),
        ("<think><think>x</think></think><answer>5</answer>", "5"),
        ("</answer><answer>5", None),
        ("</answer>5<answer>", None),
        ("<answer>5", None),
        ("5</answer>", None),
        ("<Answer>5</Answer>", None),
        ("<answer >5</answer>", None),
        ("5", None),
        ("", None),
        ("<answer>\0\ud800</answer>", "\0\ud800"),
    ],
)
def test_extract_answer(response, answer):
    assert extract_answer(response) == answer


@pytest.mark.parametrize(
    "text, value",
    [
        ("12", 12),
        (" 12\n", 12),
        ("-12", -12),
        ("+12", 12),
        ("012", 12),
        ("12.", 12),
        ("12.50", "25/2"),
        (".5", "1/2"),
        ("1,234", 1234),
        ("-1,234,567.5", "-2469135/2"),
        ("1234567", 1234567),
        ("3/4", "3/4"),
        ("-6 / 8", "-3/4"),
        (r"\frac{3}{4}", "3/4"),
        (r"-\dfrac{3}{4}.", "-3/4"),
        (r"\frac{-3}{4}", "-3/4"),
        ("$12", 12),
        ("-$12.50", "-25/2"),
        ("$-12", -12),
        (r"\$12", 12),
        ("$12$", 12),
        ("50%", 50),
        (r"50\%", 50),
        ("50 %.", 50),
        (r"\boxed{12}", 12),
        (r"\boxed{ \frac{1}{2} }.", "1/2"),
        (r"$\boxed{-12}$", -12),
        (r"\(12\)", 12),
        (r"\[ 12 \].", 12),
        (r"$$12$$", 12),
        (r"\(\frac{1}{2}\)", "1/2"),
        (r"\frac12", "1/2"),
        (r"-\dfrac1{20}", "-1/20"),
        (r"\frac{10}3", "10/3"),
        ("\u221212", -12),
        ("1{,}234", 1234),
        (r"The answer is \boxed{12}.", 12),
        (r"The answer is $\boxed{12}$.", 12),
        (r"so \[\boxed{12}\].", 12),
        (r"\boxed{$12$}", 12),
        (r"\boxed{12}\boxed{13}", 13),  # the last
        (r"\boxed{12} no \boxed{13}", 13),
        ("x" * 5000 + r"\boxed{12}", 12),
        ("10,100,200", 10100200),  # a list has spaces or brackets
        ("0", 0),
        ("-0", 0),
        ("9" * 200, int("9" * 200)),
        # hostile
        ("", None),
        (".", None),
        ("-", None),
        ("$", None),
        ("%", None),
        (",", None),
        ("/", None),
        (r"\boxed{}", None),
        (r"\boxed{", None),
        ("17*23", None),
        ("8 or 7", None),
        ("8, 7", None),
        ("not 7", None),
        ("12x", None),
        ("12!", None),
        ("12i", None),
        ("12 13", None),
        ("12e3", None),
        ("1e999999999", None),
        ("0x10", None),
        ("1_000", None),
        ("inf", None),
        ("nan", None),
        ("--12", None),
        ("- -12", None),
        ("1,23", None),
        ("12,34", None),
        ("1234,567", None),
        ("0,123", None),
        (",123", None),
        ("1,234,56", None),
        ("1,,234", None),
        ("1.2.3", None),
        ("12..", None),
        ("1/0", None),
        (r"\frac{1}{0}", None),
        ("1/2/3", None),
        ("1/-2", None),
        ("1.5/2", None),
        (r"3\frac{1}{2}", None),
        (r"\frac{1}{2}3", None),
        (r"\frac123", None),
        (r"\frac1", None),
        (r"\frac10", None),
        (r"\boxed{\boxed{12}}", None),
        (r"\boxed{12} or 13", None),
        (r"\boxed{12}\boxed{13} or 14", None),
        (r"\boxed{12}\boxed{", None),
        (r"} 12 \boxed{", None),
        (r"\(12", None),
        (r"\(12$", None),
        (r"\(12\]", None),
        ("10, 100, 200", None),
        ("x = 12", None),  # the truth decides
        ("²", None),
        ("٣", None),
        ("１２", None),
        ("Ⅻ", None),
        ("½", None),
        ("12\0", None),
        ("\ud800", None),
        ("12\n13", None),
        ("9" * 201, None),
        ("9" * 5000, None),
        ("1/" + "9" * 5000, None),
        ("1" + ",000" * 5000, None),
        (DEEP, None),
    ],
)
def test_number(text, value):
    assert number(text) == (None if value is None else Fraction(value))


@pytest.mark.parametrize(
    "answer, truth, same",
    [
        ("12", "12", 1),
        ("12.0", "12", 1),
        ("1,000", "1000", 1),
        ("0.5", r"\frac{1}{2}", 1),
        ("2/4", "1/2", 1),
        (r"\boxed{12}", "12", 1),
        ("12", 12, 1),
        ("0.1", Fraction(1, 10), 1),
        ("50%", "50", 1),
        ("\n12\n", "12", 1),
        ("-7", "-7.0", 1),
        ("x = 3", " x  =\n3", 1),
        (r"\boxed{(3, 4)}", "(3, 4)", 1),
        ("9" * 300, "9" * 300, 1),
        ("x = 12", "12", 1),
        (r"\(x=12\)", "12", 1),
        (r"$x = \frac12$", "1/2", 1),
        ("12", "x = 12", 1),
        ("1234567", "1,234,567", 1),
        ("10,100,200", "10, 100, 200", 1),
        (r"The list is \boxed{10, 100, 200}.", "10, 100, 200", 1),
        # hostile
        ("x = 12 = 13", "13", 0),
        ("x = 12 = 13", "12", 0),
        ("x = 12 or x = 13", "12", 0),
        ("12 = 13", "13", 0),
        ("17*23 = 391", "391", 0),
        ("xy = 12", "12", 0),
        ("y = 12", "x = 12", 0),
        ("1, 234", "1,234", 0),
        ("10100200", "10, 100, 200", 0),
        ("10, 200, 100", "10, 100, 200", 0),
        (r"\boxed{12} or 13", "13", 0),
        (r"\boxed{12} no \boxed{13}", "12", 0),
        ("112", "12", 0),
        ("121", "12", 0),
        ("not 7", "7", 0),
        ("8 or 7", "7", 0),
        ("12", "-12", 0),
        ("-12", "12", 0),
        ("12x", "12", 0),
        ("12e3", "12", 0),
        ("17*23", "391", 0),
        ("999999/1000000", "1", 0),
        ("0.3333333", "1/3", 0),
        ("50%", "0.5", 0),
        ("٣", "3", 0),
        ("²", "2", 0),
        ("1,2", "12", 0),
        ("12 ", "1 2", 0),
        ("x=3 or x=4", "x=3", 0),
        ("", "0", 0),
        ("", "x", 0),
        (None, "None", 0),
        ("9" * 5000, "9", 0),
        ("1e999999999", "1", 0),
        ("1e-999999999", "0", 0),
        ("x\0", "x", 0),
    ],
)
def test_equal(answer, truth, same):
    assert equal(answer, truth) is bool(same)


@pytest.mark.parametrize(
    "text, value, used",
    [
        ("1", 1, [1]),
        ("10+1", 11, [10, 1]),
        ("(1+2)*3", 9, [1, 2, 3]),
        ("1-2-3", -4, [1, 2, 3]),
        ("8/3/(2+2)", "2/3", [8, 3, 2, 2]),
        ("\n 10 +\t1\r\n", 11, [10, 1]),
        ("1 -\n2", -1, [1, 2]),
        ("((7))", 7, [7]),
        ("2*(3", None, None),
        ("1/3+1/3+1/3", 1, [1, 3] * 3),
        # hostile
        ("7//2", None, None),
        ("7/ /2", None, None),
        ("7/\n/2", None, None),
        ("2**3", None, None),
        ("2* *3", None, None),
        ("9**9**9**9", None, None),
        ("97**88**76", None, None),
        ("1.2*5", None, None),
        ("1,2", None, None),
        ("-1+2", None, None),
        ("+1", None, None),
        ("1--1", None, None),
        ("1/0", None, None),
        ("1/(2-2)", None, None),
        ("10+1=11", None, None),
        ("10+1#", None, None),
        ("1 2", None, None),
        ("1(2)", None, None),
        ("(1)(2)", None, None),
        ("()", None, None),
        ("", None, None),
        ("1+", None, None),
        ("01+2", None, None),
        ("1_0", None, None),
        ("0x1", None, None),
        ("1e3", None, None),
        ("1j", None, None),
        ("True", None, None),
        ("²+1", None, None),
        ("٣+1", None, None),
        ("１+1", None, None),
        ("1\0+1", None, None),
        ("1×2", None, None),
        ("1−2", None, None),
        ("__import__('os')", None, None),
        ("1\n+1\nx", None, None),
        ("9" * 5000, None, None),
        ("9" * 201, None, None),
        (DEEP, None, None),
        ("(" * 99 + "1" + ")" * 99, 1, [1]),
        ("(" * 199 + "1", None, None),
        (ONES, None, None),
        ("+".join("1" * 100), 100, [1] * 100),
        ("\ud800", None, None),
        ("1\u00a0+1", None, None),
    ],
)
def test_arithmetic(text, value, used):
    assert arithmetic(text) == (None if value is None else (Fraction(value), used))


def with_parentheses(rng, text, needed):
    """Few parentheses, and some more."""
    return f"({text})" if needed or rng.random() < 0.1 else text


def expression(rng, size):
    """A random tree -> (text, precedence, exact value or None, numbers).

    The value is computed while the text is made, and never parsed from it."""
    if size == 1:
        n = rng.choice((rng.randrange(13), rng.randrange(1000)))
        return str(n), 3, Fraction(n), [n]
    left_size = rng.randrange(1, size)
    left, left_precedence, x, left_numbers = expression(rng, left_size)
    right, right_precedence, y, right_numbers = expression(rng, size - left_size)
    sign = rng.choice("+-*/")
    precedence = 1 if sign in "+-" else 2
    left = with_parentheses(rng, left, left_precedence < precedence)
    right = with_parentheses(rng, right, right_precedence <= precedence)
    value = None
    if x is not None and y is not None and not (sign == "/" and y == 0):
        compute = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
        value = compute[sign](x, y)
    space = rng.choice(("", "", " ", "\n"))
    text = f"{left}{space}{sign}{space}{right}"
    return text, precedence, value, left_numbers + right_numbers


def test_arithmetic_against_an_independent_evaluator():
    rng = random.Random(0)
    differences = []
    undefined = 0
    for _ in range(10_000):
        text, _, value, used = expression(rng, rng.randrange(1, 8))
        if value is None:
            undefined += 1
        if arithmetic(text) != (None if value is None else (value, used)):
            differences.append(text)
    assert differences == [] and 100 < undefined < 2000


# --- Accuracy ----------------------------------------------------------------------------------

PICK = {"kind": "countdown", "numbers": [9, 7, 10, 1], "target": 11, "pick": 2}
ALL = {"kind": "countdown", "numbers": [2, 3, 3], "target": 12}
NINES = {"kind": "countdown", "numbers": [9, 9, 9, 9], "target": 20}
ONE = {"kind": "countdown", "numbers": [999999, 1000000], "target": 1}
MATH = {"kind": "math", "answer": "391"}


@pytest.mark.parametrize(
    "problem, answer, paid",
    [
        (PICK, "10+1", 1),
        (PICK, "1+10", 1),
        (PICK, "\n 10 + 1\n", 1),
        (PICK, "(10)+(1)", 1),
        (ALL, "(2*3)+3+3", 0),
        (ALL, "3*(3*2)-6", 0),
        (ALL, "3*2*3-6", 0),
        (ALL, "2*3+3", 0),
        ({**ALL, "target": 6}, "3+3", 0),
        (ALL, "(3+3)*2", 1),
        (ALL, "2*(3+3)", 1),
        (NINES, "9+9+(9+9)/9", 0),
        (NINES, "9+9/9+9", 0),
        ({**NINES, "pick": 3}, "9/9+9", 0),
        ({**NINES, "target": 19, "pick": 4}, "9+9+9/9", 1),
        (MATH, "391", 1),
        (MATH, r"\boxed{391}.", 1),
        # hostile
        (PICK, "11", 0),
        (PICK, "10+1=11", 0),
        (PICK, "1*10+1", 0),
        (PICK, "10+1+9-9", 0),
        (PICK, "9+7+1-6", 0),
        (PICK, "5+6", 0),
        (PICK, "10+1*1", 0),
        (PICK, "10-(-1)", 0),
        (PICK, "10+1 or 9+7", 0),
        (PICK, "10+1.0", 0),
        (PICK, "1٠+1", 0),
        (PICK, "", 0),
        (PICK, "9+7-10*1", 0),
        ({**PICK, "target": 1}, "1", 0),
        ({**PICK, "target": 81}, "9*9", 0),
        ({**PICK, "target": 17}, "10+7", 1),
        ({**PICK, "numbers": [7, 2], "target": 3}, "7//2", 0),
        ({**PICK, "numbers": [2, 3], "target": 8}, "2**3", 0),
        ({**ALL, "numbers": [1, 2, 5], "target": 6}, "1.2*5", 0),
        (NINES, "9**9**9**9", 0),
        (ONE, "999999/1000000", 0),
        ({**ONE, "numbers": [1, 3], "target": Fraction(1, 3)}, "1/3", 1),
        ({**ALL, "target": 11}, "3+3*2+2", 0),
        (MATH, "17*23", 0),
        (MATH, "1391", 0),
        (MATH, "not 391", 0),
        (MATH, "390 or 391", 0),
        (MATH, "-391", 0),
        (MATH, "", 0),
        (MATH, "9" * 5000, 0),
    ],
)
def test_accuracy(problem, answer, paid):
    result = accuracy(problem, f"<think>x</think><answer>{answer}</answer>")
    assert type(result) is float and result == paid
    assert (
        accuracy(problem, f"<answer>{answer}</answer> and that is that <answer>") == paid
    )  # any form
    assert accuracy(problem, f"<think><answer>{answer}</answer></think>") == 0  # not any place
    assert accuracy(problem, f"<think><answer>{answer}</answer>") == 0
    assert accuracy(problem, answer) == 0


def test_right_answers_of_the_default_task_are_paid():
    problems, _ = pairs.load()
    for problem in problems[:300]:
        for text, value in pairs.candidates(problem["numbers"]):
            assert accuracy(problem, f"<answer>{text}</answer>") == (value == problem["target"])


def test_unknown_kind_is_named():
    for kind in ("poetry", "prompt", "no.file", ["math"], None):
        with pytest.raises(ValueError, match=re.escape(repr(kind))):
            rewards.verifier(kind)
    with pytest.raises(ValueError, match="'poetry'"):
        accuracy({"kind": "poetry"}, "<answer>a rose</answer>")


def test_an_untagged_response_is_an_answer_where_the_problem_says_so():
    problem = {"kind": "math", "answer": "391"}
    assert accuracy(problem, "391<|end|>") == 0
    assert accuracy(problem | {"untagged": True}, "391<|end|>") == 1
    assert accuracy(problem | {"untagged": True}, "17<answer>391</answer><|end|>") == 1
    assert accuracy(problem | {"untagged": True}, "391<answer>17</answer><|end|>") == 0
    boxed = r"First \boxed{17}, so it is $\boxed{391}$."
    assert accuracy(problem | {"untagged": True}, "so " * 200 + boxed) == 1
    assert accuracy(problem | {"untagged": True}, boxed + " Or not.") == 0
    assert accuracy(problem, boxed) == 0
    assert answer_or_all(" cat dog <|end|>") == "cat dog"


# --- Format ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "response, paid",
    [
        (GOOD, 1),
        (GOOD + "<|end|>", 1),
        (GOOD + "\n<|end|>\n", 1),
        (" \n" + GOOD + " \n", 1),
        ("<think>x</think><answer>?</answer>", 1),
        ("<think>\u200bx</think><answer>\u221e</answer>", 1),
        ("<think>a < b > c\0\ud800</think> \t\r\n <answer>5</answer>", 1),
        # hostile
        (GOOD + " so", 0),
        (GOOD + "\nso", 0),
        ("so " + GOOD, 0),
        (GOOD.replace("</think>", "</think> so"), 0),
        (GOOD + GOOD, 0),
        (GOOD + "<|end|><|end|>", 0),
        (GOOD + "<|end|>so", 0),
        ("<|end|>" + GOOD, 0),
        (GOOD.replace("\n<answer>", "<|end|><answer>"), 0),
        (GOOD + "</answer>", 0),
        (GOOD + "<answer>", 0),
        ("<think>" + GOOD, 0),
        (GOOD.replace("</think>", "</think></think>"), 0),
        (GOOD.replace("10+1", ""), 0),
        (GOOD.replace("10+1", " \n"), 0),
        ("<think></think><answer>5</answer>", 0),
        ("<think> \n</think><answer>5</answer>", 0),
        ("<think>\u200b</think><answer>5</answer>", 0),  # characters of no width
        ("<think>x</think><answer>\u200d \ufeff\u2060\ufe0f\xad</answer>", 0),
        ("<think>\u3164\u2800\u115f</think><answer>5</answer>", 0),  # that look like spaces
        ("<think>\0\x1b</think><answer>5</answer>", 0),
        ("<think>\ud800\U000e0041</think><answer>5</answer>", 0),
        ("<think>\u200bx</think>\u200b<answer>5</answer>", 0),  # between the blocks
        ("<answer>5</answer><think>x</think>", 0),
        ("<think>x<answer>5</answer></think>", 0),
        ("<think>x<answer></think>5</answer>", 0),
        ("<think>x</think></answer>5<answer>", 0),
        ("</think>x<think><answer>5</answer>", 0),
        ("<answer><think>x</think>5</answer>", 0),
        ("x</think><answer>5</answer>", 0),
        ("<think>x<answer>5</answer>", 0),
        ("<think>x</think>5</answer>", 0),
        ("<think>x</think><answer>5", 0),
        ("<THINK>x</THINK><ANSWER>5</ANSWER>", 0),
        ("5", 0),
        ("", 0),
    ],
)
def test_format(response, paid):
    result = format_reward(response)
    assert type(result) is float and result == paid
    if response.startswith("<think>"):  # the same, its first tag in the prompt
        assert format_reward(response.removeprefix("<think>"), prompt_has_think=True) == paid
        assert format_reward(response, prompt_has_think=True) == 0


# --- Language and reflections ------------------------------------------------------------------


def test_the_words_of_the_corpus_are_known_and_told_apart():
    for language, words in corpus.WORDS.items():
        for phrase in words.values():
            assert set(phrase.split()) <= VOCABULARY[language]
    assert not VOCABULARY["en"] & VOCABULARY["es"]
    for word in VOCABULARY["en"] | VOCABULARY["es"]:
        assert len(word) > 1 and word.isalpha() and word == word.lower()


@pytest.mark.parametrize(
    "response, en, es",
    [
        ("<think>9-7=2 no\nwait check</think><answer>2</answer>", 1, 0),
        ("<think>espera Reviso ERROR otra vez</think>", 0, 1),
        ("<think>wait espera no mal</think> check check", 0.5, 0.5),
        ("check reviso check check", 0.75, 0.25),
        ("<think>我们 check</think>", 0.5, 0),
        ("<think>так wait</think>", 0.5, 0),
        ("<think>también más</think>", 0, 1),
        ("<think>9+7=16 x² foo</think>", 1, 1),
        ("", 1, 1),
        ("<think></think><answer>the</answer>", 1, 1),
        ("check</think><answer>mal mal</answer>", 1, 0),
        ("<think>wait wait mal", 2 / 3, 1 / 3),
        ("<think>wait_wait2mal", 2 / 3, 1 / 3),
        # hostile: words where they do not count, tags that hold words, letters like others
        ("<think>mal</think><answer>the the the</answer>", 0, 1),
        ("<think>mal<think><answer></answer></think>", 0, 1),
        ("</think>mal<think>", 0, 1),
        ("<think>mal mal blorp blorp blorp blorp</think>", 0, 1),
        ("<think>thе wait</think>", 0.5, 0),
    ],
)
def test_language(response, en, es):
    assert language_consistency(response, "en") == pytest.approx(en)
    assert language_consistency(response, "es") == pytest.approx(es)


def test_unknown_language_is_named():
    with pytest.raises(ValueError, match="'xx'"):
        language_consistency("", "xx")


@pytest.mark.parametrize(
    "response, n",
    [
        ("wait check 10+1=11 right", 2),
        ("Wait, WAIT... wait2", 3),
        ("espera reviso 9-7=2 error", 3),
        ("", 0),
        (GOOD, 0),
        ("wait mistake however but retry error verify wrong evaluate check", 10),
        ("awaits waiting button checked butter errors unwrong", 0),
        ("wa it", 0),
        ("waıt", 0),
        ("wait" * 1000, 0),
        ("wait " * 1000, 1000),
    ],
)
def test_reflections(response, n):
    assert reflections(response) == n


# --- Anything at all ---------------------------------------------------------------------------

GENERAL = {
    "kind": "general",
    "language": "en",
    "asked": {"animals": 2, "colours": 3},
    "answers": ["cat", "cat dog red blue green"],
    "untagged": True,
}
FUNCTIONS = [
    extract_answer,
    answer_or_all,
    number,
    arithmetic,
    reflections,
    format_reward,
    lambda text: format_reward(text, True),
    lambda text: equal(text, "12"),
    lambda text: equal(text, "x y"),
    lambda text: language_consistency(text, "en"),
    lambda text: accuracy(PICK, text),
    lambda text: accuracy(ALL, text),
    lambda text: accuracy(MATH, text),
    lambda text: accuracy(GENERAL, text),
]


def test_random_bytes_raise_nothing():
    rng = random.Random(0)
    parts = [*rewards.TAGS, rewards.END, "\\boxed{", "}", "\\frac{", "12", "+", "/0", "(", ")"]
    parts += ["**", "wait", "\ud800", "٣"]
    for i in range(10_000):
        text = rng.randbytes(rng.randrange(60)).decode("latin-1")
        if i % 2:
            beginning = "".join(rng.choices(parts, k=rng.randrange(12)))
            text = beginning + text[: rng.randrange(4)] + rng.choice(parts)
        if i % 5 == 0:
            text = f"<think>x</think><answer>{text}</answer>"
        for function in FUNCTIONS:
            function(text)


def test_a_megabyte_takes_no_time():
    """Processor time, as other work may share the machine; measured again if over the limit."""
    rng = random.Random(0)
    letters = "".join(chr(rng.randrange(0x4E00, 0x9FFF)) for _ in range(4096))
    shapes = [
        "<answer>",
        "</answer>",
        "<think>",
        "</think>",
        "<think>x</think><answer>5</answer>",
        "(",
        "()",
        "((1)+",
        "\\boxed{",
        "\\frac{1}{",
        "}",
        "9",
        "1e999999999 ",
        "1,000",
        "-",
        "9**",
        "1+",
        "\0",
        "\ud800",
        " ",
        "\n",
        "a ",
        "wait ",
        "²",
        "٣",
        "İ",
        letters,
        "$",
        "<",
        "<think",
        "<answer>1</answer",
        "<|end|>",
        "\u200b",
        "x = ",
        "\\text{a}",
        "\\{1,",
        "\\boxed{1}",
        "$ ",
    ]
    for shape in shapes:
        body = shape * ((1 << 20) // len(shape))
        for text in (body, f"<think>x</think><answer>{body}</answer>"):
            for i, function in enumerate(FUNCTIONS):
                for _ in range(3):
                    start = time.process_time()
                    function(text)
                    seconds = time.process_time() - start
                    if seconds < 0.3:
                        break
                assert seconds < 0.3, (shape[:10], i, seconds)
