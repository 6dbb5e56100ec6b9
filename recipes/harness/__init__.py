"""What recipes stand on: one file for each job.

What this page names serves every task. The networks of a task, and the sections of its report, are
in files that its recipe imports by themselves.

Importing it does not import Keras, so that a recipe can choose the backend first.
"""

from recipes.harness.backend import choose_backend as choose_backend
from recipes.harness.cli import Job as Job
from recipes.harness.cli import main as main
from recipes.harness.cli import parse as parse
from recipes.harness.cli import recorded as recorded
from recipes.harness.comparison import Comparison as Comparison
from recipes.harness.comparison import compare as compare
from recipes.harness.comparison import compare_each as compare_each
from recipes.harness.figures import COLOURS as COLOURS
from recipes.harness.figures import curves as curves
from recipes.harness.figures import lines as lines
from recipes.harness.figures import panels as panels
from recipes.harness.figures import results_figure as results_figure
from recipes.harness.fitting import Restartable as Restartable
from recipes.harness.fitting import adamw as adamw
from recipes.harness.fitting import finish as finish
from recipes.harness.fitting import fit as fit
from recipes.harness.fitting import predict as predict
from recipes.harness.fitting import read_results as read_results
from recipes.harness.fitting import unfinished as unfinished
from recipes.harness.flags import RunFlags as RunFlags
from recipes.harness.flags import TrainingFlags as TrainingFlags
from recipes.harness.flags import make_callbacks as make_callbacks
from recipes.harness.flags import make_clipping as make_clipping
from recipes.harness.flags import make_schedule as make_schedule
from recipes.harness.learning_rate import find_rate as find_rate
from recipes.harness.learning_rate import rate_section as rate_section
from recipes.harness.machine import machine as machine
from recipes.harness.machine import versions as versions
from recipes.harness.metrics import cross_entropy_and_accuracy as cross_entropy_and_accuracy
from recipes.harness.metrics import loss_by_weight as loss_by_weight
from recipes.harness.metrics import next_token_loss as next_token_loss
from recipes.harness.names import announced as announced
from recipes.harness.names import block as block
from recipes.harness.names import in_markdown as in_markdown
from recipes.harness.names import printable as printable
from recipes.harness.progress import Progress as Progress
from recipes.harness.report import Results as Results
from recipes.harness.report import bullets as bullets
from recipes.harness.report import closing_sections as closing_sections
from recipes.harness.report import table as table
from recipes.harness.report import time_spent as time_spent
from recipes.harness.run_folder import RunFolder as RunFolder
from recipes.harness.run_folder import open_run as open_run
from recipes.harness.statistics import PairedDifference as PairedDifference
from recipes.harness.statistics import Score as Score
from recipes.harness.statistics import clear_differences as clear_differences
from recipes.harness.statistics import mean_and_spread as mean_and_spread
from recipes.harness.statistics import one_difference as one_difference
from recipes.harness.statistics import paired_interval as paired_interval
from recipes.harness.statistics import with_spread as with_spread
from recipes.harness.timing import measure_in_turns as measure_in_turns
from recipes.harness.timing import measure_steps as measure_steps
