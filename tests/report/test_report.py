"""A page that explains an archive: of every kind of codes, with and without pictures, labels and certainty."""

import csv
import re
from html.parser import HTMLParser

import matplotlib as mpl
import numpy as np
import pytest
from markupsafe import Markup

import stochcl
from stochcl.api import shards
from stochcl.api.compress import CompressOptions
from stochcl.api.evaluate import evaluate
from stochcl.errors import LabelsError, OutputError, UsageError
from stochcl.report.findings import sampled_rows
from stochcl.report.report import write_report
from tests.compress.making import make_chain, make_codes, make_tables, write
from tests.making import CLASSES, PER_CLASS, make_head

SECTIONS = ["bytes", "latents", "labels", "switches", "flips", "together", "map", "certain", "made"]
VOID = {"meta", "img", "br", "link", "input", "path", "rect", "circle", "use"}
ROWS = PER_CLASS * len(CLASSES)


class Page(HTMLParser):
    """A page whose tags must close in order, whose ids are its own, and whose images and plots say what they are."""

    def __init__(self, path):
        super().__init__()
        self.source = path.read_text("utf-8")
        self.open, self.ids, self.images, self.text, self.links, self.cells = [], [], [], "", [], []
        self.feed(self.source)
        assert not self.open
        assert len(self.ids) == len(set(self.ids))
        assert {link.removeprefix("#") for link in self.links} <= set(self.ids)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if "id" in attrs:
            self.ids.append(attrs["id"])
        if tag == "a":
            self.links.append(attrs["href"])
        if tag == "img":
            self.images.append(attrs["src"])
            assert "alt" in attrs
        if tag == "th":
            assert attrs["scope"] == "col"
        if tag == "tr":
            self.cells.append([])
        if tag == "td":
            self.cells[-1].append("")
        assert not any(name.startswith("on") for name in attrs)
        if tag == "svg":
            assert attrs["aria-hidden"] == "true"
        if attrs.get("role") == "img":
            assert attrs["aria-label"]
        for name in ("src", "href"):
            assert re.match(r"data:image/webp|#", attrs.get(name, "#"))

    handle_startendtag = handle_starttag

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("style", "script"):
            self.text += data
        if self.open and self.open[-1] == "td":
            self.cells[-1][-1] += data

    def row(self, *start):
        """The first table row that starts with these cells."""
        return next(row for row in self.cells if tuple(row[: len(start)]) == start)

    @property
    def sections(self):
        return [key for key in self.ids if key in SECTIONS]


def report(path, out, **options):
    """Write a report and return its JSON and the page."""
    told = write_report(path, out, force=True, **options)
    assert told["output_bytes"] == out.stat().st_size
    return told, Page(out)


@pytest.fixture(autouse=True)
def few_plots(request, monkeypatch):
    """Drawing takes most of a report's time; tests that do not look at plots get empty ones."""
    drawn = "all_of_it", "same_again", "plots_take", "figures_on_the_page", "every_family"
    if not any(part in request.node.name for part in drawn):
        monkeypatch.setattr(
            "stochcl.report.page._draw", lambda *given, **options: Markup('<svg aria-hidden="true"></svg>')
        )


@pytest.fixture
def out(tmp_path):
    return tmp_path / "report.html"


@pytest.fixture(scope="module")
def certain(tmp_path_factory, images, codec):
    path = tmp_path_factory.mktemp("certain") / "certain.bin"
    codec.compress(images, path, uncertainty=True)
    return path


def test_a_page_has_all_of_it(certain, images, out):
    told, page = report(certain, out, images=images, shown=4)
    assert page.sections == SECTIONS
    assert not re.search(
        r"https?:|//|url\(|@import|<link|src=(?!\"data:)", re.sub(r'data:[^"]*', "data:", page.source)
    )
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'" in page.source
    assert "prefers-color-scheme: dark" in page.source
    assert "width=device-width" in page.source
    assert (told["images"], told["sampled"], told["latents"], told["missing"]) == (ROWS, ROWS, 32, 0)
    assert len(told["strongest"]) == 4
    assert len(page.images) > 60
    assert told["label"] == "folder"
    assert told["label_bits"] == pytest.approx(np.log2(3), abs=1e-4)
    with stochcl.open(certain) as archive:
        whole, values, symbols = archive.size, archive.uncertainty, archive.to_numpy()
    assert f"Of {whole:,} bytes" in page.text
    first = told["strongest"][0]["latent"]
    assert f"{100 * symbols[:, first].mean():.1f} %" in page.text
    assert f"{values.max():.3g} bits" in page.text
    assert told["bits_given"] == pytest.approx(told["bits_alone"], rel=0.5)


