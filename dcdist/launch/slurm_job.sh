# What a batch script does before and after its processes: sourced by slurm/*.sh, written into the script of
# `dcdist submit slurm`. Bash; Python is asked only how a run that has ended early stands.

# The start of the job, from which the time to its first step is counted.
export DCDIST_STARTED_AT=$(date +%s.%N)

# The processes meet on the first node. The port lies below those that systems give to outgoing connections. Jobs that
# share a node take different ones, and so do the starts of one job, whose last processes may still be about.
export MASTER_ADDR=$(scontrol show node "$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)" |
    sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
export MASTER_PORT=$((20000 + (SLURM_JOB_ID * 101 + ${SLURM_RESTART_COUNT:-0}) % 12000))

# finish_job CODE COMMAND...: ends the batch script with what srun ended with (the highest code of all processes), or has
# SLURM start it again. 75: preempted, or a peer was lost. 137, 140, 143: SIGKILL, SIGUSR2 or SIGTERM ended a process,
# before it could save or from elsewhere; what was committed is there. COMMAND --exit-code CODE then prints how the run
# itself stands, whose folder knows of a peer's failure and of starts that got nowhere: 75, or with what it has ended.
# It prints nothing where it cannot run: on a machine that fails, and the run goes on elsewhere.
# Everything else is an end: done (0), a failure (1, crashes), a wrong config (2), a stop on request (3).
finish_job() {
    local code=$1
    case $code in
    75 | 137 | 140 | 143)
        # A job that was cancelled, or that SLURM itself is about to requeue, is not running any more.
        if job_is_running; then
            code=$("${@:2}" --exit-code "$code")
            code=${code:-75}
            if ((code == 75)) && job_is_running; then
                echo "dcdist: exit code $1, requeued (so far ${SLURM_RESTART_COUNT:-0} times)"
                scontrol requeue "$(job_name)"
            fi
        fi
        ;;
    esac
    exit "$code"
}

job_name() {
    echo "${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_}${SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}"
}

job_is_running() {
    scontrol show job "$(job_name)" | grep -q 'JobState=RUNNING'
}
