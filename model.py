"""The transformer, a decoder of the Llama / Qwen family, and its KV caches.

RMSNorm, rotary positions (the "rotate half" form), grouped-query attention, SwiGLU. `forward`
returns hidden states, not logits: logprobs.py makes the logits of response tokens only.

    N rows, S columns run now, K columns attended to, C width,
    H query heads, J key/value heads, D head width

Padding is on the left and is tracked by position (`start`, the first real column of each row),
never by token id. There is no dropout: a policy must give the same log-probability twice.
"""

import copy
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint as recompute_block

from plumbing import checkpoint

torch.backends.cuda.enable_cudnn_sdp(False)  # the kernel that plans, see KVCache.attention


@dataclass
class GPTConfig:
    vocab_size: int = 512
    n_layer: int = 4
    n_head: int = 4
    n_kv_head: int = 4  # fewer than n_head: grouped-query attention
    n_embd: int = 128
    n_hidden: int = 320  # width inside the SwiGLU
    head_dim: int = 0  # 0: n_embd // n_head
    rope_theta: float = 10000.0
    rope_scaling: dict = None  # Llama 3.1's, with the names of the public config.json
    norm_eps: float = 1e-6
    qkv_bias: bool = False  # Qwen2
    qk_norm: bool = False  # Qwen3
    tie_embeddings: bool = True
    max_seq_len: int = 512

    def __post_init__(self):
        if self.head_dim == 0:
            self.head_dim = self.n_embd // self.n_head
        if self.n_head % self.n_kv_head != 0:
            raise ValueError(f"n_head {self.n_head}: not a multiple of n_kv_head {self.n_kv_head}")


# --- The caches -------------------------------------------------------------------------------


class KVCache:
    """Keys and values of the columns run so far: one pair of (N, J, columns, D) a layer.

    It grows by concatenation, which gradients flow through."""

    def __init__(self, n_layer, start=None):
        self.layers = [None] * n_layer
        self.start = start  # (N,) first real column of each row; None: no row is padded

    @property
    def columns(self):
        return 0 if self.layers[0] is None else self.layers[0][0].shape[2]

    def advance(self, S, device):
        """-> the columns of S new tokens (S,), and K, how many columns there are with them."""
        past = self.columns
        return torch.arange(S, device=device) + past, past + S

    def attention(self, layer, past, q, k, v, mask):
        """New q (N, H, S, D), k, v (N, J, S, D); past: the layer's pair -> y (N, S, H * D)."""
        if past is not None:
            k = torch.cat((past[0], k), 2)  # (N, J, K, D)
            v = torch.cat((past[1], v), 2)
        self.layers[layer] = (k, v)
        if q.is_cuda:  # whose kernels either take no groups or plan 0.1 s for each new shape
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        grouped = q.shape[1] != k.shape[1]
        with torch.autocast(q.device.type, enabled=False):
            y = F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=grouped
            )
        return y.transpose(1, 2).flatten(2)

    def select(self, rows):
        """The cache of `rows` (M,), which may repeat rows (a prompt for its group) or drop them."""
        selected = KVCache(len(self.layers), None if self.start is None else self.start[rows])
        # index_select, because the backward pass of x[rows] is not deterministic
        for layer, (k, v) in enumerate(self.layers):
            selected.layers[layer] = (k.index_select(0, rows), v.index_select(0, rows))
        return selected

    def decoding(self):
        """A cache to sample on from these prompts."""
        return DecodingCache(self)


