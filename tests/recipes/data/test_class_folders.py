"""Which folders are splits and which are classes, and what is said of folders that are neither."""

import os

import pytest

from recipes.data import class_folders

SPLITS = [f"{split}/{label}/1.png" for split in ("train", "test") for label in ("cat", "dog")]


def read(names, level=None):
    return class_folders.read("folder:x", names, {".png"}, "image", level)


def inside(around, names):
    return [f"{around}/{name}" for name in names]


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train", "test"),
        ("Training", "Testing"),
        ("Train", "Test"),
        ("TRAIN", "VAL"),
        ("train", "dev"),
        ("train", "eval"),
        ("training_set", "test_set"),
        ("trainset", "Validation Set"),
    ],
)
@pytest.mark.parametrize("around", ["", "pets/", "pets/2024/"])
def test_names_of_splits(train, test, around):
    names = [f"{around}{split}/{label}/1.png" for split in (train, test) for label in "ab"]
    found = read([*names, f"{around}{train}/b/more/2.png"])
    assert found.classes == ("a", "b")
    assert found.train == (
        ("a", f"{around}{train}/a/1.png"),
        ("b", f"{around}{train}/b/1.png"),
        ("b", f"{around}{train}/b/more/2.png"),
    )
    assert found.test == (("a", f"{around}{test}/a/1.png"), ("b", f"{around}{test}/b/1.png"))
    level = 2 + around.count("/")
    assert found.about == (
        f"the source's own folders {train} and {test}; "
        f"2 classes from the folders at level {level}, ['a', 'b']"
    )


@pytest.mark.parametrize("around", ["", "pets/", "train/", "test/"])
def test_classes_without_splits(around):
    found = read([f"{around}{label}/{i}.png" for label in "ba" for i in (1, 2)])
    assert found.classes == ("a", "b")
    assert found.train == tuple((c, f"{around}{c}/{i}.png") for c in "ab" for i in (1, 2))
    assert found.test == ()
    level = 1 + around.count("/")
    assert found.about == f"2 classes from the folders at level {level}, ['a', 'b']"


def test_numbers_of_classes():
    found = read(SPLITS)
    numbers = found.numbers((("dog", "1"), ("cat", "2"), ("dog", "3")))
    assert (numbers.tolist(), numbers.dtype) == ([1, 0, 1], "int32")


def test_names_that_are_no_splits_are_classes():
    names = ["train_station", "test tube", "value", "trainer", "evaluations"]
    assert read([f"{name}/1.png" for name in names]).classes == tuple(sorted(names))


def test_validation_is_not_used_beside_a_test_split_and_that_is_said():
    found = read([*SPLITS, "valid/cat/1.png", "valid/dog/1.png"])
    assert {name for _, name in found.train + found.test} == set(SPLITS)
    assert found.about.endswith("['cat', 'dog']; not used: ['valid']")


def test_a_class_of_trains():
    names = ["train/1.png", "bus/1.png", "car/old/1.png"]
    assert read(names).classes == ("bus", "car", "train")


TWO_WAYS = {
    "a folder of trains, or a split beside others": ["train/old/1.png", "van/old/1.png"],
    "a split beside folders that are none": [*SPLITS, "extra/cat/1.png"],
    "two names of splits beside classes": ["train/1.png", "dev/1.png", "bus/1.png"],
    "no split to train on": ["test/a/1.png", "val/b/1.png"],
    "two splits to train on": ["train/a/1.png", "Training/b/1.png"],
    "splits in the classes": ["cat/train/1.png", "cat/test/1.png", "dog/train/1.png"],
    "splits in two folders": [*inside("x", SPLITS), *inside("y", SPLITS)],
}


@pytest.mark.parametrize("case", TWO_WAYS)
def test_the_level_is_asked_for_where_it_could_be_one_or_another(case):
    names = TWO_WAYS[case]
    tops = sorted({name.split("/")[0] for name in names})
    with pytest.raises(
        ValueError, match=r"`classes_from` \(--classes-from\) must be given"
    ) as told:
        read(inside("pets", names))
    deeper = sorted({name.split("/")[1] for name in names if name.count("/") > 1})
    choice = f": 2, if the classes are {tops}"
    choice += f", or 3, if they are {deeper} in these" if deeper else ""
    assert f"{choice}; received: " in str(told.value)
    assert str(told.value).endswith("received: dataset='folder:x'")
    found = read(inside("pets", names), 2)
    assert (found.classes, found.test) == (tuple(tops), ())
    assert len(found.train) == len(names)


def test_a_level_below_groups():
    found = read(["animals/cat/1.png", "animals/dog/1.png", "cars/bus/1.png"], 2)
    assert (found.classes, found.test) == (("bus", "cat", "dog"), ())
    assert read(["animals/cat/1.png", "cars/bus/1.png"]).classes == ("animals", "cars")


def test_a_level_below_splits_and_others():
    found = read([*SPLITS, "extra/cow/1.png"], 2)
    assert found.classes == ("cat", "dog")
    assert len(found.train) == len(found.test) == 2
    assert found.about.endswith("; not used: ['extra']")


