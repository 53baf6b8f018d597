"""The transformer, a decoder of the Llama / Qwen family, and its KV cache.

RMSNorm, rotary positions (the "rotate half" form), grouped-query attention, SwiGLU. `forward` returns hidden states,
not logits: whoever needs log-probabilities says of which positions (see logprobs.py), so that the vocabulary-sized
table is never made for prompts and padding.

    N rows, S columns run now, K columns attended to, C width, H query heads, J key/value heads, D head width

Padding is on the left and is tracked by position (`start`, the first real column of each row), never by token id.
What this file does not do: dropout (a policy must give the same log-probability twice), learned positions, sampling.
"""
from dataclasses import dataclass, replace

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

import pretrained


@dataclass
class GPTConfig:
    vocab_size: int = 512
    n_layer: int = 4
    n_head: int = 4
    n_kv_head: int = 4            # fewer than n_head: grouped-query attention
    n_embd: int = 128
    n_hidden: int = 320           # width inside the SwiGLU
    head_dim: int = 0             # 0: n_embd // n_head
    rope_theta: float = 10000.0
    rope_scaling: dict = None     # Llama 3.1: the numbers of pretrained.LLAMA3, as in the public config.json
    norm_eps: float = 1e-6
    qkv_bias: bool = False        # Qwen2
    qk_norm: bool = False         # Qwen3
    tie_embeddings: bool = True
    max_seq_len: int = 512

    def __post_init__(self):
        self.head_dim = self.head_dim or self.n_embd // self.n_head
        if self.n_head % self.n_kv_head:
            raise ValueError(f"n_head {self.n_head} is not a multiple of n_kv_head {self.n_kv_head}")


class KVCache:
    """Keys and values of the columns run so far, one (N, J, columns, D) pair a layer.

    It grows by `cat`, which gradients flow through."""

    def __init__(self, n_layer, start=None):
        self.layers = [None] * n_layer
        self.start = start        # (N,) first real column of each row; None: no row is padded

    @property
    def columns(self):
        return self.layers[0][0].shape[2] if self.layers[0] else 0

    def append(self, layer, pair, k, v):
        """k, v (N, J, S, D) of the newest columns -> all keys and values (N, J, K, D).

        pair: what the layer held before; a block that is run again for its backward pass appends to the same."""
        self.layers[layer] = tuple(torch.cat(x, 2) for x in zip(pair, (k, v))) if pair else (k, v)
        return self.layers[layer]

    def select(self, rows):
        """The cache of `rows` (M,) int64, which may repeat rows (a prompt's cache for its whole group) or drop them."""
        new = KVCache(len(self.layers), None if self.start is None else self.start[rows])
        # index_select: the gradient of x[rows] is summed by several threads in any order
        new.layers = [tuple(x.index_select(0, rows) for x in pair) for pair in self.layers]
        return new


