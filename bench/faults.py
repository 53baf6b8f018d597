"""What does a reward model see? For each kind of fault of the general task, in how many requests it prefers the answer without it.

    python bench/faults.py out/r1/reward-model
"""
import os
import random
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from data import Task, general  # noqa: E402
from flags import one_line_errors  # noqa: E402
from reward_model import as_reward  # noqa: E402


def faulty(rng, problem):
    """{kind: an answer with that fault}, and under "" the answer without."""
    topics, first = general.TOPICS[problem["language"]], next(iter(problem["asked"]))
    right = [word for topic, n in problem["asked"].items() for word in rng.sample(topics[topic], n)]
    foreign = general.TOPICS["es" if problem["language"] == "en" else "en"]
    more = rng.choice([word for word in topics[first] if word not in right])
    other = rng.choice([word for topic in topics if topic not in problem["asked"] for word in topics[topic]])
    answers = {"": right, "a word is missing": right[1:], "a word too many": [more, *right], "a word said twice more": [right[0], *right],
               "a repeat in place of a word": [right[1], *right[1:]], "a word of another topic in its place": [other, *right[1:]],
               "a word of the other language": [rng.choice(sum(foreign.values(), [])), *right[1:]]}
    return {kind: " ".join(words) for kind, words in answers.items()}


def main(folder):
    with one_line_errors():
        reward = as_reward(folder, Task())
    rng, found = random.Random(0), {}
    for problem in general.requests("test") + general.requests("train"):
        answers = faulty(rng, problem)
        clean = reward(problem, answers.pop(""))
        for kind, answer in answers.items():
            found.setdefault(kind, []).append(clean > reward(problem, answer))
    print("| the fault | the answer without it is preferred in |\n|---|---|")
    for kind, wins in found.items():
        print(f"| {kind} | {sum(wins) / len(wins):.2f} of {len(wins)} requests |")


if __name__ == "__main__":
    main(*sys.argv[1:])
