"""`quorum import`: a bundle from reward models that people already have.

sources.py (what was given), prompt_format.py (its token ids)  ←  models.py, adapters.py (a plan a kind)  ←  build.py
(golden scores by Transformers itself, bundle, proof)  ←  command.py
"""
