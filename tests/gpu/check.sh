#!/bin/bash
# What only a GPU can show, on one GPU in at most 8 minutes: tests/gpu/check.sh [FOLDER]
# The table comes last; FOLDER keeps the JSON that it is made of. CIFAR-10 is used where `igc-nas data cifar10` finds it.
set -u
cd "$(dirname "$0")/../.." || exit 1
out=${1:-$(mktemp -d)}
mkdir -p "$out"
export OMP_WAIT_POLICY=PASSIVE IGC_NAS_CACHE="$out/cache"
nas="python -m igc_nas"

part() {  # part SECONDS NAME COMMAND...: run a command for at most so long, keep its output and its status
    local limit=$1 name=$2 began=$SECONDS
    shift 2
    timeout "$limit" "$@" >"$out/$name.out" 2>"$out/$name.err"
    echo "$? $((SECONDS - began))" >"$out/$name.status"
    echo "$name: status $(cut -d' ' -f1 "$out/$name.status") after $((SECONDS - began)) s"
}

part 90 doctor $nas doctor --check --json
part 100 tests python -m pytest -m gpu -n 0 tests
part 60 train $nas bench train --device cuda:0 --no-compile --json
part 40 latency $nas bench latency --device cuda:0 --count 6 --json
for workers in 1 2 3; do
    part 75 "search$workers" $nas search --budget-params 2M --device cuda:0 --workers $workers --time 45s \
        --study "gpu$workers" --studies-dir "$out/studies"
done
python tests/gpu/summary.py "$out" | tee "$out/table.txt"
