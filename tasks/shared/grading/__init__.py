"""Grading of an answer by the targets of its row: the one answer key of evaluation and teacher."""
