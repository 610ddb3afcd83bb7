"""The fictional shop of the built-in corpus: its articles, facts, questions and wordings."""
