"""The champion: promote, roll back, settle what was interrupted, tell its history."""
