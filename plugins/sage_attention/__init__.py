"""SageAttention: dense attention, INT8 or bf16."""
