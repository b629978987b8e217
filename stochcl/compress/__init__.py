"""From discrete latents to a file and back: integer entropy models, the coder, the container."""
