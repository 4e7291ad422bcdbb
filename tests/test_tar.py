"""`tar:GLOB`: members that make an example, labels and names of classes, and tars that are damaged or in disorder."""

import io
import os
import tarfile
import tracemalloc

import pytest
from shard_files import write_tar

from alexnet_jax.data.tar import open_tar
from alexnet_jax.system.errors import UserError


def error_of(dataset):
    """The one line that the user sees, without the flag."""
    with pytest.raises(UserError) as caught:
        open_tar(dataset, 0)
    line = str(caught.value)
    assert line.startswith(f"--dataset={dataset}: ")
    assert "\n" not in line
    return line.removeprefix(f"--dataset={dataset}: ")


def write(place, *members, name="train-0.tar"):
    write_tar(place / name, members)
    return f"tar:{place}/*.tar"


def contents(source):
    return [(example.image, source.classes[example.label]) for example in source.splits["train"].read(0)]


def test_the_members_of_a_key_make_an_example(tmp_path):
    """Wherever they stand; the key ends at the first dot of the file's name."""
    name = write(
        tmp_path, ("b.jpg", b"1"), ("b.cls", b"1"), ("c.json", b'{"label": 0}'), ("./d.v2/x.y.JPEG", b"no"), ("c.PNG", b"2"),
        ("d.v2/x.jpeg", b"3"), ("d.v2/x.cls", b" 2\n"), ("x.webp", b"4"), ("x.cls", b"0"), ("x.json", b"no JSON"),
        ("x.txt", b"a caption"), ("README", b""), ("._b.jpg", b"of a Mac"), (".hidden.jpg", b""), ("b.seg.png", b"a mask"),
    )  # fmt: skip
    assert contents(open_tar(name, 0)) == [(b"1", "1"), (b"2", "0"), (b"3", "2"), (b"4", "0")]


def test_folders_in_a_tar_are_passed_over(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / "x" / folder).mkdir(parents=True)
        (tmp_path / "x" / folder / "0.jpg").write_bytes(folder.encode())
        (tmp_path / "x" / folder / "0.json").write_text(f'{{"label": "{folder}"}}')
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT):
        with tarfile.open(tmp_path / "train.tar", "w", format=form) as tar:
            tar.add(tmp_path / "x", "x" * 120 if form != tarfile.USTAR_FORMAT else "x")
        assert sorted(contents(open_tar(f"tar:{tmp_path}/train.tar", 0))) == [(b"a", "a"), (b"b", "b")]


@pytest.mark.parametrize(
    ("label", "classes"),
    [
        (("k.cls", b"1"), ("zero", "one")),
        (("k.cls", b"one"), ("zero", "one")),
        (("k.json", b'{"label": "one", "caption": ""}'), ("zero", "one")),
        (("k.json", b'{"label": 1}'), ("zero", "one")),
        (("k.json", b'{"label": "7"}'), ("zero", "7")),
    ],
)
@pytest.mark.parametrize("place", ["classes.txt", "classnames.txt", "../classnames.txt"])
def test_a_list_beside_the_tars_names_the_classes(tmp_path, label, classes, place):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / place).write_text("\ufeff" + "\n".join(classes) + "\n\n", encoding="utf-8")
    write_tar(tmp_path / "train/0.tar", [("k.jpg", b"image"), label])
    source = open_tar(f"tar:{tmp_path}/train/*.tar", 0)
    assert source.classes == classes
    assert contents(source) == [(b"image", classes[1])]


def test_a_list_above_a_folder_that_is_no_split_is_not_the_tars_own(tmp_path):
    (tmp_path / "classes.txt").write_text("zero\none\n")
    write_tar(tmp_path / "set/train-0.tar", [("k.jpg", b"image"), ("k.cls", b"1")])
    assert open_tar(f"tar:{tmp_path}/set/*.tar", 0).classes == ("0", "1")