class GroupCache:
    """The cache of sampling: M rows, one new token each, no gradient.

    A row's keys and values are written in place at `column`, a tensor, so that a CUDA graph of one token serves for the
    next. All columns are read, the free ones under a mask: with no gaps in memory that takes a CPU half the time.
    Those of the prompts may be shared: held once, and read once for all rows of a prompt, whose queries are the rows of
    one product (bifurcated attention, arXiv 2403.08845)."""

    def __init__(self, prompts, share):
        """prompts: the KVCache of B prompts, the rows until the first `move`."""
        self.prompts, self.start, self.shared = prompts, prompts.start, prompts.columns if share else 0
        self.layers = [tuple(x[:, :, self.shared:] for x in pair) for pair in prompts.layers]   # the rows' own columns
        self.columns, first = prompts.columns, prompts.layers[0][0]
        self.row = torch.arange(len(first), device=first.device)                               # (M,) prompt of each row
        self.column = torch.full((1,), self.columns, device=self.row.device)                    # the first free one

    def move(self, rows, columns):
        """Rows `rows` (M,) are left, ascending, with room for `columns` more; a prompt's row may stand many times. No
        column may be free."""
        for i, pair in enumerate(self.layers):            # one by one, so that the cache is never held twice
            self.layers[i] = tuple(F.pad(x.index_select(0, rows), (0, 0, 0, columns)) for x in pair)
        self.columns += columns
        self.start = None if self.start is None else self.start[rows]
        left, self.row = self.row[rows].unique(return_inverse=True)
        if self.shared:           # a table (B, J, most): which head of which row (i * J + j) stands where; its place
            self.prompts, J = self.prompts.select(left), self.layers[0][0].shape[1]             # a copy has no gaps
            i = torch.arange(len(rows), device=rows.device).split(self.row.bincount().tolist())
            i = nn.utils.rnn.pad_sequence(i, batch_first=True, padding_value=-1)                # (B, most)
            self.table = i.clamp(min=0)[:, None] * J + torch.arange(J, device=rows.device)[:, None]
            self.place = torch.arange(self.table.numel(), device=i.device).view_as(self.table).mT[i >= 0].flatten()

    def attention(self, layer, q, k, v, attend):
        """q (M, H, 1, D), k and v (M, J, 1, D) of the new token, attend (M, 1, 1, K) bool -> (M * J, H/J, D), fp32."""
        for x, new in zip(self.layers[layer], (k, v)):
            x.index_copy_(2, self.column - self.shared, new)
        J, (k, v), prompt = k.shape[1], (x.flatten(0, 1) for x in self.layers[layer]), self.prompts.layers[layer]
        # the query heads of a key head are rows of one product: no key is repeated
        q = (q * q.shape[-1] ** -0.5).reshape(len(k), -1, q.shape[-1])                          # (M * J, H/J, D)
        scores = product(q, k.mT)
        if self.shared:
            scores = torch.cat((self.by_prompt(q, prompt[0].mT), scores), -1)
        p = torch.where(attend, scores.unflatten(0, (-1, J)), -torch.inf).softmax(-1).flatten(0, 1).to(v.dtype)
        y = product(p[..., self.shared:], v)
        return y + self.by_prompt(p[..., :self.shared], prompt[1]) if self.shared else y

    def by_prompt(self, x, y):
        """x (M * J, h, n) times its prompt's y (B, J, n, m) -> (M * J, h, m)."""
        x, y = x.index_select(0, self.table.flatten()), y.flatten(0, 1)                         # (B * J * most, h, n)
        return product(x.view(len(y), -1, x.shape[2]), y).view(*x.shape[:2], -1).index_select(0, self.place)


def product(a, b):
    """a @ b in at least fp32: two matrices, or two stacks of as many."""
    wide = torch.promote_types(a.dtype, torch.float32)
    with torch.autocast(a.device.type, enabled=False):        # a backward pass may be called under it
        if not a.is_cuda or a.dtype == wide:
            return a.to(wide) @ b.to(wide)
        return (torch.mm if a.dim() == 2 else torch.bmm)(a, b, out_dtype=wide)


def rotate(x, cos, sin):
    """Rotary position embedding (Su et al. 2021, arXiv 2104.09864, eq. 34, its pairs being i and i + D/2) of x
    (N, heads, S, D)."""
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-b, a), dim=-1) * sin


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config, D = config, config.head_dim
        self.q_proj = nn.Linear(config.n_embd, config.n_head * D, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.n_embd, config.n_kv_head * D, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.n_embd, config.n_kv_head * D, bias=config.qkv_bias)
        self.o_proj = nn.Linear(config.n_head * D, config.n_embd, bias=False)
        if config.qk_norm:
            self.q_norm, self.k_norm = nn.RMSNorm(D, config.norm_eps), nn.RMSNorm(D, config.norm_eps)

    def forward(self, x, cos, sin, attend, cache, pair, layer):
        N, S, _ = x.shape
        q = self.q_proj(x).view(N, S, -1, self.config.head_dim)                                 # (N, S, H, D)
        k = self.k_proj(x).view(N, S, -1, self.config.head_dim)                                 # (N, S, J, D)
        v = self.v_proj(x).view(N, S, -1, self.config.head_dim).transpose(1, 2)                 # (N, J, S, D)
        if self.config.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotate(q.transpose(1, 2), cos, sin), rotate(k.transpose(1, 2), cos, sin)
        # under autocast k is fp32, rotated by fp32 tables; torch's attention in bf16 is the fast one on CUDA only
        q, k, v = (y.to(v.dtype if v.is_cuda else x.dtype) for y in (q, k, v))
        if isinstance(cache, GroupCache):
            return self.o_proj(cache.attention(layer, q, k, v, attend).reshape(N, S, -1).to(x.dtype))
        if cache is not None:
            k, v = cache.append(layer, pair, k, v)                                              # (N, J, K, D)
        with torch.autocast(x.device.type, enabled=False):
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=attend, is_causal=attend is None and S > 1,
                                               enable_gqa=q.shape[1] != k.shape[1])
        return self.o_proj(y.transpose(1, 2).reshape(N, S, -1))


