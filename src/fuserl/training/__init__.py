"""Verbs that train: thin Lightning modules around the mathematics of the rooms below."""