def test_figures_on_the_page_are_those_of_the_codes(certain, images, out):
    """Each of them is computed here anew, from the symbols or from what the archive says."""
    told, page = report(certain, out, images=images, shown=4)
    with stochcl.open(certain) as archive:
        symbols, values, names, parts = archive.to_numpy(), archive.uncertainty, archive.names, archive.parts()
    folder = np.unique([name.split("/")[0] for name in names], return_inverse=True)[1]
    assert page.row("codes")[1] == f"{parts['codes']:,}"
    assert page.row("codes")[2] == f"{parts['codes'] * 8 / ROWS:,.1f}"
    for one in told["strongest"]:
        column = symbols[:, one["latent"]]
        row = page.row(str(one["latent"]))
        share = column.mean()
        assert row[1] == f"{100 * share:.1f} %"
        assert float(row[2]) == pytest.approx(-(share * np.log2(share) + (1 - share) * np.log2(1 - share)), abs=6e-4)
        assert float(row[4]) == pytest.approx(information(column, folder) - 2 / (2 * ROWS * np.log(2)), abs=6e-5)
        correlation = np.corrcoef(symbols[:, symbols.std(axis=0) > 0].T, column)[-1, :-1]
        assert abs(float(row[7])) == pytest.approx(np.sort(np.abs(correlation))[-2], abs=6e-3)
    assert f"accuracy of a linear probe of the folder (95 %: {100 * told['probe']['interval'][0]:.1f}" in page.text
    assert f"{100 * told['probe']['score']:.1f} %" in page.text
    order = np.argsort(values, kind="stable")
    certainty = page.text[page.text.index("Most certain") :]
    places = [certainty.index(names[row]) for row in [*order[:12], *order[::-1][:12]]]
    assert places == sorted(places)
    assert f"half of them below {np.median(values):.3g}" in page.text


def information(column, labels):
    joint = np.array([[(column[labels == k] == v).sum() for v in (0, 1)] for k in np.unique(labels)]) / len(column)
    apart = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0)
    there = joint > 0
    return (joint[there] * np.log2(joint[there] / apart[there])).sum()


def test_plots_take_the_colours_of_the_page(certain, out, monkeypatch):
    monkeypatch.setitem(mpl.rcParams, "text.color", "#ff0000")  # a user's own style
    monkeypatch.setitem(mpl.rcParams, "grid.color", "#ff0000")
    _, page = report(certain, out)
    assert mpl.rcParams["grid.color"] == "#ff0000"
    drawn = re.findall(r"<svg.*?</svg>", page.source, re.DOTALL)
    assert len(drawn) >= 5  # cost, labels, associations, map, certainty
    for svg in drawn:
        assert not re.search(r"#[0-9a-fA-F]{3,6}|\bid=\"(?!every)|nan", svg)
        assert all("fill: var(--" in text for text in re.findall(r"<text[^>]*>", svg))
        width, height = map(float, re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg).groups())
        for x, y in re.findall(r"[ML] ([-\d.]+) ([-\d.]+)", svg):
            assert -1 <= float(x) <= width + 1
            assert -1 <= float(y) <= height + 1


BAD = '<script>alert("1")</script>&amp;{{ 7 * 7 }}$\\frac$'


@pytest.mark.parametrize("labelled", [False, True])
def test_no_name_label_or_column_becomes_markup(labelled, out, tmp_path):
    ending = "\n" if labelled else "\udcff\n"  # a CSV file is UTF-8
    names = [f"{BAD.replace('/', '')}{i % 2}/{BAD}{ending}{i}" for i in range(60)]
    write(tmp_path / "codes.bin", make_chain(60, 6, names=names), make_tables(6))
    with (tmp_path / "labels.csv").open("w", newline="", encoding="utf-8", errors="ignore") as file:
        csv.writer(file).writerows([["name", BAD], *((name, f"{BAD}{i % 2}") for i, name in enumerate(names))])
    told, page = report(tmp_path / "codes.bin", out, labels=tmp_path / "labels.csv" if labelled else None)
    assert page.source.count("<script>") == 1  # the page's own
    assert "49" not in re.findall(r"&amp;(.{2})", page.text)
    assert BAD + ending.encode("unicode_escape", "surrogatepass").decode() in page.text
    if labelled:
        assert told["probe"] is not None
        assert f"What latents say about {BAD}" in page.text
        assert f"({BAD}1)" in page.text


