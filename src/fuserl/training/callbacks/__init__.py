"""What watches a run: each module one concern."""
