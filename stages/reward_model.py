"""A reward model for what no rule can judge: a Critic, summed over the tokens of an answer.

It is trained on pairs of answers of which one was preferred.

    P(better over worse) = sigmoid(s(better) - s(worse))     Bradley and Terry 1952            (1)
    L = -mean over pairs of log P(better over worse)         eq. 1 of arXiv 2203.02155         (2)

s(prompt, answer) is the sum of the critic's values after each token of the answer, so that a fault
can cost where it stands. Read at the last token alone, as is usual, s learned far more slowly. It
reads the answer and not the thinking, as DeepSeek-R1's reward model of helpfulness does (arXiv
2501.12948v1, section 2.3.4). Pairs determine s only up to a number for each prompt. One constant is
taken off, so that the answers of 256 training pairs have mean 0; the reward sigmoid(s) is the
chance (1) against an answer of score 0.

A policy finds what the model likes and people do not. Hence the reward is bounded, the R1 paper
lets it in only for the last part of the last stage, and held-out requests are judged by the rule as
well.

    python -m stages.reward_model --data pairs.jsonl --init FOLDER --out FOLDER

A row of the data is {"prompt": ..., "better": ..., "worse": ...}.
"""

import zlib
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

from data.jsonl import read
from logprobs import response_states
from model import Critic
from plumbing import checkpoint
from plumbing.flags import fill, flag, one_line_errors, parse
from plumbing.run_folder import Log
from rewards import answer_or_all
from sampler import Rollout
from stages.sft import Training, fit
from start.compose import autocast, check_context, load_model, load_tokenizer


@dataclass(kw_only=True)
class Config(Training):
    batch: int = flag(32, "pairs per optimizer step", at_least=1)
    lr: float = flag(5e-4, "AdamW's learning rate (embeddings, norms, value head)")
    muon_lr: float = flag(0.005, "Muon's learning rate (matrices)")


def to_rollout(tokenizer, problems, responses, ends, device):
    """n responses to each of N problems, responses[problem][i], each with `ends` end tokens.

    -> a Rollout of N * n rows. A <think> that the prompt opens is taken off."""
    prompts = [tokenizer.prompt(problem) for problem in problems]
    rows = []
    for responses_to_one in responses:
        for response in responses_to_one:
            text = response.removeprefix(tokenizer.opening)
            rows.append(tokenizer.encode(text) + [tokenizer.eos_id] * ends)
    return Rollout.from_lists(prompts, rows, len(responses[0]), device)


def scores(critic, tokenizer, problems, responses):
    """n responses to each of N problems: responses[problem][i] -> s (N, n), fp32."""
    answers = [[answer_or_all(response) for response in each] for each in responses]
    # the state before a second end token is the one after the first
    batch = to_rollout(tokenizer, problems, answers, 2, critic.head.device)
    bias = critic.value_head.bias  # counts once, not for each token
    values = critic.value(response_states(critic, batch)) - bias  # (N * n, T)
    s = (values * batch.response_mask).sum(1) + bias
    return s.view(len(problems), -1)


def pair_scores(critic, tokenizer, pairs):
    """s(better), s(worse) of each pair: (N, 2)."""
    return scores(critic, tokenizer, pairs, [(pair["better"], pair["worse"]) for pair in pairs])


def margins(critic, tokenizer, pairs):
    """s(better) - s(worse) of each pair: (N,)."""
    return -pair_scores(critic, tokenizer, pairs).diff(dim=1)[:, 0]


def as_reward(folder, flags):
    """The reward model of a folder as a judge: function(problem, response) -> sigmoid(s).

    flags: of the run; a problem must be put as the reward model was trained. ValueError if the
    folder holds no reward model."""
    critic = Critic(load_model(folder, flags, weights=False))
    checkpoint.load_weights(critic, folder)
    critic.to(flags.device).requires_grad_(False)
    tokenizer = load_tokenizer(folder, flags, critic)

    def judge(problem, response):
        return float(scores(critic, tokenizer, [problem], [[response]]).sigmoid())

    return judge


def is_held_out(pair):
    """One in eight, by the words of the prompt in any order: no request is in both parts."""
    words = " ".join(sorted(pair["prompt"].split()))
    return zlib.crc32(words.encode()) % 8 == 1


def read_pairs(config, tokenizer, model):
    """-> training pairs, held-out pairs. ValueError if an answer does not fit into the context."""
    pairs = read(config.data, ("prompt", "better", "worse"))
    train = [pair for pair in pairs if not is_held_out(pair)]
    test = [pair for pair in pairs if is_held_out(pair)]
    if not train or not test:
        raise ValueError(f"{config.data}: too few pairs to hold one in eight out")
    answers = [pair[side] for pair in pairs for side in ("better", "worse")]
    longest = max(len(tokenizer.encode(answer)) for answer in answers)
    check_context(config.data, [tokenizer.prompt(pair) for pair in pairs], longest + 2, model)
    return train, test


def fit_pairs(config, model, tokenizer, train, test, margins_of):
    """Trains `model` by (2), and writes what it says of the held-out pairs into eval.csv.

    margins_of(pairs) -> s(better) - s(worse) of each, (N,)."""

    def loss(chosen):
        with autocast(config):
            margin = margins_of(chosen)
        nll = -F.logsigmoid(margin).mean()  # (1), (2)
        nll.backward()
        return summary(margin.detach())

    print(f"{len(test)} pairs are held out")
    fit(config, model, tokenizer, train, loss)
    with torch.no_grad(), autocast(config):
        parts = [margins_of(test[i : i + 64]) for i in range(0, len(test), 64)]
        metrics = summary(torch.cat(parts))
    Log(f"{config.out}/eval.csv").write_row({"set": "held-out pairs"} | metrics)
    print(f"held-out pairs: {metrics['accuracy']:.3f} right")


def summary(margin):
    """s(better) - s(worse) of pairs (N,) -> means: (2), how many are told right, the margin."""
    right = (margin > 0).float()
    means = {"nll": -F.logsigmoid(margin).mean(), "accuracy": right.mean(), "margin": margin.mean()}
    return {name: mean.item() for name, mean in means.items()}


def main(argv=None):
    with one_line_errors():
        config = fill(Config, parse(argv, __doc__, Config))
        critic = Critic(load_model(config.init, config))
        tokenizer = load_tokenizer(config.init, config, critic)
        train, test = read_pairs(config, tokenizer, critic)

    fit_pairs(config, critic, tokenizer, train, test, partial(margins, critic, tokenizer))
    with torch.no_grad():  # the constant
        critic.value_head.bias -= pair_scores(critic, tokenizer, train[:256]).mean()
    checkpoint.save(critic, config.out)


if __name__ == "__main__":
    main()
