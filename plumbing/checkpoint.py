"""The checkpoint folder of public models, read and written: config.json and model.safetensors.

Families: Llama (SmolLM2 is one), Qwen2, Qwen3. What does not fit raises ValueError, which names the
file and the entry or tensor. Weights are never unpickled.
"""

import contextlib
import glob
import json
import os

import safetensors.torch
import torch

from plumbing.files import write_file

FAMILIES = ("llama", "qwen2", "qwen3")

# Names of GPTConfig's fields in a public config.json.
PUBLIC_NAMES = {
    "vocab_size": "vocab_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_kv_head": "num_key_value_heads",
    "n_embd": "hidden_size",
    "n_hidden": "intermediate_size",
    "head_dim": "head_dim",
    "rope_theta": "rope_theta",
    "norm_eps": "rms_norm_eps",
    "tie_embeddings": "tie_word_embeddings",
    "max_seq_len": "max_position_embeddings",
}

# The numbers of Llama 3.1's rotary scaling.
LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")

# Entries that need not be whole numbers.
FRACTIONS = ("rope_theta", "rms_norm_eps", *LLAMA3)

# Entries that would make it another model, each with the only value that does not.
SUPPORTED = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "use_sliding_window": False,
    "partial_rotary_factor": 1,
    "rope_interleaved": False,
}


@contextlib.contextmanager
def naming(path):
    """What is wrong with a file becomes a ValueError that names it."""
    try:
        yield
    except (OSError, ValueError, RecursionError, safetensors.SafetensorError) as error:
        raise ValueError(f"{path}: {error}") from None


# --- config.json ------------------------------------------------------------------------------


def read_json(path):
    """The object in a JSON file, as a dict. ValueError that names the file if there is none."""
    with naming(path), open(path, encoding="utf-8") as f:
        content = json.load(f)
        if not isinstance(content, dict):
            raise ValueError(f"an object is needed, not {type(content).__name__}")
    return content


def load_config(folder):
    """The keyword arguments of GPTConfig that a folder's config.json means."""
    path = os.path.join(folder, "config.json")
    entries = read_json(path)
    with naming(path):
        return gpt_arguments(entries)


def gpt_arguments(entries):
    """The entries of a config.json -> keyword arguments of GPTConfig."""
    entries = {name: value for name, value in entries.items() if value is not None}
    family = entries.get("model_type")
    if family not in FAMILIES:
        raise ValueError(f"model_type {family} is not known here, only {', '.join(FAMILIES)}")
    rope = entries.get("rope_parameters") or entries.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise ValueError(f"rope_scaling {rope!r}: an object is needed")

    heads = checked(entries, "num_attention_heads")
    width = checked(entries, "hidden_size")
    defaults = {
        "num_key_value_heads": heads,
        "head_dim": 128 if family == "qwen3" else width // heads,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
    }
    entries = defaults | entries | rope
    for name, value in SUPPORTED.items():
        if entries.get(name, value) != value:
            raise ValueError(f"{name} {entries[name]!r} is not known here, only {value!r}")
    arguments = {ours: checked(entries, public) for ours, public in PUBLIC_NAMES.items()}
    arguments["rope_scaling"] = rope_scaling(rope)
    arguments["qkv_bias"] = family == "qwen2"
    arguments["qk_norm"] = family == "qwen3"
    return arguments


def checked(entries, name):
    """The entry of this name, if it is of the right kind and size."""
    value = entries.get(name)
    kinds = (int, float) if name in FRACTIONS else (int,)
    fits = type(value) in kinds and 0 < value < 1e10
    if name == "tie_word_embeddings":
        fits = isinstance(value, bool)
    if not fits:
        raise ValueError(f"{name} {value!r} does not fit")
    return value


def rope_scaling(rope):
    """None for plain rotary positions; Llama 3.1's numbers, with their rope_type."""
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type == "default":
        return None
    if rope_type != "llama3":
        raise ValueError(f"rope_type {rope_type!r} is not known here, only 'default' and 'llama3'")
    return {name: checked(rope, name) for name in LLAMA3} | {"rope_type": "llama3"}


# --- model.safetensors ------------------------------------------------------------------------


def public_name(name):
    """A tensor's name in a model -> its name in the file. A critic's body is named as a policy.

    norm.weight and body.norm.weight -> model.norm.weight; value_head.bias -> value_head.bias"""
    name = name.removeprefix("body.")
    return name if name.startswith(("lm_head.", "value_head.")) else "model." + name


def read_tensors(folder):
    """All tensors of a folder, {name: tensor}: of model.safetensors, else of all its shards."""
    names = ["model.safetensors"]
    if not os.path.exists(os.path.join(folder, names[0])):
        names = sorted(glob.glob("model-*.safetensors", root_dir=folder)) or names
    tensors = {}
    for name in names:
        path = os.path.join(folder, name)
        with naming(path):
            tensors |= safetensors.torch.load_file(path)
    return tensors


def load_weights(model, folder):
    """The weights of a folder, as fp32, become those of `model`, a GPT or a Critic.

    The model may be on the device "meta"."""
    tensors = read_tensors(folder)
    embedding = tensors.get("model.embed_tokens.weight")
    state = {}
    for name, own in model.state_dict().items():
        public = public_name(name)
        if public not in tensors:
            raise ValueError(f"{folder}: tensor {public} is missing")
        tensor = tensors.pop(public)
        if tensor.shape != own.shape or not tensor.is_floating_point():
            kind = f"{tensor.dtype} {list(tensor.shape)}"
            raise ValueError(f"{folder}: {public} is {kind}, not floats {list(own.shape)}")
        # a copy: `tensor` is a view of the file
        state[name] = tensor.to(torch.float32, copy=True)
        if not state[name].isfinite().all():
            raise ValueError(f"{folder}: tensor {public} holds NaN or infinity")
    for name in sorted(tensors):
        tied_head = name == "lm_head.weight" and torch.equal(tensors[name], embedding)
        if not tied_head and not name.endswith("rotary_emb.inv_freq"):
            raise ValueError(f"{folder}: tensor {name} has no place in the model of config.json")
    model.load_state_dict(state, assign=True)


# --- Writing ----------------------------------------------------------------------------------


def save(model, folder):
    """config.json and model.safetensors of a GPT or a Critic, each written whole or not at all."""
    family = "qwen3" if model.config.qk_norm else "qwen2" if model.config.qkv_bias else "llama"
    config = {public: getattr(model.config, ours) for ours, public in PUBLIC_NAMES.items()}
    config["model_type"] = family
    config["architectures"] = [family.capitalize() + "ForCausalLM"]
    config["rope_scaling"] = model.config.rope_scaling
    tensors = {public_name(name): x.contiguous() for name, x in model.state_dict().items()}
    # not save_file: killed, it leaves a copy behind, and only the owner may read what it writes
    weights = safetensors.torch.save(tensors, metadata={"format": "pt"})
    os.makedirs(folder, exist_ok=True)
    write_file(os.path.join(folder, "model.safetensors"), weights)
    write_file(os.path.join(folder, "config.json"), json.dumps(config, indent=1).encode())
