"""Training: one loop for pre-training, latents, fine-tuning and entropy networks."""
