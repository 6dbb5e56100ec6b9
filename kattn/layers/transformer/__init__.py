"""Feed-forward networks, residual connections and the blocks that are made of them."""
