"""The work of bench/step.py done by TRL's GRPOTrainer: the same shapes, prompts, reward and optimizer settings.

    python bench/trl_step.py --setting S --dtype float32 --threads 1           a line of JSON, as bench/step.py prints

TRL is given what made it fastest here: no gradient checkpointing, micro-batches of 64 (S) and 8 (R) responses, and with
bfloat16 the kind of attention that --attention names (on a CPU the faster of the two differs). Its prompts are text,
so a tokenizer of words makes ids of numbers. Needs trl, transformers and datasets.
"""
import argparse
import json
import resource
import statistics
import tempfile
import time

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

SETTINGS = {                      # vocabulary, layers, heads, kv heads, width, SwiGLU, prompts, prompt tokens, micro-batch
    "S": (512, 6, 8, 8, 256, 704, 32, 32, 64),
    "R": (49152, 30, 9, 3, 576, 1536, 4, 64, 8),
}


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
    parser.add_argument("--setting", default="S", choices=SETTINGS)
    parser.add_argument("--kl_coef", type=float, default=0.0)
    parser.add_argument("--steps", type=int, default=5, help="timed steps, after one that is not")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--attention", default="sdpa", choices=("sdpa", "eager"))
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    V, layers, heads, kv_heads, width, hidden, B, P, micro = SETTINGS[args.setting]
    words = Tokenizer(models.WordLevel({str(i): i for i in range(V)} | {"<pad>": V, "<eos>": V + 1}, unk_token="0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=V, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv_heads, hidden_size=width,
        intermediate_size=hidden, max_position_embeddings=512, tie_word_embeddings=True, attn_implementation=args.attention,
        bos_token_id=None, eos_token_id=None, pad_token_id=None))
    prompts = [" ".join(map(str, torch.randint(V, (P,)).tolist())) for _ in range(B * (args.steps + 1))]
    clock = Clock()
    trainer = Timed(
        model=model, reward_funcs=even, processing_class=tokenizer, callbacks=[clock],
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        args=GRPOConfig(
            output_dir=tempfile.mkdtemp(), use_cpu=not torch.cuda.is_available(), report_to="none", save_strategy="no", logging_steps=1000,
            max_steps=args.steps + 1, per_device_train_batch_size=micro, gradient_accumulation_steps=B * 8 // micro,
            num_generations=8, num_iterations=1, beta=args.kl_coef, loss_type="grpo", temperature=1.0, top_k=0, top_p=1.0,
            max_completion_length=64, learning_rate=1e-4, lr_scheduler_type="constant", max_grad_norm=1.0, adam_beta2=0.95,
            bf16=args.dtype == "bfloat16", gradient_checkpointing=False, shuffle_dataset=False, disable_tqdm=True))
    trainer.generation_config.eos_token_id = None             # every response has 64 tokens
    trainer.train()
    seconds = statistics.median(clock.times[1:])
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(dict(
        trainer="trl", setting=args.setting, kl_coef=args.kl_coef, dtype=args.dtype, attention=args.attention, threads=torch.get_num_threads(),
        trained_parameters=sum(p.numel() for p in model.parameters()), seconds=round(seconds, 3),
        sample=round(Timed.generating / (args.steps + 1), 3), tokens_per_second=round(B * 8 * 64 / seconds), peak_mb=round(peak / 2 ** 20), torch=torch.__version__)))


if __name__ == "__main__":
    main()
