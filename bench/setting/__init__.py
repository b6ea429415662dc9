"""What a measurement is set up with: inputs, artifacts, the sides that are compared, and the machine's name."""
