"""Parts of vocabulary trimming: what a domain's texts are, which tokens they need, and what says so in a tokenizer and a model."""