class DecodingCache:
    """The cache of the sampler: one new token a row and call, no gradient.

    Memory for more columns is allocated beforehand, and keys and values are written in place at
    `column`. It is a tensor, so that the CUDA graph of one token can be replayed for the next. All
    columns are read; the free ones are masked."""

    def __init__(self, prompts):
        self.start = prompts.start
        self.columns = prompts.columns
        self.layers = list(prompts.layers)
        device = prompts.layers[0][0].device
        self.column = torch.full((1,), self.columns, device=device)  # the first free column

    def compact(self, rows, room):
        """Keeps `rows` (M,), ascending, and adds `room` free columns when none is left.

        At first the rows are the prompts: there a row stands once for each response."""
        for layer, (k, v) in enumerate(self.layers):  # one by one: the cache is never held twice
            k = F.pad(k.index_select(0, rows), (0, 0, 0, room))
            v = F.pad(v.index_select(0, rows), (0, 0, 0, room))
            self.layers[layer] = (k, v)
        self.columns += room
        if self.start is not None:
            self.start = self.start[rows]

    def advance(self, S, device):
        """-> the column of the new token (1,), and K, how many there are, free ones included."""
        self.new_column = self.column.clone()
        self.column += S
        return self.new_column, self.columns

    def attention(self, layer, past, q, k, v, mask):
        """A new token's q (M, H, 1, D), k, v (M, J, 1, D); past: as above -> (M, 1, H * D)."""
        M, J, _, D = k.shape
        past[0].index_copy_(2, self.new_column, k)
        past[1].index_copy_(2, self.new_column, v)
        keys, values = past[0].flatten(0, 1), past[1].flatten(0, 1)  # (M * J, K, D)
        # the query heads of a key head are the rows of one product: no key is repeated
        q_rows = (q * D**-0.5).reshape(M * J, -1, D)  # (M * J, H / J, D)
        scores = product(q_rows, keys.mT).view(M, J, -1, self.columns)
        p = torch.where(mask, scores, -torch.inf).softmax(-1).flatten(0, 1)
        return product(p.to(v.dtype), values).reshape(M, 1, -1).to(q.dtype)


def product(a, b):
    """a @ b in at least fp32: two matrices, or two stacks of as many."""
    wide = torch.promote_types(a.dtype, torch.float32)
    with torch.autocast(a.device.type, enabled=False):  # a backward pass may be called under it
        if a.dtype == wide:
            return a @ b
        if a.is_cuda:
            multiply = torch.mm if a.dim() == 2 else torch.bmm
            return multiply(a, b, out_dtype=wide)
        # a CPU's units for bf16 add up in fp32, too
        precision = "bf16" if a.dtype == torch.bfloat16 else "none"
        with torch.backends.mkldnn.flags(True, allow_tf32=None, fp32_precision=precision):
            return a.to(wide) @ b.to(wide)


# --- The transformer --------------------------------------------------------------------------


def rotary_tables(config):
    """cos and sin (max_seq_len, D), fp32, on the CPU even where the weights are made on "meta".

    The first half of sin is negative: it is for the second half of x, which takes its place."""
    D = config.head_dim
    frequency = config.rope_theta ** (-torch.arange(0, D, 2, device="cpu").float() / D)
    scaling = config.rope_scaling
    if scaling:  # Llama 3.1: long waves are slowed down, short ones kept, those between blended
        low = scaling["low_freq_factor"]
        high = scaling["high_freq_factor"]
        turns = scaling["original_max_position_embeddings"] * frequency / (2 * torch.pi)
        short = ((turns - low) / (high - low)).clamp(0, 1)
        frequency = frequency * (short + (1 - short) / scaling["factor"])
    position = torch.arange(config.max_seq_len, device="cpu").float()
    angle = torch.outer(position, frequency)
    return angle.cos().repeat(1, 2), torch.cat((-angle, angle), 1).sin()


