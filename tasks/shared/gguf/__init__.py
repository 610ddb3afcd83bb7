"""llama.cpp's file format: writing it, and its 4-bit blocks."""
