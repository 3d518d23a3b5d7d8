"""Images: where they come from, how they are split, and what of them trains, calibrates and tests.

In scope: folders, tables, tar shards, data sets on disk, generated and downloaded ones, and what is wrong with
them. Not in scope: training on them (`network/train.py`). Read `config.py` first, then `encoded.py`.
"""
