"""Networks: parameters live here and nowhere else."""
