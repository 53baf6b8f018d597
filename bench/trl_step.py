"""The work of bench/step.py, or of the main job, done by TRL's GRPOTrainer: the same shapes, prompts, rewards and optimizer
settings.

    python bench/trl_step.py --setting S --dtype float32 --threads 1           a line of JSON, as bench/step.py prints
    python bench/trl_step.py --setting pairs --steps 8 --threads 1             rollouts of `python train.py --algo grpo`

TRL is given what made it fastest here: no gradient checkpointing, micro-batches of 64 (S, pairs) and 8 (R) responses, and with
bfloat16 the kind of attention that --attention names (on a CPU the faster of the two differs). Its prompts are text,
so a tokenizer of words makes ids of numbers. Needs trl, transformers and datasets.
"""
import argparse
import json
import resource
import os
import statistics
import sys
import tempfile
import time

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from bench.step import SETTINGS  # noqa: E402

MICRO = {"S": 64, "R": 8}         # responses in a micro-batch


class Clock(TrainerCallback):
    def __init__(self):
        self.times = []

    def on_step_begin(self, *args, **kwargs):
        self.began = time.perf_counter()

    def on_step_end(self, *args, **kwargs):
        self.times.append(time.perf_counter() - self.began)


class Timed(GRPOTrainer):
    """Seconds of generation and of everything else."""
    generating = 0.0

    def _generate(self, *args, **kwargs):
        began = time.perf_counter()
        out = super()._generate(*args, **kwargs)
        Timed.generating += time.perf_counter() - began
        return out


def even(completion_ids, **kwargs):
    return [sum(i % 2 == 0 for i in ids) / len(ids) for ids in completion_ids]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setting", default="S", choices=[*SETTINGS, "pairs"])
    parser.add_argument("--kl_coef", type=float, default=0.0)
    parser.add_argument("--steps", type=int, default=5, help="timed steps, after one that is not")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--attention", default="sdpa", choices=("sdpa", "eager"))
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    if args.setting == "pairs":
        from data import load_task
        from data.tokenizer import Tokenizer as Ours
        from evaluate import judge
        ours, problems = Ours.load(f"{ROOT}/data/base"), load_task("pairs", 0)[0]
        V, end, B, G, T, micro, per_rollout, beta, lr = ours.vocab_size, str(ours.eos_id), 16, 16, 160, 64, 4, 0.001, 5e-4
        model = LlamaForCausalLM.from_pretrained(f"{ROOT}/data/base", attn_implementation=args.attention)
        folder = tempfile.mkdtemp()               # TRL loads the reference from where the policy came from
        model.save_pretrained(folder)
        model = LlamaForCausalLM.from_pretrained(folder, attn_implementation=args.attention)
        V = model.config.vocab_size
        by_prompt = {" ".join(map(str, ours.encode(p["prompt"]))): p for p in problems}
        prompts = list(by_prompt)[:B * (args.steps + 1)]

        def reward(prompts, completion_ids, **kwargs):
            rows = [judge(by_prompt[p], ids, ours) for p, ids in zip(prompts, completion_ids)]
            lengths.append(sum(row["length"] for row in rows) / len(rows))
            return [row["accuracy"] + 0.1 * row["format"] for row in rows]
    else:
        (shape, B, P), micro = SETTINGS[args.setting], MICRO[args.setting]
        V = shape.vocab_size
        end, G, T, per_rollout, beta, lr, reward = "<eos>", 8, 64, 1, args.kl_coef, 1e-4, even
        model = LlamaForCausalLM(LlamaConfig(
            vocab_size=V, num_hidden_layers=shape.n_layer, num_attention_heads=shape.n_head, num_key_value_heads=shape.n_kv_head, hidden_size=shape.n_embd,
            intermediate_size=shape.n_hidden, max_position_embeddings=512, tie_word_embeddings=True, attn_implementation=args.attention,
            bos_token_id=None, eos_token_id=None, pad_token_id=None))
        prompts = [" ".join(map(str, torch.randint(V, (P,)).tolist())) for _ in range(B * (args.steps + 1))]
    lengths, clock = [], Clock()
    words = Tokenizer(models.WordLevel({str(i): i for i in range(V)} | {"<pad>": V, "<eos>": V + 1}, unk_token="0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="0" if args.setting == "pairs" else "<pad>", eos_token=end)
    trainer = Timed(
        model=model, reward_funcs=reward, processing_class=tokenizer, callbacks=[clock],
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        args=GRPOConfig(
            output_dir=tempfile.mkdtemp(), use_cpu=not torch.cuda.is_available(), report_to="none", save_strategy="no", logging_steps=1000,
            max_steps=(args.steps + 1) * per_rollout, per_device_train_batch_size=micro,
            gradient_accumulation_steps=B * G // micro // per_rollout, steps_per_generation=B * G // micro,
            num_generations=G, num_iterations=1, beta=beta, loss_type="grpo", temperature=1.0, top_k=0, top_p=1.0,
            max_completion_length=T, learning_rate=lr, lr_scheduler_type="constant_with_warmup", warmup_steps=5 * per_rollout if args.setting == "pairs" else 0, max_grad_norm=1.0, adam_beta2=0.95,
            bf16=args.dtype == "bfloat16", gradient_checkpointing=False, shuffle_dataset=False, disable_tqdm=True))
    if args.setting != "pairs":
        trainer.generation_config.eos_token_id = None         # every response has 64 tokens
    trainer.train()
    rollouts = [sum(clock.times[i:i + per_rollout]) for i in range(0, len(clock.times), per_rollout)]
    seconds = statistics.median(rollouts[1:])
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(dict(
        trainer="trl", setting=args.setting, kl_coef=args.kl_coef, dtype=args.dtype, attention=args.attention, threads=torch.get_num_threads(),
        trained_parameters=sum(p.numel() for p in model.parameters()), seconds=round(seconds, 3),
        sample=round(Timed.generating / (args.steps + 1), 3), tokens_per_second=round(B * G * (statistics.median(lengths[1:]) if lengths else T) / seconds), peak_mb=round(peak / 2 ** 20), torch=torch.__version__)))


if __name__ == "__main__":
    main()
