"""A look inside: what a model attends to, what each layer would say, how surprised it is, where it read that."""
