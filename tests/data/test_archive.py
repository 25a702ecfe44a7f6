"""Archives from strangers: hostile ones are refused before anything is written, broken ones get their sentence."""

import bz2
import gzip
import io
import lzma
import random
import struct
import tarfile
import zipfile

import pytest

from hardpix.data.prepare import archive as entries_module
from hardpix.data.prepare.archive import Limits, Member, is_archive, judge, list_members, unpack
from hardpix.types import DataError

FILES = {"set/a.png": b"first " * 50, "set/deep/b.png": b"second" * 70000, "set/c.txt": b""}
KINDS = ("zip", "tar", "tar.gz", "tgz", "tar.bz2", "tar.xz")


def make_zip(path, files, method=zipfile.ZIP_DEFLATED):
    """``files``: name or ZipInfo -> bytes."""
    with zipfile.ZipFile(path, "w", method) as file:
        for name, content in files.items():
            file.writestr(name, content)
    return path


def make_tar(path, members):
    """``members``: pairs of TarInfo and bytes; compressed as the name says."""
    mode = {"gz": "w:gz", "z2": "w:bz2", "xz": "w:xz"}.get(path.name[-2:], "w:")
    with tarfile.open(path, mode) as file:
        for info, content in members:
            file.addfile(info, io.BytesIO(content) if content is not None else None)
    return path


def tar_file(name, content=b"x", **facts):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in facts.items():
        setattr(info, key, value)
    return info, content


def make(path, files=FILES):
    if path.name.endswith("zip"):
        return make_zip(path, files)
    return make_tar(path, [tar_file(name, content) for name, content in files.items()])


def chosen(archive, target, wanted=lambda name: True, **limits):
    return judge(archive, list_members(archive), wanted, target, Limits(**limits))


def refused(archive, target, *said, **limits):
    """The archive is refused with these words, and the folder is as it was before."""
    before = sorted(target.parent.rglob("*"))
    with pytest.raises(DataError) as error:
        unpack(archive, chosen(archive, target, **limits), target)
    for words in (archive.name, *said):
        assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert sorted(target.parent.rglob("*")) == before


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def target(tmp_path):
    return tmp_path / "out" / "x"


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_unpacks_whole_and_tells_its_bytes(tmp_path, target, kind):
    archive = make(tmp_path / f"x.{kind}")
    members, told = chosen(archive, target), []
    unpack(archive, members, target, told.append)
    assert contents(target) == FILES
    assert sum(told) == sum(m.size for m in members) == sum(map(len, FILES.values()))
    assert list(target.parent.iterdir()) == [target]


def test_names_of_archives(tmp_path):
    assert all(is_archive(tmp_path / f"X.{kind}") for kind in (*KINDS, "ZIP", "Tar.GZ"))
    assert not any(is_archive(tmp_path / name) for name in ("x.mat", "x.gz", "zip", "x.zip.part"))


def test_only_what_is_wanted_under_plain_names(tmp_path, target):
    files = {"./set//a.png": b"1", "set/b.txt": b"2", "__MACOSX/set/a.png": b"3", "set/._a.png": b"4",
             "set/.DS_Store": b"5", "./": b"", "set/empty/": b""}  # fmt: skip
    archive = make_zip(tmp_path / "x.zip", files)
    asked = []
    members = chosen(archive, target, lambda name: bool(asked.append(name)) or name.endswith("png"))
    assert [m.name for m in members] == ["set/a.png"]
    assert asked == ["set/a.png", "set/b.txt"]
    unpack(archive, members, target)
    assert contents(target) == {"set/a.png": b"1"}


