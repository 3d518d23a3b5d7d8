"""Images: where they come from, how they are split, and what of them trains, calibrates and tests.

In scope: folders, generated and downloaded sets. Not in scope: training on them (`network/train.py`). Read
`config.py` first.
"""
