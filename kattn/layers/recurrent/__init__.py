"""Recurrent layers that attend, and Keras's recurrent layers inside of them."""
