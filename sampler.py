"""`Rollout`, every tensor of the system with its shape, and `sample()`, which makes one.

    N = B*G rows: the G responses of a problem are adjacent.
    P prompt columns, T response columns, V vocabulary, M rows still in the batch

Prompts are padded on the left and responses on the right, so after the sampler everything is
(N, T) or (N,). There is no top-k and no top-p: the recorded log-probabilities are those of the
distribution that was sampled.

Each prompt runs through the model once, and its cache serves its group. Every few tokens (`block`)
finished rows leave the batch. A token is drawn by inverse CDF with a uniform number that was drawn
beforehand, from the seed, the prompt and the number of the response in its group: a response
depends on these three and not on its batch mates.
"""

import zlib
from collections import Counter
from dataclasses import dataclass, field, replace

import torch
from torch.nn.utils.rnn import pad_sequence

from fast import decoder
from plumbing import world

CPU_CACHE = 1 << 17  # logits drawn from at a time: they stay in the processor's cache


@dataclass
class Rollout:
    """Filled in, mostly from top to bottom, as it moves through a training step."""

    prompt_ids: torch.Tensor  # (N, P) int64, padded on the left
    prompt_start: torch.Tensor  # (N,) first real column of prompt_ids
    group: torch.Tensor  # (N,) which problem of the batch a row answers
    response_ids: torch.Tensor  # (N, T) int64, padded on the right
    response_mask: torch.Tensor  # (N, T) bool: the first EOS is in, nothing after it
    old_logprobs: torch.Tensor = None  # (N, T) fp32 log pi_old, 0 outside the mask
    temperature: float = 1.0  # divides the logits wherever log-probs of this rollout are computed
    step: int = 0  # rollouts before this one
    lag: int = 0  # steps that the policy has made since it sampled this
    rewards: torch.Tensor = None  # (N,) NaN where a reward could not be determined
    ref_logprobs: torch.Tensor = None  # (N, T) log pi_ref
    advantages: torch.Tensor = None  # (N, T)
    values: torch.Tensor = None  # (N, T) the critic's (PPO)
    returns: torch.Tensor = None  # (N, T) what the critic should have said (PPO)
    weights: torch.Tensor = None  # (N, T) each token's share of an optimizer step's loss
    problems: list = None  # the dicts that `group` counts
    prompts: object = None  # of a micro-batch: what runs the prompts, see fast/prompts.py
    metrics: dict = field(default_factory=dict)  # what an algorithm reports of the whole rollout

    @classmethod
    def from_lists(cls, prompts, responses, group_size=1, device="cpu"):
        """Lists of ids, prompts[i // group_size] answered by responses[i] -> a Rollout."""
        prompt_ids, start = pad_left(prompts, device)
        group = torch.arange(len(prompts), device=device).repeat_interleave(group_size)
        ids, lengths = padded(responses, device, "right")
        mask = torch.arange(ids.shape[1], device=device) < lengths[:, None]
        return cls(prompt_ids[group], start[group], group, ids, mask)

    @property
    def lengths(self):
        return self.response_mask.sum(1)  # (N,) response tokens, EOS included

    def select(self, rows):
        """The rollout of `rows` (M,), without the columns that none of them uses."""
        T = max(1, int(self.lengths[rows].max()))
        first = int(self.prompt_start[rows].min())
        selected = {}
        for name, x in vars(self).items():
            if torch.is_tensor(x):
                selected[name] = x[rows] if x.dim() == 1 else x[rows, :T]
        selected["prompt_ids"] = self.prompt_ids[rows, first:]
        selected["prompt_start"] = self.prompt_start[rows] - first
        return replace(self, **selected)

    def micro_batches(self, tokens, keep=None):
        """Row indices in pieces of at most `tokens` padded tokens, rows of like length together.

        keep (N,) bool: which rows. A row longer than `tokens` is a piece of its own."""
        lengths = (self.lengths + self.prompt_ids.shape[1]).tolist()
        rows = range(len(lengths)) if keep is None else keep.nonzero()[:, 0].tolist()
        pieces = []
        for i in sorted(rows, key=lengths.__getitem__):
            if not pieces or lengths[i] * (len(pieces[-1]) + 1) > tokens:
                pieces.append([])
            pieces[-1].append(i)
        return [torch.tensor(piece, device=self.response_ids.device) for piece in pieces]


def padded(sequences, device, side):
    """Lists of ids of any lengths -> ids (B, longest), lengths (B,)."""
    rows = [torch.tensor(ids, dtype=torch.long, device=device) for ids in sequences]
    lengths = torch.tensor([len(ids) for ids in rows], device=device)
    return pad_sequence(rows, batch_first=True, padding_side=side), lengths


def pad_left(prompts, device):
    """Lists of ids of any lengths -> ids (B, P), start (B,)."""
    ids, lengths = padded(prompts, device, "left")
    return ids, ids.shape[1] - lengths


