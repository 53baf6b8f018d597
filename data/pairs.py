"""The default task: make a target from two of the given numbers, and the corpus that the base model is trained on.

    User: make 11 from 9 7 10 1                       User: forma 11 con 9 7 10 1
    Assistant:<think>                                 Assistant:<think>
    9+7=16 no                                         9+7=16 mal
    9-7=2 no                                          9-7=2 mal
    ...                                               ...
    10+1=11 yes                                       10+1=11 bien
    wait check 10+1=11 right                          espera reviso 10+1=11 correcto
    </think>                                          </think>
    <answer>10+1</answer>                             <answer>10+1</answer>

Numbers are distinct, 1 to 12; an answer is a sum, a positive difference or a product of two of them. Four numbers give
18 candidates, of which 1.3 fit on average, so the problem is a search: patience and verification are what pays.

Held out is every problem (a set of numbers and a target) whose CRC is 0 modulo 8: one problem in eight, which no
document of the base corpus and no training problem is. The corpus has documents of 3 to 5 numbers, RL trains on 3
and 4: five numbers are new to RL, six to both. Half of all questions are in English, half in Spanish.

    python -m data.pairs corpus COUNT FILE      what the base reads, one document in eight of it from data/general.py
    python -m data.pairs late COUNT FILE        what it reads last: more checks and less reliable first looks
    python -m data.pairs cold COUNT FILE        R1's cold start: long, right, checked traces in the question's language
"""
import math
import random
import zlib

from data import general
from data.jsonl import generate

BIGGEST = 12

# The corpus is written in two languages and a mix of both, as the web is.
SPANISH = dict(yes="bien", no="mal", wait="espera", check="reviso", right="correcto", wrong="error", stop="paro",
               guess="digo", again="otra vez", so="entonces")
WORDS = {"en": {word: word for word in SPANISH}, "es": SPANISH}
MAKE = {"en": "make {} from {}", "es": "forma {} con {}"}
JUDGE = {"en": "is {} {}", "es": "es {} {}"}


def candidates(numbers):
    """[(text, value)]: every sum, difference and product of two of the numbers, in the order of the prompt."""
    out = []
    for i, a in enumerate(numbers):
        for b in numbers[i + 1:]:
            out += [(f"{a}+{b}", a + b), (f"{max(a, b)}-{min(a, b)}", abs(a - b)), (f"{a}*{b}", a * b)]
    return out


def held_out(numbers, target):
    return zlib.crc32(f"{sorted(numbers)} {target}".encode()) % 8 == 0


def make_problem(rng, size, test):
    """A problem with `size` numbers, from the held-out part (test) or the other seven eighths."""
    while True:
        numbers = rng.sample(range(1, BIGGEST + 1), size)
        target = rng.choice(candidates(numbers))[1]
        if held_out(numbers, target) == test:
            language = rng.choice(("en", "es"))
            asked = MAKE[language].format(target, " ".join(map(str, numbers)))
            return {"prompt": f"User: {asked}\nAssistant:", "kind": "countdown", "language": language,
                    "numbers": numbers, "target": target, "pick": 2}


def load(seed=0):
    """(training problems, {name: held-out problems}). The first held-out set is the one that training reports."""
    rng = random.Random(f"pairs train {seed}")
    train = [make_problem(rng, rng.choice((3, 4)), test=False) for _ in range(8192)]
    rng = random.Random("pairs test")             # the same for every seed
    unique = lambda size: {p["prompt"]: p for p in (make_problem(rng, size, test=True) for _ in range(400))}
    return train, {name: list(unique(size).values())[:128]
                   for name, size in (("4 numbers", 4), ("3 numbers", 3), ("5 numbers", 5), ("6 numbers", 6))}


# --- The base corpus ------------------------------------------------------------------------------------------------

def slip(rng, value, rate):
    return max(0, value + rng.choice((-10, -2, -1, 1, 2, 10))) if rng.random() < rate else value


