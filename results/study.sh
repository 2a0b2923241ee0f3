#!/usr/bin/env bash
# The studies committed beside this file, on two CPU cores, from the top of the repository:
#
#   bash results/study.sh [NAME...]
#
# Without names, all of them but `transfer` and `languages`, which read the LibreOffice help: results/help_texts.py says
# how its folder is made, and HELP=FOLDER names it. Launched again, a study trains only what is missing. What results hold is fitted at the end.
set -euo pipefail

text=(--results results/sotu --set corpus=sotu --set gpu=0) # the speeches, unless a study reads another text
launch() { # SWEEP OPTIONS...
    tinyscale launch -y --keep none "${text[@]}" "sweeps/$1.yaml" "${@:2}"
}
register() { # RESULTS OPTIONS...: what the fits so far say of width 96, written down once
    [[ ! -e $1/forecasts/width.json ]] || return 0
    tinyscale fit "$1"
    tinyscale register "$1" "${text[@]:2}" --sweep sweeps/width.yaml "${@:2}" --select d_model=96
}
bf16=(--set precision=bf16)
small=(--set n_layers=2 --set head_dim=8 --set context_length=64 --set batch_tokens=1024)
tuned=(--set vocab_size=512 --set lr=auto --set eval_points=3)

lr() {
    local searched=("${bf16[@]}" --set vocab_size=512 --set max_bytes=null --set eval_points=1)
    launch lr --select arm=small,small_batches --set search.trials=12 "${searched[@]}"
    launch lr --select arm=small --set search.trials=16 "${searched[@]}"
    tinyscale fit results/sotu
}

width() {
    local asked=(--select arm=small,small_tokens "${bf16[@]}" "${tuned[@]}")
    tinyscale tune -y "${text[@]}" sweeps/width.yaml "${bf16[@]}" "${tuned[@]}" --select arm=small # batches of 512
    launch width "${asked[@]}" --select d_model=16,24,32,48,64
    register results/sotu "${asked[@]}"
    launch width "${asked[@]}"
    tinyscale score results/sotu
}

depth() {
    launch depth "${bf16[@]}" "${tuned[@]}" --set d_model=32 --set head_dim=8 --set context_length=64 \
        --set batch_tokens=1024 --set tokens_budget=1M
}

context() {
    launch context "${bf16[@]}" "${tuned[@]}" --set n_layers=2 --set d_model=32 --set head_dim=8 \
        --set batch_tokens=2048 --set flops_budget=1.6e12
}

data() {
    launch data --select arm=small_one_epoch,small_repeated "${bf16[@]}" "${small[@]}" "${tuned[@]}" \
        --set max_bytes=null --set d_model=32
}

isoflop() {
    launch isoflop --select flops_budget=2e11,5e11,1.25e12 "${bf16[@]}" "${small[@]}" "${tuned[@]}" --set repeats=true
}

grid() {
    launch grid --select d_model=16,32,48,64,96 "${bf16[@]}" "${small[@]}" "${tuned[@]}" --set max_bytes=null \
        --set tokens_budget=2M
}

grid_tuned() {
    launch grid_tuned --select seed=0,1 "${bf16[@]}" --set max_bytes=null --set eval_points=3
}

ablation_schedule() {
    launch ablation_schedule --select d_model=32,64 "${bf16[@]}" "${small[@]}" "${tuned[@]}" --set tokens_budget=1M
}

ablation_precision() {
    launch ablation_precision --select d_model=32,64 --select arm=fp32,bf16 "${small[@]}" "${tuned[@]}" \
        --set tokens_budget=1M
}

ablation_optimizer() {
    launch ablation_optimizer --select d_model=32,64 "${bf16[@]}" "${small[@]}" --set vocab_size=512 \
        --set eval_points=3 --set tokens_budget=300K
}

ablation_architecture() {
    launch ablation_architecture --select d_model=16,32 "${bf16[@]}" "${small[@]}" "${tuned[@]}"
}

