"""From a recipe's data and model to a published entry of the model repository.

Read `build.py` first: it joins the stages, which are in the rooms beside it. `store/` keeps their results and
`publish/` writes the model repository. Nothing here talks to a server; `client` does.
"""
