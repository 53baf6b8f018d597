"""Rewrites responses into the language of their question, as people did for R1.

    python bench/translate.py IN.jsonl OUT.jsonl      rows of stages.rejection, task pairs

Each word of data/corpus.py that is of the other language becomes one of the question's.
"""

import os
import re
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from data.corpus import WORDS  # noqa: E402
from data.jsonl import check_output, read, write  # noqa: E402
from plumbing.flags import one_line_errors  # noqa: E402


def translate(text, language):
    other = "es" if language == "en" else "en"
    for word, foreign in WORDS[other].items():
        text = re.sub(rf"\b{foreign}\b", WORDS[language][word], text)
    return text


def main(source, target):
    with one_line_errors():
        rows = list(read(source, ("prompt", "response")))
        check_output(target, source)
    for row in rows:
        language = "en" if row["prompt"].startswith("User: make") else "es"
        row["response"] = translate(row["response"], language)
    write(target, rows)


if __name__ == "__main__":
    main(*sys.argv[1:])
