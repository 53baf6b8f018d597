"""Rewards by rule: pure functions of a problem and the text of a response.

    accuracy(problem, response)     1 if the final answer is right, else 0           paid in training
    format(response)                1 if <think>...</think><answer>...</answer>      paid in training
    language(response, "en")        share of the words that are of one language      R1's third reward
    reflections(response)           how often it says "wait", "check" and the like   a metric, never paid

The responses are written by a policy that is paid by these functions, so every gap in them will be found. Hence text is
parsed and never evaluated, values are exact fractions without tolerance, an answer is bounded in length, a response is
searched in linear time (a lazy <answer>(.*?)</answer> takes minutes on 1 MB of open tags), and no response raises.

Accuracy does not depend on format: text after </answer> or a doubled tag costs the format reward only.
"""
import ast
import re
from collections import Counter
from fractions import Fraction

import outside
import sandbox

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
END = "<|end|>"                                   # the end token as the tokenizer writes it
LIMIT = 200                                       # characters of an answer: no huge integer, no deep nesting
READ = 200_000                                    # characters in which words are counted; 32,768 tokens are fewer


# --- The answer -----------------------------------------------------------------------------------------------------

def extract_answer(response):
    """The text in the last <answer>...</answer> after the last </think>, stripped. None if there is none.

    Without any think tag an <answer> counts; after a <think> that is not closed none does: that is still thinking."""
    thought = response.rfind("</think>")
    if response.rfind("<think>") > thought:
        return None
    rest = response[thought + len("</think>"):] if thought >= 0 else response
    start = rest.rfind("<answer>", 0, max(0, rest.rfind("</answer>")))
    if start < 0:
        return None
    start += len("<answer>")
    return rest[start:rest.find("</answer>", start)].strip()


BOXED = re.compile(r"(\$?)\\boxed\{(.*)\}\1\.?", re.DOTALL)
# [0-9] and fullmatch, because \d takes the digits of every script and $ takes a line end.
NUMBER = re.compile(r"""
    (?:\\?\$)? (?P<sign>[+-]?) (?:\\?\$)?                                                     # -12  $12  -$12
    (?: (?P<decimal> (?:[0-9]+ | [1-9][0-9]{0,2}(?:,[0-9]{3})+) (?:\.[0-9]+)? | \.[0-9]+ )    # 12  1,234.5  .5
      | (?P<a>[0-9]+)\ ?/\ ?(?P<b>[0-9]+)                                                     # 3/4
      | \\[dt]?frac\{(?P<c>-?[0-9]+)\}\{(?P<d>[0-9]+)\} )                                     # \frac{3}{4}
    (?:\ ?\\?%)? \$? \.?                                                                     # 12%  $12$  12.
    """, re.VERBOSE)


def unboxed(text):
    r"""The text without one \boxed{...} round all of it."""
    text = text.strip()
    box = BOXED.fullmatch(text) if len(text) <= LIMIT else None
    return box[2].strip() if box else text


def number(text):
    r"""The exact value of a text that is one number and nothing else; None for any other text.

    "-1,234.5" -> -2469/2    "\boxed{\frac{1}{2}}." -> 1/2    "8 or 7", "12x", "17*23", "1e3", "1,23" -> None
    An expression is no number: 17*23 is the question echoed back. $ and % are units that change no value, as for the
    grader of MATH: "50%" is 50, not 1/2."""
    text = unboxed(text)
    m = NUMBER.fullmatch(text) if len(text) <= LIMIT else None
    if m is None:
        return None
    if m["decimal"]:
        value = Fraction(m["decimal"].replace(",", ""))
    else:
        below = int(m["b"] or m["d"])
        if below == 0:
            return None
        value = Fraction(int(m["a"] or m["c"]), below)
    return -value if m["sign"] == "-" else value


def equal(answer, truth):
    """Is the answer the truth? Numbers as exact fractions, all else as text, whitespace alike, or by math-verify.

    None if math-verify took too long to tell."""
    if answer is None:
        return False
    want = number(str(truth))
    if want is not None:
        return number(answer) == want
    answer, truth = (" ".join(unboxed(text).split()) for text in (answer, str(truth)))
    if answer == truth or not answer or len(answer) > LIMIT or not outside.latex():
        return answer == truth
    return outside.ask("math_verify", answer, truth)


OPERATIONS = {ast.Add: Fraction.__add__, ast.Sub: Fraction.__sub__,
              ast.Mult: Fraction.__mul__, ast.Div: Fraction.__truediv__}


def arithmetic(text):
    """(exact value, numbers used) of an expression with + - * / ( ) and whole numbers; None if it is anything else.

    "(1+2)*3" -> 9, [1, 2, 3]    "7//2", "2**3", "-1+2", "1.2*5", "1/0" -> None"""
    text = text.strip()
    if len(text) > LIMIT or not re.fullmatch(r"[0-9+\-*/() \t\r\n]+", text):
        return None
    used = []

    def value(node):
        if type(node) is ast.Constant and type(node.value) is int:
            used.append(node.value)
            return Fraction(node.value)
        if type(node) is ast.BinOp and type(node.op) in OPERATIONS:        # no **, //, unary minus, call or tuple
            return OPERATIONS[type(node.op)](value(node.left), value(node.right))
        raise ValueError("not arithmetic")

    try:                                          # parsed, never evaluated: 9**9**9**9 does not get here
        return value(ast.parse(" ".join(text.split()), mode="eval").body), used
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None


