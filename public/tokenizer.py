"""Public tokenizers: a folder's tokenizer.json, read by the package tokenizers, and its chats.

A chat is written by the folder's own template, a Jinja program from outside, in Jinja's sandbox.
Its default system text is in; today's date is not known to it, so that a run goes on tomorrow with
the same prompts. Special tokens are made by the template only: no problem can end a turn. Text that
spells one stays text, and is refused in a chat.
"""

import json
import os
from pathlib import Path

from jinja2.sandbox import ImmutableSandboxedEnvironment  # torch brings it

from data.tokenizer import END, OPEN
from plumbing.checkpoint import read_json
from plumbing.files import write_file

BOS = "<|begin_of_text|>"  # Llama 3 was never trained without it; the other families have none
# What `save` writes as it was read.
FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


class Tokenizer:
    """library: a tokenizers.Tokenizer. eos_ids: what ends a response. files: what `save` writes.

    render: function(messages) -> the text of a chat; None: prompts are no chats. opening: as in
    data/tokenizer.py."""

    def __init__(self, library, eos_ids, files, render=None, system="", think=False):
        self.library = library
        self.vocabulary = library.get_vocab()  # {token: id}
        self.vocab_size = max(self.vocabulary.values()) + 1
        self.eos_ids = eos_ids
        self.eos_id = eos_ids[0]  # the one to end a text with
        self.files = files
        self.render = render
        self.system = system
        self.opening = OPEN if think else ""

    @classmethod
    def load(cls, folder, chat=False, system="", think=False):
        """The tokenizer of a checkpoint folder; the rest are the flags of these names.

        ValueError names the file that is damaged, or the flag that has no meaning here."""
        folder = Path(folder)
        path = folder / "tokenizer.json"
        library = read_library(path)
        vocabulary = library.get_vocab()
        about = read_optional(folder / "tokenizer_config.json")
        render = chat_renderer(folder, about) if chat else None
        begins = about.get("add_bos_token") or library.encode("").ids
        if begins and BOS not in vocabulary:
            raise ValueError(f"{path}: of tokens that begin every text only {BOS} is known here")
        generation = read_optional(folder / "generation_config.json")
        eos_ids = end_ids(vocabulary, about, generation, read_optional(folder / "config.json"))
        if not eos_ids:
            raise ValueError(f"{path}: no end token: no file of the folder has an eos_token_id")

        files = {name: (folder / name).read_bytes() for name in FILES if (folder / name).exists()}
        # all of them, since a model's config.json is written without
        generation["eos_token_id"] = eos_ids
        files["generation_config.json"] = json.dumps(generation, indent=1).encode()
        return cls(library, eos_ids, files, render, system, think)

    def save(self, folder):
        os.makedirs(folder, exist_ok=True)
        for name, content in self.files.items():
            write_file(os.path.join(folder, name), content)

    def encode(self, text):
        """text -> list of ids, without special tokens. A lone surrogate reads ?"""
        text = text.encode(errors="replace").decode()
        return self.library.encode(text, add_special_tokens=False).ids

    def decode(self, ids):
        """ids -> text; an end token at the end as <|end|>, bytes that are no UTF-8 as U+FFFD.

        A model may have more ids than its tokenizer: those are left out."""
        if len(ids) > 0 and ids[-1] in self.eos_ids:
            return self.library.decode(ids[:-1], skip_special_tokens=False) + END
        return self.library.decode(ids, skip_special_tokens=False)

    def prompt(self, problem):
        """The ids that a response continues: problem["prompt"], or with `render` a chat.

        The user's turn is problem["user"] if the problem has one."""
        if self.render is None:
            ids = [self.vocabulary[BOS]] if BOS in self.vocabulary else []
            return ids + self.encode(problem["prompt"] + self.opening)
        turns = {"system": self.system, "user": problem.get("user", problem["prompt"])}
        messages = [{"role": role, "content": text} for role, text in turns.items() if text]
        chat = self.render(messages) + self.opening
        text = " ".join(turns.values())
        self.library.encode_special_tokens = False
        ids = self.encode(chat)
        ids_of_text = self.encode(text)
        self.library.encode_special_tokens = True
        if ids_of_text != self.encode(text):  # also by way of a normalizer
            raise ValueError(f"--chat: a special token stands in the text of a turn, {turns}")
        return ids


def chat_renderer(folder, about):
    """The chat template of a folder as function(messages) -> text. ValueError names the folder.

    about: its tokenizer_config.json. A template that never ends is not noticed."""
    template = about.get("chat_template")
    if isinstance(template, list):  # of several, with their names
        named = {str(t.get("name")): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default")
    if (folder / "chat_template.jinja").exists():
        template = (folder / "chat_template.jinja").read_text("utf-8")
    if not isinstance(template, str):
        raise ValueError(f"--chat: the tokenizer of {folder} has no chat template")
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.add_extension("jinja2.ext.loopcontrols")
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    known = {"add_generation_prompt": True, "tools": None, "documents": None}
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        if token := about.get(name):
            known[name] = token["content"] if isinstance(token, dict) else token

    def render(messages):
        try:
            return environment.from_string(template).render(messages=messages, **known)
        except Exception as error:
            raise ValueError(f"--chat: the template of {folder}: {error}") from None

    return render


def read_library(path):
    """The tokenizers.Tokenizer of a tokenizer.json, which takes a text as it is and all of it."""
    try:
        from tokenizers import Tokenizer as Library  # only public checkpoints need the package

        library = Library.from_file(str(path))
    except ImportError:
        raise ValueError(f"{path} needs a package: pip install tokenizers") from None
    except Exception as error:  # the package has no class of its own for errors
        raise ValueError(f"{path}: {error}") from None
    library.encode_special_tokens = True  # a text that spells one is text
    library.no_truncation()
    library.no_padding()
    return library


def read_optional(path):
    """The object in a JSON file; {} without the file."""
    return read_json(path) if path.exists() else {}


def end_ids(vocabulary, about, generation, config):
    """The ids that end a response: of the end of a text by each of the files, then of a turn."""
    candidates = [vocabulary.get(str(about.get("eos_token")))]
    for settings in (generation, config):
        ids = settings.get("eos_token_id")
        candidates += ids if isinstance(ids, list) else [ids]
    candidates += [vocabulary.get("<|im_end|>"), vocabulary.get("<|eot_id|>")]
    return [i for i in dict.fromkeys(candidates) if i in vocabulary.values()]
