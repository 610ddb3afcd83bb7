"""Train a model on conversations, whatever the objective: one loop for all techniques of the stage."""