# Names that lead out, in zip and in tar, be they wanted or not.
NAMES = {
    "/etc/x.png": "absolute",
    "//x.png": "absolute",
    "../x.png": "out of the folder",
    "a/../../x.png": "out of the folder",
    "a/..": "out of the folder",
    "C:/x.png": "drive letter",
    "c:x.png": "drive letter",
    "..\\x.png": "backslash",
    "a\\x.png": "backslash",
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
@pytest.mark.parametrize("wanted", [True, False])
def test_names_that_lead_elsewhere_are_refused(tmp_path, target, kind, name, wanted):
    archive = make(tmp_path / f"x.{kind}", {"ok.png": b"1", name: b"2", "z.png": b"3"})
    with pytest.raises(DataError, match=NAMES[name]) as error:
        chosen(archive, target, lambda member: wanted)
    assert repr(name) in str(error.value)
    refused(archive, target, NAMES[name], repr(name))


@pytest.mark.parametrize("name", ["a..b/c.png", "...", "ab:c.png", "x/C:/y.png", " a.png", "a b\n.png"])
def test_odd_names_that_do_no_harm_pass(tmp_path, target, name):
    archive = make(tmp_path / "x.tar", {name: b"1"})
    unpack(archive, chosen(archive, target), target)
    assert contents(target) == {name: b"1"}


def test_a_nul_in_a_name_is_refused(tmp_path, target):
    archive = make_zip(tmp_path / "x.zip", {"a.pngX.exe": b"1"})
    archive.write_bytes(archive.read_bytes().replace(b"a.pngX.exe", b"a.png\0.exe"))
    refused(archive, target, "NUL")
    # A tar's ordinary header ends the name there; its extended one does not.
    info, content = tar_file("short")
    info.pax_headers = {"path": "a.png\0.exe"}
    refused(make_tar(tmp_path / "x.tar", [(info, content)]), target, "NUL")


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (tarfile.SYMTYPE, "link to '/etc/passwd'"),
        (tarfile.LNKTYPE, "link to '/etc/passwd'"),
        (tarfile.CHRTYPE, "device"),
        (tarfile.BLKTYPE, "device"),
        (tarfile.FIFOTYPE, "pipe"),
        (b"9", "unknown kind"),
    ],
)
def test_tar_members_that_are_no_files_are_refused(tmp_path, target, kind, said):
    odd, _ = tar_file(
        "set/odd.png", b"", type=kind, linkname="/etc/passwd" if said.startswith("link") else ""
    )
    archive = make_tar(tmp_path / "x.tar.gz", [tar_file("a.png"), (odd, None), tar_file("set/odd.png/b.png")])
    refused(archive, target, said, "'set/odd.png'")
    assert [m.name for m in chosen(archive, target, lambda name: name == "a.png")] == [
        "a.png"
    ]  # unwanted: no matter


@pytest.mark.parametrize(
    ("mode", "said"), [(0o120777, "link"), (0o020666, "device"), (0o060666, "device"), (0o010666, "pipe")]
)
def test_zip_members_that_are_no_files_are_refused(tmp_path, target, mode, said):
    info = zipfile.ZipInfo("set/odd.png")
    info.create_system, info.external_attr = 3, mode << 16
    refused(
        make_zip(tmp_path / "x.zip", {"a.png": b"1", info: b"/etc/passwd"}), target, said, "'set/odd.png'"
    )


def test_zip_files_with_unix_modes_pass(tmp_path, target):
    plain, folder = zipfile.ZipInfo("a.png"), zipfile.ZipInfo("folder")
    plain.external_attr, folder.external_attr = 0o100644 << 16, 0o040755 << 16
    archive = make_zip(tmp_path / "x.zip", {plain: b"1", folder: b""})
    assert [m.name for m in chosen(archive, target)] == ["a.png"]


def test_sparse_members_are_refused(tmp_path, target):
    """Their size says nothing about the archive's."""
    info, content = tar_file("hole.bin", b"1\n0\n1\n".ljust(512, b"\0") + b"x")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "hole.bin",
                        "GNU.sparse.realsize": "99999"}  # fmt: skip
    refused(make_tar(tmp_path / "x.tar", [(info, content)]), target, "sparse", "'hole.bin'")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_that_collide_are_refused(tmp_path, target):
    pairs = ((("a/b.png", "a/b.png"), "same name"), (("a//b.png", "./a/b.png"), "same name"),
             (("a", "a/b.png"), "file and of a folder"), (("a/b/c.png", "a/b"), "file and of a folder"))  # fmt: skip
    for number, (names, said) in enumerate(pairs):
        archive = make_tar(tmp_path / f"{number}.tar", [tar_file(name) for name in names])
        refused(archive, target, said, repr(names[1]))
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        file.writestr("a.png", b"1")
        file.writestr("a.png", b"2")
    refused(tmp_path / "x.zip", target, "same name")


def test_case_matters_where_the_file_system_ignores_it(tmp_path, target):
    archive = make(tmp_path / "x.zip", {"Set/é.png": b"1", "set/É.PNG": b"2"})
    assert len(chosen(archive, target)) == 2
    refused(archive, target, "same name", folds_case=True)
    parent = make(tmp_path / "y.zip", {"A": b"1", "a/b.png": b"2"})
    refused(parent, target, "file and of a folder", folds_case=True)


