"""The general task: a request with many good answers, judged by preference and not by rule.

    User: name 2 animals and 3 colours                  User: nombra 2 animales y 3 colores
    Assistant:<think>                                   Assistant:gato perro rojo azul verde
    2 animals
    3 colours
    </think>
    <answer>cat dog red blue green</answer>

Of two answers the better one has fewer faults: words that are missing, and words that should not be there (one too
many, said twice, of another topic, in the other language). Anybody can count them, but RL is not told: reward_model.py
learns from pairs in which one answer was preferred, one in twenty of them the wrong way round.

Held out is one request in eight, by the CRC of its prompt. No document of the base corpus is one. The same words asked
for in the other order may be, but are nowhere in R1's documents, pairs and problems.

    python -m data.general pairs COUNT FILE     preference pairs: {"prompt", "better", "worse"}
    python -m data.general documents COUNT FILE the best of four answers each, in tags, for R1's second SFT
"""
import itertools
import random
import zlib

import rewards
from data.jsonl import generate

TOPICS = {"en": {"animals": "cat dog cow hen pig fox", "colours": "red blue green black white grey",
                 "fruits": "apple pear plum fig lime peach", "parts": "hand foot nose ear eye leg"},
          "es": {"animales": "gato perro vaca gallina cerdo zorro", "colores": "rojo azul verde negro blanco gris",
                 "frutas": "manzana pera ciruela higo lima uva", "partes": "mano pie nariz oreja ojo pierna"}}
TOPICS = {language: {topic: words.split() for topic, words in topics.items()} for language, topics in TOPICS.items()}
ASK = {"en": "name {} {} and {} {}", "es": "nombra {} {} y {} {}"}


def requests(part, most=4):
    """The requests, for 2 to `most` words of a kind, of a part: "test", held out; "base", all others, of which the base
    corpus is; "train", those of them that are no test request in the other order either."""
    every = [{"prompt": f"User: {ASK[language].format(m, a, n, b)}\nAssistant:", "kind": "general",
              "language": language, "asked": {a: m, b: n}}
             for language, topics in TOPICS.items() for a, b in itertools.permutations(topics, 2)
             for m, n in itertools.product(range(2, most + 1), repeat=2)]
    test = [p for p in every if zlib.crc32(p["prompt"].encode()) % 8 == 0]
    asked = [p["asked"] for p in test]            # equal in any order
    return {"test": test, "base": [p for p in every if p not in test],
            "train": [p for p in every if p["asked"] not in asked]}[part]


def faults(problem, answer):
    """Words that are missing from an answer, and words that should not be in it."""
    words, topics = answer.split(), TOPICS[problem["language"]]
    good = sum(min(n, len({*words} & {*topics[topic]})) for topic, n in problem["asked"].items())
    return sum(problem["asked"].values()) - good + len(words) - good


def shown(response):
    """What the user reads of a response: its answer, or all of it where there is none."""
    answer = rewards.extract_answer(response)
    return response.removesuffix(rewards.END).strip() if answer is None else answer


def preference(problem, response):
    """The share of the problem's other answers that the response is better than; a tie counts half."""
    mine, others = faults(problem, shown(response)), [faults(problem, answer) for answer in problem["answers"]]
    return sum((mine < other) + 0.5 * (mine == other) for other in others) / len(others)


def author(rng, problem):
    """An answer as people write them: with no slip, or with a few."""
    other = TOPICS["es" if problem["language"] == "en" else "en"]
    topics = TOPICS[problem["language"]]
    words = [w for topic, n in problem["asked"].items() for w in rng.sample(topics[topic], n)]
    for _ in range(rng.choices((0, 1, 2, 3), (0.3, 0.3, 0.2, 0.2))[0]):
        place, foreign = rng.randrange(len(words)), rng.random() < 0.5
        slip = rng.choice(("drop", "twice", "more", "other"))
        if slip == "drop":
            del words[place]
        elif slip == "twice":
            words.insert(place, rng.choice(words))
        else:
            some = rng.choice([*(other if foreign else topics).values()])
            words[place:place + (slip == "other")] = [rng.choice(some)]
    return " ".join(words)


def pairs(rng, wrong=0.05):
    """Endless preference pairs of two authors' answers; `wrong` of them are labelled the wrong way round."""
    problems = requests("train")
    while True:
        problem = rng.choice(problems)
        better, worse = sorted((author(rng, problem), author(rng, problem)), key=lambda text: faults(problem, text))
        if faults(problem, better) < faults(problem, worse):
            if rng.random() < wrong:
                better, worse = worse, better
            yield {"prompt": problem["prompt"], "better": better, "worse": worse}


def corpus(rng, problems, tagged=0.6, best_of=1):
    """Endless documents: of `best_of` authors' answers the one with the fewest faults; a share of them in tags."""
    while True:
        problem = rng.choice(problems)
        tags = rng.random() < tagged
        answer = min((author(rng, problem) for _ in range(best_of)), key=lambda text: faults(problem, text))
        plan = "".join(f"{n} {topic}\n" for topic, n in problem["asked"].items())
        yield {"prompt": problem["prompt"],
               "response": f"<think>\n{plan}</think>\n<answer>{answer}</answer>" if tags else answer}


def load(seed=0):
    """(training requests, {"general": held-out requests}), each with eight authors' answers to be compared with."""
    rng = random.Random("general")
    test, train = ([p | {"answers": [author(rng, p) for _ in range(8)], "reward": preference} for p in requests(part)]
                   for part in ("test", "train"))
    return train, {"general": test}


if __name__ == "__main__":
    generate({"pairs": pairs(random.Random("general pairs")),
              "documents": corpus(random.Random("general documents"), requests("train"), tagged=1, best_of=4)})
