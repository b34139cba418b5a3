"""The arithmetic of training: pairs in, trained members out, in memory; files and consoles only through its seams.

draws, batches, losses, members  ←  step.py (one step)  ←  loop.py (one phase)  ←  phases.py  ←  ensemble.py (a recipe)

Seams: keeper.py (what survives), reports.py (what is said), workers.py (who else trains).
"""
