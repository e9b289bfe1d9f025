#!/usr/bin/env bash
# A run on 64 nodes with 8 GPUs each, under SLURM. Ray's head runs on the first node, a worker on each other node.
# Then the run starts on the head.
#   sbatch runs/recipes/cluster/slurm.sh repos.txt runs/recipes/cluster-512.toml [RUN]      RUN: continue this run
# The working folder, the Python environment and the policy's folder must have the same path on every node.
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
# Otherwise Ray runs everything that it starts, our ranks and servers too, at niceness 15, below the sandboxes.
export RAY_worker_niceness=0
common=(--num-cpus="$SLURM_CPUS_ON_NODE" --num-gpus="${SLURM_GPUS_ON_NODE:-8}" --disable-usage-stats --block)

srun --nodes=1 --ntasks=1 --overlap -w "${nodes[0]}" ray start --head --node-ip-address="$head" --port=$port "${common[@]}" &
sleep 20
for node in "${nodes[@]:1}"; do
    srun --nodes=1 --ntasks=1 --overlap -w "$node" ray start --address="$head:$port" "${common[@]}" &
done
sleep 60

# The dry run fails, before anything is loaded, if the run does not fit on the nodes that SLURM gave.
on_head=(srun --nodes=1 --ntasks=1 --overlap -w "${nodes[0]}")
if [ -n "$run" ]; then
    "${on_head[@]}" selfplay train --resume "$run" --cluster "$head:$port"
else
    "${on_head[@]}" selfplay train --dry-run --repos "$repos" --config "$recipe" --cluster "$head:$port"
    "${on_head[@]}" selfplay train --repos "$repos" --config "$recipe" --cluster "$head:$port"
fi
