"""The main job: a recipe becomes served variants, measured and compared.

In scope: the recipe, the order of things, the measurements as stages, sweeps. Not in scope: how it looks
(`report/`). Read `recipe.py`, then `workflow.py`.
"""
