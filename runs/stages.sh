# How the scripts run their parts: a part that is complete is not run again, one that was stopped goes on.
# A script sets $out and $seed and sources this file. Each part has a folder in $out.
mkdir -p "$out"

rl=(--algo grpo --eval_sets 1 --seed "$seed")
tune=(--seed "$seed" --batch 32 --lr 1e-3 --muon_lr 0.005 --warmup 5)
judge=(--k 16)
if [ -n "${SMALL:-}" ]; then      # SMALL=1 tests the scripts, not the models
    rl+=(--prompts_per_step 2 --group_size 4 --minibatches 1 --max_new_tokens 40)
    rl+=(--eval_problems 2 --eval_k 2 --eval_max_new_tokens 40)
    judge=(--problems 2 --k 2 --max_new_tokens 40)
fi

# heading TEXT: a title with the time.
heading() {
    echo
    echo "== $1    $(date +%H:%M:%S)"
}

# stage PROGRAM NAME FLAGS: runs PROGRAM for the folder NAME, once.
stage() {
    local program=$1 folder=$out/$2
    shift 2
    if [ -e "$folder/done" ]; then
        return 0
    fi
    if [ -e "$folder/state.pt" ]; then
        set -- "$@" --resume
    fi
    python $program --out "$folder" "$@" || return
    echo "python $program --out $folder $*" > "$folder/command.txt"
    touch "$folder/done"
}

# train NAME FLAGS: reinforcement learning.   tune NAME FLAGS: supervised fine-tuning.
train() { stage train.py "$@"; }
tune() { stage "-m stages.sft" "$@"; }

# make NAME/FILE COMMAND: a file, unless it is there. COMMAND is told at its end where to write.
make() {
    local file=$out/$1
    shift
    mkdir -p "$(dirname "$file")"
    if [ ! -e "$file" ]; then
        "$@" "$file"
    fi
}

# one NAME SEED FLAGS: a run; what it prints goes to its .txt file.
one() {
    set -euo pipefail
    local name=$1 seed=$2
    shift 2
    train "$name-$seed" "$@" --seed "$seed" >> "$out/$name-$seed.txt" 2>&1
    echo "$name-$seed: $(tail -n 1 "$out/$name-$seed.txt")"
}

# train_all RUNS FLAGS: every line "NAME FLAGS" of RUNS with every seed of $seeds and with FLAGS, $JOBS at a time
# with one thread each.
train_all() {
    local runs=$1 name flags
    shift
    export out OMP_NUM_THREADS=1
    export -f stage train one
    for seed in $seeds; do
        grep . <<< "$runs" | while read -r name flags; do
            echo "$name $seed $* $flags"
        done
    done | xargs -P "${JOBS:-2}" -L 1 bash -c 'one "$@"' one
}
