#!/bin/bash
# All ranks at once, on several nodes: sbatch slurm_srun.sh
# With GPUs: --ntasks-per-node as many as --gpus-per-node, and `--device cuda` behind the script's name.
#SBATCH --job-name=ensemble
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --mem=16G
#SBATCH --time=02:00:00
#SBATCH --output=%x-%j.log

export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK

# When a rank dies the others go on and take its work over.
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=0 \
    enma-fast forecast observed.h5 --members 1000 --out run.zarr "$@"
