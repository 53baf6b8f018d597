#!/usr/bin/env bash
# Our hot loops beside other people's, on one core: about 45 minutes. Writes results/bench/*.txt. Packages that
# are not installed are skipped with a notice:
#
#   pip install liger-kernel trl transformers datasets triton==3.6.0
#
# Times on a shared machine differ by a half from hour to hour: compare only what stands in one file.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=1
out=results/bench
mkdir -p $out

trl=yes
if ! python -c "import trl, datasets"; then
    echo "skipped TRL: not installed"
    trl=no
fi

# 1. A whole step, ours and TRL's in turn; TRL with the attention that is faster for it on a CPU.
: > $out/step.txt
while read -r setting dtype attention steps; do
    work=(--setting "$setting" --dtype "$dtype" --threads 1 --steps "$steps")
    python bench/step.py "${work[@]}" | tee -a $out/step.txt
    if [ $trl = yes ]; then
        python bench/trl_step.py "${work[@]}" --attention "$attention" 2>/dev/null | grep '^{"' | tee -a $out/step.txt
    fi
done <<'WORK'
S float32 sdpa 2
S bfloat16 eager 2
R bfloat16 eager 1
R float32 sdpa 1
WORK

# 2. The same where freed memory is kept: fresh pages are slow on some virtual machines.
work=(--setting R --dtype bfloat16 --threads 1 --steps 1)
python bench/step.py "${work[@]}" | tee $out/malloc.txt
MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=17179869184 python bench/step.py "${work[@]}" | tee -a $out/malloc.txt

# 3. Rollouts of the main job, where responses end at different lengths.
if [ $trl = yes ]; then
    python bench/trl_step.py --setting pairs --threads 1 --steps 6 2>/dev/null | grep '^{"' | tee $out/pairs_trl.txt
fi
rm -rf out/bench_pairs
python train.py --algo grpo --steps 7 --eval_problems 2 --eval_k 2 --out out/bench_pairs 2>/dev/null \
    | grep -A8 '^ *step' | tee $out/pairs_ours.txt

# 4. Sampling beside transformers' generate.
: > $out/sampler.txt
while read -r sizes; do
    # shellcheck disable=SC2086
    python bench/sampler.py $sizes --rounds 1 2>/dev/null | tee -a $out/sampler.txt
done <<'SIZES'
--setting tiny
--setting R --dtype bfloat16
--setting R
--setting R --dtype bfloat16 --batch 64
SIZES

# 5. The log-probs of a real vocabulary.
python bench/logprobs.py --rounds 3 2>/dev/null | tee $out/logprobs_float32.txt
