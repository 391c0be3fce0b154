#!/usr/bin/env bash
#SBATCH --job-name=bandit-pft
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --time=01:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
# One command in several processes that know of one another through jax.distributed: `sbatch examples/distributed.sh`
# starts one on each node, which must all see this folder. Anywhere else, `bash examples/distributed.sh` starts WORKERS
# here. COMMAND may also be a Python program that calls join_processes() first.
# When a process dies, JAX ends the others within 100 seconds and says which it was; submit the same again to go on.
set -euo pipefail
SWEEP="bandit-pft sweep dpo ipo best_of_n grpo --grid learning_rate=0.05,0.1,0.2 --out results/distributed"
COMMAND=${COMMAND:-$SWEEP --resume --worker auto}

# COMMAND is a list of words on purpose.
# shellcheck disable=SC2086
if [[ -n ${SLURM_JOB_ID:-} ]]; then
  exec srun --kill-on-bad-exit=1 $COMMAND
fi
export JAX_COORDINATOR_ADDRESS=${JAX_COORDINATOR_ADDRESS:-127.0.0.1:29500} JAX_NUM_PROCESSES=${WORKERS:-2}
running=()
for ((k = 0; k < JAX_NUM_PROCESSES; k++)); do
  # shellcheck disable=SC2086
  JAX_PROCESS_ID=$k $COMMAND &
  running+=($!)
done
for one in "${running[@]}"; do wait "$one"; done
