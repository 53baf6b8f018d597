"""The general task: a request with many good answers, judged by preference and not by rule.

    User: name 2 animals and 3 colours                  User: nombra 2 animales y 3 colores
    Assistant:<think>                                   Assistant:gato perro rojo azul verde
    2 animals
    3 colours
    </think>
    <answer>cat dog red blue green</answer>

Of two answers the better one has fewer faults: words that are missing, and words that should not be
there (one too many, said twice, of another topic, in the other language). Anybody can count them,
but RL is not told: stages/reward_model.py learns from pairs in which one answer was preferred, one
in twenty of them the wrong way round.

Held out is one request in five, by a CRC that is the same in either order of its topics, from the
base corpus and from everything in R1.

    python -m data.general pairs COUNT FILE         preference pairs: {"prompt", "better", "worse"}
    python -m data.general documents COUNT FILE     the best of four answers each, in tags, for R1's
                                                    second SFT
"""

import itertools
import pathlib
import random
import zlib

from data.jsonl import generate

TOPICS = {"en": {}, "es": {}}  # {language: {topic: its words}}
for line in (pathlib.Path(__file__).parent / "topics.txt").read_text("utf-8").splitlines():
    language, topic, *words = line.split()
    TOPICS[language][topic] = words

QUESTION = {"en": "name {} {} and {} {}", "es": "nombra {} {} y {} {}"}
LIST_QUESTIONS = {"en": ("repeat {1}", "once {1}", "{0} but {1}")}
LIST_QUESTIONS["es"] = ("repite {1}", "una vez {1}", "{0} menos {1}")


def requests():
    """-> requests to learn from, held-out requests: for 2 to 5 words of each of two topics."""
    train = []
    test = []
    for language, topics in TOPICS.items():
        for first, second in itertools.permutations(topics, 2):
            for m, n in itertools.product(range(2, 6), repeat=2):
                asked = {first: m, second: n}
                question = QUESTION[language].format(m, first, n, second)
                request = {"kind": "general", "asked": asked, "language": language}
                request["prompt"] = f"User: {question}\nAssistant:"
                held_out = zlib.crc32(str(sorted(asked.items())).encode()) % 5 == 0
                (test if held_out else train).append(request)
    return train, test


def faults(problem, answer):
    """Words that are missing from an answer, and words that should not be in it."""
    words = answer.split()
    good = 0
    for topic, n in problem["asked"].items():
        good += min(n, len(set(words) & set(TOPICS[problem["language"]][topic])))
    missing = sum(problem["asked"].values()) - good
    return missing + len(words) - good


def verify(problem, answer):
    """The share of the problem's other answers that this one is better than; a tie counts half."""
    mine = faults(problem, answer)
    others = [faults(problem, other) for other in problem["answers"]]
    wins = sum(mine < theirs for theirs in others)
    return (wins + 0.5 * others.count(mine)) / len(others)


def author(rng, problem):
    """An answer as people write them: in order or in none, with no slip or with a few."""
    topics = TOPICS[problem["language"]]
    other_topics = TOPICS["es" if problem["language"] == "en" else "en"]
    in_order = rng.random() < 0.5
    words = []
    for topic, n in problem["asked"].items():
        chosen = rng.sample(topics[topic], n)
        words += sorted(chosen, key=topics[topic].index) if in_order else chosen
    for _ in range(rng.choices((0, 1, 2, 3), (0.3, 0.3, 0.2, 0.2))[0]):
        place = rng.randrange(len(words))
        source = other_topics if rng.random() < 0.5 else topics
        slip = rng.choice(("drop", "twice", "more", "other"))
        if slip == "drop":
            del words[place]
        elif slip == "twice":
            words.insert(place, rng.choice(words))
        else:
            word = rng.choice(rng.choice(list(source.values())))
            if slip == "more":
                words.insert(place, word)
            else:
                words[place] = word
    return " ".join(words)


def with_plan(problem, answer):
    """The answer in R1's format, after thinking about what was asked for."""
    plan = "".join(f"{n} {topic}\n" for topic, n in problem["asked"].items())
    return f"<think>\n{plan}</think>\n<answer>{answer}</answer>"


def pairs(rng, wrong=0.05):
    """Endless preference pairs of two answers; `wrong` of them are labelled the wrong way round."""
    problems, _ = requests()
    while True:
        problem = rng.choice(problems)
        answers = [author(rng, problem), author(rng, problem)]
        better, worse = sorted(answers, key=lambda answer: faults(problem, answer))
        if faults(problem, better) < faults(problem, worse):
            if rng.random() < wrong:
                better, worse = worse, better
            better, worse = with_plan(problem, better), with_plan(problem, worse)
            yield {"prompt": problem["prompt"], "better": better, "worse": worse}


def corpus(rng, problems, tagged=0.6, best_of=1):
    """Endless documents: of `best_of` answers the one with the fewest faults; a share in tags."""
    while True:
        problem = rng.choice(problems)
        in_tags = rng.random() < tagged
        answers = [author(rng, problem) for _ in range(best_of)]
        response = min(answers, key=lambda answer: faults(problem, answer))
        if in_tags:
            response = with_plan(problem, response)
        yield {"prompt": problem["prompt"], "response": response}


def word_list(rng):
    """A document about the words of a topic: to repeat some, to say each once, to name the rest.

    Only who tells the words of a topic apart can predict it. Answers to requests teach that badly:
    many of their authors may say almost any word next."""
    language = rng.choice(("en", "es"))
    name, topic = rng.choice(list(TOPICS[language].items()))
    words = rng.choices(topic, k=rng.randint(2, 6))
    rest = [word for word in topic if word not in words]
    answers = (words, dict.fromkeys(words), rest)
    i = rng.randrange(3 if rest else 2)
    question = LIST_QUESTIONS[language][i].format(name, " ".join(words))
    return {"prompt": f"User: {question}\nAssistant:", "response": " ".join(answers[i])}


def load(seed=0):
    """-> training requests, {"general": held-out requests}, the same for every seed.

    Each has eight authors' answers to be compared with."""
    rng = random.Random("general")
    train, test = requests()
    for problem in test + train:
        problem["answers"] = [author(rng, problem) for _ in range(8)]
        problem["untagged"] = True
    return train, {"general": test}


if __name__ == "__main__":
    rng = random.Random("general documents")
    documents = corpus(rng, requests()[0], tagged=1, best_of=4)
    generate({"pairs": pairs(random.Random("general pairs")), "documents": documents})
