"""What a cubin's machine code says: registers, instructions, loops."""
