"""Why an image is refused: a closed list of words, and what each says to lab staff.

Only the word's number crosses from the decoder's process; the sentence is written here, from nothing in the file.
"""

from __future__ import annotations

from ..errors import DataError

AGAIN = "Export it again."
# word: (what was expected, hint)
SENTENCES: dict[str, tuple[str, str]] = {
    "DECODE": ("a readable image", AGAIN),
    "EMPTY": ("a readable image, not an empty file", "Copy it again."),
    "MAGIC": ("a readable image of the format that its name says", "Rename it, or export it again."),
    "FORMAT": ("an image of a format that is read", "Export it as PNG, TIFF, JPEG or uncompressed DICOM."),
    "HEADER": ("a readable image with a size", AGAIN),
    "PIX_LIMIT": ("at most {max_pixels} pixels in an image", "Cut it into cells or fields."),
    "FILE_LIMIT": ("an image file of at most {max_bytes} bytes", "Cut it into cells or fields."),
    "RATIO": ("an image that does not decode to hundreds of times its file", AGAIN),
    "META_LIMIT": ("an image with less text and metadata", "Export it without metadata."),
    "FRAMES": ("a single-frame image", "Export the frames one by one."),
    "MODE": ("grey values of 8 bits or RGB colours", "Export it as 8-bit RGB."),
    "TRAIL": ("an image file without other data behind the image", AGAIN),
    "IFD_LOOP": ("a readable TIFF image without loops", AGAIN),
    "XML_REFUSED": ("a TIFF image without XML entities", "Export it without metadata."),
    "DEPTH": ("a DICOM file without deeply nested sequences", AGAIN),
    "BURNED_IN": ("a DICOM image without burned-in text", "Export it without annotation."),
    "NO_IMAGE": ("a DICOM file with an image", "Reports have none: leave them out."),
    "BITS": ("a DICOM image of 8 or 16 bits", AGAIN),
    "KIND": ("a DICOM image of the kinds MONOCHROME, RGB, YBR or PALETTE COLOR", "Export it as RGB."),
    "DEFLATED": ("a DICOM file that is not deflated", "Export it uncompressed."),
    "CODEC": ("a decoder for this compressed DICOM image", "Export it uncompressed."),
    "NO_DICOM": ("the package pydicom for .dcm images", "pip install 'cytosae-federation[dicom]'"),
    "CPU_LIMIT": ("an image that decodes in {seconds:.0f} seconds", AGAIN),
    "MEM_LIMIT": ("an image that decodes within the memory limit", "Cut it into cells or fields."),
    "SYMLINK": ("no symbolic links and no hard links in a cohort", "Copy the file instead."),
    "NOT_REG": ("a plain image file, no pipe, device or folder", "Move it out of the folder."),
    "IO": ("a readable image file", "Does it exist, may this user read it?"),
}
WORDS = tuple(SENTENCES)


class Refused(Exception):
    """An image is refused, inside the decoder's process. `word` is one of `WORDS`."""

    def __init__(self, word: str) -> None:
        super().__init__(word)
        self.word = word


def refusal(word: str, name: str = "", *, where: str = "", **values: float) -> DataError:
    """The error for lab staff: the file's name, or `where` in the table, is shown on their terminal only."""
    text, hint = SENTENCES[word]
    which = f", {shown(name)} is not" if name else ""
    return DataError(f"Expected {text.format(**values)}{which}{where}.", hint=hint, reason=word)


def shown(name: str) -> str:
    """A file name for a terminal: no escape sequences, no line breaks, no reversed text; at most 80 characters."""
    return name[:80].encode("ascii", "backslashreplace").decode() if not name.isprintable() else name[:80]
