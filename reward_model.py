"""A reward model for what no rule can judge: a Critic, read at the last token, trained on pairs of answers.

    P(better over worse) = sigmoid(s(better) - s(worse))             Bradley and Terry 1952                       (1)
    L = - mean over pairs of log P(better over worse)                eq. 1 of InstructGPT (arXiv 2203.02155)      (2)

s(prompt, answer) is the value of the state after the end token. It reads what the user reads, the answer and not the
thinking, as DeepSeek-R1's reward model of helpfulness does (arXiv 2501.12948v1, section 2.3.4). Pairs fix s only up to
a number for each prompt. One constant is taken off, so that the answers of 256 training pairs have mean 0; the reward
sigmoid(s) is the chance (1) against an answer of score 0.

A learned reward can be farmed: the policy finds what the model likes and people do not. Hence the reward is bounded,
the R1 paper lets it in only for the last part of the last stage, and held-out requests are judged by the rule as well.

    python reward_model.py --data pairs.jsonl --init FOLDER --out FOLDER     rows: {"prompt", "better", "worse"}
"""
import zlib
from dataclasses import dataclass

import torch
import torch.nn.functional as F

import pretrained
from checkpoint import Log
from data import check_room
from data.general import shown
from data.jsonl import read
from flags import fill, one_line_errors, parse
from logprobs import response_states
from model import GPT, Critic
from sampler import Rollout
from sft import Training, fit

SIDES = "better", "worse"


@dataclass(kw_only=True)
class Config(Training):           # with other defaults than in SFT
    batch: int = 32
    lr: float = 1e-3
    muon_lr: float = 0.01


def scores(critic, tokenizer, problems, answers):
    """n answers to each of N problems: answers[problem][i] -> s (N, n), fp32."""
    prompts, n = [tokenizer.prompt(p) for p in problems], len(answers[0])
    # the state before a second end token is the one after the first
    ids = [tokenizer.encode(answer) + [tokenizer.eos_id] * 2 for some in answers for answer in some]
    batch = Rollout.pack(prompts, ids, n, critic.head.device)
    return critic.value(response_states(critic, batch)).gather(1, batch.lengths[:, None] - 1).view(-1, n)


def pair_scores(critic, tokenizer, pairs):
    """s(better), s(worse) of each pair: (N, 2)."""
    return scores(critic, tokenizer, pairs, [[p[side] for side in SIDES] for p in pairs])


def margins(critic, tokenizer, pairs):
    """s(better) - s(worse) of each pair."""
    better, worse = pair_scores(critic, tokenizer, pairs).unbind(1)
    return better - worse


def as_reward(folder, config):
    """The reward model of a folder as a reward: (problem, response) -> sigmoid(s). ValueError if it holds none.

    config: flags of the run, as to how a problem is put. They must be those that the reward model was trained with."""
    critic = Critic(GPT.load(folder, weights=False))
    pretrained.load_weights(critic, folder)
    critic.to(config.device).requires_grad_(False)
    tokenizer = config.tokenizer(folder, critic)
    return lambda problem, response: float(scores(critic, tokenizer, [problem], [[shown(response)]]).sigmoid())


def main(argv=None):
    with one_line_errors():
        config = fill(Config, parse(argv, __doc__, Config))
        torch.manual_seed(config.seed)
        critic = Critic(GPT.load(config.init)).to(config.device)
        tokenizer = config.tokenizer(config.init, critic)
        rows = read(config.data, ("prompt", *SIDES))
        words = lambda row: " ".join(sorted(row["prompt"].split()))             # in any order: no request is in both
        held_out = lambda row: zlib.crc32(words(row).encode()) % 8 == 1
        pairs, test = [row for row in rows if not held_out(row)], [row for row in rows if held_out(row)]
        if not pairs or not test:
            raise ValueError(f"{config.data}: too few pairs to hold one in eight out")
        longest = max(len(tokenizer.encode(row[side])) for row in rows for side in SIDES)
        check_room(config.data, map(tokenizer.prompt, rows), longest + 2, critic)
    print(f"{len(test)} pairs are held out")

    def loss(chosen):
        with torch.autocast(config.device, torch.bfloat16, enabled=config.dtype == "bfloat16"):
            margin = margins(critic, tokenizer, chosen)                                                         # (1)
        mean = -F.logsigmoid(margin).mean()                                                                     # (2)
        mean.backward()
        return {"nll": mean.item(), "accuracy": (margin > 0).float().mean().item()}

    fit(config, critic, tokenizer, pairs, loss)
    with torch.no_grad():
        critic.value_head.bias -= pair_scores(critic, tokenizer, pairs[:256]).mean()
        right = torch.cat([margins(critic, tokenizer, test[i:i + 256]) > 0 for i in range(0, len(test), 256)])
    right = right.float().mean().item()
    Log(f"{config.out}/eval.csv").row({"set": "held-out pairs", "accuracy": right})
    critic.save(config.out)
    print(f"held-out pairs: {right:.3f} right; wrote {config.out}")


if __name__ == "__main__":
    main()
