"""What `configs/deploy` holds: it is valid, it names what exists, and what can run on one machine runs."""
