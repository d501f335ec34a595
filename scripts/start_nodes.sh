#!/usr/bin/env bash
# Starts a job on all nodes from one of them, by ssh, and prints their output:
#
#     bash scripts/start_nodes.sh HOSTFILE "run_cpt.py --config ..." [LOCAL_WORKER [MASTER_PORT]] [--max-restarts N ...]
#
# HOSTFILE has one host per line; the first is node 0, and its name must resolve on all others. "#" starts a comment;
# text after the name (slots=8) is ignored. With --spare-nodes N, the last N hosts are the spare nodes. Defaults:
# LOCAL_WORKER 8, MASTER_PORT 8118. Every node needs this repository under the same path ($REMOTE_ROOT if different from the
# local one) and must accept ssh without a password.
# Each node receives the job secret through ssh's standard input: the content of the file $ASCEND_CPT_SECRET_FILE, or a new
# secret. It is stored on each node in ~/.config/ascend_cpt/job_MASTER_PORT, for a launcher that you start again by hand. With
# --insecure there is none.
# Passed to all nodes: ASCEND_CPT_*, HCCL_*, SHARED_PATHS, SKIP_DOCTOR. If ENV_SCRIPT is set (for example to
# /usr/local/Ascend/ascend-toolkit/set_env.sh), it is sourced on each node first. Ctrl-C stops all nodes. DRY_RUN=1 prints the
# ssh commands without running them.
#
# Under Slurm no hostfile is needed:
#     srun --nodes=2 --ntasks-per-node=1 bash scripts/msrun_launcher.sh "run_cpt.py --config ..."
set -euo pipefail

fail() {
    echo "error: $*" >&2
    exit 2
}