def test_a_page_is_written_whole_or_not_at_all(codes, out, monkeypatch):
    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("stochcl.files.replacing", full)
    with pytest.raises(OutputError, match="no space left"):
        report(codes, out)
    assert not out.exists()


def test_a_page_is_the_same_again(codes, images, out, tmp_path):
    told, page = report(codes, out, images=images, seed=3)
    again, other = report(codes, tmp_path / "other.html", images=images, seed=3)
    assert page.source == other.source
    assert {**told, "seconds": 0, "output": ""} == {**again, "seconds": 0, "output": ""}
    assert report(codes, out, images=images, seed=4)[1].source != page.source


def test_pictures_that_are_not_there_are_counted(codes, images, out, tmp_path):
    moved = tmp_path / "moved"
    (moved / "cats").mkdir(parents=True)
    for path in (images / "cats").iterdir():
        (moved / "cats" / path.name).write_bytes(path.read_bytes())
    broken = min((moved / "cats").iterdir())
    broken.write_bytes(b"no image")
    told, page = report(codes, out, images=moved)
    assert told["missing"] > 14
    assert 0 < told["pictures"] < PER_CLASS
    assert f"{told['missing']} are missing in {moved}" in page.text
    assert page.source.count('class="blank"') >= told["missing"]
    broken.rename(moved / "other.png")
    for path in (moved / "cats").iterdir():
        path.unlink()
    (moved / "other.png").write_bytes((images / "cats" / "00.png").read_bytes())
    told, page = report(codes, out, images=moved)
    assert told["pictures"] == 0
    assert "none was found in" in page.text
    told, page = report(codes, out, images=tmp_path / "gone")
    assert "There are no pictures here" in page.text
    assert "there is no such file or folder" in told["notes"][0]


def test_without_names_pictures_are_by_place(codec, images, out, tmp_path):
    codec.compress(images, tmp_path / "codes.bin", names=False)
    told, page = report(tmp_path / "codes.bin", out, images=images)
    assert (told["missing"], told["label"]) == (0, "label")
    assert "image 3" in page.text
    told, page = report(tmp_path / "codes.bin", out, images=images / "cats")
    assert "pictures may stand for others" in page.text
    (tmp_path / "labels.csv").write_text("name,label\ncats/00.png,cat\n")
    with pytest.raises(LabelsError, match="have no names to find labels by"):
        report(tmp_path / "codes.bin", out, labels=tmp_path / "labels.csv")


def test_a_folder_of_shards_is_reported_as_one(codec, model, images, out, tmp_path):
    codec.compress(images, tmp_path / "one.bin")
    options = CompressOptions()
    shards.compress_to_folder(codec, [images], tmp_path / "shards", options, model=str(model), shard_images=20)
    one, _ = report(tmp_path / "one.bin", tmp_path / "one.html", images=images)
    many, page = report(tmp_path / "shards", out, images=images)
    assert page.sections == SECTIONS
    for key in ("strongest", "probe", "bits_alone", "pictures"):
        assert one[key] == many[key]


FAMILIES = {
    "bits": {"posterior": "bernoulli", "latents": 24},
    "categories": {"posterior": "categorical", "latents": 10, "alphabet": 5, "embedding": 3},
    "levels": {"posterior": "gaussian", "latents": 10, "alphabet": 12},
}


