"""The container's job: sweeps in, chosen frame, mask and circumference out."""
