"""Can a model tell the words of a topic apart? Two numbers about data/general.py.

    python bench/word_identity.py data/base

The mean cosine of the embeddings of two words of a topic, and of two topics; and, after some words
of a topic, which of its probability for words of the topic goes to those already said. By chance it
would be the share of the topic that has been said. All held-out requests and 60 others, with tags
and without.
"""

import itertools
import os
import random
import statistics
import sys

import torch

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from data import general  # noqa: E402
from data.tokenizer import Tokenizer  # noqa: E402
from model import GPT  # noqa: E402
from plumbing.flags import one_line_errors  # noqa: E402


def first_tokens(tokenizer, words):
    """{word: the first token of it, with a word to come}"""
    return {word: tokenizer.encode(word + " ")[0] for word in words}


def mean_cosine(embedding, pairs):
    values = [torch.cosine_similarity(embedding[a], embedding[b], dim=0) for a, b in pairs]
    return float(torch.stack(values).mean())


def share_said(model, tokenizer, rng, request, in_tags):
    """-> (share of the topic's probability that goes to words said, share of its words said)"""
    topic, n = next(iter(request["asked"].items()))
    tokens = first_tokens(tokenizer, general.TOPICS[request["language"]][topic])
    said = rng.sample(list(tokens), n - 1)
    text = "".join(word + " " for word in said)
    if in_tags:
        text = general.with_plan(request, text).removesuffix("</answer>")
    ids = tokenizer.prompt(request) + tokenizer.encode(text)
    p = model.logits(model(torch.tensor([ids])))[0, -1].softmax(-1)
    of_said = sum(float(p[tokens[word]]) for word in said)
    return of_said / sum(float(p[token]) for token in tokens.values()), len(said) / len(tokens)


@torch.no_grad()
def main(folder):
    with one_line_errors():
        model = GPT.load(folder)
        tokenizer = Tokenizer.load(folder)
    topics = []
    for of_language in general.TOPICS.values():
        topics += [list(first_tokens(tokenizer, words).values()) for words in of_language.values()]
    within = [pair for topic in topics for pair in itertools.combinations(topic, 2)]
    across = [pair for two in itertools.combinations(topics, 2) for pair in itertools.product(*two)]
    print(f"cosine within a topic: {mean_cosine(model.head, within):.2f}")
    print(f"cosine across topics:  {mean_cosine(model.head, across):.2f}")
    train, held_out = general.requests()
    rng = random.Random(0)
    shares = []
    for request in held_out + train[:60]:
        for in_tags in (False, True):
            shares.append(share_said(model, tokenizer, rng, request, in_tags))
    to_said, by_chance = (statistics.mean(column) for column in zip(*shares, strict=True))
    print(f"probability of words already said: {to_said:.2f}, by chance {by_chance:.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
