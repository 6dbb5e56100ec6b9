"""Copies of an initializer for several weights of one layer."""

import keras


def numbered(initializer, index):
    """A copy of an initializer that draws other numbers for another index.

    Called twice, a seeded initializer of Keras draws the same numbers, and so do two weights that
    share an unseeded one. A copy for each weight keeps them apart.

    Args:
        initializer: A `keras.initializers.Initializer`. Any other object, such as a function, is
            returned as it is.
        index: Integer >= 0, added to the seed if there is one. Index 0 draws the numbers of a
            seeded `initializer` itself.

    Returns:
        A new initializer of the same class, or the object itself if it is no Keras initializer.

    Example:
        >>> first = keras.initializers.RandomNormal(seed=3)
        >>> numbered(first, 2).get_config()["seed"]
        5
    """
    if not isinstance(initializer, keras.initializers.Initializer):
        return initializer
    config = initializer.get_config()
    seed = config.get("seed")
    if isinstance(seed, int):
        config["seed"] = seed + index
    elif isinstance(seed, dict):  # a serialized keras.random.SeedGenerator
        fields = {**seed["config"], "seed": seed["config"]["seed"] + index}
        config["seed"] = {**seed, "config": fields}
    return type(initializer).from_config(config)
