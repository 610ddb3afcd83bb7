"""What students are trained to lower: tensor maths, and no model, file or setting in it."""
