"""`Rollout`, every tensor of the system with its shape, and `sample()`, which makes one.

    N = B*G rows: the G responses of a problem are adjacent.  P prompt columns, T response columns, V vocabulary

Prompts are padded on the left and responses on the right, so after the sampler everything is (N, T) or (N,).

Each prompt runs through the model once; its cache is shared by its group, or repeated for it where it is short. Every
BLOCK tokens finished rows leave the batch and the cache of the others is copied, with room for the next BLOCK. A token
is drawn by inverse CDF from a table of uniforms (N, T) made before the first token from the seed, the prompt and the
place in the group, so a response depends on these three and not on its batch mates. (It is also the fast way:
torch.multinomial draws one exponential per entry of the vocabulary.)

No top-k and no top-p: the recorded log-probabilities are those of the distribution that was sampled.
"""
import zlib
from collections import Counter
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import repeat

import torch

from model import GroupCache, KVCache

BLOCK = {"cpu": 16, "cuda": 64}         # columns
SHARE = {"cpu": 32, "cuda": 512}        # columns from which on the cache of the prompts is shared
CACHED = 1 << 17                       # entries of a (rows, V) table that fit into a processor's cache


@dataclass
class Rollout:
    """Filled in from top to bottom as it moves through a training step."""
    prompt_ids: torch.Tensor              # (N, P) int64, padded on the left
    prompt_start: torch.Tensor            # (N,) first real column of prompt_ids
    group: torch.Tensor                   # (N,) which problem of the batch a row answers
    response_ids: torch.Tensor            # (N, T) int64, padded on the right
    response_mask: torch.Tensor           # (N, T) bool: the first EOS is in, nothing after it
    old_logprobs: torch.Tensor = None     # (N, T) fp32 log pi_old, 0 outside the mask
    temperature: float = 1.0              # divides the logits wherever log-probs of this rollout are computed
    rewards: torch.Tensor = None          # (N,)
    ref_logprobs: torch.Tensor = None     # (N, T) log pi_ref
    advantages: torch.Tensor = None       # (N, T)
    values: torch.Tensor = None           # (N, T) critic (PPO)
    returns: torch.Tensor = None          # (N, T) what the critic should have said (PPO)
    weights: torch.Tensor = None          # (N, T) each token's share of the loss of one optimizer step

    @classmethod
    def pack(cls, prompts, responses, group_size=1, device="cpu"):
        """Lists of ids, prompts[i // group_size] answered by responses[i] -> a Rollout (sft.py, tests)."""
        prompt_ids, start = pad_left(prompts, device)
        group = torch.arange(len(prompts), device=device).repeat_interleave(group_size)
        lengths = torch.tensor([len(r) for r in responses], device=device)
        mask = torch.arange(max(map(len, responses)), device=device) < lengths[:, None]
        ids = torch.zeros(mask.shape, dtype=torch.long, device=device)
        ids[mask] = torch.tensor([i for r in responses for i in r], device=device)
        return cls(prompt_ids[group], start[group], group, ids, mask)

    @property
    def lengths(self):
        return self.response_mask.sum(1)  # (N,) response tokens, EOS included

    def rows(self, index):
        """The rollout of rows `index` (M,), without the columns that none of them uses."""
        T = max(1, int(self.lengths[index].max()))
        first = int(self.prompt_start[index].min())
        new = {f.name: x[index] if x.dim() == 1 else x[index, :T] for f in fields(self)
               if torch.is_tensor(x := getattr(self, f.name))}
        return replace(self, **new | {"prompt_ids": self.prompt_ids[index, first:],
                                      "prompt_start": self.prompt_start[index] - first})

    def micro_batches(self, tokens, keep=None):
        """Row indices in pieces of at most `tokens` padded tokens, rows of like length together.

        keep (N,) bool: rows that need no gradient are left out. A row longer than `tokens` is a piece of its own."""
        lengths = (self.lengths + self.prompt_ids.shape[1]).tolist()
        pieces = []
        for i in sorted(range(len(lengths)), key=lengths.__getitem__):
            if keep is None or keep[i]:
                if not pieces or lengths[i] * (len(pieces[-1]) + 1) > tokens:
                    pieces.append([])
                pieces[-1].append(i)
        return [torch.tensor(piece, device=self.response_ids.device) for piece in pieces]


def pad_left(prompts, device):
    """Lists of ids of any lengths -> ids (B, P), start (B,)."""
    P = max(map(len, prompts))
    ids = torch.tensor([[0] * (P - len(p)) + list(p) for p in prompts], device=device)
    return ids, torch.tensor([P - len(p) for p in prompts], device=device)


def shares(columns, group_size, device):
    """Whether rows of prompts of so many columns share their cache."""
    return group_size > 1 and columns >= SHARE[device]


def run_prompts(model, prompt_ids, start):
    """Prompts (B, P) through the model -> hidden of their last token (B, 1, C), and the cache to go on from."""
    ragged = bool(start.any())
    cache = KVCache(model.config.n_layer, start if ragged else None)
    return model(prompt_ids, cache)[:, -1:], cache