usage="usage: bash scripts/start_nodes.sh HOSTFILE CMD [LOCAL_WORKER [MASTER_PORT]] [options of the launcher]"
positional=() options=()
while (($#)); do
    case "$1" in
        -h | --help) sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; exit 0 ;;
        --insecure | --*=*) options+=("$1") ;;
        --*) options+=("$1" "${2-}"); shift $(($# > 1)) ;;
        *) positional+=("$1") ;;
    esac
    shift
done
((${#positional[@]} >= 2 && ${#positional[@]} <= 4)) || fail "$usage"
hostfile="${positional[0]}" command="${positional[1]}"
local_worker="${positional[2]-8}" master_port="${positional[3]-8118}"
[[ -r "$hostfile" ]] || fail "$hostfile: no such hostfile"
[[ "$local_worker" =~ ^[1-9][0-9]*$ ]] || fail "LOCAL_WORKER must be a whole number of at least 1, not '$local_worker'"

[[ "$master_port" =~ ^[1-9][0-9]*$ ]] || fail "MASTER_PORT must be a whole number, not '$master_port'"
[[ "${options[*]-}" != *--secret-file* ]] || fail "give the secret file as ASCEND_CPT_SECRET_FILE=PATH before the command"

mapfile -t hosts < <(sed 's/#.*//' "$hostfile" | awk 'NF { print $1 }')
((${#hosts[@]})) || fail "$hostfile is empty; list one host per line"
for host in "${hosts[@]}"; do [[ "$host" != -* ]] || fail "$hostfile: '$host' is not a host name"; done
repeated="$(printf '%s\n' "${hosts[@]}" | sort | uniq -d)"
[[ -z "$repeated" ]] || fail "$hostfile lists ${repeated//$'\n'/, } more than once"

root="${REMOTE_ROOT:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)}"
passed=()
while IFS= read -r name; do passed+=("$name=${!name}"); done \
    < <(compgen -e | grep -E '^(ASCEND_CPT_.*|HCCL_.*|SHARED_PATHS|SKIP_DOCTOR)$' | grep -vx ASCEND_CPT_SECRET_FILE || true)

spares="${ASCEND_CPT_SPARE_NODES:-0}"
for index in "${!options[@]}"; do
    case "${options[index]}" in
        --spare-nodes) spares="${options[index + 1]-}" ;;
        --spare-nodes=*) spares="${options[index]#*=}" ;;
    esac
done
[[ "$spares" =~ ^[0-9]+$ ]] || fail "--spare-nodes must be a whole number of at least 0, not '$spares'"
((${#hosts[@]} - spares >= 2 || !spares)) || fail "--spare-nodes $spares: $hostfile must list at least two more hosts"

insecure="${ASCEND_CPT_INSECURE:-0}"
for option in "${options[@]}"; do [[ "$option" != --insecure ]] || insecure=1; done
secret_folder=.config/ascend_cpt secret_name="job_$master_port"

# Prints the secret of the job.
print_secret() {
    if [[ -n "${ASCEND_CPT_SECRET_FILE:-}" ]]; then
        cat -- "$ASCEND_CPT_SECRET_FILE"
    else
        head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n'
    fi
}

# The command for the node of rank $1, quoted for the remote shell.
remote_command() {
    local words=(cd "$root")
    printf '%q ' "${words[@]}"
    [[ -z "${ENV_SCRIPT:-}" ]] || printf '&& source %q ' "$ENV_SCRIPT"
    printf '&& '
    words=(exec env "${passed[@]}")
    printf '%q ' "${words[@]}"
    # The home folder is that of the remote user.
    # shellcheck disable=SC2016
    [[ "$insecure" == 1 ]] || printf 'ASCEND_CPT_SECRET_FILE="$HOME"/%q ' "$secret_folder/$secret_name"
    words=(bash scripts/msrun_launcher.sh "${options[@]}" "$command" "$(((${#hosts[@]} - spares) * local_worker))"
        "$local_worker" "${hosts[0]}" "$master_port" "$1")
    printf '%q ' "${words[@]}"
}

# With a remote terminal (-tt) the launcher gets SIGHUP when the connection ends, and stops its workers.
ssh_words=(ssh -tt -o BatchMode=yes -o ServerAliveInterval=15)
if [[ "$insecure" != 1 && "${DRY_RUN:-}" != 1 ]]; then
    secret="$(print_secret)" || fail "${ASCEND_CPT_SECRET_FILE:-/dev/urandom}: cannot be read"
    ((${#secret} >= 32)) || fail "${ASCEND_CPT_SECRET_FILE:-}: a job secret must have at least 32 characters"
    # Written whole under another name first, because all nodes may share the home folder.
    write="umask 077 && mkdir -p \"\$HOME\"/$secret_folder && cd \"\$HOME\"/$secret_folder"
    write+=" && cat >$secret_name.\$\$ && mv -f $secret_name.\$\$ $secret_name"
    for host in "${hosts[@]}"; do
        # printf is a command of the shell itself, so the secret is on no command line.
        printf '%s\n' "$secret" | ssh -T -o BatchMode=yes -- "$host" "$write" ||
            fail "$host: the job's secret could not be stored over ssh"
    done
    unset secret
fi
pids=()
trap 'trap - INT TERM; echo "stopping all nodes" >&2; kill "${pids[@]}" 2>/dev/null || true' INT TERM
for rank in "${!hosts[@]}"; do
    remote="$(remote_command "$rank")"
    if [[ "${DRY_RUN:-}" == 1 ]]; then
        printf '%q ' "${ssh_words[@]}" -- "${hosts[rank]}" "$remote"
        printf '\n'
        continue
    fi
    "${ssh_words[@]}" -- "${hosts[rank]}" "$remote" </dev/null > >(sed -u "s/\r\$//; s|^|[${hosts[rank]}] |") 2>&1 &
    pids+=($!)
done

worst=0
for rank in "${!pids[@]}"; do
    code=0
    # A signal interrupts wait: repeat until the process has ended.
    while wait "${pids[rank]}" || code=$?; kill -0 "${pids[rank]}" 2>/dev/null; do code=0; done
    ((code == 0)) || echo "node $rank (${hosts[rank]}) ended with exit code $code" >&2
    ((worst != 0)) || worst=$code
done
exit "$worst"
