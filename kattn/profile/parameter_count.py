"""How many parameters a model would have, without the memory for them."""

import concurrent.futures
import math

import keras


def parameter_count(make, *input_shapes):
    """Counts the trainable parameters of a model of any size, of which none is allocated.

    Args:
        make: Function without arguments that makes the model.
        *input_shapes: Shapes that the model is built with, batch first, as for its `build`. None
            are needed if `make` builds it.

    Returns:
        Number of trainable parameters, an integer. A weight that several layers share counts once.

    Example:
        >>> size = lambda: kattn.models.TransformerLM.from_size("llama-2-7b")
        >>> kattn.profile.parameter_count(size, (None, None))
        6738415616
    """

    def count():
        # In such a scope Keras makes variables that have a shape and no value yet.
        with keras.StatelessScope(initialize_variables=False):
            model = make()
            if input_shapes:
                model.build(*input_shapes)
            return sum(math.prod(weight.shape) for weight in model.trainable_weights)

    # Keras keeps a list of such variables for each thread, to give them values later. That of this
    # thread ends with it.
    with concurrent.futures.ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(count).result()
