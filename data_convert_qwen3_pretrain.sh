#!/usr/bin/env bash
# Packs raw text into MindRecord for continued pretraining of Qwen3.
#
#     bash data_convert_qwen3_pretrain.sh                                    # the sample corpus
#     INPUT=/data/corpus OUTPUT_PREFIX=/data/packed/corpus TOKENIZER=/models/Qwen3-8B-Base SEQ_LENGTH=4096 N_SUBS=64 \
#         bash data_convert_qwen3_pretrain.sh
#
# Every setting is an environment variable (below, with its default) or a flag of tools/preprocess_data.py: arguments
# are passed on and take precedence, e.g. `--seq-length 8192 --no-append-eod`. `--help` lists them.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/scripts/python_env.sh" || exit
require_env mindspore || exit

# On an NPU server, as MindSpeed-LLM's script does. CANN's file reads variables that may not be set.
CANN_ENV="${CANN_ENV:-/usr/local/Ascend/ascend-toolkit/set_env.sh}"
if [[ -f "$CANN_ENV" ]]; then
    set +u
    # shellcheck source=/dev/null
    source "$CANN_ENV"
    set -u
fi

SAMPLE="$REPO_ROOT/data/sample"
INPUT="${INPUT:-$SAMPLE/general/train.parquet}"                      # file, folder or glob
OUTPUT_PREFIX="${OUTPUT_PREFIX:-$SAMPLE/packed/general_train}"       # folder and name prefix of the files
TOKENIZER_TYPE="${TOKENIZER_TYPE:-PretrainedFromHF}"                 # or SentencePiece, TikToken
TOKENIZER="${TOKENIZER:-$SAMPLE/tokenizer}"                          # Hugging Face folder (PretrainedFromHF)
TOKENIZER_MODEL="${TOKENIZER_MODEL:-}"                               # tokenizer.model or qwen.tiktoken (other types)
HANDLER_NAME="${HANDLER_NAME:-GeneralPretrainHandler}"               # or package.module:Class
JSON_KEYS="${JSON_KEYS:-text}"                                       # keys or columns, separated by spaces
SEQ_LENGTH="${SEQ_LENGTH:-256}"                                      # trained tokens per row
N_SUBS="${N_SUBS:-2}"                                                # shards, each one MindRecord file
WORKERS="${WORKERS:-$(nproc)}"                                       # processes

if [[ "$INPUT" == "$SAMPLE"/* || "$TOKENIZER" == "$SAMPLE"/* ]]; then
    "$PYTHON" "$REPO_ROOT/tools/make_sample_corpus.py" --output-dir "$SAMPLE"
fi

read -r -a json_keys <<<"$JSON_KEYS"
tokenizer=(--tokenizer-name-or-path "$TOKENIZER")
[[ -z "$TOKENIZER_MODEL" ]] || tokenizer+=(--tokenizer-model "$TOKENIZER_MODEL")

exec "$PYTHON" "$REPO_ROOT/tools/preprocess_data.py" \
    --input "$INPUT" \
    --handler-name "$HANDLER_NAME" \
    --json-keys "${json_keys[@]}" \
    --tokenizer-type "$TOKENIZER_TYPE" \
    "${tokenizer[@]}" \
    --output-prefix "$OUTPUT_PREFIX" \
    --seq-length "$SEQ_LENGTH" \
    --n-subs "$N_SUBS" \
    --workers "$WORKERS" \
    "$@"
