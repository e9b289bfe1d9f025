"""Files of predictions: three forms, and errors that name the entry."""

import json

import pytest

from selfplay.errors import UsageError
from selfplay.evaluation.predictions import read_predictions

ENTRIES = [
    {"instance_id": "a", "model_name_or_path": "m", "model_patch": "p"},
    {"instance_id": "b", "model_name_or_path": "m", "model_patch": None},
]


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(ENTRIES, indent=1),
        json.dumps({entry["instance_id"]: entry for entry in ENTRIES}),
        "".join(json.dumps(entry) + "\n" for entry in ENTRIES),
        "\ufeff" + json.dumps(ENTRIES),
    ],
)
def test_predictions_are_read_in_each_form_of_the_field(text, tmp_path):
    (tmp_path / "p").write_text(text)
    found = read_predictions(tmp_path / "p")
    assert (found.patches, found.models, found.attempts) == ({"a": ("p",), "b": ("",)}, ("m",), 1)


def test_several_predictions_of_one_task_are_attempts(tmp_path):
    (tmp_path / "p").write_text(json.dumps([ENTRIES[0], {**ENTRIES[0], "model_patch": "q"}]))
    found = read_predictions(tmp_path / "p")
    assert (found.patches, found.attempts) == ({"a": ("p", "q")}, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no prediction. Write one object for each task"),
        ("nonsense", "is neither JSON nor JSON lines"),
        ("[3]", "prediction 1: is not an object"),
        ('[{"instance_id": 3}]', "prediction 1: instance_id is not a text"),
        ('{"a": {"model_name_or_path": "m"}}', "prediction 1: a: lacks model_patch"),
        ('[{"instance_id": "a", "model_patch": 3}]', "a: model_patch and model_name_or_path must be texts"),
    ],
)
def test_an_error_names_the_entry_and_the_form(text, message, tmp_path):
    (tmp_path / "p").write_text(text)
    with pytest.raises(UsageError) as caught:
        read_predictions(tmp_path / "p")
    assert message in str(caught.value)


def test_a_file_that_is_missing_says_what_to_write(tmp_path):
    with pytest.raises(UsageError, match="cannot read the predictions"):
        read_predictions(tmp_path / "none")
