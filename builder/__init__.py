"""From a recipe's data and model to a published entry of the model repository.

Read `build.py` first: it joins the stages, one module each. `artifacts.py` keeps their results, `publish.py`
writes the model repository. Nothing here talks to a server; `client` does.
"""
