"""Ground: every objective as a pure function of one table of numbers. Torch only."""
