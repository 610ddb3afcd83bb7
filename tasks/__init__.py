"""The library: one file per technique, `tasks/<stage>/<technique>.py`, each selected by `conf/<stage>/<technique>.yaml`."""
