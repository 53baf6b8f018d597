"""The checkpoint folder of public models, read and written: config.json and model.safetensors.

Anything that does not fit is refused by the name of its file and tensor. Weights are never unpickled.
"""
import json
import os

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

PUBLIC_NAMES = dict(vocab_size="vocab_size", n_layer="num_hidden_layers", n_head="num_attention_heads",
                    n_kv_head="num_key_value_heads", n_embd="hidden_size", n_hidden="intermediate_size",
                    head_dim="head_dim", rope_theta="rope_theta", norm_eps="rms_norm_eps",
                    tie_embeddings="tie_word_embeddings", max_seq_len="max_position_embeddings")


def public_tensor(name):
    return name if name.startswith("lm_head") else "model." + name


def load_config(cls, folder):
    """A config of the class `cls`, GPTConfig, from a folder's config.json."""
    path = os.path.join(folder, "config.json")
    if not os.path.exists(path):
        raise ValueError(f"{folder} is no checkpoint folder: it holds no config.json")
    try:
        with open(path) as f:
            config = json.load(f)
        if config["model_type"] not in ("llama", "qwen2", "qwen3"):
            raise ValueError(f"model_type {config['model_type']} is not known here")
        for ours, public in PUBLIC_NAMES.items():
            kind = bool if ours == "tie_embeddings" else (int, float) if ours in ("rope_theta", "norm_eps") else int
            if not isinstance(config[public], kind) or (kind is not bool and config[public] <= 0):
                raise ValueError(f"{public} {config[public]!r}")
        return cls(**{ours: config[public] for ours, public in PUBLIC_NAMES.items()},
                   qkv_bias=config["model_type"] == "qwen2", qk_norm=config["model_type"] == "qwen3")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: {type(error).__name__} {error}") from None


def save(model, folder):
    """config.json and model.safetensors, each written whole or not at all."""
    os.makedirs(folder, exist_ok=True)
    config = {public: getattr(model.config, ours) for ours, public in PUBLIC_NAMES.items()}
    config["model_type"] = "qwen3" if model.config.qk_norm else "qwen2" if model.config.qkv_bias else "llama"
    names = {public_tensor(name): p.detach().contiguous() for name, p in model.state_dict().items()}
    path = os.path.join(folder, "config.json")
    with open(path + ".tmp", "w") as f:
        json.dump(config, f, indent=1)
    os.replace(path + ".tmp", path)
    path = os.path.join(folder, "model.safetensors")
    save_file(names, path + ".tmp", metadata={"format": "pt"})
    os.replace(path + ".tmp", path)


def load_weights(model, folder):
    """The weights of a folder into `model`."""
    path = os.path.join(folder, "model.safetensors")
    if not os.path.exists(path):
        raise ValueError(f"{folder} holds no model.safetensors")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from None
    want = {public_tensor(name): p for name, p in model.state_dict().items()}
    for name in sorted(want.keys() ^ tensors.keys()):
        raise ValueError(f"{path}: tensor {name} is {'missing' if name in want else 'not part of this model'}")
    for name, p in want.items():
        if p.shape != tensors[name].shape:
            raise ValueError(f"{path}: {name} is {list(tensors[name].shape)}, config.json says {list(p.shape)}")
        p.data.copy_(tensors[name])
