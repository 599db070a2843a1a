"""The reference of the job file says what the models say."""

from pathlib import Path

from jobs.reference import reference

PAGE = Path(__file__).parent.parent / "docs" / "job-file.md"


def rows():
    """The cells of every row of a table."""
    lines = [line for line in reference().splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.replace("\\|", "/").split("|")[1:-1]] for line in lines]


def test_the_page_is_up_to_date():
    assert PAGE.read_text() == reference(), "run: python -m jobs.reference > docs/job-file.md"


def test_every_field_tells_what_it_takes_and_means():
    for field, takes, _, meaning in rows():
        assert takes, field
        assert "another value" not in takes, field
        assert meaning, f"{field}: has no docstring"


def test_limits_defaults_and_inner_fields_are_those_of_the_models():
    told = {row[0]: row[1:] for row in rows()}
    assert told["`train.lr`"][:2] == ["a number above 0 and at most 100", "`0.0001`"]
    assert told["`data.train`"][1] == "*required*"
    assert told["`train.early_stopping`"][1] == "`null`"
    assert told["`train.early_stopping.patience`"][1] == "`2`"
    assert told["`register.gate`"][1] == ""
    assert told["`model.head`"][0] == "one of linear, adaptive, encdec"
