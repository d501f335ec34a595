#!/usr/bin/env bash
# From a fresh clone to a trained model, on any Linux machine with two cores and no NPU:
# environment, sample corpus, packed data, a tiny Qwen3 trained on prose by two processes, continued pretraining on
# source code, export and verification of the weights, and a summary. A second run reuses complete results.
set -euo pipefail

# shellcheck source=scripts/python_env.sh
source "$(dirname "${BASH_SOURCE[0]}")/python_env.sh"
cd "$REPO_ROOT"

step() {
    printf '\n== %s\n' "$*"
}

# train CONFIG: prints the launch command and runs it.
train() {
    echo "bash scripts/msrun_launcher.sh \"run_cpt.py --config $1\" 2"
    bash scripts/msrun_launcher.sh "run_cpt.py --config $1" 2
}

step "1/6 Environment"
# shellcheck disable=SC2119  # no extras needed
ensure_env

# A free port, unless the user has chosen one.
MASTER_PORT="${MASTER_PORT:-$("$PYTHON" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')}"
export MASTER_PORT
# One node, even when this machine is part of a cluster job.
unset MASTER_ADDR NODE_RANK NNODES NPUS_PER_NODE GPUS_PER_NODE WORLD_SIZE

step "2/6 Sample corpus and packed data"
bash scripts/prepare_sample.sh

step "3/6 Base: a tiny Qwen3 on English prose"
train configs/qwen3/cpt_qwen3_tiny_base.yaml

step "4/6 Continued pretraining on source code"
train configs/qwen3/cpt_qwen3_tiny.yaml

step "5/6 Export to Hugging Face format, verification, and text generation"
EXPORTED=output/qwen3_tiny_hf
if [[ -d "$EXPORTED" ]]; then
    echo "$EXPORTED: already exists; reusing it"
else
    "$PYTHON" tools/convert_weights.py to-hf output/qwen3_tiny "$EXPORTED" --like data/sample/tokenizer
fi
"$PYTHON" tools/convert_weights.py verify "$EXPORTED" --against output/qwen3_tiny
"$PYTHON" tools/generate.py "$EXPORTED" --prompt "def __init__(self" --num-tokens 40

step "6/6 Summary"
"$PYTHON" tools/summarize_run.py output/qwen3_tiny_base output/qwen3_tiny
cat <<'NEXT'

The validation losses of the second run show the improvement on code and the forgetting on prose.
Data: data/sample/packed (documents in data/sample). Next, train another model on the same data:

    bash scripts/msrun_launcher.sh "run_cpt.py --config configs/llama3/cpt_llama3_tiny.yaml" 2

and pack your own text with data_convert_qwen3_pretrain.sh (docs/preprocessing.md).
NEXT