# --- The rewards ----------------------------------------------------------------------------------------------------

def countdown(problem, answer):
    """Each given number exactly once; with "pick": k, exactly k of them, each at most as often as it is given."""
    result = arithmetic(answer)
    if result is None or result[0] != problem["target"]:
        return False
    size = problem.get("pick") or len(problem["numbers"])
    return len(result[1]) == size and Counter(result[1]) <= Counter(problem["numbers"])


def code(problem, answer):
    """The program in the answer, that of its last ```python block if it has any, passes the tests of the problem."""
    blocks = answer.split("```")
    program = blocks[-2].partition("\n")[2] if len(blocks) > 2 else answer
    return sandbox.run(program, problem["tests"])


VERIFIERS = {"math": lambda problem, answer: equal(answer, problem["answer"]), "countdown": countdown, "code": code,
             "gym": lambda problem, answer: outside.ask("reasoning_gym", *problem["item"], answer)}


def accuracy(problem, response):
    """1.0 if the answer of the response is right by the verifier of problem["kind"], else 0.0 (gym: or a part of 1).

    NaN if the verifier could not tell (None). A problem with a "reward", the user's own, is judged by that alone."""
    if callable(problem.get("reward")):
        verdict = problem["reward"](problem, response)
    elif problem["kind"] not in VERIFIERS:        # a fault of the data, so it may stop the run
        raise ValueError(f"problem of kind {problem['kind']!r}: rewards.py judges {', '.join(VERIFIERS)}")
    else:
        answer = extract_answer(response)
        verdict = answer is not None and VERIFIERS[problem["kind"]](problem, answer)
    return float("nan" if verdict is None else verdict)


def format(response, prompt_has_think=False):
    """1.0 if the response is one think block and one answer block, neither empty, nothing else around; else 0.0.

    One end token may follow. With prompt_has_think the prompt has opened the think block and the response must not."""
    text = ("<think>" if prompt_has_think else "") + response.rstrip().removesuffix(END).strip()
    if any(text.count(tag) != 1 for tag in TAGS):
        return 0.0
    thought, _, rest = text.partition("</think>")
    gap, _, answer = rest.partition("<answer>")
    shape = thought.startswith("<think>") and not gap.strip() and answer.endswith("</answer>")
    return float(shape and bool(thought.removeprefix("<think>").strip() and answer.removesuffix("</answer>").strip()))


# Words that tell the two languages apart. What both have (a, me, has, once) and what a formula may hold (x, y, sin) is
# in neither list, except two words of the corpus of data/pairs.py: "no" counts as English there, "error" as Spanish.
VOCABULARY = {
    "en": frozenset("""yes no wait check right wrong stop guess again so the of and to in is it that for on with are
        this be from or by not we you have which then there now let can if but what all will two first next try need
        get number numbers sum answer think because therefore also maybe was were they his her its our their would
        could should how when where do does did an at my your than more most very just only make since thus hence
        gives find verify retry evaluate mistake however animals colours fruits parts""".split()),
    "es": frozenset("""bien mal espera reviso correcto error paro digo otra vez entonces el la los las de del que en
        un una unos unas por con para se su sus al lo como pero más este esta esto ese esa si sí porque hay muy ahora
        también así luego número números suma respuesta tenemos pues cuando donde sobre ya está fue qué cómo otro
        cada hasta desde todo todos nos primero probar verificar animales colores frutas partes""".split()),
    "zh": frozenset(),                            # by its script: every Han character is a word
}
HAN = "\u4e00-\u9fff"
WORD = re.compile(rf"[{HAN}]|[^\W\d_{HAN}]+")     # otherwise a run of letters


def language(response, language):
    """Share of the words of the thinking part that are of the target language ("en", "es", "zh"): language consistency.

    A word is of the language whose list has it, a Han character of zh, a word in neither Latin nor Han of another one.
    A Latin word in no list is left out: the lists are too short to judge it. With no word to judge, 1.0."""
    if language not in VOCABULARY:
        raise ValueError(f"language {language!r}: choose from {', '.join(VOCABULARY)}")
    start, end = response.find("<think>"), response.rfind("</think>")
    end = len(response) if end < 0 else end       # not closed: all of it is thinking
    text = response[max(start, 0):end] if start < end else response
    for tag in (*TAGS, END):
        text = text.replace(tag, " ")
    found = Counter()
    for word, n in Counter(WORD.findall(text[:READ].lower())).items():
        if max(word) > "\u024f":                  # beyond the Latin letters
            found["zh" if "\u4e00" <= word[0] <= "\u9fff" else "other"] += n
        for name, words in VOCABULARY.items():
            found[name] += n * (word in words)
    return found[language] / found.total() if found.total() else 1.0


# The list of the R1 paper, and the two words that open a check in the Spanish part of our corpus.
REFLECTIONS = "wait mistake however but retry error verify wrong evaluate check espera reviso".split()


def reflections(response):
    """How many words of reflection a response has. A metric: if it were paid, the policy would write nothing else."""
    words = Counter(WORD.findall(response[:READ].lower()))
    return sum(words[word] for word in REFLECTIONS)
