"""The parts of gpu_check.py, a file each. Each measures and returns values; gpu_check.py prints and judges them."""
