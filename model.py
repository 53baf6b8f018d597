"""The transformer: a decoder of the Llama / Qwen family, its KV cache, and its checkpoint folder.

RMSNorm, rotary positions (the "rotate half" form), grouped-query attention, SwiGLU. `forward` returns hidden states,
not logits: whoever needs log-probabilities says of which positions (see logprobs.py), so that the vocabulary-sized
table is never made for prompts and padding.

    N rows, S columns run now, K columns attended to, C width, H query heads, J key/value heads, D head width

Padding is on the left and is tracked by position (`start`, the first real column of each row), never by token id.
What this file does not do: dropout (a policy must give the same log-probability twice), learned positions, sampling.
"""
import json
import os
from dataclasses import dataclass, replace

import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file


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
    rope_scaling: dict = None     # Llama 3.1: the four numbers of LLAMA3, as in the public config.json
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
    """Keys and values of the columns run so far: one (N, J, columns, D) pair a layer.

    With `room` the cache owns that many columns up front and writes in place (sampling); without, it grows by `cat`,
    which gradients flow through (training)."""

    def __init__(self, n_layer, start=None):
        self.layers = [None] * n_layer
        self.start = start        # (N,) first real column of each row; None: no row is padded
        self.length = 0           # columns that hold something
        self.room = 0

    def append(self, layer, k, v):
        """k, v (N, J, S, D) of the newest columns -> all keys and values so far (N, J, K, D)."""
        if self.layers[layer] is not None:
            keys, values = self.layers[layer]
            if not self.room:
                k, v = torch.cat((keys, k), 2), torch.cat((values, v), 2)
                self.layers[layer] = k, v
                return k, v
            end = self.length + k.shape[2]
            keys[:, :, self.length:end] = k
            values[:, :, self.length:end] = v
            return keys[:, :, :end], values[:, :, :end]
        self.layers[layer] = k, v
        return k, v

    def select(self, rows, room=0):
        """The cache of `rows` (M,) int64, which may repeat rows (a prompt's cache for its whole group) or drop them."""
        new = KVCache(len(self.layers), None if self.start is None else self.start[rows])
        new.length, new.room = self.length, room
        for layer, pair in enumerate(self.layers):
            # index_select: the gradient of x[rows] is summed by several threads in any order
            picked = [x[:, :, :self.length].index_select(0, rows) for x in pair]
            new.layers[layer] = tuple(F.pad(x, (0, 0, 0, room)) for x in picked) if room else tuple(picked)
        return new


