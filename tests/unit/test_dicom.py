"""DICOM images: every pixel form, and nothing but pixels."""

from __future__ import annotations

import io
import logging
import traceback
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RLELossless, generate_uid

from cytosae_core.cohort import check_cohort, open_rgb, read_cohort
from cytosae_core.cohort import dicom as dicom_module
from cytosae_core.cohort import reading as reading_module
from cytosae_core.cohort import sandbox as sandbox_module
from cytosae_core.errors import DataError

SECRET = "Mustermann^Erika"
BIRTH, NUMBER = "19640812", "PAT-4711"


def write(path: Path, pixels: np.ndarray, kind: str = "MONOCHROME2", **tags: Any) -> Path:
    """A small DICOM file with a patient in its tags."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.77.1.2"
    meta.MediaStorageSOPInstanceUID = generate_uid()
    data = Dataset()
    data.file_meta = meta
    data.PatientName, data.PatientID, data.PatientBirthDate = SECRET, NUMBER, BIRTH
    data.InstitutionName, data.StudyDescription = SECRET, SECRET
    data.Rows, data.Columns = pixels.shape[:2]
    data.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    if pixels.ndim == 3:
        data.PlanarConfiguration = 0
    bits = 8 * pixels.dtype.itemsize
    data.PhotometricInterpretation = kind
    data.BitsAllocated, data.BitsStored, data.HighBit = bits, bits, bits - 1
    data.PixelRepresentation = int(np.issubdtype(pixels.dtype, np.signedinteger))
    data.PixelData = pixels.tobytes()
    data["PixelData"].VR = "OB" if bits == 8 else "OW"
    for name, value in tags.items():
        setattr(data, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path


def opened(path: Path) -> np.ndarray:
    """The file's image as a cohort of class folders gives it."""
    (image,) = read_cohort(path.parent.parent).images
    return np.asarray(open_rgb(image))


GREY = np.array([[0, 64], [128, 255]], np.uint8)
RGB = np.array([[[10, 200, 30], [0, 0, 0]], [[255, 255, 255], [90, 40, 120]]], np.uint8)


def test_grey_and_inverted_grey(tmp_path: Path) -> None:
    assert np.array_equal(opened(write(tmp_path / "a/c/x.dcm", GREY))[..., 1], GREY)
    assert np.array_equal(opened(write(tmp_path / "b/c/x.dcm", GREY, "MONOCHROME1"))[..., 1], 255 - GREY)


@pytest.mark.parametrize(
    ("values", "stored", "expected"),
    [
        (np.array([[0, 65535]], np.uint16), 16, [0, 255]),
        (np.array([[0, 4095]], np.uint16), 12, [0, 255]),
        (np.array([[1024, 2048]], np.uint16), 12, [64, 128]),  # the bits' range, not the image's
        (np.array([[-2048, 2047]], np.int16), 12, [0, 255]),
        (np.array([[-128, 127]], np.int8), 8, [0, 255]),
    ],
)
def test_grey_values_map_from_the_range_of_their_bits(
    values: np.ndarray, stored: int, expected: list[int], tmp_path: Path
) -> None:
    path = write(tmp_path / "d/c/x.dcm", values, BitsStored=stored, HighBit=stored - 1)
    assert opened(path)[0, :, 0].tolist() == expected


def test_colours(tmp_path: Path) -> None:
    assert np.array_equal(opened(write(tmp_path / "a/c/x.dcm", RGB, "RGB")), RGB)
    planes = np.ascontiguousarray(RGB.transpose(2, 0, 1))
    path = write(tmp_path / "b/c/x.dcm", RGB, "RGB", PlanarConfiguration=1, PixelData=planes.tobytes())
    assert np.array_equal(opened(path), RGB)
    ybr = pydicom.pixels.convert_color_space(RGB, "RGB", "YBR_FULL")
    assert np.abs(opened(write(tmp_path / "d/c/x.dcm", ybr, "YBR_FULL")).astype(int) - RGB).max() <= 2


