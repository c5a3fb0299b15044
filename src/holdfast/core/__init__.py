"""Records, run folders, keys, method tables, errors, events, statistics. Never torch."""
