"""Run commands on this machine, a TPU pod or a SLURM cluster, and studies, chains of commands."""
