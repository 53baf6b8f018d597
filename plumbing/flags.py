"""Command-line flags: every field of a Config dataclass is one, written as

    lr: float = flag(5e-4, "AdamW's learning rate, constant after the warm-up")

Flags and files that do not fit raise ValueError; `one_line_errors` prints it as one line and exits
with status 2.
"""

import argparse
import contextlib
import os
import sys
from dataclasses import MISSING, field, fields

REQUIRED = MISSING  # the default of a flag that must be given; needs @dataclass(kw_only=True)


def flag(default, help, at_least=0, at_most=10**12, choices=None):
    """A dataclass field with the text of its flag. `Flags` checks the limits and choices."""
    limits = {"at_least": at_least, "at_most": at_most, "choices": choices}
    return field(default=default, metadata={"help": help} | limits)


class Flags:
    """What every Config is. ValueError names a flag that is too small, too large or no choice."""

    def __post_init__(self):
        for f in fields(self):
            value = getattr(self, f.name)
            least, most = f.metadata["at_least"], f.metadata["at_most"]
            if isinstance(value, (int, float)) and not least <= value <= most:
                raise ValueError(f"--{f.name} {value}: at least {least}, at most {most:,}")
            choices = f.metadata["choices"]
            if choices is not None and value not in choices:
                raise ValueError(f"--{f.name} {value}: choose from {', '.join(choices)}")


class Parser(argparse.ArgumentParser):
    def __init__(self, **settings):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **settings)

    def error(self, message):
        """Instead of argparse's own, which prints the whole usage first."""
        raise ValueError(f"{message} (see --help)")


def true_or_false(text):
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"true or false is needed, not {text!r}")
    return text.lower() == "true"


def parse(argv, doc, *configs, partly=False):
    """The flags that were given, as {name: value}. argv: words; None: of the command line.

    partly: other flags, and --help, are left for later."""
    parser = Parser(description=doc, allow_abbrev=False, add_help=not partly)
    for config in configs:
        group = parser.add_argument_group(f"flags of {config.__module__}")
        for f in fields(config):
            required = f.default is REQUIRED
            default = "required" if required else f"default: {f.default}"
            kind = {"type": f.type}
            if f.type is bool:
                kind = {"type": true_or_false, "nargs": "?", "const": True}
            if f.type is tuple:  # a flag that may be given several times
                kind = {"type": str, "action": "append"}
            help = f"{f.metadata['help']} ({default})".replace("%", "%%")
            kind |= {"required": required, "metavar": f.type.__name__, "help": help}
            group.add_argument(f"--{f.name}", default=argparse.SUPPRESS, **kind)
    given, unknown = parser.parse_known_args(argv)
    if unknown and not partly:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return vars(given)


def fill(config_class, values):
    """A config_class with those of `values` that are its fields."""
    names = [f.name for f in fields(config_class)]
    return config_class(**{name: values[name] for name in names if name in values})


@contextlib.contextmanager
def one_line_errors():
    """Around everything that reads flags and files: ValueError and OSError end the program."""
    try:
        yield
    except (ValueError, OSError) as error:
        print(f"{os.path.basename(sys.argv[0])}: {error}", file=sys.stderr)
        raise SystemExit(2) from None
