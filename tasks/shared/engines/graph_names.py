"""Names of an exported graph's inputs and outputs, by which exporters and engines agree.

Those of Hugging Face's, Microsoft's and Intel's exporters: input_ids, attention_mask, past_key_values.0.key, present.0.key, logits.
In an ONNX graph, `logits_to_keep` lists the positions whose logits are wanted, so that a long prompt does not take memory for all of
them.  In an OpenVINO graph, keys and values are states, and `beam_idx` (batch,) says from which sequence each one continues.
"""

PAST, PRESENT, LOGITS = "past_key_values.", "present.", "logits"
