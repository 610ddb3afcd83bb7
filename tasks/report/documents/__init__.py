"""Model card, bill of materials and performance log."""
