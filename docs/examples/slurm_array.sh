#!/bin/bash
# Any number of tasks that join one run whenever they start: sbatch slurm_array.sh
# A task may wait in the queue, be preempted or die; the others take its work over. Submit again to finish the rest.
#SBATCH --job-name=ensemble
#SBATCH --array=0-9
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=4G
#SBATCH --time=02:00:00
#SBATCH --requeue
#SBATCH --output=%x-%A-%a.log

export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK

# Without --force: a late task would begin anew what the others have finished.
enma-fast forecast observed.h5 --members 1000 --out run.zarr "$@"