@pytest.mark.parametrize("kind", FAMILIES)
def test_vectors_of_every_family(kind, rng, out, tmp_path):
    vectors = rng.normal(size=(3, 12)).repeat(30, 0) + rng.normal(0, 0.4, (90, 12))
    np.save(tmp_path / "vectors.npy", vectors.astype(np.float32))
    head = stochcl.load(make_head(tmp_path / "head.safetensors", vectors.astype(np.float32), **FAMILIES[kind]))
    head.compress(tmp_path / "vectors.npy", tmp_path / "codes.bin", uncertainty=True)
    labels = write_labels(tmp_path, {"kind": [f"c{i // 30}" for i in range(90)], "size": vectors[:, 0]}, tmp_path)
    told, page = report(tmp_path / "codes.bin", out, labels=labels)
    assert page.sections == SECTIONS
    assert (told["label"], told["pictures"]) == ("kind", 0)
    assert told["probe"]["score"] > 0.6
    assert "row" in page.text
    assert not page.images
    told, page = report(tmp_path / "codes.bin", out, labels=labels, column="size", task="regression")
    assert told["label"] == "size"
    assert told["probe"]["score"] > 0.3
    assert "R2 of a linear probe" in page.text
    with pytest.raises(UsageError, match="holds vectors"):
        report(tmp_path / "codes.bin", out, images=tmp_path / "vectors.npy")


@pytest.mark.parametrize(("alphabet", "rows"), [(2, 300), (2, 1), (6, 300), (300, 40)])
def test_codes_without_a_decoder_are_compared_by_symbols(alphabet, rows, out, tmp_path):
    tables = make_tables(6, alphabet, decoder=False)
    codes = make_codes(rows, 6, alphabet, names=[f"{i % 3}/{i}" for i in range(rows)])
    write(tmp_path / "codes.bin", codes, tables)
    told, page = report(tmp_path / "codes.bin", out)
    assert "no decoder to vectors" in page.text
    assert (told["images"], told["strongest"] == []) == (rows, rows == 1)
    assert "nan" not in page.text


def write_labels(folder, columns, archive):
    with stochcl.open(archive / "codes.bin") as rows:
        names = list(rows.names)
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["name", *columns], *zip(names, *columns.values(), strict=True)])
    return folder / "labels.csv"


def test_wrong_labels_are_refused(codes, out, tmp_path):
    with stochcl.open(codes) as archive:
        names = list(archive.names)

    def refused(lines, match, **options):
        (tmp_path / "labels.csv").write_text("\n".join(["name,label", *lines]))
        with pytest.raises(LabelsError, match=match):
            report(codes, out, labels=tmp_path / "labels.csv", **options)
        assert not out.exists()

    refused([f"{name},a" for name in names], "fewer than two different")
    refused([f"{name},{i % 2}" for i, name in enumerate(names[:-1])], "1 of 42 names have no row here")
    refused([f"{name}," for name in names], "fewer than two different")
    refused([f"{name},a" for name in names], "regression needs numbers", task="regression")
    refused([f"{name},{i}" for i, name in enumerate(names)], "there is no column colour", column="colour")
    with pytest.raises(UsageError, match="give that file with labels"):
        report(codes, out, column="colour")
    with pytest.raises(LabelsError, match="regression needs numbers"):
        report(codes, out, task="regression")


def test_labels_of_few_rows_are_left_out_where_they_cannot_serve(codes, out, tmp_path):
    with stochcl.open(codes) as archive:
        names = list(archive.names)
    lines = [f"{name},{'' if i > 3 else i % 2}" for i, name in enumerate(names)]
    (tmp_path / "labels.csv").write_text("\n".join(["name,label", *lines]))
    told, page = report(codes, out, labels=tmp_path / "labels.csv")
    assert told["probe"] is None
    assert "38 of 42 rows have no label" in page.text
    assert "too few rows with labels for a probe" in page.text
    lines = [f"{name},{i}" for i, name in enumerate(names)]  # every class has one row
    (tmp_path / "labels.csv").write_text("\n".join(["name,label", *lines]))
    told, _ = report(codes, out, labels=tmp_path / "labels.csv")
    assert told["probe"] is None


