"""RMSNorm over all heads, with rotary embedding for self-attention."""
