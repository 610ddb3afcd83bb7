"""Parts of vocabulary trimming: texts, needed tokens, tokenizer files, embedding rows."""
