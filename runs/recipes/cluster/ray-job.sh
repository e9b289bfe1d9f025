#!/usr/bin/env bash
# The same on a Ray cluster that runs already (KubeRay, `ray up`, ray start by hand), as a Ray job that outlives this shell.
#   RAY_ADDRESS=http://HEAD:8265 runs/recipes/cluster/ray-job.sh repos.txt runs/recipes/cluster-8.toml
# selfplay[cluster,vllm,deepspeed] must be installed on every node, and ray[default] on the head, which takes jobs; this folder is sent along as the working directory.
# A job that was stopped continues with: ray job submit … -- selfplay train --resume RUN --cluster auto
set -euo pipefail
repos=$1 recipe=$2
ray job submit --no-wait --working-dir . --runtime-env-json '{"excludes": ["/runs/2*", "/.venv", "/.git"]}' \
    -- selfplay train --repos "$repos" --config "$recipe" --set run.folder=/shared/selfplay/runs --cluster auto
