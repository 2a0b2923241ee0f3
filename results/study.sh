#!/usr/bin/env bash
# The studies committed beside this file, on two CPU cores, from the top of the repository:
#
#   bash results/study.sh [NAME...]
#
# Without names, all of them but `transfer` and `languages`, which read the LibreOffice help (results/help_texts.py says
# how its folder is made, HELP=FOLDER names another), `novels`, whose texts NOVELS=FOLDER names, and `dictionary`, made
# of the package that `apt-get download dict-gcide` brings. Launched again, a study trains only what is missing. What
# results hold is fitted at the end.
set -euo pipefail

text=(--results results/sotu) # the speeches, as the files have it, unless a study reads another text
launch() { # SWEEP OPTIONS...
    tinyscale launch -y --keep none "${text[@]}" "sweeps/$1.yaml" "${@:2}"
}
register() { # RESULTS OPTIONS...: what the fits so far say of width 96, written down once
    [[ ! -e $1/forecasts/width.json ]] || return 0
    tinyscale fit "$1"
    tinyscale register "$1" "${text[@]:2}" --sweep sweeps/width.yaml "${@:2}" --select d_model=96
}

lr() {
    launch lr --set search.trials=12
    launch lr --select arm=small --set search.trials=16
    tinyscale fit results/sotu
}

width() {
    tinyscale tune -y "${text[@]}" sweeps/width.yaml --select arm=small # batches of 512
    launch width --select d_model=16,24,32,48,64
    register results/sotu
    launch width
    tinyscale score results/sotu
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

far() { # RESULTS TEXT: the same on the text of a folder, with runs that begin where the law holds
    local on=(--set corpus="$2") at
    for at in rates small; do
        tinyscale launch -y --keep none --results "$1" sweeps/far/$at.yaml "${on[@]}"
        tinyscale fit "$1"
    done
    [[ -e $1/forecasts/far.json ]] ||
        tinyscale register "$1" --sweep sweeps/far/large.yaml "${on[@]}" --fit small-chinchilla --name far
    tinyscale launch -y --keep none --results "$1" sweeps/far/large.yaml "${on[@]}"
    tinyscale score "$1"
}

novels() {
    far results/novels "${NOVELS:-sweeps/far/novels}"
}

dictionary() { # entries of the dictionary GCIDE, from the Debian package that DICTIONARY names
    local text=sweeps/far/dictionary
    mkdir -p $text
    dpkg --fsys-tarfile "${DICTIONARY:-dict-gcide_0.48.5+nmu2_all.deb}" | tar -xO ./usr/share/dictd/gcide.dict.dz |
        gzip -dc | iconv -c -f ascii -t ascii |
        awk 'last == "" && /^[^ ]/ { print "<|endoftext|>" } { print; last = $0 }' >$text/gcide.txt
    far results/dictionary $text
    tinyscale launch -y --keep none --results results/dictionary sweeps/far/between.yaml --set corpus=$text
}

measured() { # SWEEP: what is measured keeps its weights, which are not committed
    tinyscale launch -y --results results/measured "sweeps/$1.yaml"
}

distill() {
    tinyscale launch -y --keep none --results results/distilled sweeps/distill.yaml
}

on_help() { # SWEEP LANGUAGES: on the texts in the folder HELP
    local parts='' each
    for each in $2; do parts+="${parts:+, }$each: ${HELP:-sweeps/help}/$each.jsonl"; done
    tinyscale launch -y --keep none --results results/help "sweeps/help/$1.yaml" --set "data.parts={$parts}"
}

transfer() {
    on_help transfer "de en nl fr el"
}

languages() {
    on_help languages "de en nl fr it pt cs el"
}

stories() { # on TinyStories, or on the sample of it that STORIES names
    local bytes=6M
    [[ -z ${STORIES-} ]] || bytes=null # a file is read to its end
    local text=(--results results/tinystories --set corpus="${STORIES:-tinystories}" --set max_bytes=$bytes
        --set precision=fp32)
    launch lr --select arm=small --set search.trials=10
    tinyscale fit results/tinystories
    launch width --select arm=small_tokens --select d_model=16,24,32,48,64
    register results/tinystories --select arm=small_tokens
    launch width --select arm=small_tokens
    launch data --select unique_tokens=250K,500K,1M,2M
}

known_floor() {
    local text=(--results results/known_floor)
    launch known_floor
}

(($#)) || set -- lr width depth context data isoflop grid grid_tuned ablation_schedule ablation_precision \
    ablation_optimizer ablation_architecture ablation_tokenizer ablation_context ablation_data mup_lr ladder stories \
    known_floor quantize features induction distill
for study in "$@"; do
    case $study in
        lr | width | ladder | novels | dictionary | stories | known_floor | distill | transfer | languages) "$study" ;;
        quantize | features | induction) measured "$study" ;;
        *) launch "$study" ;;
    esac
done
for trials in results/*/trials; do tinyscale fit "${trials%/trials}"; done
