"""Artifact store: keys, folders, lineage."""