def rotate(x, cos, sin):
    """Rotary position embedding (Su et al. 2021, arXiv 2104.09864, eq. 34) of x (N, heads, S, D)."""
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

    def forward(self, x, cos, sin, attend, cache, layer):
        N, S, _ = x.shape
        q = self.q_proj(x).view(N, S, -1, self.config.head_dim)                                 # (N, S, H, D)
        k = self.k_proj(x).view(N, S, -1, self.config.head_dim)                                 # (N, S, J, D)
        v = self.v_proj(x).view(N, S, -1, self.config.head_dim).transpose(1, 2)                 # (N, J, S, D)
        if self.config.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotate(q.transpose(1, 2), cos, sin), rotate(k.transpose(1, 2), cos, sin)
        causal = attend is None and S > 1
        if cache is not None:
            k, v = cache.append(layer, k, v)                                                    # (N, J, K, D)
        grouped = self.config.n_head != self.config.n_kv_head
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=attend, is_causal=causal, enable_gqa=grouped)
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
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.n_embd)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = nn.RMSNorm(config.n_embd, config.norm_eps)
        self.lm_head = None if config.tie_embeddings else nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.make_tables()
        for name, p in self.named_parameters():
            if p.dim() == 2:                      # GPT-2's rule: what adds to the residual stream starts smaller
                residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(p, std=0.02 / (2 * config.n_layer) ** 0.5 if residual else 0.02)

    def make_tables(self):
        """cos and sin of every position, fp32: of 131,072 positions and D 128 they are 134 MB, of 8,192 and 64 4 MB."""
        config = self.config
        freq = config.rope_theta ** (-torch.arange(0, config.head_dim, 2).float() / config.head_dim)
        if config.rope_scaling:                   # long waves are slowed down, short ones kept, those between blended
            factor, low, high, length = (config.rope_scaling[name] for name in LLAMA3)
            keep = ((length * freq / (2 * torch.pi) - low) / (high - low)).clamp(0, 1)
            freq = freq * (keep + (1 - keep) / factor)
        angle = torch.outer(torch.arange(config.max_seq_len).float(), freq).repeat(1, 2)        # (max_seq_len, D)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def forward(self, ids, cache=None, start=None):
        """ids (N, S) int64 -> hidden (N, S, C), after the last norm.

        cache: a KVCache that these columns extend. start (N,): the first real column of each left-padded row
        (taken from the cache where there is one). Raises ValueError past max_seq_len."""
        past = cache.length if cache else 0
        start = cache.start if cache else start
        S, K = ids.shape[1], past + ids.shape[1]
        if K > self.config.max_seq_len:
            raise ValueError(f"{K} columns, but the model's context is {self.config.max_seq_len}")
        column = torch.arange(past, K, device=ids.device)                                       # (S,)
        attend = None
        if start is None:
            cos, sin = self.cos[column], self.sin[column]                                       # (S, D)
        else:
            position = (column - start[:, None]).clamp(min=0)                                   # (N, S)
            cos, sin = self.cos[position][:, None], self.sin[position][:, None]                 # (N, 1, S, D)
        if start is not None or (past and S > 1):
            key = torch.arange(K, device=ids.device)
            attend = key <= column[:, None]                                                     # (S, K)
            if start is not None:                 # a padding query sees itself, so that its softmax is not 0/0
                real = key >= start[:, None, None]                                              # (N, 1, K)
                attend = (attend & real | (key == column[:, None]))[:, None]                    # (N, 1, S, K)
        x = self.embed_tokens(ids)
        for i, block in enumerate(self.layers):
            x = block(x, cos, sin, attend, cache, i)
        if cache:
            cache.length = K
        return self.norm(x)

    @property
    def head(self):
        """The (V, C) matrix that turns hidden states into logits."""
        return self.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    def logits(self, hidden):
        return F.linear(hidden, self.head)

    def save(self, folder):
        """config.json and model.safetensors, in the names of the public format, each written whole or not at all."""
        os.makedirs(folder, exist_ok=True)
        config = {public: getattr(self.config, ours) for ours, public in PUBLIC_NAMES.items()}
        family = "qwen3" if self.config.qk_norm else "qwen2" if self.config.qkv_bias else "llama"
        config |= {"model_type": family, "architectures": [family.capitalize() + "ForCausalLM"],
                   "rope_scaling": self.config.rope_scaling}
        names = {public_tensor(name): p.detach().contiguous() for name, p in self.state_dict().items()}
        path = os.path.join(folder, "config.json")
        with open(path + ".tmp", "w") as f:
            json.dump(config, f, indent=1)
        os.replace(path + ".tmp", path)
        path = os.path.join(folder, "model.safetensors")
        save_file(names, path + ".tmp", metadata={"format": "pt"})
        os.replace(path + ".tmp", path)

    @classmethod
    def load(cls, folder):
        """A model, fp32, from a folder of ours or of the public format, with room for one tensor beside it.

        ValueError names the file, the tensor or the setting of config.json that does not fit."""
        with torch.device("meta"):                # no time for random weights
            model = cls(load_config(folder))
        model.to_empty(device="cpu").make_tables()
        want, extra = {public_tensor(name): p for name, p in model.state_dict().items()}, {}
        for path, name, tensor in read_tensors(folder):
            p = want.pop(name, None)
            if p is None:
                extra[name] = tensor
            elif p.shape != tensor.shape or not tensor.is_floating_point():
                raise ValueError(f"{path}: {name} is {tensor.dtype} {list(tensor.shape)}, "
                                 f"config.json says floats {list(p.shape)}")
            else:
                p.data.copy_(tensor)
        for name in sorted(want):
            raise ValueError(f"{path}: tensor {name} is missing")
        for name, tensor in extra.items():        # a tied head must be what it is tied to
            tied = name == "lm_head.weight" and model.lm_head is None and torch.equal(tensor.float(), model.head)
            if not tied and not name.endswith("rotary_emb.inv_freq"):
                raise ValueError(f"{folder}: tensor {name} is not part of the model that config.json describes")
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


