"""Looks into networks: which layer a loss comes from, what each block's features know, and which of them matter.

In scope: figures of graphs and networks, without a server. Not in scope: the order of the work, what is kept
(`temper/run/explain/`), and the page (`temper/report/explain_page.py`). Read `blame.py` first.
"""
