"""The parts of capacity.py: what a group costs, the formula, and the simulation that it is held against."""
