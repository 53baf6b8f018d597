"""What do reward models see? For each kind of fault of the general task, the share of the 384
requests in which each of them prefers the answer without the fault.

    python bench/faults.py out/r1/first-reward-model out/r1/second-reward-model
"""

import os
import random
import statistics
import sys
from collections import defaultdict

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from data import general  # noqa: E402
from plumbing.flags import one_line_errors  # noqa: E402
from stages.reward_model import as_reward  # noqa: E402
from start.task import TaskFlags  # noqa: E402


def answers_with_faults(rng, problem):
    """-> (a faultless answer, {kind of fault: the answer with it})"""
    topics = general.TOPICS[problem["language"]]
    other_language = "es" if problem["language"] == "en" else "en"
    foreign_words = sum(general.TOPICS[other_language].values(), [])
    asked = problem["asked"]
    right = []
    for topic, count in asked.items():
        right += rng.sample(topics[topic], count)
    first_topic = next(iter(asked))
    one_more = rng.choice([word for word in topics[first_topic] if word not in right])
    other_topics = [word for topic in topics if topic not in asked for word in topics[topic]]
    faulty = {
        "a word is missing": right[1:],
        "a word too many": [one_more, *right],
        "a word said twice more": [right[0], *right],
        "a repeat in place of a word": [right[1], *right[1:]],
        "a word of another topic in its place": [rng.choice(other_topics), *right[1:]],
        "a word of the other language": [rng.choice(foreign_words), *right[1:]],
    }
    return " ".join(right), {kind: " ".join(words) for kind, words in faulty.items()}


def main(folders):
    with one_line_errors():
        judges = [as_reward(folder, TaskFlags()) for folder in folders]
    rng = random.Random(0)
    preferred = defaultdict(list)
    train, held_out = general.requests()
    for problem in held_out + train:
        right, faulty = answers_with_faults(rng, problem)
        rewards = [judge(problem, right) for judge in judges]
        for kind, answer in faulty.items():
            pairs = zip(rewards, judges, strict=True)
            preferred[kind].append([reward > judge(problem, answer) for reward, judge in pairs])
    names = " | ".join(os.path.basename(folder) for folder in folders)
    print(f"| the fault; the answer without it is preferred by | {names} |")
    print("|---" * (len(folders) + 1) + "|")
    for kind, wins in preferred.items():
        shares = [statistics.mean(column) for column in zip(*wins, strict=True)]
        print(f"| {kind} | {' | '.join(f'{share:.2f}' for share in shares)} |")


if __name__ == "__main__":
    main(sys.argv[1:])
