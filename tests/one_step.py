"""A step of GRPO and of PPO, of which all is kept that several processes could get wrong.

    torchrun --nproc_per_node=3 tests/one_step.py FOLDER

writes FOLDER/ALGO-RANK.pt. A test takes the same step alone.
"""

import os
import sys

import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import train  # noqa: E402
from plumbing import world  # noqa: E402

FLAGS = "--prompts_per_step 5 --group_size 6 --max_new_tokens 40 --tokens_per_microbatch 300"
FLAGS += " --minibatches 2 --eval_every 0 --reward tests/one_step.py:reward"


def reward(problem, response):
    """Depends on the response only; unknown for some."""
    return None if len(response) % 7 == 0 else float(len(response) % 5)


def take_step(algo, out):
    run = train.setup([*FLAGS.split(), "--algo", algo, "--out", f"{out}/{algo}"])
    run.task.train = [*run.task.train[:3], *run.task.train[:2]]  # two prompts are there twice
    kept = {"gradients": []}
    step = run.optimizer.step

    def keep_gradients():
        groups = [group["params"] for group in run.optimizer.param_groups]
        kept["gradients"].append([p.grad.clone() for parameters in groups for p in parameters])
        step()

    def keep_rollout(run, rollout, step):
        kept["rollout"] = {name: x for name, x in vars(rollout).items() if torch.is_tensor(x)}
        return update(run, rollout, step)

    run.optimizer.step = keep_gradients
    update, train.update = train.update, keep_rollout
    row = train.train_step(run, 0)
    train.update = update
    kept["row"] = {name: x for name, x in row.items() if "second" not in name}
    kept["judged"] = run.judge.judged
    torch.save(kept, f"{out}/{algo}-{world.RANK}.pt")


if __name__ == "__main__":
    for algo in ("grpo", "ppo"):
        take_step(algo, sys.argv[1])
