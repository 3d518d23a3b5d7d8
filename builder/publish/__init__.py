"""The model repository: entries that Triton can load at any moment, and what config.pbtxt says of them.

In scope: writing entries, their versions, plans and ensembles. Not in scope: checking them when they are served
(`backends/temper/artifact.py`). Read `entry.py` first.
"""
