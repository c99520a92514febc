#!/usr/bin/env bash
#SBATCH --job-name=cytosae-embed
#SBATCH --array=0-7
#SBATCH --cpus-per-task=8
#SBATCH --mem=16G
#SBATCH --time=12:00:00
# Embed a large cohort on a cluster inside the hospital: task i of N makes every N-th shard of one token store; the last
# one to finish completes it. A killed task loses at most one shard: submit the same line again.
#
#     sbatch deploy/slurm/embed-array.sh DATA STORE [further options of `cytosae encoder embed`]
set -euo pipefail
if [ $# -lt 2 ]; then
  echo "Expected DATA and STORE. Hint: sbatch $0 DATA STORE" >&2
  exit 2
fi
data=$1 store=$2
shift 2
first=${SLURM_ARRAY_TASK_MIN:-0}
shard=$((${SLURM_ARRAY_TASK_ID:-0} - first))/${SLURM_ARRAY_TASK_COUNT:-1}
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-8} OMP_WAIT_POLICY=PASSIVE
exec "${CYTOSAE:-cytosae}" encoder embed "$data" "$store" --shard "$shard" --workers "$OMP_NUM_THREADS" "$@"
