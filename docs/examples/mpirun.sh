#!/bin/bash
# Open MPI on one machine or a host file: RANKS=8 THREADS=4 ./mpirun.sh [options of enma-fast forecast]
# MPI only starts the processes; they send each other nothing.
export OMP_NUM_THREADS=${THREADS:-1}

# Unbound, since Open MPI would give a rank one core for all its threads; with recovery, since it would end all ranks
# when one dies.
exec mpirun -np "${RANKS:-2}" --bind-to none --enable-recovery -x OMP_NUM_THREADS \
    enma-fast forecast observed.h5 --members 1000 --out run.zarr "$@"
