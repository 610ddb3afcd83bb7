"""Engines that run a model: llama.cpp, vLLM, any OpenAI-compatible endpoint."""
