#!/usr/bin/env bash
# sbatch docs/cluster/slurm.sh my-folder/ --run web [any option of gpt2 train]
#
# One torchrun on each node. Before the time is up, or when the job is preempted, Slurm sends SIGUSR1 here; it is passed
# on, the run saves itself, and the job goes back into the queue until the run is complete, or has failed.
#SBATCH --job-name=gpt2
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=gpt2-%j.log
#SBATCH --signal=B:USR1@300
set -euo pipefail

first_host=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
again=no

# shellcheck disable=SC2016 # expanded on each node, not here
srun bash -c '
    exec torchrun --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node "${SLURM_GPUS_ON_NODE:-1}" \
        --node-rank "$SLURM_NODEID" --master-addr "$0" --master-port 29500 \
        --signals-to-handle SIGTERM,SIGINT,SIGUSR1 --shutdown-timeout 280 \
        -m -- gpt2 train --auto-resume "$@"
' "$first_host" "$@" &
step=$!

# shellcheck disable=SC2329 # the trap calls it
pass_on() {
    again=yes
    scancel --signal=USR1 "$SLURM_JOB_ID.0" || kill -USR1 "$step"
}
trap pass_on USR1 TERM

code=0
wait "$step" || code=$?
while kill -0 "$step" 2>/dev/null; do # a signal ends the wait, not the step
    code=0
    wait "$step" || code=$?
done

# torchrun ends with 1 after a signal, saved or not; how the run ended stands in its folder. A run that was still
# preparing its text says nothing there, and begins again.
run=$(printf '%s\n' "$@" | sed -n 's/^--run=//p; /^--run$/{n;p;}' | tail -n 1)
ended=$(sed -n 's/.*"status": "\([a-z ]*\)".*/\1/p' "runs/$run/run_state.json" 2>/dev/null || true)
case $again:$code:$ended in
    no:* | yes:0:* | yes:*:failed | yes:*:completed | yes:*:"stopped early") ;;
    *) scontrol requeue "$SLURM_JOB_ID" ;;
esac
exit "$code"
