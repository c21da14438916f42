"""Many jobs from one command: named by content, run by any launcher, continued after a kill."""
