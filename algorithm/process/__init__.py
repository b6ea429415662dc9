"""The running program itself: how many cores it has, what it says and how long it took.

In: errors, the machine. Out: sentences, times. May use `acouslic` alone, and never loads torch.
"""
