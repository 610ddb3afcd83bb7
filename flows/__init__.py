"""Commands, one file each, and the packages that they share."""
