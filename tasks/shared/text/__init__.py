"""Answer format and text analysis."""
