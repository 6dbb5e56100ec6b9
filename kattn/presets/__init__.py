"""Models as folders on disk: kattn's own, and those of other libraries, both ways."""

from kattn.presets.huggingface import from_huggingface as from_huggingface
from kattn.presets.huggingface import to_huggingface as to_huggingface
from kattn.presets.keras_folder import from_preset as from_preset
from kattn.presets.keras_folder import save_preset as save_preset
from kattn.presets.keras_hub import from_keras_hub as from_keras_hub
