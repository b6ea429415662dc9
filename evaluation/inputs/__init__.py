"""What is read, with suspicion: submissions, reference, score files.

In: paths that a stranger may have chosen. Out: checked arrays and records. May use `acouslic` alone.
"""
