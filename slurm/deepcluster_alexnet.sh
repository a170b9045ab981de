#!/bin/bash
# DeepCluster with AlexNet on ImageNet as published, configs/deepcluster_alexnet_imagenet.yaml: one task a GPU, any number of nodes.
#
#   sbatch slurm/deepcluster_alexnet.sh run.dir=/shared/runs/alexnet data.root=/shared/imagenet
#   sbatch --nodes=4 --gpus-per-node=4 slurm/deepcluster_alexnet.sh MY.yaml run.dir=/shared/runs/mine     any config
#   sbatch --gpus-per-node=0 --ntasks-per-node=2 slurm/deepcluster_alexnet.sh launch.device=cpu ...       on CPUs
#   sbatch --array=1-3 slurm/deepcluster_alexnet.sh run.dir=/shared/runs/%a run.seed=%a                   three runs
#
# Or by environment: DCDIST_CONFIG, DCDIST_RUN_DIR, DCDIST_OVERRIDES ("a.b=value c.d=value"), DCDIST_HOME (the checkout,
# where not submitted from there). Preempted, or close to its time limit, the run saves and the job is requeued.
#SBATCH --job-name=deepcluster_alexnet
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=USR2@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out

config=${DCDIST_CONFIG:-configs/deepcluster_alexnet_imagenet.yaml}
source "${DCDIST_HOME:-$SLURM_SUBMIT_DIR}/slurm/run.sh"
