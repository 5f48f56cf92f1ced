"""The parts of service_load.py, a file each: `run(settings)` measures, prints and returns."""