def test_names_too_long_are_refused(tmp_path, target):
    archive = make(tmp_path / "x.tar", {"é" * 10: b"1"})
    refused(archive, target, "longer", name_bytes=19)
    assert chosen(archive, target, name_bytes=20)
    path = len(str(target)) + 1 + 20
    refused(archive, target, "longer", path_bytes=path - 1)
    assert chosen(archive, target, path_bytes=path)
    refused(make(tmp_path / "y.tar", {"a" * 256: b"1"}), target, "longer")


def test_limits_are_those_of_the_file_system(tmp_path):
    found = Limits.of(tmp_path / "not" / "there")
    assert found.name_bytes == 255
    assert found.path_bytes == 4095
    assert not found.folds_case
    assert found.members == 1_000_000


def test_encrypted_and_unknown_methods_are_refused(tmp_path, target):
    archive = make_zip(tmp_path / "x.zip", {"a.png": b"1"})
    plain = archive.read_bytes()
    at = plain.index(b"PK\1\2")
    for bit in (0x1, 0x40, 0x2000):
        archive.write_bytes(plain[: at + 8] + struct.pack("<H", bit) + plain[at + 10 :])
        refused(archive, target, "it is encrypted", "'a.png'")
    archive.write_bytes(plain[: at + 10] + struct.pack("<H", 9) + plain[at + 12 :])
    refused(archive, target, "method 9", "'a.png'")


def test_bombs_are_refused(tmp_path, target):
    """Zeros, with limits small enough that the test needs none of a real bomb's bytes."""
    zeros = make_zip(tmp_path / "x.zip", {"ok.png": b"1", "zeros": bytes(200_000)})
    assert chosen(zeros, target, ratio=100, free_size=200_001)
    refused(zeros, target, "expands", "'zeros'", "200000", ratio=100, free_size=199_999)
    assert chosen(zeros, target, ratio=1000, free_size=0)
    many = make_zip(tmp_path / "y.zip", {f"{n}": bytes(20_000) for n in range(10)})
    assert chosen(many, target, ratio=100, free_size=200_000)
    refused(many, target, "more than 100 times", "'9'", ratio=100, free_size=199_999)
    for kind in ("tar.gz", "tar.bz2", "tar.xz"):
        squeezed = make(tmp_path / f"x.{kind}", {"zeros": bytes(300_000), "more": bytes(300_000)})
        refused(squeezed, target, "more than 100 times", "'more'", ratio=100, free_size=599_999)


def test_a_bomb_is_not_read_to_its_end(tmp_path, target):
    """A tar is judged while it is read: a header that declares too much is the last that is read."""
    info, _ = tar_file("zeros")
    info.size = 1 << 50
    archive = tmp_path / "x.tar.gz"
    with gzip.open(archive, "wb") as file:
        file.write(info.tobuf() + bytes(5000))
    refused(archive, target, "more than 1000 times", "'zeros'")


def test_an_archive_in_an_archive_is_a_file_like_any_other(tmp_path, target):
    """It is not unpacked, whatever it holds and is called; as a file it counts with its own size."""
    make_zip(tmp_path / "inner.zip", {"../out.png": b"1", "zeros": bytes(5_000_000)})
    inner = (tmp_path / "inner.zip").read_bytes()
    for kind in KINDS:
        archive = make(
            tmp_path / f"x.{kind}", {"set/inner.zip": inner, "set/a.png": inner, "b.tar.gz": inner}
        )
        own = target / kind.replace(".", "_")
        unpack(archive, chosen(archive, own, ratio=100, free_size=len(inner) * 3), own)
        assert contents(own) == {"set/inner.zip": inner, "set/a.png": inner, "b.tar.gz": inner}
        unpack(archive, chosen(archive, own / "wanted", lambda name: name == "set/a.png"), own / "wanted")
        assert contents(own / "wanted") == {"set/a.png": inner}


def test_a_bomb_of_bombs_is_refused_by_its_own_ratio(tmp_path, target):
    """Zeros packed twice and three times: what expands is the outer archive's member, whatever is in it."""
    once = make_zip(tmp_path / "1.zip", {"zeros": bytes(20_000_000)}).read_bytes()
    many = make(tmp_path / "2.tar.gz", {f"{n}.zip": once for n in range(40)})
    assert len(once) * 40 > 100 * many.stat().st_size
    refused(many, target, "more than 100 times", ratio=100, free_size=len(once) * 20)


