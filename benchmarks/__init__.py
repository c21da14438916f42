"""Measurements: each script asserts equality before it times, and writes a table named by hardware and date."""
