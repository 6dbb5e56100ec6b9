"""Text as integers: characters, subwords, windows of a long text, short texts side by side."""

from kattn.text.characters import Characters as Characters
from kattn.text.packing import Packed as Packed
from kattn.text.packing import pack as pack
from kattn.text.streams import streams as streams
from kattn.text.subwords import Subwords as Subwords
from kattn.text.windows import windows as windows
