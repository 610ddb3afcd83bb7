"""Store weights in fewer bits."""
