"""Where a command runs: this machine, a TPU pod, a SLURM cluster; and studies, which are chains of commands."""
