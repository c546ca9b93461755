#!/bin/bash
# What only a GPU can show, on one GPU in at most 8 minutes: tests/gpu/check.sh [FOLDER [DEVICE]]
# The table comes last; the status is 1 if a part failed. FOLDER keeps the JSON that the table is made of. CIFAR-10 is
# used where `igc-nas data cifar10` finds it. DEVICE is cuda:0; `cpu` shows on a machine without a GPU what it would do.
set -u -o pipefail
cd "$(dirname "$0")/../.." || exit 1
out=${1:-$(mktemp -d)}
device=${2:-cuda:0}
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 1
export OMP_WAIT_POLICY=PASSIVE IGC_NAS_CACHE="$out/cache" PYTHONPATH="$PWD"
python=${PYTHON:-python}
nas="$python -m igc_nas"

part() {  # part SECONDS NAME COMMAND...: run a command for at most so long, keep its output and its status
    local limit=$1 name=$2 began=$SECONDS status
    shift 2
    echo "$name (at most $limit s) ..."
    timeout -k 5 "$limit" "$@" >"$out/$name.out" 2>"$out/$name.err"
    status=$?
    echo "$status $((SECONDS - began))" >"$out/$name.status"
    [ $status = 0 ] || tail -n 3 "$out/$name.err" | sed "s/^/    /"
}

[ ! -e "$out/studies" ] || { echo "nothing was checked: $out has studies of an earlier run; give another FOLDER"; exit 1; }
$python -c "import sys; from igc_nas.nn.device import find_devices; print(find_devices(sys.argv[1])[0])" "$device" \
    2>"$out/device.err" || {
    tail -n 2 "$out/device.err"
    echo "nothing was checked: $python cannot use $device; \`$nas doctor\` says more"
    exit 1
}
rm -f "$out"/*.status
part 85 doctor $nas doctor --check --json
# To collect all tests takes half a minute.
[ "$device" = cpu ] || part 75 tests $python -m pytest -m gpu -n 0 $(grep -rl "pytest\.mark\.gpu" tests --include="test_*.py")
part 60 train $nas bench train --device "$device" --no-compile --json \
    --network igcv1-l24m2 --network igcv2-c48-d4-res --network igcv3-c32-t4-k5-plain
part 45 latency $nas bench latency --device "$device" --count 4 --json
for workers in 1 2 3; do  # three minutes; of one recipe: each would be planned another one
    part 60 "search$workers" $nas search --budget-params 2M --device "$device" --workers $workers --time 50s \
        --recipe epochs=1 --promote 0 --study "gpu$workers" --studies-dir "$out/studies"
done
$python tests/gpu/summary.py "$out" | tee "$out/table.txt"
