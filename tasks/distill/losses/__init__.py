"""What students are trained to lower: tensor math, and no model, file or setting in it."""
