"""The corpus that the base model of the default task is trained on, and R1's cold start.

Its documents come in mixed styles, as on the web: guesses, searches with and without checks, and
verdicts; careful and sloppy authors; two languages and a mix of both; with and without tags.

    python -m data.corpus corpus COUNT FILE     what the base reads; one document in five is of
                                                data/general.py
    python -m data.corpus late COUNT FILE       what it reads last: more checks and less reliable
                                                first looks; one in four is of data/general.py
    python -m data.corpus cold COUNT FILE       R1's cold start: long, right, checked traces in the
                                                language of the question
"""

import math
import random

from data import general
from data.jsonl import generate
from data.pairs import candidates, make_problem

ENGLISH = "yes, no, wait, check, right, wrong, stop, guess, again, so".split(", ")
SPANISH = "bien, mal, espera, reviso, correcto, error, paro, digo, otra vez, entonces".split(", ")
WORDS = {"en": {word: word for word in ENGLISH}, "es": dict(zip(ENGLISH, SPANISH, strict=True))}
VERDICT = {"en": "is {} {}", "es": "es {} {}"}


def speaker(rng, asked, mixed):
    """-> say(word): how an author who is asked in the language `asked` writes a word of ENGLISH.

    With probability `mixed` in either language, as it comes; else in one, which is the other one
    for one author in six."""
    if rng.random() < mixed:
        spoken = ("en", "es")
    elif rng.random() < 5 / 6:
        spoken = (asked,)
    else:
        spoken = ("es",) if asked == "en" else ("en",)

    def say(word):
        return WORDS[rng.choice(spoken)][word]

    return say


def slip(rng, value, rate):
    """The value, or with probability `rate` a wrong one."""
    if rng.random() < rate:
        return max(0, value + rng.choice((-10, -2, -1, 1, 2, 10)))
    return value


def search(rng, say, problem, patience, checks, sloppy, fooled=0.3):
    """Tries candidates in order until one seems to fit -> lines, answer (None if out of patience).

    A first look is not to be trusted, in any document: a near miss is taken for a hit with
    probability `fooled`. A check is the same computation once more, with a verdict that can be
    trusted."""
    target = problem["target"]
    lines = []
    tried = 0
    while True:
        for text, value in candidates(problem["numbers"]):
            if tried == patience:
                return lines + [say("stop")], None
            tried += 1
            result = slip(rng, value, 0.08 if sloppy else 0.005)
            chance = 0.002
            if result == target:
                chance = 0.97
            elif abs(result - target) <= 2:
                chance = fooled
            seems = rng.random() < chance
            lines.append(f"{text}={result} {say('yes' if seems else 'no')}")
            if seems and checks:
                result = slip(rng, value, 0.005)
                seems = rng.random() < (0.99 if result == target else 0.01)
                opening = rng.choice((f"{say('wait')} {say('check')}", say("wait"), say("check")))
                lines.append(f"{opening} {text}={result} {say('right' if seems else 'wrong')}")
            if seems:
                return lines, text
        lines.append(say("again"))


def tagged(problem, lines, answer):
    """A document in the format that RL pays for."""
    thought = "".join(f"{line}\n" for line in lines)
    response = f"<think>\n{thought}</think>\n<answer>{answer}</answer>"
    return {"prompt": problem["prompt"], "response": response}


def verdict(rng, say, problem):
    """A question whether a text has a value, which it has in half of them."""
    text, value = rng.choice(candidates(problem["numbers"]))
    asked = value if rng.random() < 0.5 else slip(rng, value, 1)
    question = VERDICT[problem["language"]].format(text, asked)
    response = f"{text}={value} {say('yes' if value == asked else 'no')}"
    return {"prompt": f"User: {question}\nAssistant:", "response": response}


def document(rng, late=False):
    """-> {"prompt", "response"}.

    40% guesses, 36% searches, 12% searches with checks, 12% verdicts.
    Late in training 30% guess, 22% search and check, and 55% of the near misses are taken for hits.
    The careful authors of this corpus tend to be those who mix the languages: 70% of those who
    check, 40% of other careful searchers, 10% of the rest. So a policy that learns from them has a
    reason to mix."""
    shares = (0.30, 0.36, 0.22, 0.12) if late else (0.40, 0.36, 0.12, 0.12)
    kind = rng.choices(("guess", "search", "checked", "verdict"), shares)[0]
    problem = make_problem(rng, rng.choices((3, 4, 5), (0.3, 0.5, 0.2))[0])
    sloppy = rng.random() < 1 / 3
    mixed = {"search": 0.4, "checked": 0.7}.get(kind, 0.1)
    say = speaker(rng, problem["language"], 0.1 if sloppy else mixed)
    if kind == "verdict":
        return verdict(rng, say, problem)
    lines = []
    answer = None
    if kind != "guess":
        mean_patience = 5 if rng.random() < 0.7 else 20
        patience = 1 + int(rng.expovariate(1 / mean_patience))
        fooled = 0.55 if late else 0.3
        lines, answer = search(rng, say, problem, patience, kind == "checked", sloppy, fooled)
    if answer is None:
        guesses = candidates(problem["numbers"])
        if kind == "guess" and rng.random() < 0.35:  # a right one
            target = problem["target"]
            guesses = [(text, value) for text, value in guesses if value == target]
        answer, _ = rng.choice(guesses)
        lines.append(say("guess"))
    if rng.random() < 0.6:
        return tagged(problem, lines, answer)
    lines.append(f"{say('so')} {answer}")
    return {"prompt": problem["prompt"], "response": "\n".join(lines)}


def corpus(rng, late=False):
    """Endless documents of the base corpus, some of them of data/general.py."""
    shares = (0.75, 0.17, 0.08) if late else (0.8, 0.12, 0.08)
    requests, _ = general.requests()
    answers = general.corpus(rng, requests)
    while True:
        kind = rng.choices(("pairs", "general", "lists"), shares)[0]
        if kind == "pairs":
            yield document(rng, late)
        else:
            yield next(answers) if kind == "general" else general.word_list(rng)


def cold_start(rng):
    """Endless clean traces: patient, checked, right, in the language of the question only."""
    while True:
        problem = make_problem(rng, rng.choice((3, 4)))
        say = WORDS[problem["language"]].get
        lines, answer = search(rng, say, problem, math.inf, checks=True, sloppy=False)
        if (answer, problem["target"]) in candidates(problem["numbers"]):
            yield tagged(problem, lines, answer)


if __name__ == "__main__":
    base = corpus(random.Random("pairs corpus []"))  # the seed of data/base
    late = corpus(random.Random("pairs late"), late=True)
    cold = cold_start(random.Random("pairs cold"))
    generate({"corpus": base, "late": late, "cold": cold})
