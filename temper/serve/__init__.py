"""The embedded tritonserver: its start, its death, and whether the repository is what was published.

In scope: one server on loopback, to measure with. Not in scope: production (`docker/`). Read `server.py` first.
"""
