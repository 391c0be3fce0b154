#!/usr/bin/env bash
#SBATCH --job-name=bandit-pft
#SBATCH --array=0-3
#SBATCH --time=01:00:00
#SBATCH --requeue
# One sweep by several workers that share a folder. On a cluster: `sbatch examples/array.sh`, where the array's tasks are
# the workers and must see OUT. Anywhere else: `bash examples/array.sh` starts WORKERS processes here.
# A task that was stopped or killed goes on where it was: submit the same again.
set -euo pipefail
SWEEP=${SWEEP:-sweep dpo ipo best_of_n grpo --grid learning_rate=0.05,0.1,0.2}
OUT=${OUT:-results/array}
WORKERS=${SLURM_ARRAY_TASK_COUNT:-${WORKERS:-4}}

worker() {
  # SWEEP is a list of words on purpose.
  # shellcheck disable=SC2086
  bandit-pft $SWEEP --out "$OUT" --resume --worker "$1/$WORKERS"
}

if [[ -n ${SLURM_ARRAY_TASK_ID:-} ]]; then
  worker "$SLURM_ARRAY_TASK_ID"
  exit
fi
running=()
for ((k = 0; k < WORKERS; k++)); do
  worker "$k" &
  running+=($!)
done
for one in "${running[@]}"; do wait "$one"; done
