"""A folder of another library: what its config.json says, and where its tensors are."""

import json
from pathlib import Path

from kattn.arguments import error, local_path
from kattn.presets.safetensors_file import read_header, write_file

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


class Config:
    """The settings of a config.json, and what they must be.

    Args:
        values: Dict of the settings.
        source: Where they come from, for messages.
    """

    def __init__(self, values, source=CONFIG):
        self.values = values
        self.source = source

    def __getitem__(self, name):
        if name not in self.values:
            raise error(f"`{name}` must be among the settings of the model", file=self.source)
        return self.values[name]

    def get(self, name, default=None):
        """A setting, or what it is where nothing is said."""
        return self.values.get(name, default)

    def check(self, **allowed):
        """Raises ValueError for a setting that asks for what kattn's models do not have."""
        for name, value in allowed.items():
            self.choice(name, {value: value}, value)

    def choice(self, name, meanings, default):
        """What a setting means here.

        Args:
            name: Name of the setting.
            meanings: Dict from the values that are known to what they mean.
            default: Value where nothing is said.

        Returns:
            One of the values of `meanings`.

        Raises:
            ValueError: If the value is another one.
        """
        value = self.get(name, default)
        if not isinstance(value, str | int | float | None) or value not in meanings:
            raise error(
                f"`{name}` must be {' or '.join(map(repr, meanings))}, as kattn's models can do "
                "nothing else yet",
                **{name: value},
                file=self.source,
            )
        return meanings[value]

    def same(self, given, argument, *names, default):
        """The value of settings that are one argument here.

        Args:
            given: Arguments that the caller gave, of which each overrides the settings.
            argument: Name of the argument.
            *names: Names of the settings.
            default: Value where nothing is said.

        Returns:
            The value that all have.

        Raises:
            ValueError: If they differ, and the argument is not given.
        """
        values = {name: self.get(name, default) for name in names}
        if argument in given:
            return given[argument]
        if len(set(values.values())) > 1:
            raise error(
                f"{' and '.join(names)} must be equal, as kattn's models have one `{argument}`; "
                "give that argument to override both",
                **values,
                file=self.source,
            )
        return values[names[0]]


def read_config(folder):
    """The settings of a folder, a `Config`; raises ValueError if there are none."""
    path = local_path(folder=folder) / CONFIG
    return Config(_read_json(path), str(path))


def stored_tensors(folder):
    """The tensors of a folder, by name, of one file or of those that an index names.

    Args:
        folder: Path of the folder.

    Returns:
        A dict of a `StoredTensor` for each name.

    Raises:
        ValueError: If a file or a tensor is missing, a file is truncated, or two files have a
            tensor of one name.
    """
    folder = local_path(folder=folder)
    if (folder / WEIGHTS).exists():
        return read_header(folder / WEIGHTS)
    if not (folder / INDEX).exists():
        raise error(
            f"The folder must hold {WEIGHTS} or {INDEX}; no other file of weights is read, as one "
            "of PyTorch's could run code",
            folder=str(folder),
        )
    return _indexed_tensors(folder)


def write_folder(folder, settings, tensors, shard_bytes):
    """Writes a config.json, and tensors to one file, or to several with an index.

    Args:
        folder: Path of the folder, which is made if there is none.
        settings: Dict of what stands in config.json.
        tensors: Dict of a `StoredTensor` for each name.
        shard_bytes: Number of bytes from which on a file is not added to.
    """
    folder = local_path(folder=folder)
    folder.mkdir(parents=True, exist_ok=True)
    shards = _shards(tensors, shard_bytes)
    for name in (WEIGHTS, INDEX):  # of an earlier model, which would be read in place of this one
        (folder / name).unlink(missing_ok=True)
    if len(shards) == 1:
        write_file(folder / WEIGHTS, tensors)
    else:
        files: dict = {}
        for number, shard in enumerate(shards, 1):
            file = f"model-{number:05}-of-{len(shards):05}.safetensors"
            write_file(folder / file, shard)
            files |= dict.fromkeys(shard, file)
        total = sum(tensor.byte_count for tensor in tensors.values())
        _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": files})
    _write_json(folder / CONFIG, settings)


def _indexed_tensors(folder):
    """The tensors of the files that an index names."""
    files = _read_json(folder / INDEX).get("weight_map")
    if not isinstance(files, dict) or not all(map(_is_plain_name, files.values())):
        raise error(
            "`weight_map` must say for each tensor in which file of the folder it is",
            file=str(folder / INDEX),
        )
    stored: dict = {}
    for file in sorted(set(files.values())):
        if not (folder / file).is_file():
            raise error("The folder must hold each file that its index names", file=file)
        for name, tensor in read_header(folder / file).items():
            if files.get(name) != file:
                raise error(
                    f"The index must name the file of each tensor, as it does not for {name!r}",
                    index=files.get(name),
                    file=file,
                )
            stored[name] = tensor
    if missing := sorted(set(files) - set(stored)):
        raise error("The files must hold each tensor that the index names", missing=missing[:10])
    return stored


def _shards(tensors, shard_bytes):
    """Tensors, in their order, in dicts of so many bytes at most, or of one tensor."""
    shards: list[dict] = [{}]
    room = shard_bytes
    for name, tensor in tensors.items():
        room -= tensor.byte_count
        if room < 0 and shards[-1]:
            shards.append({})
            room = shard_bytes - tensor.byte_count
        shards[-1][name] = tensor
    return shards


def _is_plain_name(name):
    """Whether this is the name of a file in the folder, and leads nowhere else."""
    return isinstance(name, str) and name not in ("", "..") and Path(name).name == name


def _read_json(path):
    """The dict that a file holds; raises ValueError if it is missing or holds another thing."""
    if not path.is_file():
        raise error(f"The folder must hold {path.name}", folder=str(path.parent))
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as fault:
        raise error("The file must be JSON", file=str(path), fault=str(fault)) from fault
    if not isinstance(values, dict):
        raise error("The file must hold a JSON object", file=str(path))
    return values


def _write_json(path, values):
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
