"""A run is evaluated on other sets: classes are matched by name or by a file, and what is left out is counted."""

import csv
import json
import re
import shutil

import numpy as np
import pytest
from networks import CLASSES, SIZE, run, tiny_config, tiny_source

from alexnet_jax.data.class_map import match_by_name, own_questions, questions, read_class_map
from alexnet_jax.data.example import Source
from alexnet_jax.data.splits import Subset, whole
from alexnet_jax.data.store import Split, store_path
from alexnet_jax.data.writer import write_store
from alexnet_jax.scores import score_any, write_results
from alexnet_jax.system.errors import UserError
from alexnet_jax.training import train

KNOWN = ("tench", "crane", "crane", "ice cream", "Ice_Lolly")


def labelled(*labels: int) -> Subset:
    """Images without pixels."""
    return whole(Split(np.zeros((len(labels), 1, 1, 3), np.uint8), np.array(labels, np.int32)))


def test_classes_are_matched_exactly_or_else_loosely_and_never_by_guessing():
    names = ("Ice_Cream", "tench", "crane", "ice- lolly", "tenc", "iceCREAM")
    assert match_by_name(names, KNOWN) == ((3,), (0,), (), (4,), (), (3,))
    assert match_by_name(["a b", "A_B"], ["A_B", "a b"]) == ((1,), (0,))
    assert match_by_name(["ab"], ["A_B", "a b"]) == ((),)


def test_images_without_an_answer_are_left_out_and_the_others_keep_their_rows_and_labels():
    split = Subset(labelled(2, 0, 1, 2, 0).parts, np.array([4, 3, 2, 0]))
    asked = questions(split, ("a", "b", "c"), ((), (7,), (3, 5)))
    assert (asked.split.rows.tolist(), asked.split.labels.tolist()) == ([3, 2, 0], [3, 7, 3])
    assert (asked.labels.tolist(), asked.left_out, asked.unmatched) == ([2, 1, 2], 1, ["a"])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("map.tsv", "\ufeff# ours\ttheirs\n\nfish\ttench\r\nICE CREAM\nsweets\tice_lolly\tice cream\n"),
        ("map.json", '{"fish": "tench", "ice_cream": ["ice cream"], "sweets": [4, "ICE CREAM"]}'),
    ],
)
def test_a_file_lists_the_answers_of_each_class(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    classes = ("sweets", "fish", "dog", "ice_cream")
    assert read_class_map(tmp_path / name, classes, KNOWN) == ((3, 4), (0,), (), (3,))


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("m.tsv", "", "names no class: write one in each line"),
        ("m.tsv", "# only a comment\n\n", "names no class"),
        ("m.json", " ", "names no class"),
        ("m.json", "{}", "names no class"),
        ("m.tsv", "fish\ttench\nfsh\ttench", "line 2: the set has no class 'fsh': did you mean 'fish'"),
        ("m.tsv", "fish\ttensh", "line 1: the network has no class 'tensh': did you mean 'tench'"),
        ("m.tsv", "fish\tzzz", "the network has no class 'zzz': it has tench, crane, crane, ice cream, Ice_Lolly"),
        ("m.tsv", "fish\tcrane", "2 classes of the network are called 'crane'"),
        ("m.tsv", "fish\ttench\nFish\tice cream", "line 2: class 'Fish' is named twice"),
        ("m.tsv", "fish\ttench\tTench", "answer 'tench' is named twice"),
        ("m.json", '{"fish": "tench", "fish": 1}', "class 'fish' is named twice"),
        ("m.json", '{"fish": 5}', "the network has no class 5: its numbers are 0 to 4"),
        ("m.json", '{"fish": -1}', "the network has no class -1"),
        ("m.json", '{"fish": []}', "the answers of 'fish' are no names or numbers"),
        ("m.json", '{"fish": true}', "the answers of 'fish' are no names or numbers"),
        ("m.json", '["fish"]', "it is no object"),
        ("m.json", "7", "it is no object"),
        ("m.json", '{"fish', "cannot be read"),
        ("m.tsv", b"\xff\xfe", "cannot be read"),
    ],
)
def test_a_wrong_file_is_said_in_one_line(tmp_path, name, text, said):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as found:
        read_class_map(path, ("fish", "dog"), KNOWN)
    (line,) = str(found.value).splitlines()
    assert line.startswith(f"--class_map={path}")
    assert said in line


def test_any_of_several_answers_is_right_and_the_loss_is_that_of_their_sum():
    probabilities = np.array([[0.5, 0.1, 0.3, 0.1], [0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.25, 0.25]], np.float32)
    asked = questions(labelled(0, 0, 1), ("x", "y"), ((0, 3), (1, 2)))
    # Ranks 0, 0 and, as ties go to the lower class number, 1.
    score = score_any(np.log(probabilities), asked)
    assert (score.examples, score.top1_error, score.top5_error) == (3, pytest.approx(100 / 3), 0)
    assert score.loss == pytest.approx(-np.log([0.6, 0.5, 0.5]).mean())
    sure = score_any(np.log(np.array([[0.6, 0.4000001]], np.float32)), questions(labelled(0), ("x",), ((0, 1),)))
    assert sure.loss == 0


def test_top5_counts_the_best_answer():
    logs = np.log(np.array([[0.3, 0.2, 0.15, 0.13, 0.12, 0.06, 0.04]], np.float32))
    scores = [score_any(logs, questions(labelled(0), ("x",), (answers,))) for answers in ((4, 6), (5, 6))]
    assert [score.top5_error for score in scores] == [0, 100]


