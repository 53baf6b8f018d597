"""Rewards by rule: pure functions of a problem and the text of a response.

    accuracy(problem, response)           1 if the final answer is right, else 0
    format_reward(response)               1 if <think>...</think><answer>...</answer>
    language_consistency(response, "en")  share of the words of the thinking in one language
    reflections(response)                 how often it says "wait", "check", ...: never paid

The policy that writes the responses is paid by these functions and will find every gap in them.
So text is parsed and never evaluated, values are exact fractions without tolerance, an answer is
bounded in length, a response is searched in linear time, and no response raises. Accuracy does not
depend on format: text after </answer> or a doubled tag costs the format reward only.
"""

import importlib
import importlib.util
import math
import pathlib
import re
import traceback
import unicodedata
from collections import Counter

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
END = "<|end|>"  # the end token as the tokenizer writes it
MAX_ANSWER = 200  # characters of an answer: no huge integer, no deep nesting
MAX_READ = 200_000  # characters in which words are counted; 32,768 tokens are fewer


# --- The answer -------------------------------------------------------------------------------


def extract_answer(response):
    """The text in the last <answer>...</answer> after the last </think>, stripped; None if none.

    After a <think> that is not closed no <answer> counts: that is still thinking."""
    end_of_thought = response.rfind("</think>")
    if response.rfind("<think>") > end_of_thought:
        return None
    rest = response
    if end_of_thought >= 0:
        rest = response[end_of_thought + len("</think>") :]
    start = rest.rfind("<answer>", 0, max(0, rest.rfind("</answer>")))
    if start < 0:
        return None
    start += len("<answer>")
    return rest[start : rest.find("</answer>", start)].strip()


def answer_or_all(response):
    """The answer; where there is none, all of the response but its end token."""
    answer = extract_answer(response)
    return response.removesuffix(END).strip() if answer is None else answer


# --- The rewards ------------------------------------------------------------------------------


def verifier(kind):
    """The function that judges answers to problems of a kind: `verify` of data/KIND.py.

    verify(problem, answer) -> bool, float, or None for "could not tell". ValueError: none."""
    module = None
    if str(kind).isidentifier() and importlib.util.find_spec(f"data.{kind}"):
        module = importlib.import_module(f"data.{kind}")
    if not hasattr(module, "verify"):
        raise ValueError(f"problem of kind {kind!r}: no function verify in data/{kind}.py")
    return module.verify


def equal(answer, truth):
    """Is an answer to a mathematical problem the truth? See data/math.py."""
    return verifier("math")({"answer": truth}, answer)


def accuracy(problem, response):
    """1.0 if the answer is right by the verifier of the problem's kind, else 0.0.

    Some verifiers give a part of 1; NaN: it could not tell. Without tags there is no answer, unless
    problem["untagged"]: then the whole response is one."""
    answer = answer_or_all(response) if problem.get("untagged") else extract_answer(response)
    if answer is None:
        return 0.0
    verdict = verifier(problem["kind"])(problem, answer)
    return math.nan if verdict is None else float(verdict)


FILLERS = "\u115f\u1160\u2800\u3164\uffa0"  # letters and a symbol that nobody sees


def has_content(text):
    """Is there a letter, number, punctuation mark or symbol that one can see?"""
    return any(unicodedata.category(c)[0] in "LNPS" and c not in FILLERS for c in text)


def format_reward(response, prompt_has_think=False):
    """1.0 if the response is one think block and one answer block, neither empty; else 0.0.

    Nothing else but one end token may stand around them. prompt_has_think: the prompt has opened
    the think block, and the response must not."""
    text = response.rstrip().removesuffix(END).strip()
    if prompt_has_think:
        text = "<think>" + text
    if any(text.count(tag) != 1 for tag in TAGS):
        return 0.0
    thought, _, rest = text.partition("</think>")
    between, _, answer = rest.partition("<answer>")
    if not thought.startswith("<think>") or between.strip() or not answer.endswith("</answer>"):
        return 0.0
    thought = thought.removeprefix("<think>")
    answer = answer.removesuffix("</answer>")
    return float(has_content(thought) and has_content(answer))


def read_words(name):
    """A list of verifiers/words/, as a set."""
    folder = pathlib.Path(__file__).parent / "verifiers" / "words"
    return frozenset((folder / f"{name}.txt").read_text("utf-8").split())


VOCABULARY = {"en": read_words("english"), "es": read_words("spanish")}
REFLECTIONS = read_words("reflection")
WORD = re.compile(r"[^\W\d_]+")  # a run of letters


def language_consistency(response, language):
    """Share of the words of the thinking part that are of the language "en" or "es".

    A word is of the language whose list has it; in a script other than Latin it is of another one.
    A Latin word in no list is left out. With no word to judge, 1.0."""
    if language not in VOCABULARY:
        raise ValueError(f"language {language!r}: choose from {', '.join(VOCABULARY)}")
    text = response
    start = response.find("<think>")
    end = response.rfind("</think>")
    if end < 0:  # not closed: all of it is thinking
        end = len(response)
    if start < end:
        text = response[max(start, 0) : end]
    for tag in (*TAGS, END):
        text = text.replace(tag, " ")
    counts = Counter()
    for word, n in Counter(WORD.findall(text[:MAX_READ].lower())).items():
        if max(word) > "\u024f":  # beyond the Latin letters
            counts["other"] += n
        for name, words in VOCABULARY.items():
            if word in words:
                counts[name] += n
    return counts[language] / counts.total() if counts else 1.0


def reflections(response):
    """How many words of reflection a response has."""
    return sum(word in REFLECTIONS for word in WORD.findall(response[:MAX_READ].lower()))


# --- Judging a run's responses ----------------------------------------------------------------


class Judge:
    """Judges responses: judge(problem, ids) -> a dict of all that rewards and metrics are made of.

    accuracy: function(problem, response) -> float, None for "could not tell", or a dict of that as
    "accuracy" and of other numbers by name: all are columns, and a reward_NAME is paid. Where it
    raises the response is not judged: the first traceback is shown, more than 1% stop the run.
    workers: threads that call it at the same time."""

    def __init__(self, accuracy, tokenizer, workers=1):
        self.accuracy = accuracy
        self.workers = workers
        self.tokenizer = tokenizer
        self.judged = self.errors = 0

    def __call__(self, problem, ids):
        """ids: a response with its end token."""
        text = self.tokenizer.opening + self.tokenizer.decode(ids)
        facts = self.call_accuracy(problem, text.removesuffix(END))
        count = reflections(text)
        return facts | {
            "text": text,
            "length": len(ids),
            "truncated": float(ids[-1] not in self.tokenizer.eos_ids),
            "format": format_reward(text),
            "reflection": float(count > 0),
            "reflections": count,
            "language": language_consistency(text, problem.get("language", "en")),
        }

    def call_accuracy(self, problem, text):
        self.judged += 1
        try:
            verdict = self.accuracy(problem, text)
            named = verdict if isinstance(verdict, dict) else {"accuracy": verdict}
            facts = {name: float("nan" if x is None else x) for name, x in named.items()}
            return facts | {"unjudged": float(math.isnan(facts["accuracy"]))}
        except Exception:
            self.errors += 1
            if self.errors == 1:
                traceback.print_exc()
        if self.errors > max(5, self.judged / 100):
            share = f"{self.errors} of {self.judged} responses"
            raise SystemExit(f"the reward raised for {share}, over 1%")
        return {"accuracy": math.nan, "unjudged": 1.0}