class SwiGLU(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.gate_proj = nn.Linear(config.n_embd, config.n_hidden, bias=False)
        self.up_proj = nn.Linear(config.n_embd, config.n_hidden, bias=False)
        self.down_proj = nn.Linear(config.n_hidden, config.n_embd, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.n_embd, config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.n_embd, config.norm_eps)
        self.mlp = SwiGLU(config)

    def forward(self, x, *attention):
        x = x + self.self_attn(self.input_layernorm(x), *attention)
        return x + self.mlp(self.post_attention_layernorm(x))


class GPT(nn.Module):
    recompute = False             # keep only the input of each block for the backward pass, and run it again there

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.n_embd)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = nn.RMSNorm(config.n_embd, config.norm_eps)
        self.lm_head = None if config.tie_embeddings else nn.Linear(config.n_embd, config.vocab_size, bias=False)
        # fp32 tables of all positions: 134 MB for 131,072 and D 128. On the CPU even if the weights are on "meta"
        freq = config.rope_theta ** (-torch.arange(0, config.head_dim, 2, device="cpu").float() / config.head_dim)
        if config.rope_scaling:                   # long waves are slowed down, short ones kept, those between blended
            factor, low, high, length = (config.rope_scaling[name] for name in pretrained.LLAMA3)
            keep = ((length * freq / (2 * torch.pi) - low) / (high - low)).clamp(0, 1)
            freq = freq * (keep + (1 - keep) / factor)
        angle = torch.outer(torch.arange(config.max_seq_len, device="cpu").float(), freq).repeat(1, 2)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)
        for name, p in self.named_parameters():
            if p.dim() == 2:                      # GPT-2's rule: what adds to the residual stream starts smaller
                residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(p, std=0.02 / (2 * config.n_layer) ** 0.5 if residual else 0.02)

    def forward(self, ids, cache=None, start=None):
        """ids (N, S) int64 -> hidden (N, S, C), after the last norm.

        cache: a KVCache that these columns extend. start (N,): the first real column of each left-padded row
        (taken from the cache where there is one). Raises ValueError past max_seq_len."""
        S, past = ids.shape[1], cache.columns if cache else 0
        start = cache.start if cache else start
        in_place = isinstance(cache, GroupCache)
        K = past if in_place else past + S
        if K > self.config.max_seq_len:
            raise ValueError(f"{K} columns, but the model's context is {self.config.max_seq_len}")
        column = torch.arange(S, device=ids.device) + (cache.column if in_place else past)      # (S,)
        attend = None
        if start is None:
            cos, sin = self.cos[column], self.sin[column]                                       # (S, D)
        else:
            position = (column - start[:, None]).clamp(min=0)                                   # (N, S)
            cos, sin = self.cos[position][:, None], self.sin[position][:, None]                 # (N, 1, S, D)
        if start is not None or in_place or (past and S > 1):
            key = torch.arange(K, device=ids.device)
            attend = key <= column[:, None]                                                     # (S, K)
            if start is not None:                 # a padding query sees itself, so that its softmax is not 0/0
                real = key >= start[:, None, None]                                              # (N, 1, K)
                attend = (attend & real | (key == column[:, None]))[:, None]                    # (N, 1, S, K)
        x = self.embed_tokens(ids)
        for i, block in enumerate(self.layers):
            rest = cos, sin, attend, cache, cache and cache.layers[i], i
            again = self.recompute and torch.is_grad_enabled()
            x = checkpoint(block, x, *rest, use_reentrant=False) if again else block(x, *rest)
        if in_place:
            cache.column += S
        return self.norm(x)

    @property
    def head(self):
        """The (V, C) matrix that turns hidden states into logits."""
        return self.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    def logits(self, hidden):
        return F.linear(hidden, self.head)

    def save(self, folder):
        """config.json and model.safetensors in the public format, each written whole or not at all."""
        pretrained.save(self, folder)

    @classmethod
    def load(cls, folder, weights=True):
        """A model, fp32, from a folder of the public format; with random weights if `weights` is false. ValueError
        names the file, the tensor or the setting of config.json that does not fit."""
        with torch.device("meta" if weights else "cpu"):      # no time for random weights that are replaced
            model = cls(pretrained.load_config(GPTConfig, folder))
        if weights:
            pretrained.load_weights(model, folder)
        return model


class Critic(GPT):
    """V(state): as large as the policy and starting from its weights, with one number in place of the logits, 0 at
    first. It shares nothing with the policy."""

    def __init__(self, policy):
        super().__init__(replace(policy.config, tie_embeddings=True))
        self.load_state_dict(policy.state_dict(), strict=False)
        self.value_head = nn.Linear(policy.config.n_embd, 1)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)
        self.to(policy.head)

    def value(self, hidden):
        """hidden (N, S, C), each state from `forward` -> V (N, S), fp32."""
        return (hidden * self.value_head.weight[0]).sum(-1) + self.value_head.bias
