"""What is computed from what was measured: floating point operations, replayed scores, tables."""
