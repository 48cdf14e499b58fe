"""One file for each task that a classifier can have; see tasks/scores/objective.py."""
