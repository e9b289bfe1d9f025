#!/usr/bin/env bash
# A run on 64 nodes of 8 GPUs under SLURM: Ray's head on the first node, a worker on each other one, then the run on the head.
#   sbatch runs/recipes/cluster/slurm.sh repos.txt runs/recipes/cluster-512.toml [RUN]      RUN: continue it
# The working folder, the Python environment and the policy's folder must be on a file system that every node has under the same path.
#SBATCH --job-name=selfplay
#SBATCH --nodes=64
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --time=24:00:00
set -euo pipefail
repos=$1 recipe=$2 run=${3:-}
source .venv/bin/activate

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=$(srun --nodes=1 --ntasks=1 -w "${nodes[0]}" hostname --ip-address | awk '{print $1}')
port=6379
export RAY_worker_niceness=0 # else Ray gives all it starts, our ranks and servers too, a priority of 15 below the sandboxes'
common=(--num-cpus="$SLURM_CPUS_ON_NODE" --num-gpus="${SLURM_GPUS_ON_NODE:-8}" --disable-usage-stats --block)

srun --nodes=1 --ntasks=1 --overlap -w "${nodes[0]}" ray start --head --node-ip-address="$head" --port=$port "${common[@]}" &
sleep 20
for node in "${nodes[@]:1}"; do
    srun --nodes=1 --ntasks=1 --overlap -w "$node" ray start --address="$head:$port" "${common[@]}" &
done
sleep 60

# The first line refuses what cannot fit on what SLURM really gave, before anything is loaded.
on_head=(srun --nodes=1 --ntasks=1 --overlap -w "${nodes[0]}")
if [ -n "$run" ]; then
    "${on_head[@]}" selfplay train --resume "$run" --cluster "$head:$port"
else
    "${on_head[@]}" selfplay train --dry-run --repos "$repos" --config "$recipe" --cluster "$head:$port"
    "${on_head[@]}" selfplay train --repos "$repos" --config "$recipe" --cluster "$head:$port"
fi
