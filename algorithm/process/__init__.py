"""The running program itself: how many cores it has, how it ends, what it says and how long it took.

In: signals, errors, the machine. Out: sentences, times. May use `acouslic` alone, and never loads torch.
"""
