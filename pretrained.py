"""The checkpoint folder of public models, read and written: config.json and model.safetensors.

Families: Llama (SmolLM2 is one), Qwen2, Qwen3. What does not fit is refused by the name of its file and tensor. Weights
are never unpickled.
"""
import json
import os

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

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
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: {type(error).__name__} {error}") from None


def load_config(cls, folder):
    """A config of the class `cls`, GPTConfig, from a folder's config.json."""
    path = os.path.join(folder, "config.json")
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
            if type(config[public]) not in kinds or (bool not in kinds and not 0 < config[public] < 1e10):
                raise ValueError(f"{public} {config[public]!r}")
        return cls(**{ours: config[public] for ours, public in PUBLIC_NAMES.items()},
                   rope_scaling=scaling, qkv_bias=family == "qwen2", qk_norm=family == "qwen3")
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError) as error:
        raise ValueError(f"{path}: {type(error).__name__} {error}") from None


def save(model, folder):
    """config.json and model.safetensors, each written whole or not at all."""
    os.makedirs(folder, exist_ok=True)
    config = {public: getattr(model.config, ours) for ours, public in PUBLIC_NAMES.items()}
    family = "qwen3" if model.config.qk_norm else "qwen2" if model.config.qkv_bias else "llama"
    config |= {"model_type": family, "architectures": [family.capitalize() + "ForCausalLM"],
               "rope_scaling": model.config.rope_scaling}
    names = {public_tensor(name): p.detach().contiguous() for name, p in model.state_dict().items()}
    with open(os.path.join(folder, "config.json.tmp"), "w") as f:
        json.dump(config, f, indent=1)
    save_file(names, os.path.join(folder, "model.safetensors.tmp"), metadata={"format": "pt"})
    for path in (os.path.join(folder, name) for name in ("config.json", "model.safetensors")):
        os.replace(path + ".tmp", path)


def load_weights(model, folder):
    """The weights of a folder, as fp32, become those of `model`, which may be on "meta"."""
    want, found, extra = {public_tensor(name): (name, p) for name, p in model.state_dict().items()}, {}, {}
    for path, public, tensor in read_tensors(folder):
        name, p = want.pop(public, (None, None))
        if p is None:
            extra[public] = tensor
        elif p.shape != tensor.shape or not tensor.is_floating_point():
            raise ValueError(f"{path}: {public} is {tensor.dtype} {list(tensor.shape)}, not floats {list(p.shape)}")
        else:
            found[name] = tensor.to(torch.float32, copy=True)         # whatever becomes of the file
    for public in sorted(want):
        raise ValueError(f"{folder}: tensor {public} is missing")
    model.load_state_dict(found, assign=True)
    for public, tensor in extra.items():          # a tied head must be what it is tied to
        tied = public == "lm_head.weight" and torch.equal(tensor.float(), model.head)
        if not tied and not public.endswith("rotary_emb.inv_freq"):
            raise ValueError(f"{folder}: tensor {public} is not part of the model that config.json describes")
