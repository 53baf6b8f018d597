"""What a run records of a group: its text in samples.txt, every number in groups.jsonl.

A line of groups.jsonl is a group, in JSON: step, prompt, and of each of the G responses

    judged      what the judge said of it, its reward and its text
    ids, tokens its tokens, as numbers and as texts
    old_logprobs, ref_logprobs, advantages, values, returns
                one number a token, of those that the algorithm has
    weights     each token's share of the objective if the group were all of an optimizer step
    logprobs_after, entropy_after
                of the policy after the step; one more forward pass, of this group only
"""

import json
import math

import torch

from logprobs import response_logprobs


def plain(x):
    """A number with six digits, None for one that JSON has no word for."""
    if isinstance(x, float):
        return float(f"{x:.6g}") if math.isfinite(x) else None
    return x


def text_of(group, prompt, judged):
    """A group for samples.txt: the prompt, then responses with their advantages."""
    text = f"=== step {group.step + 1}\n{prompt}\n"
    for facts, A in zip(judged, group.advantages[:, 0].tolist(), strict=True):
        text += f"--- reward {facts['reward']:.2f}  advantage {A:+.2f}\n{facts['text']}\n"
    return text


@torch.no_grad()
def write_group(run, group, judged):
    """group: a Rollout of one group; judged: the judge's dict of each of its responses."""
    decode = run.tokenizer.decode
    prompt = decode(group.prompt_ids[0, int(group.prompt_start[0]) :].tolist())
    run.folder.samples.write(text_of(group, prompt, judged))
    with run.autocast:
        after = response_logprobs(run.nets.policy, group)
    numbers = vars(group) | {"logprobs_after": after[0], "entropy_after": after[1]}
    numbers["weights"] = run.algo.weights(group.response_mask, run.hp)
    record = {"step": group.step + 1, "prompt": prompt, "ids": [], "tokens": []}
    record["judged"] = [{name: plain(x) for name, x in facts.items()} for facts in judged]
    lengths = group.lengths.tolist()
    for ids, T in zip(group.response_ids.tolist(), lengths, strict=True):
        record["ids"].append(ids[:T])
        record["tokens"].append([decode([i]) for i in ids[:T]])
    for name, x in numbers.items():
        if torch.is_tensor(x) and x.is_floating_point() and x.dim() == 2:
            rows = zip(x.tolist(), lengths, strict=True)
            record[name] = [[plain(value) for value in row[:T]] for row, T in rows]
    run.folder.groups.write(json.dumps(record) + "\n")
