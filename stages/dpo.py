"""Direct Preference Optimization: preference pairs train the policy itself, with no RL.

The policy is a reward model as well. It is the best one for this reward with a KL penalty of beta
to pi_ref, if a constant of the prompt is added:

    r(prompt, response) = beta log(pi(response) / pi_ref(response))    eq. 5 of arXiv 2305.18290 (1)
    L = -mean over pairs of log sigmoid(r(better) - r(worse))          eq. 7                     (2)

So this is the training of stages/reward_model.py with another score. pi(response) is the product
over all its tokens, the end token among them; pi_ref is the model of --init.

    python -m stages.dpo --data pairs.jsonl --init FOLDER --out FOLDER

A row of the data is {"prompt": ..., "better": ..., "worse": ...}: two responses in the form in
which the policy responds, tags and all. What both begin with cancels in (2): of two that think the
same, the answers are trained.
"""

from dataclasses import dataclass
from functools import partial

from logprobs import response_logprobs
from plumbing.flags import fill, flag, one_line_errors, parse
from stages import reward_model
from start.compose import load_model, load_tokenizer


@dataclass(kw_only=True)
class Config(reward_model.Config):
    lr: float = flag(1e-4, "AdamW's learning rate (embeddings, norms)")
    muon_lr: float = flag(5e-4, "Muon's learning rate (matrices)")
    beta: float = flag(0.1, "of (1): the smaller, the further from the reference", at_least=1e-6)


def margins(policy, reference, tokenizer, beta, pairs):
    """r(better) - r(worse) of each pair: (N,)."""
    responses = [(pair["better"], pair["worse"]) for pair in pairs]
    batch = reward_model.to_rollout(tokenizer, pairs, responses, 1, policy.head.device)
    logprobs, _ = response_logprobs(policy, batch)  # (2 * N, T)
    ref_logprobs, _ = response_logprobs(reference, batch)
    r = beta * (logprobs - ref_logprobs).sum(1)  # (1)
    return -r.view(-1, 2).diff(dim=1)[:, 0]


def main(argv=None):
    with one_line_errors():
        config = fill(Config, parse(argv, __doc__, Config))
        policy = load_model(config.init, config)
        reference = load_model(config.init, config).requires_grad_(False)
        tokenizer = load_tokenizer(config.init, config, policy)
        train, test = reward_model.read_pairs(config, tokenizer, policy)
    margins_of = partial(margins, policy, reference, tokenizer, config.beta)
    reward_model.fit_pairs(config, policy, tokenizer, train, test, margins_of)


if __name__ == "__main__":
    main()
