# How a stage of r1.sh and distill.sh is run: not again if it is complete, and from its checkpoint if there is one. Both scripts
# set $seed and $out; each stage has a folder in $out, with all that was made for it.
mkdir -p "$out"

# With SMALL=1 everything is tiny: a test of the scripts, not of the models.
rl=(--algo grpo --eval_sets 1 --seed "$seed") judge=(--k 16) tune=(--seed "$seed" --batch 32 --lr 1e-3 --muon_lr 0.005 --warmup 5)
if [ -n "${SMALL:-}" ]; then
    rl+=(--problems 2 --group_size 4 --minibatches 1 --max_new_tokens 40 --eval_problems 2 --eval_k 2 --eval_max_new_tokens 40)
    judge=(--problems 2 --k 2 --max_new_tokens 40)
fi

# train NAME FLAGS, tune NAME FLAGS, stage PROGRAM NAME FLAGS: a stage of RL, of SFT, of any program.
train() { stage train.py "$@"; }
tune() { stage sft.py "$@"; }
stage() {
    local program=$1 folder=$out/$2
    shift 2
    [ ! -e "$folder/done" ] || return 0
    if [ -e "$folder/state.pt" ]; then set -- "$@" --resume; fi
    python "$program" --out "$folder" "$@" && touch "$folder/done"
}

# make NAME/FILE COMMAND: a file of a stage, unless it is there. The command is told where to write it.
make() {
    local file=$out/$1
    shift
    mkdir -p "$(dirname "$file")"
    [ -e "$file" ] || "$@" "$file"
}
