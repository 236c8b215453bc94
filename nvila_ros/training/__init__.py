"""The synthetic world, its questions, and the training of nvila-tiny on them."""
