"""Why a served classifier answers otherwise than its network in PyTorch: causes are tried until one explains it.

In scope: what is done to an image between its file and its scores, whoever does it. Not in scope: mending it, and
whether the network is any good. First file to read: pipeline.py, then hypotheses.py (the causes, as a table),
search.py (which are tried, and when that ends), decide.py (when one is named) and diagnose.py, which joins them.
"""
