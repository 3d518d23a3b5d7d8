"""`make gpu`: engines on an NVIDIA GPU, in process and served, against PyTorch; one command, no network needed.

Parts, in order: install, probe, tests, served, engines, training, sanitizer, table. Each runs in a process of its
own and writes `<part>.json` row by row, so a part that fails or runs out of time loses nothing; a second run on
the same machine goes on where the first stopped. `make gpu-pack` makes what a machine without network needs. First
files to read: __main__.py, then engines.py and served.py.
"""
