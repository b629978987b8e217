"""Encoders: from images to posteriors over discrete latents, and the model file."""
