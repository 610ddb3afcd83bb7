"""Losses of distillation: pure tensor math, without models, files or settings."""
