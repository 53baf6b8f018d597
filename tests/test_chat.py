"""chat.py: what it shows is what sample() gives, and how it ends."""

import io
import sys

import pytest
import torch
from test_train import in_repository, refused

import chat
from data.tokenizer import Tokenizer
from model import GPT
from rewards import END
from sampler import sample

PROMPT = "make 11 from 9 7 10 1"
SHORT = ["--model", "data/base", "--max_new_tokens", "60"]


@pytest.fixture(autouse=True)
def repository():
    with in_repository():
        yield


def responses(count, temperature=1.0, seed=0):
    """What sample() gives to PROMPT, as texts."""
    tokenizer = Tokenizer.load("data/base")
    ids = tokenizer.prompt({"prompt": f"User: {PROMPT}\nAssistant:"})
    limits = (60, temperature, tokenizer.eos_ids, seed)
    rollout = sample(GPT.load("data/base"), [ids], count, *limits)
    rows = zip(rollout.response_ids.tolist(), rollout.lengths.tolist(), strict=True)
    return [tokenizer.decode(ids[:length]).removesuffix(END) for ids, length in rows]


@pytest.mark.parametrize("temperature, seed", [(1.0, 0), (1.0, 3), (0.0, 0)])
def test_it_shows_what_was_sampled(capsys, temperature, seed):
    flags = ["--temperature", str(temperature), "--seed", str(seed)]
    chat.main([*SHORT, *flags, "--prompt", PROMPT])
    assert capsys.readouterr().out == responses(1, temperature, seed)[0] + "\n"


def test_each_line_of_stdin_is_a_prompt(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{PROMPT}\n{PROMPT}\n"))
    chat.main(SHORT)
    assert capsys.readouterr().out == 2 * (responses(1)[0] + "\n")


def test_after_a_line_that_is_refused_the_next_one_is_answered(capsys, monkeypatch):
    too_long = "9 " * 600
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{too_long}\n{PROMPT}\n"))
    chat.main(SHORT)
    shown = capsys.readouterr()
    assert shown.out == responses(1)[0] + "\n"
    assert shown.err.count("\n") == 1 and "the model's context of 512" in shown.err
    refused(capsys, chat.main, [*SHORT, "--prompt", too_long], "context of 512")


def test_bytes_are_held_back_until_they_are_a_character(capsys, monkeypatch):
    ids = torch.tensor([Tokenizer.load("data/base").encode("aé")])  # é: two tokens, a byte each
    assert ids.shape == (1, 3)
    shown = []

    def watched(*arguments, on_token):
        for count in (1, 2, 3):
            on_token(ids, torch.arange(3)[None] < count)
            shown.append(capsys.readouterr().out)

    monkeypatch.setattr(chat, "sample", watched)
    chat.main([*SHORT, "--prompt", PROMPT])
    assert shown == ["a", "", "é"]


def test_ctrl_c_ends_the_program_without_a_traceback(capsys, monkeypatch):
    def interrupted(*arguments, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "stdin", io.StringIO("a\nb\n"))
    monkeypatch.setattr(chat, "sample", interrupted)
    chat.main(SHORT)
    assert capsys.readouterr().out == "\n"


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--model", "nowhere"], ["nowhere"]),
        ([*SHORT, "--max_new_tokens", "0"], ["--max_new_tokens"]),
        ([*SHORT, "--prompt", "x" * 9000], ["prompt of", "context"]),
        ([*SHORT, "--chat", "--prompt", "x"], ["--chat"]),
    ],
)
def test_bad_flags_are_one_line(capsys, flags, words):
    refused(capsys, chat.main, flags, *words)
