"""The library: one file per technique, `tasks/<stage>/<technique>.py`.

`conf/<stage>/<technique>.yaml` selects a technique.
"""
