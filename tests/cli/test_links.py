"""``-o link``: what a symbolic link names is written, whole or not at all; the link stays a link."""

import sys

import pytest

import stochcl
from stochcl.files import replacing

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs symbolic links as Unix has them")


@pytest.fixture
def link(tmp_path):
    """A link to a file in another folder, which is not there yet."""
    (tmp_path / "big").mkdir()
    (tmp_path / "link.bin").symlink_to(tmp_path / "big" / "real.bin")
    return tmp_path / "link.bin"


def through(link, codes):
    real = link.parent / "big" / "real.bin"
    assert link.is_symlink()
    assert not real.is_symlink()
    assert sorted(path.name for path in real.parent.iterdir()) == ["real.bin"]
    assert sorted(path.name for path in link.parent.iterdir()) == ["big", "link.bin"]
    with stochcl.open(link) as archive, stochcl.open(codes) as expected:
        assert (archive.names, len(archive)) == (expected.names, len(expected))


@pytest.mark.parametrize("options", [(), ("--rate", "1000")])
def test_compress(run, model, images, codes, link, options):
    for _ in range(2):
        assert str(link) in run("compress", images, "-m", model, "-o", link, "--force", *options).stdout
        through(link, codes)


def test_tables_beside_the_file_are_found_through_the_link(run, model, images, link):
    run("compress", images, "-m", model, "-o", link, "--external-tables")
    assert len(list(link.parent.joinpath("big").glob("*.tables"))) == 1
    with stochcl.open(link) as archive:
        assert len(archive.to_vectors()) == 42


@pytest.mark.parametrize("command", ["merge", "transcode"])
def test_rewriting(run, codes, link, command):
    run(command, codes, "-o", link)
    run(command, codes, "-o", link, "--force")
    through(link, codes)


def test_other_outputs(run, codes, link):
    link = link.rename(link.with_suffix(".csv"))
    run("decompress", codes, "-o", link)
    assert link.is_symlink()
    assert (link.parent / "big" / "real.bin").read_text().startswith("name,label")


def test_an_error_leaves_link_and_file_as_they_were(link):
    (link.parent / "big" / "real.bin").write_bytes(b"precious")
    with pytest.raises(ZeroDivisionError), replacing(link) as file:
        file.write(bytes(1 // (file.write(b"half") - 4)))
    assert link.read_bytes() == b"precious"
    assert [path.name for path in link.parent.joinpath("big").iterdir()] == ["real.bin"]


def test_a_link_whose_folder_is_missing_is_refused(refused, codes, tmp_path):
    (tmp_path / "link.bin").symlink_to(tmp_path / "nowhere" / "real.bin")
    assert "the folder to write to does not exist" in refused("merge", codes, "-o", tmp_path / "link.bin")
