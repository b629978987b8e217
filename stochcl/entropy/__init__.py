"""Integer entropy models, the ANS coder, decoders to vectors, and their tables; numpy only."""
