#!/usr/bin/env bash
# What a GPU computes and how fast, in one run of at most 8 minutes (docs: CONTRIBUTING.md, "The GPU check").
#
#   scripts/gpu_check.sh --prepare gpu-check            where the project is installed and a network is there: makes the
#                                                       folder gpu-check, with wheels, the demo's samples, MELD's lengths
#   scripts/gpu_check.sh --kit gpu-check                on the machine with a GPU: Python 3.11 or 3.12, torch 2.11 and
#                                                       transformers are enough; --output, --seconds, --checks: see --help
#   scripts/gpu_check.sh --missing                      names the packages that this machine lacks
#   scripts/gpu_check.sh --dry-run                      at toy size on the processor
#
# PYTHON names the interpreter; without it the project's own, else the first one that has torch.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PYTHONPATH="$root/scripts:$root/benchmarks:$root${PYTHONPATH:+:$PYTHONPATH}"
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 TOKENIZERS_PARALLELISM=false

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" "$root/.venv/bin/python" python3.12 python3 python3.11; do
        [ -n "$candidate" ] || continue
        if "$candidate" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is None)' 2>/dev/null
        then
            echo "$candidate"
            return
        fi
    done
    echo "no Python with torch was found; name it: PYTHON=/path/to/python $0" >&2
    return 2
}

python=$(find_python)
case "${1:-}" in
--prepare) shift && exec "$python" -m gpu_check.kit "$@" ;;
--missing) exec "$python" -c 'from gpu_check.packages import missing; print(*missing(), sep="\n")' ;;
esac

kit='' wheels=''
arguments=()
while [ $# -gt 0 ]; do
    case "$1" in
    --kit) kit=$2 && arguments+=("$1" "$2") && shift 2 ;;
    --wheels) wheels=$2 && shift 2 ;;
    --dry-run) export CUDA_VISIBLE_DEVICES='' && arguments+=("$1") && shift ;;
    *) arguments+=("$1") && shift ;;
    esac
done
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
"$python" -m gpu_check.packages "${wheels:-$kit/wheels}" "$site"
export PYTHONPATH="$site:$PYTHONPATH"
"$python" -m gpu_check "${arguments[@]}"
