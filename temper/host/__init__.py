"""This machine: its GPUs, its packages, and what can be built and run here. Read `doctor.py` first."""
