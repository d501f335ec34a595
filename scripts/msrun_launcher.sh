#!/usr/bin/env bash
# Starts a training job on this node under MindSpore's msrun:
#
#     bash scripts/msrun_launcher.sh "run_cpt.py --config ..." 64 8 $MASTER 8118 $RANK
#
# `--help` shows the usage. Implemented in ascend_cpt/cluster/launch/main.py.
set -euo pipefail

# shellcheck source=scripts/python_env.sh
source "$(dirname "${BASH_SOURCE[0]}")/python_env.sh"
require_env mindspore mindformers

PYTHONPATH="$REPO_ROOT${PYTHONPATH:+:$PYTHONPATH}" exec "$PYTHON" -m ascend_cpt.cluster.launch.main "$@"
