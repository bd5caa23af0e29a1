"""A real model behind a real model server, by `make real-models`."""
