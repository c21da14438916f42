"""What runs inside the sandbox: the standard library alone, nothing of fuserl but these modules.

A program under test and its unit tests never share a process. `guest` runs the program and answers calls; `examiner` runs
the tests, in which every name of the program stands for a call to the guest. So the program never meets the tests, the
values they expect, or the process that says who passed.
"""
