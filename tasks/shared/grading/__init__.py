"""Grading of an answer by the targets of its row: one answer key for evaluation and teacher."""
