"""The artifact store: keys, places, lineage."""