PUBLIC_NAMES = dict(vocab_size="vocab_size", n_layer="num_hidden_layers", n_head="num_attention_heads",
                    n_kv_head="num_key_value_heads", n_embd="hidden_size", n_hidden="intermediate_size",
                    head_dim="head_dim", rope_theta="rope_theta", norm_eps="rms_norm_eps",
                    tie_embeddings="tie_word_embeddings", max_seq_len="max_position_embeddings")

LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
# Settings of a config.json that would make it another model, with the one value (as good as none) that does not.
PLAIN = dict(hidden_act="silu", attention_bias=False, mlp_bias=False, use_sliding_window=False, rope_type="default",
             partial_rotary_factor=1, rope_interleaved=False)


def public_tensor(name):
    return name if name.startswith("lm_head") else "model." + name


def read_tensors(folder):
    """(path, name, tensor) one by one: of model.safetensors, else of the shards in its index, else of all shards."""
    path = os.path.join(folder, "model.safetensors.index.json")
    try:
        files = [name for name in os.listdir(folder) if name.endswith(".safetensors")]
        if "model.safetensors" in files or not files:
            files = ["model.safetensors"]
        elif os.path.exists(path):
            with open(path) as f:
                files = set(json.load(f)["weight_map"].values())
        for path in (os.path.join(folder, name) for name in sorted(files)):
            with safe_open(path, framework="pt") as shard:
                for name in shard.keys():
                    yield path, name, shard.get_tensor(name)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: {type(error).__name__} {error}") from None


def load_config(folder):
    """GPTConfig of a checkpoint folder's config.json."""
    path = os.path.join(folder, "config.json")
    if not os.path.exists(path):
        raise ValueError(f"{folder} is no checkpoint folder: it holds no config.json")
    try:
        with open(path) as f:
            config = {name: value for name, value in json.load(f).items() if value is not None}
        family, heads, scaling = config["model_type"], config["num_attention_heads"], None
        if family not in ("llama", "qwen2", "qwen3"):
            raise ValueError(f"model_type {family} is not known here")
        width = 128 if family == "qwen3" else config["hidden_size"] // (heads or 1)
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        config = dict(rope_theta=10000.0, rms_norm_eps=1e-6, tie_word_embeddings=False, num_key_value_heads=heads,
                      head_dim=width, rope_type=rope.get("type", "default")) | config | rope
        if config["rope_type"] == "llama3":
            scaling = {name: float(config[name]) for name in LLAMA3} | {"rope_type": config.pop("rope_type")}
        for name, value in PLAIN.items():
            if config.get(name, value) != value:
                raise ValueError(f"{name} {config[name]!r} is not known here, only {value!r}")
        for ours, public in PUBLIC_NAMES.items():
            kinds = dict(tie_embeddings=(bool,), rope_theta=(int, float), norm_eps=(int, float)).get(ours, (int,))
            if type(config[public]) not in kinds or (bool not in kinds and not config[public] > 0):
                raise ValueError(f"{public} {config[public]!r}")
        return GPTConfig(**{ours: config[public] for ours, public in PUBLIC_NAMES.items()},
                         rope_scaling=scaling, qkv_bias=family == "qwen2", qk_norm=family == "qwen3")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: {type(error).__name__} {error}") from None