def check_context(start, P, T, context):
    if start.max() == P:
        raise ValueError("empty prompt")
    if P + T > context:
        raise ValueError(f"prompt of {P} tokens + {T} new ones > the model's context of {context}")


def run_prompts(model, prompt_ids, start):
    """Prompts (B, P) -> hidden of their last token (B, 1, C), and the cache to go on from."""
    cache = model.new_cache(start if start.any() else None)
    return model(prompt_ids, cache)[:, -1:], cache


def uniforms(prompts, group_size, T, seed):
    """u (N, T) fp64 in [0, 1): a row depends on seed, prompt and place in the group only.

    A prompt that is there twice counts as one group of twice the size: no response comes twice."""
    drawn = []
    places = Counter()
    for prompt in prompts:
        text = str(list(prompt))
        for place in range(places[text], places[text] + group_size):
            key = zlib.crc32(f"{seed} {place} {text}".encode())
            generator = torch.Generator().manual_seed(key)
            drawn.append(torch.rand(T, dtype=torch.float64, generator=generator))
        places[text] += group_size
    return torch.stack(drawn)


def draw(logits, u, temperature):
    """logits (M, V), u (M,) fp64 -> tokens (M,), log-probs (M,) fp32. Temperature 0: greedy."""
    if temperature == 0:
        best, token = logits.float().log_softmax(-1).max(-1)
        return token, best
    rows = len(logits) if logits.is_cuda else max(1, CPU_CACHE // logits.shape[1])
    tokens, logprobs = [], []
    for z, v in zip(logits.split(rows), u.split(rows), strict=True):
        logp = (z.float() / temperature).log_softmax(-1)
        cdf = logp.exp().cumsum(-1, dtype=torch.float64)
        # right=True: u = 0 must not return a first token of probability 0
        token = torch.searchsorted(cdf, v[:, None] * cdf[:, -1:], right=True)
        token = token.clamp(max=z.shape[1] - 1)
        tokens.append(token[:, 0])
        logprobs.append(logp.gather(1, token)[:, 0])
    return torch.cat(tokens), torch.cat(logprobs)


def block(t, device):
    """Tokens after token t until finished rows leave the batch, which moves the cache."""
    return 64 if t >= 128 or device.type == "cuda" else 16


@torch.no_grad()
def sample(
    model, prompts, group_size, max_new_tokens, temperature=1.0, eos_id=None, seed=0, on_token=None
):
    """group_size responses to each of `prompts` (lists of ids of any lengths) -> Rollout.

    eos_id: an id, several, or None (every response has max_new_tokens). on_token: called with ids
    and mask (N, T) after each token, to show them.
    Raises ValueError when a prompt is empty or leaves no room in the model's context."""
    device = model.head.device
    N, T = len(prompts) * group_size, max_new_tokens
    prompt_ids, start = pad_left(prompts, device)
    check_context(start, prompt_ids.shape[1], T, model.config.max_seq_len)
    group = torch.arange(len(prompts), device=device).repeat_interleave(group_size)
    u = uniforms(prompts, group_size, T, seed).to(device)
    ends = torch.tensor([] if eos_id is None else eos_id, dtype=torch.long, device=device)
    ids = torch.zeros(N, T, dtype=torch.long, device=device)
    mask = torch.zeros(N, T, dtype=torch.bool, device=device)
    old_logprobs = torch.zeros(N, T, device=device)

    hidden, cache = run_prompts(model, world.share(prompt_ids), world.share(start))
    hidden = hidden.repeat_interleave(group_size, 0)
    cache = cache.decoding()
    # (M,) which rows are still in the batch of this process
    row = world.share(torch.arange(N, device=device).view(-1, group_size)).flatten()
    alive = torch.ones_like(row, dtype=torch.bool)  # (M,) those that have not ended
    for t in range(T):
        token, logprob = draw(model.logits(hidden[:, -1]), u[row, t], temperature)
        ids[row, t] = token * alive
        old_logprobs[row, t] = logprob * alive
        mask[row, t] = alive
        alive = alive & ~torch.isin(token, ends)
        if on_token is not None:
            on_token(ids, mask)
        if t % block(t, device) == 0:
            left = alive.nonzero()[:, 0]  # the only GPU-to-CPU synchronization
            if len(left) == 0:
                break
            # before the first compaction the cache has one row a prompt
            cache.compact(left // group_size if t == 0 else left, min(block(t, device), T - t))
            row, token, alive = row[left], token[left], alive[left]
            decode = decoder(model, cache)
        hidden = decode(token[:, None])
    world.add(ids, mask.view(torch.uint8), old_logprobs)
    rollout = Rollout(prompt_ids[group], start[group], group, ids, mask, old_logprobs, temperature)
    return rollout.select(torch.arange(N, device=device))  # without the columns that nobody used
