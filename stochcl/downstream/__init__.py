"""What is learned from decoded codes: probes with scikit-learn."""
