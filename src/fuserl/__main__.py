"""`python -m fuserl`."""

from fuserl.cli import main

main()
