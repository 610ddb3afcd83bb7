"""Parts of weight selection: the sizes of a student, what is taken of each layer, and how its weights are filled."""
