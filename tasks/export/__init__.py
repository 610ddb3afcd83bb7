"""Write the file that a serving engine loads."""
