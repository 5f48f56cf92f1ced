"""Optimizer steps on given completions and rewards, as step_efficiency.py and gpu_check.py measure them."""
