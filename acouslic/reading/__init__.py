"""One module for each kind of file that holds frames.

In: the path of a file. Out: what its header says, checked before any pixel is decoded, and then its frames, in order.
May use `acouslic.errors`, `geometry`, `printable` and `sockets`; `acouslic.stack` is the way in.
"""