def test_a_results_file_has_a_line_for_each_image(tmp_path):
    probabilities = np.array([[0.1, 0.2, 0.7], [0.275, 0.275, 0.45]], np.float32)
    asked = questions(Subset(labelled(0, 1, 0).parts, np.array([2, 1])), ("one, two", "b"), ((1,), (0, 2)))
    write_results(tmp_path / "r.csv", np.log(probabilities), asked, ("x", "y", "z"))
    assert (tmp_path / "r.csv").read_text().splitlines() == [
        "row,label,answers,right,class1,probability1,class2,probability2,class3,probability3",
        '2,"one, two",y,0,z,0.700000,y,0.200000,x,0.100000',
        "1,b,x|z,1,z,0.450000,x,0.275000,y,0.275000",
    ]


def test_the_runs_own_classes_are_their_own_answers():
    asked = own_questions(labelled(1, 0), ("a", "b"))
    assert (asked.answers, asked.left_out, asked.unmatched, asked.has_several) == (((0,), (1,)), 0, [], False)


@pytest.fixture(scope="module")
def trained(data_dir, tmp_path_factory):
    """A short run, and beside its own set another with the same images, other names and the classes in another order."""
    folder = tmp_path_factory.mktemp("run")
    train(tiny_config(data_dir, folder / "run", steps=2))
    source = tiny_source()
    names = ["unknown", "Colour_1", *source.classes[2:]]
    write_store(Source("other", tuple(names), "renamed", source.splits), store_path(data_dir, "other", SIZE), SIZE)
    alien = Source("alien", tuple(f"thing {n}" for n in range(CLASSES)), "renamed", source.splits)
    write_store(alien, store_path(data_dir, "alien", SIZE), SIZE)
    return folder


def evaluate(trained, *flags: str) -> tuple[dict, str]:
    result = run("evaluate", f"--workdir={trained / 'run'}", "--mesh=1x1", *flags)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout), result.stderr


def results(path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_another_set_with_the_same_images_gives_the_same_answers(trained, tmp_path):
    own, _ = evaluate(trained, f"--results={tmp_path / 'own.csv'}")
    rows = results(tmp_path / "own.csv")
    assert (own["dataset"], own["examples"], own["left_out"], [row["row"] for row in rows]) == (
        "tiny", 33, 0, [str(n) for n in range(33)],
    )  # fmt: skip
    assert own["top1_error"] == pytest.approx(100 - 100 * np.mean([int(row["right"]) for row in rows]))
    low, high = own["top1_interval"]
    assert low < own["top1_error"] < high
    evaluate(trained, f"--predictions={tmp_path / 'p.npz'}")
    kept = np.load(tmp_path / "p.npz")
    again = score_any(
        np.log(kept["probabilities"]), own_questions(labelled(*kept["labels"]), tuple(kept["classes"].tolist()))
    )
    assert (again.top1_error, again.top5_error) == (own["top1_error"], own["top5_error"])
    assert again.loss == pytest.approx(own["loss"], rel=1e-5)

    other, said = evaluate(trained, "--dataset=other", f"--results={tmp_path / 'other.csv'}")
    kept = [row for row in rows if row["label"] != "colour 0"]
    assert 0 < len(kept) < 33
    left = 33 - len(kept)
    assert f"note: 1 of 14 classes match no class of the network by name: unknown; {left} of 33 images are left out" in said
    assert (other["dataset"], other["examples"], other["left_out"]) == ("other", len(kept), left)
    shutil.copytree(trained / "run", tmp_path / "copy")
    both, _ = evaluate(trained, f"--workdir={tmp_path / 'copy'}", "--dataset=other")
    assert (both["step"], both["loss"]) == ([2, 2], pytest.approx(other["loss"], rel=1e-5))
    found = results(tmp_path / "other.csv")
    assert {row["label"] for row in found} <= {"Colour_1", *(f"colour {n}" for n in range(2, CLASSES))}
    assert [row | {"label": ""} for row in found] == [row | {"label": ""} for row in kept]


@pytest.mark.slow
def test_a_class_map_takes_a_part_of_the_runs_own_classes_and_several_answers(trained, tmp_path):
    file, every = tmp_path / "map.json", [f"colour {n}" for n in range(CLASSES)]
    file.write_text(json.dumps({"unknown": every, "Colour_1": every}))
    easy, said = evaluate(trained, "--dataset=other", f"--class_map={file}")
    assert (easy["top1_error"], easy["top5_error"]) == (0, 0)
    assert easy["loss"] == pytest.approx(0, abs=1e-5)
    assert f"12 of 14 classes are not in --class_map={file}: colour 2, colour 3" in said

    (tmp_path / "part.txt").write_text("colour 3\ncolour 4\n")
    part, _ = evaluate(trained, f"--class_map={tmp_path / 'part.txt'}", f"--results={tmp_path / 'r.csv'}")
    labels = [example.label for example in tiny_source().splits["test"].read(0)]
    assert [int(row["row"]) for row in results(tmp_path / "r.csv")] == [n for n in range(33) if labels[n] in (3, 4)]
    assert (part["dataset"], part["examples"] + part["left_out"]) == ("tiny", 33)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ["--dataset=alien"],
            "--dataset=alien has no class of --workdir=.*/run: it has thing 0, .* and 9 others; the network",
        ),
        (["--dataset=nowhere"], "--dataset=nowhere is not prepared at 66 px .* run python -m alexnet_jax.prepare"),
        (["--dataset=other", "--class_map=/nowhere.tsv"], "--class_map=/nowhere.tsv cannot be read"),
        (["--results=/nowhere/r.csv"], "--results=/nowhere/r.csv: there is no folder /nowhere"),
        (["--results=r.txt"], "--results=r.txt does not end in .csv"),
    ],
)
def test_bad_input_is_one_line(trained, flags, said):
    result = run("evaluate", f"--workdir={trained / 'run'}", "--mesh=1x1", *flags)
    assert (result.returncode, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert re.search(said, line)
