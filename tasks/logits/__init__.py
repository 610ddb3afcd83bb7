"""What a teacher expects, written down once."""
