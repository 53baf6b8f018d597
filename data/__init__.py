"""Tasks: `load_task(name, seed, reward, unsafe_code, preferred)` -> (training problems, {name: held-out problems}).

A problem is a dict: prompt, kind (which verifier of rewards.py judges it), perhaps the language of the question, and
what the verifier needs: answer for "math"; numbers, target and perhaps pick for "countdown"; tests for "code"; item
for "gym"; asked and answers for "general". Names joined by + are trained on in equal shares, and judged on the first
held-out set of each before any other. A name that ends in .jsonl is a file of questions and answers (data/jsonl.py);
about one problem in eight of it, by the CRC of its prompt, is held out. A name gym:NAME is a generator of
reasoning-gym. A reward "file.py:function" replaces the verifiers: the function is called with the problem and the
response and returns a float, or None for "could not judge". `preferred`, such a function made of a reward model,
judges general requests in training; held-out ones are judged by the rule, and by the reward model as a second set.
What may run text of the model as a program ("code", "gym") raises ValueError where the system has no sandbox for it,
unless `unsafe_code`."""
import importlib
import itertools
import os
import runpy
import zlib
from collections import Counter
from dataclasses import dataclass

import sandbox
from data.jsonl import problem, read

TASKS = ("pairs", "countdown", "code", "general")        # modules of this folder, imported when asked for


@dataclass
class Common:
    """How a problem is put to the model, and where the model runs: flags of train, evaluate, sft and reward_model."""
    chat: bool = False            # put the problems in the chat format of the model
    system: str = ""              # with --chat: text of the system's turn
    think: bool = False           # the prompt opens the <think> block
    seed: int = 0                 # of all that is drawn at random (evaluate.py: of the samples)
    device: str = "cpu"           # cpu or cuda
    dtype: str = "float32"        # of the matrix products: float32 or bfloat16 (weights and log-probs stay float32)

    def tokenizer(self, folder, model):
        """The tokenizer of a checkpoint folder, with these flags. ValueError if it has more tokens than the model."""
        from data.tokenizer import Tokenizer       # here, since `python -m data.tokenizer` imports this file first
        tokenizer = Tokenizer.load(folder)
        tokenizer.chat, tokenizer.system, tokenizer.think = self.chat, self.system, self.think
        if tokenizer.vocab_size > model.config.vocab_size:
            raise ValueError(f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens, "
                             f"the model {model.config.vocab_size}")
        return tokenizer


@dataclass
class Task(Common):
    """What is asked, and how it is judged: flags of train.py and evaluate.py."""
    task: str = "pairs"           # pairs, countdown, code, general, gym:NAME or a .jsonl file; several joined by +
    reward: str = ""              # file.py:function, to judge instead of the task's verifier
    reward_model: str = ""        # folder of reward_model.py that judges the general task in place of its rule
    unsafe_code: bool = False     # run programs of the model even where the sandbox cannot isolate them

    def load(self, seed=0):
        preferred = None
        if self.reward_model:
            if self.reward or "general" not in self.task.split("+"):
                raise ValueError("--reward_model judges the task general, and not beside --reward")
            from reward_model import as_reward       # here, since it imports the model, and this file nothing of that
            preferred = as_reward(self.reward_model, self)
        return load_task(self.task, seed, self.reward, self.unsafe_code, preferred)


def check_room(name, prompts, longest_response, model):
    """prompts (lists of ids) -> tokens of the longest. ValueError if it and a response do not fit into the context."""
    longest, context = max(map(len, prompts)), model.config.max_seq_len
    if longest + longest_response > context:
        raise ValueError(f"{name}: the longest prompt, of {longest} tokens, and a response of {longest_response} "
                         f"do not fit into the model's context of {context}")
    return longest


def join(tasks):
    """{name: (training problems, held-out sets)} -> the same of all together, in turns."""
    longest = max(len(train) for train, _ in tasks.values())
    train = zip(*(itertools.islice(itertools.cycle(train), longest) for train, _ in tasks.values()))
    count = Counter(s for _, sets in tasks.values() for s in sets)             # two may have one of the same name
    named = [[(f"{task}: {s}" if count[s] > 1 else s, problems) for s, problems in sets.items()]
             for task, (_, sets) in tasks.items()]
    return [*itertools.chain(*train)], dict(s for turn in itertools.zip_longest(*named) for s in turn if s)


def load_task(name, seed=0, reward="", unsafe_code=False, preferred=None):
    if "+" in name and not os.path.exists(name):
        return join({part: load_task(part, seed, reward, unsafe_code, preferred) for part in name.split("+")})
    if name.endswith(".jsonl"):
        parts = {True: {}, False: {}}          # by prompt: a row that stands twice is one problem
        for row in read(name, convert=problem):
            parts[zlib.crc32(row["prompt"].encode(errors="replace")) % 8 == 0][row["prompt"]] = row
        if not all(parts.values()):
            raise ValueError(f"{name}: too few rows to hold one in eight out")
        train, sets = list(parts[False].values()), {"held out": list(parts[True].values())}
    elif name.startswith("gym:"):
        train, sets = importlib.import_module("data.gym").load(seed, name.removeprefix("gym:"))
    elif name in TASKS:
        train, sets = importlib.import_module(f"data.{name}").load(seed)
    else:
        raise ValueError(f"--task {name}: choose from {', '.join(TASKS)}, gym:NAME, or a file that ends in .jsonl")
    rows = sum(sets.values(), train)
    if reward:
        path, _, function = reward.rpartition(":")
        found = runpy.run_path(path).get(function) if path else None       # the user's own program
        if not callable(found):
            raise ValueError(f"--reward {reward}: a file and a function in it are needed, as in rewards.py:accuracy")
        for row in rows:
            row["reward"] = found
    elif preferred and name == "general":
        sets["general by reward model"] = [row | {"reward": preferred} for row in sets["general"]]
        for row in train:
            row["reward"] = preferred
    elif any(row["kind"] in ("code", "gym") for row in rows):
        sandbox.start(unsafe_code)
    return train, sets
