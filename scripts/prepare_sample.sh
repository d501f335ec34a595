#!/usr/bin/env bash
# Makes the sample corpus and its tokenizer in data/sample and packs its four parts into data/sample/packed:
# {general,code}_{train,valid}_text_document.*. Complete files are reused; differing ones are replaced.
#
# SEQ_LENGTH (default 256) is the row length; arguments are passed to tools/preprocess_data.py.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/python_env.sh" || exit
require_env mindspore || exit

SAMPLE="$REPO_ROOT/data/sample"
"$PYTHON" "$REPO_ROOT/tools/make_sample_corpus.py" --output-dir "$SAMPLE"
for domain in general code; do
    for split in train valid; do
        "$PYTHON" "$REPO_ROOT/tools/preprocess_data.py" \
            --input "$SAMPLE/$domain/$split.parquet" \
            --tokenizer-name-or-path "$SAMPLE/tokenizer" \
            --output-prefix "$SAMPLE/packed/${domain}_$split" \
            --seq-length "${SEQ_LENGTH:-256}" \
            --n-subs "$([[ $split == train ]] && echo 2 || echo 1)" \
            --overwrite \
            "$@"
    done
done
