"""Stages' results, kept by what made them, and writes that survive a crash. Read `artifacts.py` first."""
