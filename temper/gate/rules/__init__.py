"""The rules of a gate, one file for each or for a family: its config, and what it says of the evidence.

A further rule is a file here and a field of `GateConfig`. Read `base.py` first.
"""
