"""The work of bench/step.py, or of the main job, done by TRL's GRPOTrainer, as a line of JSON.

    python bench/trl_step.py --setting S --dtype float32 --threads 1
    python bench/trl_step.py --setting pairs --steps 8 --threads 1     python train.py --algo grpo

Same shapes, prompts, rewards and optimizer settings. TRL is given what made it fastest here: no
gradient checkpointing, micro-batches of 64 (S, pairs) and 8 (R) responses, and with bfloat16 the
kind of attention that --attention names (on a CPU the faster of the two differs). Its prompts are
text, so a tokenizer of words makes ids of numbers. Needs trl, transformers and datasets.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from bench.step import GROUP_SIZE, SETTINGS, peak_bytes  # noqa: E402
from data import load_task  # noqa: E402
from data.tokenizer import Tokenizer as PairsTokenizer  # noqa: E402
from rewards import Judge  # noqa: E402

MICROBATCH = {"S": 64, "R": 8, "pairs": 64}  # responses


@dataclass
class Work:
    """What is trained, on what, and how it is paid."""

    model: LlamaForCausalLM
    prompts: list  # texts of numbers
    reward: Any  # function(prompts, completion_ids, **kwargs) -> rewards
    pad: str
    end: str
    prompts_per_step: int
    new_tokens: int
    group_size: int = GROUP_SIZE
    steps_per_rollout: int = 1  # optimizer steps
    warmup: int = 0  # rollouts
    beta: float = 0.0  # weight of the KL
    lr: float = 1e-4


class Clock(TrainerCallback):
    """Seconds of each optimizer step, with the generation before it."""

    def __init__(self):
        self.times = []

    def on_step_begin(self, *args, **kwargs):
        self.began = time.perf_counter()

    def on_step_end(self, *args, **kwargs):
        self.times.append(time.perf_counter() - self.began)


class TimedTrainer(GRPOTrainer):
    """Counts the seconds of generation."""

    generating = 0.0

    def _generate(self, *args, **kwargs):
        began = time.perf_counter()
        out = super()._generate(*args, **kwargs)
        self.generating += time.perf_counter() - began
        return out


def as_text(ids):
    return " ".join(str(i) for i in ids)


def share_of_even_ids(completion_ids, **kwargs):
    return [sum(i % 2 == 0 for i in ids) / len(ids) for ids in completion_ids]


def random_work(args):
    """S or R: the work of bench/step.py."""
    shape, prompts_per_step, prompt_length, new_tokens = SETTINGS[args.setting]
    config = LlamaConfig(
        vocab_size=shape.vocab_size,
        num_hidden_layers=shape.n_layer,
        num_attention_heads=shape.n_head,
        num_key_value_heads=shape.n_kv_head,
        hidden_size=shape.n_embd,
        intermediate_size=shape.n_hidden,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        attn_implementation=args.attention,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    prompts = []
    for _ in range(prompts_per_step * (args.steps + 1)):
        prompts.append(as_text(torch.randint(shape.vocab_size, (prompt_length,)).tolist()))
    return Work(
        model=LlamaForCausalLM(config),
        prompts=prompts,
        reward=share_of_even_ids,
        pad="<pad>",
        end="<eos>",
        prompts_per_step=prompts_per_step,
        new_tokens=new_tokens,
        beta=args.kl_coef,
    )


def pairs_work(args, lengths):
    """The main job. lengths: a list that the mean length of each batch of responses is added to."""
    tokenizer = PairsTokenizer.load(f"{ROOT}/data/base")
    task = load_task("pairs", 0)
    judge = Judge(task.accuracy, tokenizer)
    # TRL loads the reference from where the policy came from.
    folder = tempfile.mkdtemp()
    LlamaForCausalLM.from_pretrained(f"{ROOT}/data/base").save_pretrained(folder)
    model = LlamaForCausalLM.from_pretrained(folder, attn_implementation=args.attention)
    problems = {as_text(tokenizer.prompt(problem)): problem for problem in task.train}

    def reward(prompts, completion_ids, **kwargs):
        rewards = []
        total_length = 0
        for prompt, ids in zip(prompts, completion_ids, strict=True):
            judged = judge(problems[prompt], ids)
            total_length += judged["length"]
            rewards.append(judged["accuracy"] + 0.1 * judged["format"])
        lengths.append(total_length / len(rewards))
        return rewards

    return Work(
        model=model,
        prompts=list(problems)[: 16 * (args.steps + 1)],
        reward=reward,
        pad="0",
        end=str(tokenizer.eos_id),
        prompts_per_step=16,
        group_size=16,
        new_tokens=160,
        steps_per_rollout=4,
        warmup=5,
        beta=0.001,
        lr=5e-4,
    )


def word_tokenizer(work):
    """Numbers, as words, to ids."""
    vocab_size = work.model.config.vocab_size
    words = {str(i): i for i in range(vocab_size)}
    words |= {"<pad>": vocab_size, "<eos>": vocab_size + 1}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=work.pad, eos_token=work.end
    )


def settings(work, args):
    responses = work.prompts_per_step * work.group_size
    microbatch = MICROBATCH[args.setting]
    return GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
        save_strategy="no",
        logging_steps=1000,
        disable_tqdm=True,
        max_steps=(args.steps + 1) * work.steps_per_rollout,
        per_device_train_batch_size=microbatch,
        gradient_accumulation_steps=responses // microbatch // work.steps_per_rollout,
        steps_per_generation=responses // microbatch,
        num_generations=work.group_size,
        num_iterations=1,
        max_completion_length=work.new_tokens,
        loss_type="grpo",
        beta=work.beta,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        learning_rate=work.lr,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=work.warmup * work.steps_per_rollout,
        max_grad_norm=1.0,
        adam_beta2=0.95,
        bf16=args.dtype == "bfloat16",
        gradient_checkpointing=False,
        shuffle_dataset=False,
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--setting", default="S", choices=MICROBATCH)
    parser.add_argument("--kl_coef", type=float, default=0.0)
    parser.add_argument("--steps", type=int, default=5, help="timed steps, after one that is not")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--attention", default="sdpa", choices=("sdpa", "eager"))
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    lengths = []
    work = pairs_work(args, lengths) if args.setting == "pairs" else random_work(args)
    clock = Clock()
    trainer = TimedTrainer(
        model=work.model,
        reward_funcs=work.reward,
        processing_class=word_tokenizer(work),
        callbacks=[clock],
        train_dataset=Dataset.from_dict({"prompt": work.prompts}),
        args=settings(work, args),
    )
    if args.setting != "pairs":
        trainer.generation_config.eos_token_id = None  # every response has all its tokens
    trainer.train()
    rollouts = []
    for i in range(0, len(clock.times), work.steps_per_rollout):
        rollouts.append(sum(clock.times[i : i + work.steps_per_rollout]))
    seconds = statistics.median(rollouts[1:])
    length = statistics.median(lengths[1:]) if lengths else work.new_tokens
    tokens = work.prompts_per_step * work.group_size * length
    device = "cuda" if torch.cuda.is_available() else "cpu"
    line = {
        "trainer": "trl",
        "setting": args.setting,
        "kl_coef": args.kl_coef,
        "dtype": args.dtype,
        "attention": args.attention,
        "threads": torch.get_num_threads(),
        "trained_parameters": sum(p.numel() for p in work.model.parameters()),
        "seconds": round(seconds, 3),
        "sample": round(trainer.generating / (args.steps + 1), 3),
        "tokens_per_second": round(tokens / seconds),
        "peak_mb": round(peak_bytes(device) / 2**20),
        "torch": torch.__version__,
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
