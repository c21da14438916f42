"""What is worth learning: rules that drop, duplicates, contamination, splits, mixtures, the verb `select`."""