def test_overlapping_zip_members_are_refused(tmp_path, target):
    """Two entries of the directory that share one file's bytes."""
    body = bytes(range(256)) * 64
    archive = make_zip(tmp_path / "x.zip", {"a": body, "b": b""}, zipfile.ZIP_STORED)
    plain = archive.read_bytes()
    start = plain.index(b"PK\1\2")
    second = plain.index(b"PK\1\2", start + 4)
    fields = plain[start + 16 : start + 28]  # crc and both sizes
    archive.write_bytes(plain[: second + 16] + fields + plain[second + 28 :])
    refused(archive, target, "shares its bytes", "'b'")


def test_a_number_of_files_is_refused(tmp_path, target):
    archive = make(tmp_path / "x.zip", {f"{n}.png": b"" for n in range(4)})
    assert len(chosen(archive, target, members=4)) == 4
    refused(archive, target, "more than 3 files", members=3)
    assert len(chosen(archive, target, lambda name: name < "3", members=3)) == 3


def test_long_headers_are_not_read_into_memory(tmp_path, target, monkeypatch):
    info, content = tar_file("a.png")
    info.pax_headers = {"comment": "x" * 30_000}
    archive = make_tar(tmp_path / "x.tar.gz", [tar_file("ok.png"), (info, content)])
    assert len(chosen(archive, target)) == 2
    monkeypatch.setattr(entries_module, "HEADER_BYTES", 20_000)
    with pytest.raises(DataError, match=r"header that long.*download it again"):
        chosen(archive, target)


def forge_zip_size(archive, name, size, crc=None):
    """Change the size, and the checksum, that the directory of a zip declares."""
    plain = bytearray(archive.read_bytes())
    at = plain.rindex(name.encode()) - 46
    assert plain[at : at + 4] == b"PK\1\2"
    plain[at + 24 : at + 28] = struct.pack("<I", size)
    if crc is not None:
        plain[at + 16 : at + 20] = struct.pack("<I", crc)
    archive.write_bytes(bytes(plain))


def test_a_zip_that_declares_too_little_or_too_much(tmp_path, target):
    archive = make_zip(tmp_path / "x.zip", {"a.png": b"1" * 1000})
    forge_zip_size(archive, "a.png", 500)
    with pytest.raises(DataError, match=r"x\.zip: it is cut off or damaged at its member 'a\.png' .*CRC"):
        unpack(archive, chosen(archive, target), target)
    assert contents(target.parent) == {}
    forge_zip_size(archive, "a.png", 2000)
    with pytest.raises(DataError, match=r"'a\.png' has 1000 bytes of 2000; download it again"):
        unpack(archive, chosen(archive, target), target)
    assert contents(target.parent) == {}


def test_writing_stops_where_the_declared_size_ends(tmp_path, target):
    """Whatever a library hands over, no more than was judged is written."""
    archive = make(tmp_path / "x.tar", {"a.png": b"1" * 10, "b.png": b"2" * (3 << 20)})
    members = chosen(archive, target)
    lying = [members[0], Member("b.png", 2 << 20, index=1)]
    told = []
    with pytest.raises(DataError, match=r"'b\.png' is refused: it is longer than the 2097152 bytes"):
        unpack(archive, lying, target, told.append)
    assert sum(told) == 10 + (2 << 20)
    assert contents(target.parent) == {"x/a.png": b"1" * 10}


