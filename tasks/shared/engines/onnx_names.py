"""Names of an exported graph's inputs and outputs, by which exporter and engine agree.

Those of Hugging Face's and Microsoft's exporters: input_ids, attention_mask, past_key_values.0.key, present.0.key, logits.
`logits_to_keep` lists the positions whose logits are wanted, so that a long prompt does not take memory for all of them.
"""

PAST, PRESENT, LOGITS = "past_key_values.", "present.", "logits"
