"""Rejection sampling: the model's own responses to training problems, those that are good.

Kept is what is right, well formed, in one language and not too long; each response to a prompt
once. It is what the second SFT of DeepSeek-R1 is made of (arXiv 2501.12948v1, section 2.3.3).

    python -m stages.rejection --model DIR --task pairs --problems 512 --k 16 --out kept.jsonl
    python -m stages.rejection --model DIR --task general --pairs --k 64 --out pairs.jsonl
"""

import random
from dataclasses import dataclass

import evaluate
from data import Task, load_task
from data.jsonl import check_output, write
from plumbing.flags import REQUIRED, fill, flag, one_line_errors, parse
from rewards import END
from start.compose import autocast
from start.task import load_for_sampling


@dataclass(kw_only=True)
class Config(evaluate.Config):
    out: str = flag(REQUIRED, "file of JSON lines to write: prompt, response, perhaps user")
    problems: int = flag(128, "how many training problems, the first ones", at_least=1)
    max_length: int = flag(160, "longest response that is kept, in tokens", at_least=1)
    pairs: bool = flag(False, "keep pairs of a better and a worse response instead")
    any_language: bool = flag(False, "keep responses that mix languages, too")


def is_good(response, config):
    """response: the judge's dict."""
    right = response["accuracy"] == 1
    well_formed = response["format"] == 1
    one_language = response["language"] == 1 or config.any_language
    return right and well_formed and one_language and response["length"] <= config.max_length


def kept_rows(problems, groups, config):
    """The good responses of each problem's group -> rows for SFT, each once."""
    rows = {}
    for problem, group in zip(problems, groups, strict=True):
        for response in group:
            if is_good(response, config):
                row = {key: problem[key] for key in ("prompt", "user") if key in problem}
                row["response"] = response["text"].removesuffix(END)
                rows[problem["prompt"], response["text"]] = row
    return list(rows.values())


def preference_pairs(problems, groups, config):
    """Two well-formed responses each that the judge tells apart -> rows for a reward model or DPO.

    For a task with a graded reward. A response is in four pairs on average, ties among them."""
    rng = random.Random(config.seed)
    rows = []
    for problem, group in zip(problems, groups, strict=True):
        group = [response for response in group if response["format"] == 1]
        for _ in range(2 * len(group) if len(group) > 1 else 0):
            a, b = rng.sample(group, 2)
            worse, better = sorted((a, b), key=lambda response: response["accuracy"])
            if better["accuracy"] > worse["accuracy"]:
                texts = [response["text"].removesuffix(END) for response in (better, worse)]
                rows.append({"prompt": problem["prompt"], "better": texts[0], "worse": texts[1]})
    return rows


def main(argv=None):
    with one_line_errors():
        config = fill(Config, parse(argv, __doc__, Config))
        task = Task(load_task(config.task).train[: config.problems], {})
        model, tokenizer, judge = load_for_sampling(config, task)
        check_output(config.out, *config.task.split("+"))
    settings = (config.k, config.max_new_tokens, config.temperature, config.seed)
    with autocast(config):
        groups = evaluate.sample_and_judge(model, tokenizer, judge, task.train, *settings)
    rows = (preference_pairs if config.pairs else kept_rows)(task.train, groups, config)
    write(config.out, rows)
    print(f"wrote {len(rows)} rows to {config.out}")


if __name__ == "__main__":
    main()