def test_two_lists_that_differ_are_one_line(tmp_path):
    name = write(tmp_path, ("k.jpg", b"image"), ("k.cls", b"1"))
    (tmp_path / "classes.txt").write_text("a\nb\n")
    (tmp_path / "classnames.txt").write_text("a\nb")
    assert open_tar(name, 0).classes == ("a", "b")
    (tmp_path / "classnames.txt").write_text("a\nc\n")
    assert error_of(name) == f"{tmp_path}/classes.txt and {tmp_path}/classnames.txt list other classes: keep one of them"
    (tmp_path / "classnames.txt").unlink()
    (tmp_path / "classes.txt").write_bytes(b"caf\xe9")
    assert f"{tmp_path}/classes.txt cannot be read: " in error_of(name)


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ((("a.jpg", b"x"),), "a.jpg of {tar} has no label a.cls or a.json: add it, or remove the image"),
        ((("a.cls", b"0"),), "a.cls of {tar} has no image a.jpg: add it, or remove the label"),
        ((("a.jpg", b"x"), ("a.cls", b"0"), ("a.jpg", b"x")), "{tar} has a.jpg twice: keep one of them"),
        ((("a.jpg", b"x"), ("a.cls", b"0"), ("a.JPG", b"x")), "{tar} has a.JPG twice"),
        ((("a.jpg", b"x"), ("a.cls", b"0"), ("a.cls", b"0")), "{tar} has a.cls twice"),
        ((("a.jpg", b"x"), ("a.cls", b"0"), ("a.png", b"x")), "{tar} has two images of one key, a.jpg and a.png: keep one"),
        ((("a.jpg", b"x"), ("a.cls", b"")), "a.cls of {tar} holds no label ('' is no number or name)"),
        ((("a.jpg", b"x"), ("a.cls", b"\xff")), "a.cls of {tar} holds no label ('utf-8' codec"),
        ((("a.jpg", b"x"), ("a.json", b"{")), "a.json of {tar} holds no label (Expecting property name"),
        ((("a.jpg", b"x"), ("a.json", b"[" * 100_000)), "a.json of {tar} holds no label ("),
        ((("a.jpg", b"x"), ("a.json", b"[3]")), "a.json of {tar} holds no label ("),
        ((("a.jpg", b"x"), ("a.json", b'{"class": 3}')), "a.json of {tar} has no label for a.jpg: it must be a number"),
        ((("a.jpg", b"x"), ("a.json", b'{"label": 1.5}')), "holds no label (1.5 is no number or name)"),
        ((("a.jpg", b"x"), ("a.json", b'{"label": true}')), "holds no label (True is no number or name)"),
        ((("a.jpg", b"x"), ("a.json", b'{"label": null}')), "holds no label (None is no number or name)"),
        ((("a.jpg", b"x"), ("a.cls", b"9" * 5000)), "a.cls of {tar} holds no label (Exceeds the limit"),
        ((("a.jpg", b"x"), ("a.cls", b"-1"), ("b.jpg", b"y"), ("b.cls", b"0")), "a.jpg of {tar} has label -1"),
    ],
)
def test_an_image_without_its_label_or_the_reverse_is_one_line(tmp_path, members, said):
    assert said.format(tar=tmp_path / "train-0.tar") in error_of(write(tmp_path, *members))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_a_member_that_is_no_regular_file_is_one_line(tmp_path, kind):
    with tarfile.open(tmp_path / "train.tar", "w") as tar:
        link = tarfile.TarInfo("a.jpg")
        link.type, link.linkname = kind, "b.jpg"
        tar.addfile(link)
    assert error_of(f"tar:{tmp_path}/train.tar") == f"a.jpg of {tmp_path}/train.tar is no regular file: pack its content"


MEMBERS = [
    (f"{number}.{ending}", content) for number in range(3) for ending, content in (("jpg", b"i" * 700), ("cls", b"0"))
]


def cuts():
    """Lengths at which the tar of MEMBERS is cut: within headers, contents and padding, and between members."""
    example = 512 + 1024 + 512 + 512
    return [
        0,
        100,
        511,
        512,
        700,
        1300,
        1536,
        2048,
        2060,
        example,
        2 * example,
        3 * example - 512,
        3 * example,
        3 * example + 1023,
    ]


@pytest.mark.parametrize("length", cuts())
def test_a_tar_that_was_cut_short_is_one_line_wherever_it_ends(tmp_path, length):
    name = write(tmp_path, *MEMBERS)
    os.truncate(tmp_path / "train-0.tar", length)
    assert f"{tmp_path}/train-0.tar is no tar file, or a compressed or damaged one, or was cut short: " in error_of(name)


def test_a_tar_is_whole_once_its_end_is_there(tmp_path):
    """What pads it to a full tape record is not needed."""
    name = write(tmp_path, *MEMBERS)
    os.truncate(tmp_path / "train-0.tar", cuts()[-1] + 1)
    assert len(open_tar(name, 0).splits["train"]) == 3


def test_a_damaged_header_is_not_taken_for_the_end(tmp_path):
    name = write(tmp_path, *MEMBERS)
    content = bytearray((tmp_path / "train-0.tar").read_bytes())
    content[2560 + 150] ^= 1  # in the checksum of the second image's header
    (tmp_path / "train-0.tar").write_bytes(content)
    assert "damaged one, or was cut short: no end of the archive at byte 2,560" in error_of(name)


@pytest.mark.parametrize("mode", ["w:gz", "w:xz"])
def test_a_compressed_tar_is_refused(tmp_path, mode):
    with tarfile.open(tmp_path / "train.tar", mode) as tar:
        info = tarfile.TarInfo("a.jpg")
        info.size = 4
        tar.addfile(info, io.BytesIO(b"jpeg"))
    assert "is no tar file, or a compressed" in error_of(f"tar:{tmp_path}/train.tar")


def test_a_tar_that_is_cut_while_it_is_in_use_is_one_line(tmp_path):
    examples = open_tar(write(tmp_path, *MEMBERS), 0).splits["train"]
    os.truncate(tmp_path / "train-0.tar", 3000)
    with pytest.raises(UserError, match=r"^--dataset=tar:\S+: \S+/train-0\.tar cannot be read: 1\.jpg ends early$"):
        list(examples.read(0))


def test_reading_the_headers_of_a_tar_keeps_none_of_them(tmp_path):
    """Bytes of Python for each image; the headers would be 800 more."""
    count = 1000
    members = [(f"{number:06}.{ending}", b"0") for number in range(count) for ending in ("jpg", "cls")]
    name = write(tmp_path, *members)
    open_tar(name, 0)
    tracemalloc.start()
    try:
        open_tar(name, 0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    print(f"{peak / count:.0f} bytes an image")
    assert peak / count < 1100


def test_other_images_of_the_same_sizes_in_all_have_another_description(tmp_path):
    before = open_tar(write(tmp_path, ("a.jpg", b"12"), ("a.cls", b"0"), ("b.jpg", b"3"), ("b.cls", b"0")), 0).description
    after = open_tar(write(tmp_path, ("a.jpg", b"1"), ("a.cls", b"0"), ("b.jpg", b"23"), ("b.cls", b"0")), 0).description
    assert before != after
    assert before.startswith("2 examples in 1 tar files of folder ")
