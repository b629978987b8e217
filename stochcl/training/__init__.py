"""Training: one loop; pre-training, latents, fine-tuning, entropy networks."""
