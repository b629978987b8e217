"""A tar that comes through a pipe: nothing is sought, and what came before a break is given."""

import io
import tarfile

import numpy as np
import pytest

from stochcl.data import Preprocess, TarSource, TarStream
from stochcl.errors import SourceError

SMALL = Preprocess(16, "crop")


class Pipe(io.RawIOBase):
    """Bytes that can only be read on, a few at a time."""

    def __init__(self, data, most=700):
        self.file, self.most = io.BytesIO(data), most

    def read(self, size=-1):
        return self.file.read(self.most if size < 0 else min(size, self.most))

    def seekable(self):
        return False


def pack(members, mode="w"):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            if data is None:
                info.type, info.linkname = tarfile.SYMTYPE, "elsewhere"
            else:
                info.size = len(data)
            archive.addfile(info, None if data is None else io.BytesIO(data))
    return out.getvalue()


@pytest.fixture
def files(pixels, as_file):
    return [(f"photos/{i:02d}.png", as_file(pixels(12 + i, 12))) for i in (3, 1, 2, 0, 4, 6, 5)]


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("workers", [1, 3])
def test_images_are_those_of_the_tar_on_disk_in_the_order_in_which_they_come(files, tmp_path, mode, workers):
    data = pack(files, mode)
    batches = list(TarStream(Pipe(data)).batches(SMALL, batch_size=3, workers=workers))
    assert [batch.rows for batch in batches] == [range(3), range(3, 6), range(6, 7)]
    assert [name for batch in batches for name in batch.names] == [name for name, _ in files]
    assert [size for batch in batches for size in batch.sizes] == [len(file) for _, file in files]
    (tmp_path / "a.tar").write_bytes(data)
    source = TarSource(tmp_path / "a.tar")
    expected = {entry.name: source.load(i, SMALL) for i, entry in enumerate(source.entries)}
    for batch in batches:
        for name, image in zip(batch.names, batch.images, strict=True):
            np.testing.assert_array_equal(image, expected[name])


def test_what_is_refused_or_broken_is_a_failure_at_its_place(files):
    mixed = [
        *files[:2],
        ("link.png", None),
        ("../out.png", b"x"),
        ("notes.txt", b"x"),
        ("bad.png", b"no"),
        *files[2:],
    ]
    (batch,) = TarStream(Pipe(pack(mixed))).batches(SMALL)
    assert batch.positions == (0, 1, 5, 6, 7, 8, 9)
    assert [failure.name for failure in batch.failures] == ["link.png", "../out.png", "bad.png"]
    assert "links in a tar are not followed" in batch.failures[0].reason


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_wherever_it_breaks_off_the_images_before_are_given_and_then_the_error(files, mode, workers):
    data, given = pack(files, mode), set()
    ends = 1024 * len(files) - 1 if mode == "w" else len(data) - 1  # behind that there is the mark, and padding
    for cut in [*range(0, ends, 397), len(data) // 2, ends]:
        if mode == "w" and cut and not cut % 1024:
            continue  # between two images: a tar without the mark at its end
        count = 0
        try:
            for batch in TarStream(Pipe(data[:cut])).batches(SMALL, batch_size=2, workers=workers):
                count += len(batch.names)
        except SourceError as exc:
            assert "breaks off or is damaged" in str(exc)  # noqa: PT017 - what came before counts
        else:
            pytest.fail(f"{cut} of {len(data)} bytes were taken for a tar")
        given.add(count)
    assert {0, len(files)} <= given
    assert len(given) > 3


def test_what_follows_the_end_is_read_for_the_writer_s_sake(files):
    pipe = Pipe(pack(files) + bytes(50_000))
    list(TarStream(pipe).batches(SMALL))
    assert pipe.read(1) == b""


@pytest.mark.parametrize(
    ("data", "said"), [(b"", "nothing came in"), (b"GIF89a" * 200, "invalid|damaged"), (pack([]), "holds no image")]
)
def test_what_is_no_tar_of_images_is_refused(data, said):
    with pytest.raises(SourceError, match=said):
        list(TarStream(Pipe(data)).batches(SMALL))
