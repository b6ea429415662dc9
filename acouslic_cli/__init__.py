"""The command `acouslic`: one name for everything that people start.

In: the words of a command line. Out: the exit code of the package that they are for. May use every package, and loads
only the one that is asked for.
"""