def search(rng, say, numbers, target, patience, checks, sloppy, fooled=0.3):
    """Try candidates in order until one seems to fit. Returns (lines, answer or None).

    A first look is not to be trusted, in any document: a near miss is taken for a hit with probability `fooled`. A
    check is the same computation once more, with a verdict that can be trusted."""
    lines, tried = [], 0
    while True:
        for text, value in candidates(numbers):
            if tried == patience:
                return lines + [say("stop")], None
            tried += 1
            shown = slip(rng, value, 0.08 if sloppy else 0.005)
            seems = rng.random() < (0.97 if shown == target else fooled if abs(shown - target) <= 2 else 0.002)
            lines.append(f"{text}={shown} {say('yes' if seems else 'no')}")
            if seems and not checks:
                return lines, text
            if seems:
                shown = slip(rng, value, 0.005)
                fits = rng.random() < (0.99 if shown == target else 0.01)
                opening = rng.choice((f"{say('wait')} {say('check')}", say("wait"), say("check")))
                lines.append(f"{opening} {text}={shown} {say('right' if fits else 'wrong')}")
                if fits:
                    return lines, text
        lines.append(say("again"))


def speaker(rng, asked, mixed):
    """How an author who is asked in the language `asked` says a word: with probability `mixed` in either language as it
    comes, else in one, which is the other one for one author in six."""
    other = "es" if asked == "en" else "en"
    spoken = ("en", "es") if rng.random() < mixed else (asked,) if rng.random() < 5 / 6 else (other,)
    return lambda key: WORDS[rng.choice(spoken)][key]


def tagged(problem, lines, answer):
    thought = "".join(line + "\n" for line in lines)
    return {"prompt": problem["prompt"], "response": f"<think>\n{thought}</think>\n<answer>{answer}</answer>"}


def document(rng, late=False):
    """One (prompt, response) of the corpus: 40% guesses, 36% searches, 12% searches with checks, 12% verdicts.

    Late in training 30% guess, 22% search and check, and 55% of the near misses are taken for hits.
    The careful authors of this corpus tend to be those who mix the languages: 70% of those who check, 40% of other
    careful searchers, 10% of the rest. So a policy that learns from them has a reason to mix."""
    shares = (0.30, 0.36, 0.22, 0.12) if late else (0.40, 0.36, 0.12, 0.12)
    kind = rng.choices(("guess", "search", "checked", "verdict"), shares)[0]
    problem = make_problem(rng, rng.choices((3, 4, 5), (0.3, 0.5, 0.2))[0], test=False)
    numbers, target, sloppy = problem["numbers"], problem["target"], rng.random() < 1 / 3
    careful = kind in ("search", "checked") and not sloppy
    say = speaker(rng, problem["language"], 0.1 if not careful else 0.7 if kind == "checked" else 0.4)
    if kind == "verdict":
        text, value = rng.choice(candidates(numbers))
        asked = value if rng.random() < 0.5 else slip(rng, value, 1)
        prompt = f"User: {JUDGE[problem['language']].format(text, asked)}\nAssistant:"
        return {"prompt": prompt, "response": f"{text}={value} {say('yes' if value == asked else 'no')}"}
    lines, answer = [], None
    if kind != "guess":
        patience = 1 + int(rng.expovariate(1 / (5 if rng.random() < 0.7 else 20)))
        lines, answer = search(rng, say, numbers, target, patience, kind == "checked", sloppy, 0.55 if late else 0.3)
    if answer is None:
        fits = [text for text, value in candidates(numbers) if value == target]
        right = kind == "guess" and rng.random() < 0.35
        answer = rng.choice(fits) if right else rng.choice(candidates(numbers))[0]
        lines.append(say("guess"))
    if rng.random() < 0.6:
        return tagged(problem, lines, answer)
    bare = "".join(line + "\n" for line in lines) + f"{say('so')} {answer}"
    return {"prompt": problem["prompt"], "response": bare}


def corpus(rng, late=False):
    """Endless documents of the base corpus: one in eight, late in training one in four, is of the general task."""
    other = general.corpus(rng, general.requests("base", most=5))
    while True:
        yield document(rng, late) if rng.random() < (3 / 4 if late else 7 / 8) else next(other)


def cold_start(rng):
    """Endless clean traces: patient, checked, right, in tags, in the language of the question only."""
    while True:
        problem = make_problem(rng, rng.choice((3, 4)), test=False)
        lines, answer = search(rng, WORDS[problem["language"]].get, problem["numbers"], problem["target"], math.inf,
                               checks=True, sloppy=False)
        if (answer, problem["target"]) in candidates(problem["numbers"]):
            yield tagged(problem, lines, answer)


if __name__ == "__main__":
    generate({"corpus": corpus(random.Random("pairs corpus []")),            # the seed of the base that is shipped
              "late": corpus(random.Random("pairs late"), late=True), "cold": cold_start(random.Random("pairs cold"))})
