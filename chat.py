"""Talk to a model: its response appears as it is sampled, the thinking dimmed.

    python chat.py --model data/base --prompt "make 11 from 9 7 10 1"
    python chat.py --model out/grpo-pairs-0/model       each line that is typed, or of stdin
    python chat.py --model FOLDER --chat                a chat model

A prompt stands alone: the model does not see the ones before it. Ctrl-C ends the program.
"""

import sys
from contextlib import suppress
from dataclasses import dataclass

from plumbing.flags import REQUIRED, fill, flag, one_line_errors, parse
from rewards import END
from sampler import sample
from start.compose import ModelFlags, autocast, load_model, load_tokenizer

DIM, PLAIN = ("\033[2m", "\033[0m") if sys.stdout.isatty() else ("", "")


@dataclass(kw_only=True)
class Config(ModelFlags):
    model: str = flag(REQUIRED, "checkpoint folder")
    prompt: str = flag("", "what to ask; without it every line of stdin is a prompt")
    max_new_tokens: int = flag(512, "longest response", at_least=1)
    temperature: float = flag(1.0, "of the samples; 0: greedy")


def respond(config, model, tokenizer, prompt):
    """Prints a response to a text."""
    ids = tokenizer.prompt({"prompt": f"User: {prompt}\nAssistant:", "user": prompt})
    room = min(config.max_new_tokens, model.config.max_seq_len - len(ids))
    limits = (max(1, room), config.temperature, tokenizer.eos_ids, config.seed)
    shown = ""

    def show(ids, mask):
        nonlocal shown
        text = tokenizer.opening + tokenizer.decode(ids[mask].tolist()).removesuffix(END)
        if not text.endswith("\ufffd"):  # else a character that is not whole yet
            dim = DIM if text.rfind("<think>") > text.rfind("</think>") else PLAIN
            print(dim + text[len(shown) :] + PLAIN, end="", flush=True)
            shown = text

    with autocast(config):
        sample(model, [ids], 1, *limits, on_token=show)
    print()


def main(argv=None):
    with one_line_errors():
        config = fill(Config, parse(argv, __doc__, Config))
        model = load_model(config.model, config)
        tokenizer = load_tokenizer(config.model, config, model)
        try:
            for prompt in [config.prompt] if config.prompt else map(str.strip, sys.stdin):
                # after a line that is refused the next one may be typed
                with suppress(() if config.prompt else SystemExit), one_line_errors():
                    respond(config, model, tokenizer, prompt)
        except KeyboardInterrupt:
            print(PLAIN)


if __name__ == "__main__":
    main()
