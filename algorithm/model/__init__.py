"""What a trained model is, on disk and in memory.

In: an artifact's folder. Out: its manifest, the tower, and each member's adapter and heads. May use `acouslic` alone.
"""
