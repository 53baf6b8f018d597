#!/usr/bin/env bash
# Our hot loops beside other people's, on one core: about 45 minutes. Other packages are optional; what is missing is skipped with a notice:
#
#   pip install liger-kernel trl transformers datasets triton==3.6.0
#
# One line of JSON, or a table and such a line, into results/bench/. Times on a shared machine differ by a half from hour to
# hour, so only what stands in one file or was run in turn is compared.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=1
mkdir -p results/bench

# A whole step, ours and TRL's in turn, TRL with the attention that is faster for it on a CPU.
python -c "import trl, datasets" && trl=1 || echo "skipped TRL: not installed"
: > results/bench/step.txt
for work in "S float32 sdpa 2" "S bfloat16 eager 2" "R bfloat16 eager 1" "R float32 sdpa 1"; do
    set -- $work
    python bench/step.py --setting "$1" --dtype "$2" --threads 1 --steps "$4" | tee -a results/bench/step.txt
    [ -z "${trl:-}" ] || python bench/trl_step.py --setting "$1" --dtype "$2" --attention "$3" --threads 1 --steps "$4" 2>/dev/null | grep '^{"' | tee -a results/bench/step.txt
done

# Fresh pages of memory are dear on some virtual machines: the same with freed memory kept.
python bench/step.py --setting R --dtype bfloat16 --threads 1 --steps 1 | tee results/bench/malloc.txt
MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=17179869184 python bench/step.py --setting R --dtype bfloat16 --threads 1 --steps 1 | tee -a results/bench/malloc.txt

# The same on the main job, where responses end at different lengths. metrics.csv has a row of seconds per rollout.
[ -z "${trl:-}" ] || python bench/trl_step.py --setting pairs --threads 1 --steps 6 2>/dev/null | grep '^{"' | tee results/bench/pairs_trl.txt
rm -rf out/bench_pairs && python train.py --algo grpo --steps 7 --eval_problems 2 --eval_k 2 --out out/bench_pairs 2>/dev/null | grep -A8 '^ *step' | tee results/bench/pairs_ours.txt

# Sampling beside transformers' generate.
python bench/sampler.py --setting tiny --rounds 1 2>/dev/null | tee results/bench/sampler_tiny_float32.txt
python bench/sampler.py --setting R --dtype bfloat16 --rounds 1 2>/dev/null | tee results/bench/sampler_R_bfloat16.txt
python bench/sampler.py --setting R --rounds 1 2>/dev/null | tee results/bench/sampler_R_float32.txt
python bench/sampler.py --setting R --dtype bfloat16 --batch 64 --rounds 1 2>/dev/null | tee results/bench/sampler_R_bfloat16_64.txt

# The log-probs of a real vocabulary.
python bench/logprobs.py --rounds 3 2>/dev/null | tee results/bench/logprobs_float32.txt
