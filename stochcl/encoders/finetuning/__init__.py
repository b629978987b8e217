"""Fine-tuning: an encoder trained on labels, through its stochastic layer, and the classifier on its codes."""