def test_a_damaged_zip_member_is_named_and_those_before_it_stay(tmp_path, target):
    archive = make_zip(tmp_path / "x.zip", {"a": b"one", "b": b"two-two", "c": b"three"}, zipfile.ZIP_STORED)
    archive.write_bytes(archive.read_bytes().replace(b"two-two", b"two-twx"))
    with pytest.raises(
        DataError, match=r"x\.zip: it is cut off or damaged at its member 'b' .*download it again"
    ):
        unpack(archive, chosen(archive, target), target)
    assert contents(target) == {"a": b"one"}
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("kind", KINDS)
def test_archives_that_were_cut_off(tmp_path, target, kind):
    """At every eighth of the file: no part of it passes for the whole."""
    rng = random.Random(0)
    files = {f"{n}.png": rng.randbytes(3000) for n in range(4)}
    archive = make(tmp_path / f"x.{kind}", files)
    plain = archive.read_bytes()
    length = 4 * (512 + 3072) if kind == "tar" else len(plain)  # the zeros that follow are padding
    for eighth in range(8):
        archive.write_bytes(plain[: length * eighth // 8])
        with pytest.raises(DataError, match=r"cut off or damaged.*download it again") as error:
            chosen(archive, target)
        if kind in ("tar", "tar.gz", "tgz") and eighth == 4:
            assert "member '" in str(error.value)
    assert not target.parent.exists()


def test_a_tar_cut_at_the_edge_of_a_member(tmp_path, target):
    """What Python's tarfile takes for the end of the archive."""
    archive = make(tmp_path / "x.tar", {"a": b"1", "b": b"2"})
    plain = archive.read_bytes()
    for end in (1024, 1024 + 200):
        archive.write_bytes(plain[:end])
        with pytest.raises(DataError, match="cut off or damaged at its member 'a'"):
            chosen(archive, target)
    archive.write_bytes(plain[:1030] + b"?" + plain[1031:])  # the second header's checksum is wrong
    with pytest.raises(DataError, match="cut off or damaged at its member 'a'"):
        chosen(archive, target)


@pytest.mark.parametrize(("opener", "kind"), [(gzip, "tar.gz"), (bz2, "tar.bz2"), (lzma, "tar.xz")])
def test_compressed_tars_are_checked_to_their_end(tmp_path, target, opener, kind):
    archive = make(tmp_path / f"x.{kind}", {"a": b"1"})
    plain = archive.read_bytes()
    at = len(plain) - (6 if kind == "tar.gz" else 8)
    archive.write_bytes(plain[:at] + bytes([plain[at] ^ 1]) + plain[at + 1 :])
    with pytest.raises(DataError, match="cut off or damaged"):
        chosen(archive, target)
    archive.write_bytes(plain)
    assert chosen(archive, target)


@pytest.mark.parametrize("kind", KINDS)
def test_files_that_are_no_archives(tmp_path, target, kind):
    archive = tmp_path / f"x.{kind}"
    archive.write_bytes(b"<html>log in first</html>" * 100)
    refused(archive, target, "download it again")


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_unpacking_goes_on_after_a_stop_at_any_byte(tmp_path, target, kind, monkeypatch):
    """Stopped in the midst of each file in turn: whole files are there, no other; the next call ends it."""
    archive = make(tmp_path / f"x.{kind}")
    members = chosen(archive, target)
    seen = 0
    for stop in (1, 300, 301, 420_300):

        class Stop(Exception):
            pass

        def advance(size, stop=stop, stopped=Stop):
            nonlocal seen
            seen += size
            if seen >= stop:
                raise stopped

        seen = 0
        with pytest.raises(Stop):
            unpack(archive, members, target, advance)
        there = contents(target.parent)
        assert there.items() <= {f"x/{name}": content for name, content in FILES.items()}.items()
    stamp = {p: p.stat().st_mtime_ns for p in target.rglob("*.png")}
    told = []
    unpack(archive, members, target, told.append)
    assert contents(target) == FILES
    assert sum(told) == sum(map(len, FILES.values()))
    assert all(p.stat().st_mtime_ns == time for p, time in stamp.items())


def test_a_file_of_another_size_is_written_anew(tmp_path, target):
    archive = make(tmp_path / "x.zip")
    (target / "set").mkdir(parents=True)
    (target / "set/a.png").write_bytes(b"half")
    unpack(archive, chosen(archive, target), target)
    assert contents(target) == FILES


def test_nothing_is_read_where_all_is_there(tmp_path, target):
    archive = make(tmp_path / "x.tar.gz")
    members = chosen(archive, target)
    unpack(archive, members, target)
    archive.unlink()
    unpack(archive, members, target)


def test_an_archive_that_changes_while_it_is_read(tmp_path, target):
    archive = make(tmp_path / "x.zip")
    members = chosen(archive, target)
    make_zip(archive, {"set/a.png": FILES["set/a.png"]})
    with pytest.raises(DataError, match="changed while it was read"):
        unpack(archive, members, target)


def test_errors_of_the_system_stay_what_they_are(tmp_path, target):
    archive = make(tmp_path / "x.zip")
    members = chosen(archive, target)
    target.parent.mkdir()
    target.write_text("a file where the folder should be")
    with pytest.raises(OSError, match="x"):
        unpack(archive, members, target)
