"""Compression: steps that make a network or its graph smaller, faster or robust, one file each.

In scope: what a step does, and the order that makes sense. Not in scope: keeping its result (`store/`), compiling
it (`engines/`). Read `step.py` first: a step is one object, and nothing outside its file knows which it is.
"""
