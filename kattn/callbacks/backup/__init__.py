"""What backups consist of: files, and the state of a training.

`files` writes and reads a state. `training_state` reads and sets what a training depends on.
`holdings` finds the variables and optimizers of a model. `origin` tells whether a backup belongs to
the training at hand, and `fit_checks` whether that can be resumed. `step_skipper` reads data
without training on them. `snapshot` keeps a state in memory.

Code here may read and assign all variables of a model and its optimizer, but only between two
steps, and only through `callback.model`.
"""