def test_palette_colour(tmp_path: Path) -> None:
    table = np.zeros(256, np.uint16)
    table[7] = 0xC800
    tags: dict[str, Any] = {}
    for colour in ("Red", "Green", "Blue"):
        tags[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        values = table if colour == "Red" else np.zeros(256, np.uint16)
        tags[f"{colour}PaletteColorLookupTableData"] = values.tobytes()
    path = write(tmp_path / "d/c/x.dcm", np.full((2, 2), 7, np.uint8), "PALETTE COLOR", **tags)
    assert opened(path)[0, 0].tolist() == [199, 0, 0]


def test_run_length_encoding_is_decoded(tmp_path: Path) -> None:
    path = write(tmp_path / "d/c/x.dcm", GREY)
    data = pydicom.dcmread(path)
    data.compress(RLELossless)
    data.save_as(path)
    assert np.array_equal(opened(path)[..., 0], GREY)


@pytest.mark.parametrize("form", ["JPEG", "JPEG2000"])
def test_compressed_pixels_are_decoded_in_the_confined_process(form: str, tmp_path: Path) -> None:
    """Pillow's plugins are loaded before the doors close."""
    path = write(tmp_path / "d/c/x.dcm", np.full((16, 16), 77, np.uint8))
    data, stream = pydicom.dcmread(path), io.BytesIO()
    Image.fromarray(np.full((16, 16), 77, np.uint8)).save(
        stream, form, **({"no_jp2": True} if "2" in form else {})
    )
    data.PixelData = pydicom.encaps.encapsulate([stream.getvalue()])
    data["PixelData"].is_undefined_length = True
    data.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.90" if "2" in form else "1.2.840.10008.1.2.4.50"
    data.save_as(path)
    assert np.array_equal(opened(path)[..., 0], np.full((16, 16), 77))


def test_burned_in_text_is_refused(tmp_path: Path) -> None:
    refused(write(tmp_path / "d/c/x.dcm", GREY, BurnedInAnnotation="YES"), "burned-in")
    assert opened(write(tmp_path / "e/c/x.dcm", GREY, BurnedInAnnotation="NO")).shape == (2, 2, 3)


def refused(path: Path, text: str) -> None:
    with pytest.raises(DataError, match=text) as caught:
        opened(path)
    told = "".join(traceback.format_exception(caught.value))
    assert not any(secret in told for secret in (SECRET, NUMBER, BIRTH, "Mustermann"))


def test_what_cannot_be_read_is_a_data_error_without_tags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused(
        write(tmp_path / "a/c/x.dcm", GREY, NumberOfFrames=2, PixelData=GREY.tobytes() * 2), "single-frame"
    )
    refused(write(tmp_path / "b/c/x.dcm", GREY, BitsStored=9), "8 or 16 bits")
    refused(write(tmp_path / "d/c/x.dcm", RGB, "HSV"), "kinds")
    refused(write(tmp_path / "e/c/x.dcm", GREY, PixelData=b"\0\0"), "readable image")
    whole = write(tmp_path / "f/c/x.dcm", GREY)
    for data in (b"", b"rubbish" * 40, whole.read_bytes()[:-3], whole.read_bytes()[:200]):
        whole.write_bytes(data)
        refused(whole, "Expected")
    no_image = pydicom.dcmread(write(tmp_path / "g/c/x.dcm", GREY))
    del no_image.PixelData
    no_image.save_as(tmp_path / "g/c/x.dcm")
    refused(tmp_path / "g/c/x.dcm", "with an image")
    monkeypatch.setattr(reading_module, "MAX_PIXELS", 3)
    refused(write(tmp_path / "h/c/x.dcm", GREY), "at most 3 pixels")
    monkeypatch.setattr(reading_module, "MAX_BYTES", 10)
    refused(tmp_path / "h/c/x.dcm", "at most 10 bytes")


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.201"])
def test_compression_without_a_decoder_is_named(syntax: str, tmp_path: Path) -> None:
    path = write(tmp_path / "d/c/x.dcm", GREY)
    data = pydicom.dcmread(path)
    data.file_meta.TransferSyntaxUID = syntax
    data.PixelData = pydicom.encaps.encapsulate([b"\0" * 8])
    data["PixelData"].is_undefined_length = True
    data.save_as(path)
    refused(path, "decoder")


def test_deflated_files_are_refused_before_they_are_inflated(tmp_path: Path) -> None:
    path = write(tmp_path / "d/c/x.dcm", GREY)
    data = pydicom.dcmread(path)
    data.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    data.save_as(path)
    refused(path, "deflated")


def test_no_tag_is_parsed_kept_or_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[Dataset] = []
    real = pydicom.dcmread

    def watched(*arguments: Any, **options: Any) -> Dataset:
        seen.append(real(*arguments, **options))
        return seen[-1]

    monkeypatch.setattr(pydicom, "dcmread", watched)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom on writing: no value of its kind has a ^
        path = write(tmp_path / "d/c/x.dcm", GREY, ImageType=["ORIGINAL", "PRIMARY", SECRET])
    caplog.clear()
    with caplog.at_level(logging.DEBUG), warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        cohort = read_cohort(path.parent.parent)
        dicom_module.read_dicom(path.read_bytes(), 100)
        open_rgb(cohort.images[0])
    (data,) = seen
    assert {element.keyword for element in data} <= set(dicom_module.PIXEL_TAGS) and "Rows" in data
    text = caplog.text + repr(cohort) + str([str(item.message) for item in told])
    assert not any(secret in text for secret in (SECRET, NUMBER, BIRTH))
    assert cohort.images[0].attributes == {} and cohort.images[0].unit == "c/x.dcm"


def test_the_check_counts_unreadable_files(tmp_path: Path) -> None:
    write(tmp_path / "d/c/x.dcm", RGB, "RGB")
    write(tmp_path / "d/c/y.dcm", RGB, "RGB", NumberOfFrames=3)
    found = check_cohort(read_cohort(tmp_path / "d"))
    assert (found.images, found.unreadable_files) == (2, ["y.dcm"])


def test_missing_pydicom_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "d/c/x.dcm", GREY)
    monkeypatch.setattr(sandbox_module, "find_spec", lambda name: None)
    refused(path, r"cytosae-federation\[dicom\]")


def test_pydicom_is_imported_only_for_dicom() -> None:
    import subprocess
    import sys

    script = "import sys, cytosae_core.cohort; sys.exit('pydicom' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
