"""Public models: their tokenizers and chat formats, and one that a package brings along."""
