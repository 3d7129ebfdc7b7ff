"""Names of classes and pictures, which are the same in whatever Unicode form they were typed.

macOS writes é as e and an accent (NFD) where others have one letter (NFC): to people both are one
name, to file systems and dictionaries two.
"""

import os
import pathlib
import unicodedata

HIDDEN = (".", "@", "__MACOSX")  # how names begin that systems and storage devices leave behind
SPLIT_NAMES = {  # as folders and tables spell them, in any case; those that come first are taken
    "train": ("train", "training"),
    "test": ("test", "testing", "val", "valid", "validation", "dev", "eval"),
}


def composed(name):
    """A name in the one form (NFC) in which names are compared, numbered and kept."""
    return unicodedata.normalize("NFC", name)


def in_order(paths):
    """Paths sorted by name, alike in every Unicode form."""
    return sorted(paths, key=lambda path: (list(map(composed, path.parts)), path))


def is_shown(path):
    """Whether a path's own name is none that systems leave behind."""
    return not path.name.startswith(HIDDEN)


class Listings(dict):
    """`{folder: {composed name: names in it}}`, each folder read when it is first asked for."""

    def __missing__(self, folder):
        self[folder] = {}
        for name in os.listdir(folder) if folder.is_dir() else ():
            self[folder].setdefault(composed(name), []).append(name)
        return self[folder]

    def find(self, folder, file):
        """The files that `file`, a path within `folder`, may mean: as it is written, or else alike.

        Returns:
          A list of paths, empty where there is no such file.
        """
        if (folder / file).is_file():
            return [folder / file]
        found = [folder]
        for part in pathlib.PurePath(os.path.normpath(file)).parts:
            alike = [(where, self[where].get(composed(part), ())) for where in found]
            found = [where / name for where, names in alike for name in names]
        return [path for path in found if path.is_file()]
