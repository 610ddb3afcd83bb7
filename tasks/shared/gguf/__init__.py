"""GGUF, llama.cpp's file format: conversion and 4-bit blocks."""
