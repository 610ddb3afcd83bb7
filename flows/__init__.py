"""Commands, one file each, and the rooms that they are made of."""
