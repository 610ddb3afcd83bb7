"""Parts of weight selection: the student's shape, the kept units, the copied weights."""
