"""How long a batch will take, and how much memory and disk."""
