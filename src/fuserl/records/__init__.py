"""Ground: prompt groups, how they are stored, read and written. No torch here."""
