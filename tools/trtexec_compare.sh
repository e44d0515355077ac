#!/usr/bin/env bash
# On a board: let NVIDIA's own trtexec build what P4Q Edge built, and time both plans with it, in turns.
#   tools/trtexec_compare.sh out.plan model.p4q [BATCH]
# Nothing of P4Q Edge runs here: the model is unpacked from the bundle (a zip), the command stands in the plan's card.
set -euo pipefail

if [[ $# -lt 2 ]]; then
    sed -n '2,3s/^# *//p' "$0" >&2
    exit 2
fi
plan=$(realpath "$1") bundle=$(realpath "$2") batch=${3:-1}
command -v trtexec > /dev/null || { echo "error: trtexec is not on the PATH; JetPack has it in /usr/src/tensorrt/bin" >&2; exit 3; }
card() { python3 -c "import json, sys; print(json.load(open(sys.argv[1]))$1)" "$plan.json"; }
build=$(card "['build']['built_with']['trtexec']")
if [[ -z $build ]]; then
    echo "error: the card of $plan names no command of trtexec: only INT8 plans have one, as trtexec cannot leave out" \
        "quantization. Build with --precision int8 to compare." >&2
    exit 2
fi
size=$(card "['preprocess']['size']" | tr -d '[] ' | tr ',' 'x')
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m zipfile -e "$bundle" "$folder/bundle"
cat "$folder/bundle/graph.fp16.onnx" "$folder/bundle/weights.onnx" > "$folder/model.onnx"
# With the kernel times of the first build, trtexec chooses the same kernels.
find "$(dirname "$plan")" -maxdepth 1 -name 'timing-*.cache' -exec cp {} "$folder" \;
echo "$build"
(cd "$folder" && bash -c "$build" > build.log 2>&1) || { tail -5 "$folder/build.log" >&2; exit 1; }

# trtexec refuses shapes for a plan with a fixed batch.
shapes=()
if [[ $build == *--minShapes* ]]; then shapes=("--shapes=image:${batch}x3x$size"); fi
median() {
    trtexec --loadEngine="$1" "${shapes[@]}" --useCudaGraph --warmUp=500 --duration=3 2>&1 |
        sed -n 's/.*GPU Compute Time:.*median = \([0-9.]*\) ms.*/\1/p' | head -1
}
printf '%-6s %12s %12s\n' round P4Q_ms trtexec_ms
for round in 1 2 3; do
    first=$(median "$plan") second=$(median "$folder/trtexec.plan")
    if [[ -z $first || -z $second ]]; then
        echo "error: trtexec gave no time; run: trtexec --loadEngine=$plan ${shapes[*]}" >&2
        exit 1
    fi
    printf '%-6s %12s %12s\n' "$round" "$first" "$second"
done
printf 'sizes  %12s %12s bytes\n' "$(stat -c %s "$plan")" "$(stat -c %s "$folder/trtexec.plan")"
