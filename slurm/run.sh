# The body of the batch scripts in this folder: one task a GPU, all on one run, until it is done.
# Expects `config`, the default; the script's arguments are a config of your own (its name ends in .yaml) and overrides (a.b=value).
set -uo pipefail
cd "${DCDIST_HOME:-$SLURM_SUBMIT_DIR}"
source dcdist/launch/slurm_job.sh

if [[ ${1:-} == *.yaml || ${1:-} == *.yml ]]; then
    config=$1
    shift
fi
read -r -a overrides <<<"${DCDIST_OVERRIDES:-}"
overrides+=(${DCDIST_RUN_DIR:+"run.dir=$DCDIST_RUN_DIR"} "$@")
if [[ -n ${SLURM_ARRAY_TASK_ID:-} ]]; then
    # Each task of an array is a run of its own: %a in an override is its number.
    if [[ "${overrides[*]}" != *%a* ]]; then
        echo "dcdist: the tasks of an array need different run directories: run.dir=FOLDER/%a (and run.seed=%a)" >&2
        exit 2
    fi
    overrides=("${overrides[@]//%a/$SLURM_ARRAY_TASK_ID}")
fi

# One task a GPU; without GPUs as many as --ntasks-per-node says. The node's cores are shared out to them.
gpus=${SLURM_GPUS_PER_NODE:-0}
gpus=${gpus##*:} # a100:8
tasks=$((gpus > 0 ? gpus : ${SLURM_NTASKS_PER_NODE:-1}))
cores=$((SLURM_CPUS_ON_NODE / tasks > 0 ? SLURM_CPUS_ON_NODE / tasks : 1))
[[ -d .venv ]] && PATH=$PWD/.venv/bin:$PATH

# A process that ends must not take the others with it: they notice, save and say how the run stands.
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$((SLURM_JOB_NUM_NODES * tasks))" --ntasks-per-node="$tasks" \
    --cpus-per-task="$cores" --kill-on-bad-exit=0 --wait=0 \
    dcdist train "$config" "${overrides[@]}"
finish_job $? dcdist verdict "$config" "${overrides[@]}"