@pytest.mark.parametrize(
    ("names", "level", "message"),
    [
        (["train/1.png", "test/2.png"], None, "laid out .*classes_from=2, .*=.'test/2.png', 'tr"),
        ([*SPLITS, "dev/1.png"], None, "laid out .*classes_from=2.*misplaced=.'dev/1.png'"),
        (SPLITS, 3, "laid out .*classes_from=3"),
        ([*SPLITS, "Test/cat/1.png"], None, r"one to test;.*to test=\['Test', 'test'\]"),
        ([*SPLITS[:2], "val/cat/1.png", "dev/cat/1.png"], None, r"to test=\['dev', 'val'\]"),
        ([*SPLITS[:2], "test/"], None, r"to test=\['test'\], without images=\['test'\]"),
        ([*SPLITS[:2], "val/"], None, r"to test=\['val'\], without images=\['val'\]"),
        ([*SPLITS, "Train/cat/1.png"], None, r"one to test;.*to train=\['Train', 'train'\]"),
        ([*SPLITS[:2], "test/cat/1.txt"], None, r"without images=\['test'\]"),
        ([*SPLITS[2:], "train/cat/"], None, r"to train=\['train'\].*without images=\['train'\]"),
        ([*inside("pets", SPLITS[:2]), "pets/test/"], None, r"without images=\['test'\]"),
        ([*SPLITS, "test/cow/1.png"], None, r"a train folder for every class; .*test=\['cow'\]"),
    ],
)
def test_unusable_layouts(names, level, message):
    with pytest.raises(ValueError, match=f"`dataset` must .*{message}"):
        read(names, level)


def test_empty_folders_are_said():
    empty = ["train/cow/", "train/cat/more/", "test/dog/notes.txt", "readme/a/b.txt", ".git/"]
    found = read([*SPLITS[:3], *empty])
    assert found.classes == ("cat", "dog")
    assert found.about.endswith("; without images: ['readme', 'test/dog', 'train/cow']")
    many = [f"{label}/1.png" for label in "abcdefgh"]
    assert read(many).about.endswith("['a', 'b', 'c', 'd', 'e'] and 3 more")
    assert read([*SPLITS, "val/"]).about.endswith("; without images: ['val']")


def test_empty_folders_that_are_no_splits_but_named_so():
    found = read([*inside("pets", ["cat/1.png", "dog/1.png"]), "test/"])
    assert (found.classes, found.test) == (("cat", "dog"), ())
    assert found.about.endswith("; without images: ['test']")
    names = [f"{split}/{label}/1.png" for split in ("train", "val") for label in ("cat", "dog")]
    found = read([*names, "train/test/"])
    assert found.test == (("cat", "val/cat/1.png"), ("dog", "val/dog/1.png"))
    assert found.about.endswith("; without images: ['train/test']")


@pytest.fixture
def root(tmp_path):
    """A folder beside which others lie, for links."""
    for name in ("root/cat/1.png", "root/.hidden/1.png", "root/cat/.2.png", "dogs/1.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "root"


def test_links_are_followed(root):
    (root / "dog").symlink_to("../dogs")
    (root / "cat/2.png").symlink_to("../../dogs/1.png")
    expected = ["cat/", "cat/1.png", "cat/2.png", "dog/", "dog/1.png"]
    assert class_folders.names_in(root) == expected
    assert class_folders.names_in(root.parent / "root/../root") == expected
    (root.parent / "link").symlink_to("root")
    assert class_folders.names_in(root.parent / "link") == expected


def test_one_folder_linked_twice_is_read_twice(root):
    for name in ("dog", "wolf"):
        (root / name).symlink_to("../dogs")
    expected = ["cat/", "cat/1.png", "dog/", "dog/1.png", "wolf/", "wolf/1.png"]
    assert class_folders.names_in(root) == expected


def test_loops_of_links_end(root):
    (root / "cat/again").symlink_to("..")
    (root / "cat/itself").symlink_to(".")
    (root / "all").symlink_to(root)
    (root / "dog").symlink_to("../dogs")
    (root.parent / "dogs/cats").symlink_to("../root/cat")
    assert class_folders.names_in(root) == [
        *("all/", "cat/", "cat/1.png", "cat/again/", "cat/itself/", "dog/", "dog/1.png"),
        *("dog/cats/", "dog/cats/1.png", "dog/cats/again/", "dog/cats/itself/"),
    ]


def test_links_that_lead_nowhere(root):
    """A folder of a class or split must not vanish, nor an image."""
    (root / "dog").symlink_to("../absent")
    (root / "self").symlink_to("self")
    (root / "cat/2.png").symlink_to("absent.png")
    names = class_folders.names_in(root)
    assert names == ["cat/", "cat/1.png", "cat/2.png", "dog/", "self/"]
    assert read(names).about.endswith("; without images: ['dog', 'self']")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no such files on this system")
def test_what_is_neither_file_nor_folder_is_left_out(root):
    os.mkfifo(root / "cat/3.png")
    assert class_folders.names_in(root) == ["cat/", "cat/1.png"]
