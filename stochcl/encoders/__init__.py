"""Encoders: image to posterior over discrete latents; the objective, the training loop, the model file."""
