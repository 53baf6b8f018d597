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