def test_the_probe_scores_what_evaluate_scores(rng, out, tmp_path):
    names = [f"{i}.png" for i in range(210)]
    codes = make_chain(210, 12, names=names)
    write(tmp_path / "codes.bin", codes, make_tables(12))
    on = codes.symbols()[:, :3].sum(axis=1)
    kinds = [f"c{total}" if rng.random() < 0.7 else f"c{rng.integers(4)}" for total in on]
    kinds[7], kinds[20:22], kinds[100] = "alone", ["pair", "pair"], ""
    labels = write_labels(tmp_path, {"kind": kinds, "size": on + rng.normal(size=210)}, tmp_path)
    for column, task in [("kind", "classification"), ("size", "regression")]:
        for seed in (0, 1):
            how = {"labels": labels, "column": column, "task": task, "seed": seed}
            told, _ = report(tmp_path / "codes.bin", out, **how)
            scores, _ = evaluate(tmp_path / "codes.bin", **how)
            assert 0.2 < scores.score < 0.95
            keys = "estimator", "score", "baseline", "interval", "n_train", "n_test"
            assert told["probe"] == {key: getattr(scores, key) for key in keys}


def test_numbers_without_spread_have_no_interval(codes, out, tmp_path):
    with stochcl.open(codes) as archive:
        lines = [f"{name},{int(i == 0)}" for i, name in enumerate(archive.names)]
    (tmp_path / "labels.csv").write_text("\n".join(["name,label", *lines]))
    told, page = report(codes, out, labels=tmp_path / "labels.csv", task="regression")
    assert (told["probe"]["n_test"], told["probe"]["interval"]) == (42, None)
    assert "R2 of a linear probe of the label; guessing the mean gives 0" in page.text


def test_folders_that_say_nothing_are_no_labels(codec, images, out, tmp_path):
    for i, path in enumerate(sorted(images.rglob("*.png"))):
        (tmp_path / "flat" / str(i)).mkdir(parents=True)
        (tmp_path / "flat" / str(i) / "<b>&.png").write_bytes(path.read_bytes())
    codec.compress(tmp_path / "flat", tmp_path / "codes.bin")
    told, page = report(tmp_path / "codes.bin", out, images=tmp_path / "flat")
    assert told["label"] is None
    assert "a label of its own" in page.text
    assert "<b>&.png" in page.text  # as a text: no tag came of it
    assert told["missing"] == 0


def test_a_sample_stands_for_many_rows(codes, out, monkeypatch):
    monkeypatch.setattr("stochcl.report.findings.RUN", 4)
    told, page = report(codes, out, sample=16)
    assert told["sampled"] == 16
    assert "16 of 42, in runs spread evenly" in page.text
    with pytest.raises(UsageError, match="at least 1"):
        report(codes, out, sample=0)


@pytest.mark.parametrize(
    ("count", "most"), [(10, 10), (1000, 100), (1000, 10), (100_000, 20_000), (7, 1), (130, 129)]
)
def test_sampled_rows_are_spread_and_there(count, most):
    for seed in range(5):
        rows = sampled_rows(count, most, seed)
        assert 1 <= len(rows) <= most
        assert (np.diff(rows) > 0).all()
        assert 0 <= rows[0] <= rows[-1] < count
    assert len(rows) > most / 3
    if most >= 1000:
        assert np.diff(rows).max() < 3 * count / (most / 64)


def test_a_selection_keeps_the_numbers_of_its_latents(codes, out, tmp_path):
    chosen = [3, 8, 9, 21]
    stochcl.transcode(codes, tmp_path / "few.bin", select=chosen)
    told, _ = report(tmp_path / "few.bin", out)
    assert {one["latent"] for one in told["strongest"]} <= set(chosen)


def test_bits_are_those_that_the_file_takes(out, tmp_path):
    """Of a file whose models were fitted to it, they are of these and not of the model's tables."""
    write(tmp_path / "codes.bin", make_chain(3000, 12), make_tables(12))
    stochcl.transcode(tmp_path / "codes.bin", tmp_path / "fitted.bin", refit=True)
    for name in ("codes.bin", "fitted.bin"):
        told, _ = report(tmp_path / name, out)
        with stochcl.open(tmp_path / name) as archive:
            assert told["bits_given"] == pytest.approx(archive.parts()["codes"] * 8 / 3000, rel=0.02)
        if name == "codes.bin":
            before = told["bits_given"]
    assert told["bits_given"] < 0.8 * before


def test_an_archive_without_rows_is_refused(out, tmp_path):
    write(tmp_path / "codes.bin", make_codes(0, 6), make_tables(6))
    with pytest.raises(UsageError, match="holds no rows to report on"):
        report(tmp_path / "codes.bin", out)
