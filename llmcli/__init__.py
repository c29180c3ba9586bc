"""Large language models on your own machine, with the probability of every token. Importing this imports nothing heavy."""

__version__ = "0.1.0"
