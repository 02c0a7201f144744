"""`secretfs run`: unmodified programs with memfd_secret(2) where the kernel has none, without it where it has.

command reads the words and plan decides what they take; launch starts the processes, follow and serve are the two that
stay; calls is the table of what is answered and how. docs/run.md tells the user's side.
"""
