"""The small world that ships with the package: eight text tasks with graded answers, four sources, one weak target."""
