"""Models compared without a recipe: the models, and the evaluation that they borrow."""
