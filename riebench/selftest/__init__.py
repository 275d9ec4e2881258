"""The first ten minutes on a new machine, as a command: each step is ok, not ok, or not possible here."""
