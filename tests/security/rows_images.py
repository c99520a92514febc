"""Rows 1 to 45: image files, DICOM, tables, cohorts."""

from __future__ import annotations

import io
import os
import socket
import time
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cytosae_client.site import StudyData
from cytosae_core.cohort import check_cohort, image_digest, open_rgb, read_cohort
from cytosae_core.cohort.opening import read_input
from cytosae_core.concepts.auroc import unit_auroc
from cytosae_core.encoder import build_store
from tests.federation import study_config

from .files import (
    big_tiff,
    chunk,
    dicom,
    jpeg_claiming,
    many_scans,
    nested_dicom,
    noise,
    page,
    plain,
    png,
    saved,
    tiff,
)
from .harness import GOOD, HELLO, Case, TinyEncoder, cell
from .rows import row


@row(1)
def png_bomb(case: Case) -> None:
    case.image("x.png", png(100_000, 100_000), "PIX_LIMIT")


@row(2)
def png_truncated(case: Case) -> None:
    whole = saved(noise(), "PNG")
    case.image("x.png", whole[: len(whole) // 2], "DECODE")


@row(3)
def png_bad_checksum(case: Case) -> None:
    data = bytearray(saved(noise(), "PNG"))
    data[data.index(b"IDAT") + 200] ^= 1
    case.image("x.png", bytes(data), "DECODE")


@row(4)
def png_impossible_size(case: Case) -> None:
    case.image("x.png", png(0, 0), "HEADER")
    case.image("x.png", png(2**31, 1), "HEADER")


@row(5)
def png_texts(case: Case) -> None:
    text = chunk(b"iTXt", case.canary.encode() + b"\0\0\0\0\0" + bytes(20 << 20))
    case.image("x.png", png(40, 40, text), "META_LIMIT")
    packed = chunk(b"zTXt", case.canary.encode() + b"\0\0" + zlib.compress(bytes(200 << 20), 1))
    start = time.monotonic()
    case.fine("x.png", png(40, 40, packed))  # dropped without being unpacked
    assert time.monotonic() - start < 20


@row(6)
def many_frames(case: Case) -> None:
    frames = [noise(seed=seed) for seed in range(3)]
    case.image("x.png", saved(frames[0], "PNG", save_all=True, append_images=frames[1:]), "FRAMES")
    case.image("x.png", png(40, 40, chunk(b"acTL", bytes(8))), "FRAMES")
    (case.home / "data" / "images" / "x.png").unlink()
    case.image("x.jpg", saved(frames[0], "MPO", save_all=True, append_images=frames[1:]), "FRAMES")


@row(7)
def colour_modes(case: Case) -> None:
    grey = Image.fromarray(np.arange(1600, dtype=np.uint16).reshape(40, 40) * 40)
    case.image("x.png", saved(grey, "PNG"), "MODE")
    (case.home / "data" / "images" / "x.png").unlink()
    case.image("x.jpg", saved(noise(mode="CMYK"), "JPEG"), "MODE")
    (case.home / "data" / "images" / "x.jpg").unlink()
    for mode in ("P", "1"):
        image = noise(mode=mode)
        assert case.fine("y.png", saved(image, "PNG")).tobytes() == image.convert("RGB").tobytes()


@row(8)
def jpeg_truncated(case: Case) -> None:
    whole = saved(noise(), "JPEG")
    case.image("x.jpg", whole[: whole.index(b"\xff\xda") + 14], "DECODE")


@row(9)
def jpeg_bomb(case: Case) -> None:
    case.image("x.jpg", jpeg_claiming(65500, 65500), "PIX_LIMIT")


@row(10)
def jpeg_scans(case: Case) -> None:
    case.image("x.jpg", many_scans(1000), "CPU_LIMIT")


@row(11)
def exif_texts(case: Case) -> None:
    exif = Image.Exif()
    exif[0x010E], exif[0x013B], exif[0x8298] = (
        case.canary,
        case.canary,
        case.canary,
    )  # description, artist, rights
    exif.get_ifd(0x8825)[29] = case.canary  # GPS date
    image = noise()
    for name, form in (("x.jpg", "JPEG"), ("x.png", "PNG"), ("x.tif", "TIFF")):
        data = saved(image, form, exif=exif)
        assert case.canary.encode() in data
        assert case.fine(name, data).tobytes() == plain(data).tobytes()
        (case.home / "data" / "images" / name).unlink()


@row(12)
def exif_thumbnail(case: Case) -> None:
    thumbnail = saved(cell(case.canary, 9), "JPEG")
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0" + thumbnail
    bare = saved(noise(), "JPEG")
    data = bare[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + bare[2:]
    assert case.fine("x.jpg", data).tobytes() == plain(bare).tobytes()


@row(13)
def polyglot(case: Case) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(case.canary, case.canary)
    for name, form in (("x.jpg", "JPEG"), ("x.png", "PNG"), ("x.bmp", "BMP"), ("x.tif", "TIFF")):
        case.image(name, saved(noise(), form) + stream.getvalue(), "TRAIL")
        (case.home / "data" / "images" / name).unlink()


@row(14)
def tiff_loop(case: Case) -> None:
    case.image("x.tif", tiff(page(), page(), loop=True, after=bytes(64)), "IFD_LOOP")


@row(15)
def tiff_outside(case: Case) -> None:
    case.image("x.tif", tiff(page(t273=1 << 30), after=bytes(64)), "DECODE")
    case.image("x.tif", b"II*\0" + (1 << 30).to_bytes(4, "little") + bytes(64), "DECODE")


@row(16)
def tiff_pages(case: Case) -> None:
    case.image("x.tif", tiff(*[[(256, 3, 1, 8)]] * 100_000, after=bytes(64)), "FRAMES")
    strips = [entry if entry[0] != 273 else (273, 4, 100_000, 200) for entry in page()]
    case.image("x.tif", tiff(strips, after=bytes(500_000)), "FRAMES")
    case.image("x.tif", saved(noise(), "TIFF", save_all=True, append_images=[noise()]), "FRAMES")


@row(17)
def tiff_bombs(case: Case) -> None:
    flat = Image.new("RGB", (3000, 3000))
    for compression in ("tiff_lzw", "tiff_adobe_deflate"):
        case.image("x.tif", saved(flat, "TIFF", compression=compression, tiffinfo={278: 3000}), "RATIO")


@row(18)
def big_tiff_bomb(case: Case) -> None:
    case.image("x.tif", big_tiff(1 << 20, 1 << 20), "PIX_LIMIT")


@row(19)
def slide_scanner(case: Case) -> None:
    text = f"Aperio Image Library|Patient = {case.canary}"
    case.fine("x.tif", saved(noise(), "TIFF", description=text))
    label = noise(seed=5)
    case.image(
        "x.tif", saved(noise(), "TIFF", save_all=True, append_images=[label], description=text), "FRAMES"
    )
    data = case.folder({"x.svs": saved(noise(), "TIFF", description=text)})
    case.table(data, "FORMAT")


@row(20)
def ome_xml(case: Case) -> None:
    laughs = '<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY lol "lol"><!ENTITY lol2 "&lol;&lol;">]><OME>&lol2;</OME>'
    outside = '<!DOCTYPE x [<!ENTITY xxe SYSTEM "file:///etc/passwd">]><OME>&xxe;</OME>'
    for text in (laughs, outside):
        case.image("x.tif", saved(noise(), "TIFF", description=text), "XML_REFUSED")


@row(21)
def dicom_without_preamble(case: Case) -> None:
    case.image("x.dcm", dicom(case.canary)[132:], "DECODE")


@row(22)
def dicom_depth(case: Case) -> None:
    case.image("x.dcm", nested_dicom(10_000), "DEPTH")


@row(23)
def dicom_identity(case: Case) -> None:
    data = dicom(case.canary)
    assert data.count(case.canary.encode()) >= 4
    assert case.fine("x.dcm", data).getpixel((1, 0)) == (1, 1, 1)


@row(24)
def dicom_burned_in(case: Case) -> None:
    case.image("x.dcm", dicom(case.canary, BurnedInAnnotation="YES"), "BURNED_IN")


@row(25)
def dicom_lengths(case: Case) -> None:
    for changes in ({"Rows": 9}, {"PixelData": bytes(200)}, {"Columns": 3}):
        case.image("x.dcm", dicom(case.canary, **changes), "DECODE")


@row(26)
def dicom_encapsulated(case: Case) -> None:
    case.image("x.dcm", dicom(case.canary, syntax="1.2.840.10008.1.2.5"), "DECODE")
    code, found = case.check(case.folder({"x.dcm": dicom(case.canary, syntax="1.2.840.10008.1.2.4.90")}))
    assert code == 1 and set(found["reasons"]) <= {"DECODE", "CODEC"}  # CODEC: no decoder could even try


@row(27)
def other_formats(case: Case) -> None:
    text = case.canary.encode()
    for content in (
        b"<html><script>" + text,
        b"<svg xmlns='http://www.w3.org/2000/svg'>" + text,
        b"%PDF-1.7\n" + text,
    ):
        case.image("x.png", content, "MAGIC")
    case.image("x.png", saved(noise(), "JPEG"), "MAGIC")


@row(28)
def empty(case: Case) -> None:
    for content in (b"", b"\x89"):
        case.image("x.png", content, "EMPTY")


@row(29)
def not_regular(case: Case) -> None:
    for make in (os.mkfifo, _socket, os.mkdir, _device):
        data = case.folder(rows=f"x.png,monocyte,{case.canary},\n")
        path = data / "images" / "x.png"
        try:
            make(path)
        except PermissionError:
            assert make is _device  # only root makes devices
            continue
        case.table(data, "NOT_REG")
        case.refused("NOT_REG", lambda path=path: read_input(path))
        os.rmdir(path) if make is os.mkdir else os.unlink(path)


def _socket(path: Path) -> None:
    before = os.getcwd()
    os.chdir(path.parent)  # a socket's address is short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(before)


def _device(path: Path) -> None:
    os.mknod(path, 0o20600, os.makedev(1, 5))  # /dev/zero


@row(30)
def links(case: Case) -> None:
    outside = case.home / "secret.png"
    outside.write_bytes(saved(noise(), "PNG"))
    for make in (
        lambda p: p.symlink_to(outside),
        lambda p: p.symlink_to(p),
        lambda p: p.hardlink_to(outside),
    ):
        data = case.folder(rows=f"x.png,monocyte,{case.canary},\n")
        path = data / "images" / "x.png"
        make(path)
        case.table(data, "SYMLINK")
        case.refused("SYMLINK", lambda path=path, data=data: read_input(path, data))
        path.unlink()


@row(31)
def paths(case: Case) -> None:
    places = (
        "../../etc/passwd.png",
        "/etc/passwd.png",
        "C:\\x.png",
        "C:/x.png",
        "\\\\host\\share\\x.png",
        "a\0b.png",
    )
    for place in places:
        case.table(case.folder(rows=f"{place},monocyte,{case.canary},\n"), "PATH")


@row(32)
def swapped(case: Case) -> None:
    """A folder and a file that become links after the table was read; and a file that changes while it is open."""
    data = case.folder()
    image = read_cohort(data).images[0]
    secret = case.home / "elsewhere"
    (data / "images").rename(secret)
    (data / "images").symlink_to(secret)
    case.refused("SYMLINK", lambda: open_rgb(image))
    case.refused("SYMLINK", lambda: image_digest(image))
    (data / "images").unlink()
    secret.rename(data / "images")
    real_fstat = os.fstat

    def swap(descriptor: int) -> os.stat_result:
        found = real_fstat(descriptor)
        if image.path.exists():
            image.path.unlink()  # the name now leads elsewhere; the descriptor does not
            image.path.write_bytes(b"another file")
        return found

    before = image_digest(image)
    case.patch.setattr(os, "fstat", swap)
    assert open_rgb(image).size == (40, 40)
    case.patch.undo()
    assert image_digest(image) != before


NAMES = (
    "line\nbreak.png", "\x1b[31mred\x1b[0m.png", "\u202egnp.exe.png", "e" * 251 + ".png", "\U0001f600.png", "-rf.png",
    "dot..png", " .png", "[bold]x.png",
)  # fmt: skip


@row(33)
def names(case: Case) -> None:
    data = case.home / "data" / "monocyte"
    data.mkdir(parents=True)
    for seed, name in enumerate(NAMES):
        cell(case.canary, seed).save(data / name, "PNG")
    (data / f"{case.canary}.png").write_bytes(b"")
    code, found = case.check(data.parent)
    assert code == 1 and (found["images"], found["unreadable"]) == (len(NAMES) + 1, 1)
    assert case.leave(data.parent).n_images == len(NAMES)
    (data / "copy.png").write_bytes((data / NAMES[1]).read_bytes())
    told = str(check_cohort(read_cohort(data.parent)).to_dict()["duplicates"])
    assert "\x1b" not in told and "x1b" in told


@row(34)
def twins(case: Case) -> None:
    for one, other in (("caf\u00e9.png", "cafe\u0301.png"), ("A.png", "a.PNG")):
        case.table(case.folder({one: saved(noise(), "PNG"), other: saved(noise(seed=2), "PNG")}), "DUP")
        for name in (one, other):
            (case.home / "data" / "images" / name).unlink()


@row(35)
def unreadable(case: Case) -> None:
    data = case.folder({"x.png": saved(noise(), "PNG")})
    cohort = read_cohort(data)
    path = cohort.images[-1].path
    whole = path.read_bytes()
    path.unlink()  # vanished between table and reading
    case.refused("IO", lambda: open_rgb(cohort.images[-1]))
    assert check_cohort(cohort).reasons == {"IO": 1}
    path.write_bytes(whole)
    path.chmod(0)
    with _nobody(case.home):
        case.refused("IO", lambda: open_rgb(cohort.images[-1]))
    path.chmod(0o600)
    _disk_full(case, data)


def _nobody(home: Path) -> Any:
    """Root may read everything: be another user for a moment."""
    from contextlib import contextmanager

    @contextmanager
    def other() -> Any:
        if os.getuid() != 0:
            yield
            return
        os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(0)

    return other()


def _disk_full(case: Case, data: Path) -> None:
    import errno

    from cytosae_core.encoder import build
    from cytosae_core.errors import SetupError

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    case.patch.setattr(build, "write_array", full)
    with pytest.raises(SetupError, match="disk space"):
        build_store(read_cohort(data), TinyEncoder(), case.home / "store")
    case.patch.undo()
    assert build_store(read_cohort(data), TinyEncoder(), case.home / "store").n_images == GOOD + 1


@row(36)
def formulas(case: Case) -> None:
    cells = ("=HYPERLINK(0)", "@SUM(A1)", "+1", "-1", "\t=1", '"=cmd|x"')
    rows = "".join(f"f{index}.png,{text},{text},{text}\n" for index, text in enumerate(cells))
    data = case.folder(rows=rows)
    for index in range(len(cells)):
        cell(case.canary, 50 + index).save(data / "images" / f"f{index}.png")
    labels = set(read_cohort(data).classes)
    assert {"=HYPERLINK(0)", "@SUM(A1)", "+1", "-1"} <= labels  # text, never evaluated, and never sent:
    case.leave(data)
    assert not any(text.encode() in sent for text in (cells[0], cells[1], "=cmd|x") for sent in case.leaving)


@row(37)
def table_limits(case: Case) -> None:
    data = case.folder()
    with (data / "labels.csv").open("ab") as stream:
        stream.truncate(1 << 30)  # a file of 1 GB, without a line break
    case.table(data, "CSV_LIMIT")
    for rows in ("x" * (2 << 20), 'x.png,"monocyte,\n', f"x.png,mono\0cyte,{case.canary},\n"):
        case.table(case.folder(rows=rows), "CSV_LIMIT")


@row(38)
def table_form(case: Case) -> None:
    for header in ("image,label,patient,label", "image,patient,note,x", "image;label;patient;note"):
        case.table(case.folder(header=header), "SCHEMA")
    data = case.folder()
    table = data / "labels.csv"
    table.write_bytes(table.read_bytes().replace(b"monocyte", "Möno".encode("latin-1")))
    case.table(data, "SCHEMA")
    data = case.folder()
    table.write_bytes(b"\xef\xbb\xbf" + table.read_bytes())
    assert len(read_cohort(data).images) == GOOD  # a byte order mark is accepted: spreadsheets write one


@row(39)
def labels(case: Case) -> None:
    for label in ("", " ", "nan", "NaN", "null", "#N/A"):
        case.table(case.folder(rows=f"x.png,{label},{case.canary},\n"), "LABEL")
    data = case.folder({"x.png": saved(noise(), "PNG")})
    table = data / "labels.csv"
    table.write_text(table.read_text().replace("x.png,monocyte", f"x.png,{case.canary}"))
    store = case.leave(data)  # outside the protocol's vocabulary: counted as no class, and its name stays
    assert store.n_images == GOOD + 1 and case.federation is not None
    found = StudyData(case.federation.sites["site-0"], study_config(2))  # type: ignore[arg-type]
    assert (found.labelled.labels == -1).sum() == 1
    table.write_text(table.read_text().replace(f"{case.canary}-p1,", "007,"))
    assert "007" in read_cohort(data).units  # zeros are kept


@row(40)
def leakage(case: Case) -> None:
    header = "image,label,patient,split"
    data = case.folder(header=header)
    table = data / "labels.csv"
    lines = table.read_text().splitlines()
    one = [line.rsplit(",", 1)[0] for line in lines[1:]]
    one[0], one[1] = one[0].replace("-p0", "-same"), one[1].replace("-p1", "-same")
    table.write_text(
        "\n".join([header, *(f"{t},{'train' if i else 'test'}" for i, t in enumerate(one))]) + "\n"
    )
    case.table(data, "LEAKAGE")
    data = case.folder()
    images = data / "images"
    (images / f"{case.canary}-1.png").write_bytes((images / f"{case.canary}-0.png").read_bytes())
    _, found = case.check(data)
    assert any("under another unit" in text for text in found["problems"])  # two ids of one patient: flagged


@row(41)
def one_class(case: Case) -> None:
    data = case.folder()
    table = data / "labels.csv"
    table.write_text(table.read_text().replace("lymphocyte", "monocyte"))
    case.leave(data)
    scores = np.random.default_rng(0).random((GOOD, 3), dtype=np.float32)
    found = unit_auroc(scores, np.ones(GOOD, bool), np.arange(GOOD))
    assert np.isnan(found.value).all() and found.units == 0  # not estimable, and nothing raised


@row(42)
def one_in_many(case: Case) -> None:
    data = case.home / "data" / "monocyte"
    data.mkdir(parents=True)
    for index in range(400):
        (data / f"{case.canary}-{index}.png").write_bytes(png() if index != 7 else png()[:50])
    code, found = case.check(data.parent)
    assert code == 0 and found["unreadable"] == 1 and found["reasons"] == {"DECODE": 1} and found["usable"]
    store = case.leave(data.parent)
    assert (store.n_images, store.failed) == (
        399,
        (read_cohort(data.parent).images.index(_named(data, 7, case)),),
    )
    assert case.federation is not None
    counts = case.federation.sites["site-0"].policy.round_to
    assert counts > 1  # what leaves of the count is rounded (tests/contract/test_egress.py)


def _named(data: Path, index: int, case: Case) -> Any:
    return next(i for i in read_cohort(data.parent).images if i.path.name == f"{case.canary}-{index}.png")


@row(43)
def duplicates(case: Case) -> None:
    data = case.folder()
    images = data / "images"
    (images / f"{case.canary}-3.png").write_bytes((images / f"{case.canary}-0.png").read_bytes())
    code, found = case.check(data)
    assert code == 0 and len(found["duplicates"]) == 1
    assert any("copy of" in text for text in found["problems"])
    case.leave(data)


@row(44)
def unusual_images(case: Case) -> None:
    base = noise()
    images = {
        "grey.png": base.convert("L"), "alpha.png": base.convert("RGBA"), "tiny.png": noise(1),
        "wide.png": base.resize((300, 5)), "inverted.png": Image.eval(base, lambda value: 255 - value),
        "la.png": base.convert("LA"),
    }  # fmt: skip
    for name, image in images.items():
        assert case.fine(name, saved(image, "PNG")).tobytes() == image.convert("RGB").tobytes()
    data = case.home / "data"
    assert (
        check_cohort(read_cohort(data)).sizes["40x40"] >= GOOD
    )  # sizes are shown; scale is the staff's to see


@row(45)
def clocks(case: Case) -> None:
    case.leave(case.folder())
    federation = case.federation
    assert federation is not None
    from tests.federation import make_site

    federation.sites["site-1"] = make_site("site-1", case.home / "again", federation.policy, seed=1)
    for issued, expires in ((0, 60), (4_070_908_800, 4_070_908_900)):  # 1970 and 2099
        session = _session(case, federation, "site-1")
        reply = federation.ask("site-1", HELLO, issued=issued, expires=expires)
        assert reply is not None and (reply.header["status"], reply.header["code"]) == ("refused", "expired")
        assert case.events[-1].values["reason"] == "CLOCK"
        session.close()
    session = _session(case, federation, "site-1")
    case.patch.setenv("TZ", "Pacific/Kiritimati")
    time.tzset()
    reply = federation.ask("site-1", HELLO)
    case.patch.undo()
    time.tzset()
    session.close()
    assert (
        reply is not None and reply.header["status"] == "ok"
    )  # UTC seconds everywhere: a time zone is nothing


def _session(case: Case, federation: Any, name: str) -> Any:
    from cytosae_client.events import Events
    from cytosae_client.session import Session

    session = Session(
        federation.sites[name], federation.study, federation.key.public_hex, Events(case.events.append)
    )
    federation.sessions[name] = session
    return session
