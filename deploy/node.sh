#!/usr/bin/env bash
# What every node of a launch runs: the preflight, and if the machines are fit the training, under torchrun.
#
#   node.sh RECIPE.toml [options of `openzaya train`: --out DIR, --phase NAME, --plan CLUSTER.toml]
#
# Slurm and Kubernetes set these; on a single machine none is needed:
#   NODES      how many nodes take part (1)
#   HEAD       a name by which all of them reach the first one (localhost)
#   IS_HEAD    whether this is the first one: true or false (true where HEAD is localhost; else torchrun finds out)
#   PORT       two free ports of the first one start here (29500)
#   RUN_ID     the same on all nodes of a launch, another for each launch (openzaya)
#   GPUS       ranks on this node (all GPUs; one rank where there is none)
#   RESTARTS   how often torchrun starts all ranks again after one has died, before the launch is given up (3)
#   PREFLIGHT  0 starts without the check (1)
#   CHECKED    a file on shared storage that a passed check leaves; where it is, nodes that join later do not check
set -euo pipefail

if (($# == 0)); then
    sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2
    exit 2
fi
recipe=$1
shift

: "${NODES:=1}" "${HEAD:=localhost}" "${PORT:=29500}" "${RUN_ID:=openzaya}" "${RESTARTS:=3}" "${PREFLIGHT:=1}"
if [[ $HEAD == localhost ]]; then : "${IS_HEAD:=true}"; fi
: "${GPUS:=$(python -c 'import torch; print(max(1, torch.cuda.device_count()))')}"

# Without this torch gives every rank one thread; these are for the tokens, the GPU does the products.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-8}"
# Rows of many lengths fragment the allocator's fixed segments; segments that grow do not. ROCm's torch reads the same name.
export PYTORCH_ALLOC_CONF="${PYTORCH_ALLOC_CONF:-expandable_segments:True}"

# Torch 2.13 gives ranks that it starts again the addresses of the dead ones, and they hang; with a store of its own for
# each start they do not.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE="${TORCH_DISABLE_SHARE_RDZV_TCP_STORE:-1}"

# Said once and with a code of its own, before a thousand ranks say it.
python - "$recipe" <<'PYTHON' || exit 2
import sys
from openzaya.train.config import read_train_config
try:
    read_train_config(sys.argv[1])
except ValueError as error:
    sys.exit(f"openzaya: {error}")
PYTHON

launch() { # name, port, restarts, arguments of openzaya train
    local name=$1 port=$2 restarts=$3
    shift 3
    # c10d needs no service of its own: the first node keeps the rendezvous. A port and an id for each launch, so that
    # a node which is late for the one is not taken for a member of the other.
    torchrun \
        --nnodes "$NODES" --nproc-per-node "$GPUS" \
        --rdzv-backend c10d --rdzv-endpoint "$HEAD:$port" --rdzv-id "$RUN_ID-$name" \
        ${IS_HEAD:+--rdzv-conf "is_host=$IS_HEAD"} \
        --max-restarts "$restarts" \
        -m openzaya train "$recipe" "$@"
}

if [[ $PREFLIGHT != 0 && ! -e ${CHECKED:-} ]]; then
    # Not tried again: what it finds (a slow GPU, a full disk) a restart does not mend.
    launch preflight "$PORT" 0 "$@" --preflight
    if [[ -n ${CHECKED:-} ]]; then touch "$CHECKED"; fi
fi
# --plan describes the cluster to the preflight; given to the training it would only print a plan.
arguments=()
while (($#)); do
    case $1 in
        --plan) shift 2 ;;
        --plan=*) shift ;;
        *) arguments+=("$1"); shift ;;
    esac
done
launch train "$((PORT + 1))" "$RESTARTS" ${arguments[@]+"${arguments[@]}"}
