"""Text to ids and back: GPT-2's own vocabulary, one trained on your text, or single characters."""
