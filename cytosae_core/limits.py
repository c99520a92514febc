"""Limits on what is read at a site: far above real use, far below what hurts. docs/bad-inputs.md has the table."""

from __future__ import annotations

MIB = 1 << 20

# Files
MIN_FILE_BYTES = 16  # the smallest image of any format has more
MAX_FILE_BYTES = 256 * MIB  # 25 megapixels of 16-bit RGB are 150 MB

# Images
MAX_IMAGE_PIXELS = 25_000_000  # a crop of one cell has under 1 megapixel; this leaves room for a whole field
MAX_IMAGE_SIDE = 1 << 20
MAX_RATIO = 200  # decoded bytes per file byte, for images that decode to RATIO_FROM_BYTES and more
RATIO_FROM_BYTES = 8 * MIB
MAX_META_BYTES = 16 * MIB  # texts, profiles, EXIF: dropped unread, but not without end
MAX_JPEG_SCANS = 100  # libjpeg passes over the whole image for each; cameras write at most 10
MAX_TIFF_PAGES = 1
MAX_TIFF_TAGS = 4096
MAX_TIFF_STRIPS = 65_535
MAX_DICOM_RECURSION = (
    400  # Python frames while a DICOM file is parsed: some 80 nested sequences, none of them kept
)

# The decoder's process
DEADLINE_SECONDS = 30.0  # per image, by the clock, kept by the parent
CPU_SECONDS = 30  # per image, kept by the kernel
CPU_SECONDS_IN_ALL = 3600  # a worker that reaches half of it is replaced between two images
SHARED_BYTES = MAX_FILE_BYTES  # file in, pixels out, in the same place; only what is used takes memory
MEMORY_BYTES = 2048 * MIB  # address space, libraries included

# labels.csv
MAX_TABLE_BYTES = 256 * MIB
MAX_LINE_CHARS = 1 << 20
MAX_CELL_CHARS = 1 << 17
MAX_PATH_CHARS = 1024

# Tensors
MAX_TENSOR_HEADER_BYTES = MIB
MAX_TENSOR_NAME_CHARS = 256
MAX_TENSOR_DIMENSIONS = 8
