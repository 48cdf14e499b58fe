"""What every wing stands on: records, words, files, locks, other processes, this machine. Knows settings only."""
