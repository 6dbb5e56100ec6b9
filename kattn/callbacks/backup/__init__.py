"""What backups consist of: files, and the state of a training.

`files` writes and reads a state. `training_state` reads and sets what a training depends on.
`origin` tells whether a backup belongs to the training at hand. `step_skipper` reads data without
training on them. `snapshot` keeps a state in memory.

Code here may read and assign all variables of a model and its optimizer, but only between two
steps, and only through `callback.model`.
"""
