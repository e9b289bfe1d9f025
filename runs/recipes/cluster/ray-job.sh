#!/usr/bin/env bash
# A run on a Ray cluster that runs already (KubeRay, `ray up`, or `ray start` by hand). It is a Ray job, so it outlives
# this shell.
#   RAY_ADDRESS=http://HEAD:8265 runs/recipes/cluster/ray-job.sh repos.txt runs/recipes/cluster-8.toml
# pip install '.[cluster,vllm,deepspeed]' on every node, and ray[default] on the head, which accepts jobs.
# This folder is sent along as the working directory.
# To continue a job that was stopped: ray job submit … -- selfplay train --resume RUN --cluster auto
set -euo pipefail
repos=$1 recipe=$2
ray job submit --no-wait --working-dir . --runtime-env-json '{"excludes": ["/runs/2*", "/.venv", "/.git"]}' \
    -- selfplay train --repos "$repos" --config "$recipe" --set run.folder=/shared/selfplay/runs --cluster auto
