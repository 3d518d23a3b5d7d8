"""The command line: `main.py` declares it, `commands/` has one file per command.

Nothing here builds or measures.
"""
