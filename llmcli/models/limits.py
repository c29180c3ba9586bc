"""The largest numbers we believe in a model's description: no model comes near them, and they keep a damaged or
hostile file from asking for the whole memory."""

LAYERS = 10_000
VOCAB = 10**7
WIDTH = 10**6
CONTEXT = 10**9
HEADS = 10_000
HEAD_SIZE = 10_000
EXPERTS = 10_000