def draw(logits, u, temperature):
    """logits (M, V), u (M,) uniforms in [0, 1) -> tokens (M,), log-probs (M,) fp32, by inverse CDF; greedy at 0."""
    if temperature == 0:
        best, token = logits.float().log_softmax(-1).max(-1)
        return token, best
    rows = CACHED // logits.shape[1] if logits.device.type == "cpu" else 0
    if 0 < rows < len(logits):        # a few rows at a time stay in the processor's cache: 6 times faster
        return tuple(map(torch.cat, zip(*map(draw, logits.split(rows), u.split(rows), repeat(temperature)))))
    logprobs = (logits.float() / temperature).log_softmax(-1)
    cdf = logprobs.exp().cumsum(-1, dtype=torch.float64)
    # right=True: u = 0 must not return a first token of probability 0
    token = torch.searchsorted(cdf, u[:, None].double() * cdf[:, -1:], right=True).clamp(max=logits.shape[1] - 1)
    return token[:, 0], logprobs.gather(1, token)[:, 0]


def uniforms(prompts, group_size, columns, seed):
    """The table u (N, columns) in [0, 1): a row depends on the seed, its prompt and its place in the group only.

    The groups of a prompt that stands twice are one group of twice the size: no response comes twice."""
    table, places = [], Counter()
    for prompt in map(str, map(list, prompts)):
        for place in range(places[prompt], places[prompt] + group_size):
            generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {place} {prompt}".encode()))
            table.append(torch.rand(columns, generator=generator))
        places[prompt] += group_size
    return torch.stack(table)


class Recorded:
    """`model(token, cache)` for CUDA, where the host takes longer to launch the small kernels of one token than the GPU
    to run them: they are recorded once as a graph, and replayed until the room in the cache is used up."""

    def __init__(self, model, cache):
        self.model, self.cache, self.token, self.graph = model, cache, None, None

    def __call__(self, token):
        """token (M, 1) -> hidden (M, 1, C), which the next call overwrites."""
        if self.token is None:                    # the first runs as it is: what it sets up must not be recorded
            self.token = token.clone()
            return self.model(token, self.cache)
        self.token.copy_(token)
        if self.graph is None:
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.hidden = self.model(self.token, self.cache)
        self.graph.replay()
        return self.hidden


@torch.no_grad()
def sample(model, prompts, group_size, max_new_tokens, temperature=1.0, eos_id=None, seed=0):
    """group_size responses to each of `prompts` (lists of ids of any lengths) -> Rollout.

    eos_id: an id, several, or None (every response has max_new_tokens). temperature 0 is greedy, for evaluation.
    Raises ValueError when a prompt is empty or leaves no room in the model's context."""
    longest, context, device = max(map(len, prompts)), model.config.max_seq_len, model.head.device
    if min(map(len, prompts)) == 0:
        raise ValueError("empty prompt")
    if longest + max_new_tokens > context:
        raise ValueError(f"prompt of {longest} tokens + {max_new_tokens} new ones > the model's context of {context}")
    B, N, T = len(prompts), len(prompts) * group_size, max_new_tokens
    prompt_ids, start = pad_left(prompts, device)
    group = torch.arange(B, device=device).repeat_interleave(group_size)
    uniform = uniforms(prompts, group_size, T, seed).to(device)
    ends = torch.zeros(model.config.vocab_size, dtype=torch.bool, device=device)
    if eos_id is not None:
        ends[eos_id] = True
    ids = torch.zeros(N, T, dtype=torch.long, device=device)
    mask = torch.zeros(N, T, dtype=torch.bool, device=device)
    old = torch.zeros(N, T, device=device)

    hidden, cache = run_prompts(model, prompt_ids, start)
    hidden, cache = hidden[group], GroupCache(cache, shares(longest, group_size, device.type))
    row = torch.arange(N, device=device)                                        # (M,) which row each live one is
    alive = torch.ones(N, dtype=torch.bool, device=device)                      # (M,)
    for t in range(T):
        token, logprob = draw(model.logits(hidden[:, -1]), uniform[row, t], temperature)
        ids[row, t], old[row, t], mask[row, t] = token * alive, logprob * alive, alive
        alive = alive & ~ends[token]
        if t == T - 1:
            break
        if t % BLOCK[device.type] == 0:           # the one host round trip: who is left?
            left = alive.nonzero()[:, 0]
            if len(left) == 0:
                break
            row, token, alive = row[left], token[left], alive[left]
            cache.move(left if t else group[left], min(BLOCK[device.type], T - t))
            decode = Recorded(model, cache) if device.type == "cuda" else partial(model, cache=cache)
        hidden = decode(token[:, None])
    T = int(mask.sum(1).max())
    return Rollout(prompt_ids[group], start[group], group, ids[:, :T], mask[:, :T], old[:, :T], temperature)
