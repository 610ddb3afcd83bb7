"""Models compared without a recipe of their own: which they are, and the evaluation that they borrow."""