def rotate(x, cos, sin):
    """Rotary position embedding (arXiv 2104.09864, eq. 34) of x (N, heads, S, D)."""
    return x * cos + x.roll(x.shape[-1] // 2, -1) * sin


def causal_mask(column, K, start):
    """Which of K columns the queries at `column` (S,) may see: (S, K), with padding (N, 1, S, K).

    None: all up to its own, as in plain causal attention."""
    if start is None and len(column) == K:
        return None
    key = torch.arange(K, device=column.device)
    mask = key <= column[:, None]  # (S, K)
    if start is None:
        return mask
    real = key >= start[:, None, None]  # (N, 1, K)
    itself = key == column[:, None]  # padding sees itself: no NaN from an empty softmax
    return (mask & real | itself)[:, None]


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        D = config.head_dim
        self.q_proj = nn.Linear(config.n_embd, config.n_head * D, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.n_embd, config.n_kv_head * D, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.n_embd, config.n_kv_head * D, bias=config.qkv_bias)
        self.o_proj = nn.Linear(config.n_head * D, config.n_embd, bias=False)
        if config.qk_norm:
            self.q_norm = nn.RMSNorm(D, config.norm_eps)
            self.k_norm = nn.RMSNorm(D, config.norm_eps)

    def forward(self, x, cos, sin, mask, cache, layer, past):
        N, S, _ = x.shape
        D = self.config.head_dim
        q = self.q_proj(x).view(N, S, self.config.n_head, D)  # (N, S, H, D)
        k = self.k_proj(x).view(N, S, self.config.n_kv_head, D)  # (N, S, J, D)
        v = self.v_proj(x).view(N, S, self.config.n_kv_head, D).transpose(1, 2)  # (N, J, S, D)
        if self.config.qk_norm:
            q = self.q_norm(q)
            k = self.k_norm(k)
        q = rotate(q.transpose(1, 2), cos, sin)  # (N, H, S, D)
        k = rotate(k.transpose(1, 2), cos, sin)  # (N, J, S, D)
        # under autocast the fp32 tables made q and k fp32; bf16 attention is faster on CUDA only.
        # softmax(q k) v is in the cache, since decoding does it in place
        dtype = v.dtype if v.is_cuda else x.dtype
        y = cache.attention(layer, past, q.to(dtype), k.to(dtype), v.to(dtype), mask)
        return self.o_proj(y)


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
    recompute = False  # activation checkpointing: each block runs again in the backward pass

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.n_embd)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = nn.RMSNorm(config.n_embd, config.norm_eps)
        self.lm_head = None
        if not config.tie_embeddings:
            self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        cos, sin = rotary_tables(config)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                std = 0.02
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    std /= (2 * config.n_layer) ** 0.5  # GPT-2's scale of residual projections
                nn.init.normal_(p, std=std)

    def new_cache(self, start=None):
        """An empty cache. start (N,): the first real column of each left-padded row."""
        return KVCache(self.config.n_layer, start)

    def forward(self, ids, cache=None):
        """ids (N, S) int64 -> hidden (N, S, C), after the last norm. A cache grows by S columns.

        Raises ValueError past max_seq_len."""
        if cache is None:
            cache = self.new_cache()
        column, K = cache.advance(ids.shape[1], ids.device)
        if K > self.config.max_seq_len:
            raise ValueError(f"{K} columns, but the model's context is {self.config.max_seq_len}")
        if cache.start is None:
            cos, sin = self.cos[column], self.sin[column]  # (S, D)
        else:
            position = (column - cache.start[:, None]).clamp(min=0)  # (N, S)
            cos = self.cos[position][:, None]  # (N, 1, S, D)
            sin = self.sin[position][:, None]
        mask = causal_mask(column, K, cache.start)
        x = self.embed_tokens(ids)
        for i, block in enumerate(self.layers):
            # the past is an argument: a block that runs again in the backward pass sees the same
            arguments = (x, cos, sin, mask, cache, i, cache.layers[i])
            if self.recompute and torch.is_grad_enabled():
                x = recompute_block(block, *arguments, use_reentrant=False)
            else:
                x = block(*arguments)
        return self.norm(x)

    @property
    def head(self):
        """The (V, C) matrix that turns hidden states into logits."""
        return self.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    def logits(self, hidden):
        return F.linear(hidden, self.head)

    def save(self, folder):
        """Writes config.json and model.safetensors in the public format."""
        checkpoint.save(self, folder)

    @classmethod
    def load(cls, folder, weights=True):
        """A model, fp32, from a folder of the public format. weights=False: random weights.

        ValueError names the file, the tensor or the setting of config.json that does not fit."""
        config = GPTConfig(**checkpoint.load_config(folder))
        if not weights:
            return cls(config)
        with torch.device("meta"):  # no time is spent on random weights
            model = cls(config)
        checkpoint.load_weights(model, folder)
        return model


class Critic(nn.Module):
    """V(state): a copy of the policy with one number in place of the logits, 0 at first."""

    def __init__(self, policy):
        super().__init__()
        self.config = policy.config
        self.body = copy.deepcopy(policy)
        self.body.lm_head = None
        self.value_head = nn.Linear(policy.config.n_embd, 1).to(policy.head)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)

    @property
    def head(self):
        return self.value_head.weight

    def new_cache(self, start=None):
        return self.body.new_cache(start)

    def forward(self, ids, cache=None):
        return self.body(ids, cache)

    def value(self, hidden):
        """hidden (N, S, C), each state from `forward` -> V (N, S), fp32."""
        return (hidden * self.value_head.weight[0]).sum(-1) + self.value_head.bias
