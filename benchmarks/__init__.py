"""Reproducible measurements, against peers where there are any; RESULTS.md holds what was seen.

One command each, `make bench-<name>`; `gpu/` is `make gpu`. Each interleaves what it compares within one
run, reports medians and the ratio of each round, prints a table and writes benchmarks/results/<name>.json, beside
which another kind of CPU has a file of its own. First file to read: common.py.
"""