ablation_tokenizer() { # each vocabulary would need a law of its own: one rate for all
    launch ablation_tokenizer --select d_model=16,32 "${bf16[@]}" --set n_layers=2 --set head_dim=8 \
        --set batch_tokens=1536 --set max_bytes=null --set lr=1e-2 --set eval_points=1
}

ablation_context() {
    launch ablation_context --select d_model=16,32 "${bf16[@]}" "${tuned[@]}" --set n_layers=2 --set head_dim=8 \
        --set batch_tokens=2048
}

ablation_data() {
    launch ablation_data --select d_model=32,64 --select arm=x1,x2 "${bf16[@]}" "${small[@]}" "${tuned[@]}" \
        --set max_bytes=null --set tokens_budget=4M
}

mup_lr() {
    launch mup_lr --select arm=standard,mup --select d_model=64,128 --select lr=1.25e-3,2.5e-3,5e-3,1e-2,2e-2,4e-2 \
        "${bf16[@]}" --set n_layers=2 --set context_length=64 \
        --set batch_tokens=512 --set vocab_size=512 --set max_bytes=null --set eval_points=1 --set tokens_budget=150K
}

ladder() { # forecasts of large runs, written down before these are made
    local results=results/ladder at
    for at in lr short wide long; do
        tinyscale launch -y --keep none --results $results sweeps/ladder/$at.yaml
        tinyscale fit $results
    done
    for at in ladder ladder_wide ladder_long; do
        [[ -e $results/forecasts/from_$at.json ]] ||
            tinyscale register $results --sweep sweeps/ladder/far.yaml --fit $at-chinchilla --name from_$at
    done
    tinyscale launch -y --keep none --results $results sweeps/ladder/far.yaml
    tinyscale score $results
}

measured() { # SWEEP OPTIONS...: what is measured keeps its weights, which are not committed
    tinyscale launch -y --results results/measured "sweeps/$1.yaml" "${@:2}"
}

quantize() {
    measured quantize --select d_model=12,24,48 --select seed=0,1
}

features() {
    measured features --select d_model=24,48 --select seed=0,1
}

induction() { # on generated text
    measured induction --select seed=0
}

on_help() { # SWEEP LANGUAGES OPTIONS...: on the texts in the folder HELP
    local parts='' each
    for each in $2; do parts+="${parts:+, }$each: ${HELP:?names the folder that results/help_texts.py makes}/$each.jsonl"; done
    tinyscale launch -y --keep none --results results/help "sweeps/$1.yaml" --set "data.parts={$parts}" "${@:3}"
}

transfer() {
    on_help transfer "de en nl fr el" --select seed=0 --select tokens_budget=125K,250K,500K
}

languages() {
    on_help languages "de en nl fr it pt cs el" --select seed=0 --select d_model=12,24,48
}

stories() { # on TinyStories, or on the sample of it that STORIES names
    local bytes=6M
    [[ -z ${STORIES-} ]] || bytes=null # a file is read to its end
    local text=(--results results/tinystories --set corpus="${STORIES:-tinystories}" --set max_bytes=$bytes
        --set precision=fp32 --set gpu=0)
    launch lr --select arm=small --set search.trials=10 --set eval_points=1 --set vocab_size=512
    tinyscale fit results/tinystories
    launch width --select arm=small_tokens "${tuned[@]}" --select d_model=16,24,32,48,64
    register results/tinystories --select arm=small_tokens "${tuned[@]}"
    launch width --select arm=small_tokens "${tuned[@]}"
    launch data --select arm=small_one_epoch,small_repeated --select unique_tokens=250K,500K,1M,2M "${small[@]}" \
        "${tuned[@]}" --set d_model=32
}

known_floor() { # seeds that had no part in tuning it
    local text=(--results results/known_floor)
    launch known_floor --select seed=3,4,5 --set data.zipf.seed=1
}

(($#)) || set -- lr width depth context data isoflop grid grid_tuned ablation_schedule ablation_precision \
    ablation_optimizer ablation_architecture ablation_tokenizer ablation_context ablation_data mup_lr ladder stories \
    known_floor quantize features induction
for study in "$@"; do "$study"; done
for trials in results/*/trials; do tinyscale fit "${trials%/trials}"; done
