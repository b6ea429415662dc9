"""Makes the models: raw release in, trained artifact out."""
