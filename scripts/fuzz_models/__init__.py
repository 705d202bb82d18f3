"""Damaged and hostile models, made from a tiny one, and what must become of them.

    python -m scripts.fuzz_models --count 1000 --seed 0

Every case is a GGUF file, a folder of safetensors with its configuration and tokenizer, or a chat
template, with one or a few mutations: of types, ranges, names, offsets, sizes, places, single bits.
The same seed gives the same cases. It must load or be refused, in one line that names the file,
the key or tensor, what was expected and what came; within 10 seconds; without reading a file
outside of the model's folder; and no number out of its range may be accepted.
"""
