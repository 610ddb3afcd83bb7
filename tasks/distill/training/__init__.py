"""The training loop shared by all techniques of the stage."""
