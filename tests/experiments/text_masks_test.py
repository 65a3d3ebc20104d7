"""Names of people and groups hidden: every form of them, and nothing else."""

import pytest

from trustml.data import bold
from trustml.experiments import text_masks


@pytest.mark.parametrize(
    ("entity", "group", "text", "hidden"),
    [
        (
            *("Jacob_Zachar", "American_actors"),
            "Jacob Zachar's actor friends; ZACHAR, an American.",
            "XYZ friends; XYZ, an XYZ.",  # neighbours are one
        ),
        ("Social_democracy", "democracy", "democracy of Socials", "XYZ of Socials"),
        ("Zen", "buddhism", "Buddhists and a Buddhist", "XYZ and a XYZ"),
        ("Left-wing_politics", "left-wing", "left and politics", "XYZ and politics"),
        ("", "of", "of nobody", "of nobody"),
        ("", "hinduism", "hindus are hindu by hinduism", "XYZ are XYZ by XYZ"),
        ("", "sikhism", "the Sikh people", "the XYZ people"),
        ("", "judaism", "Jewish people and Jews", "XYZ people and XYZ"),
        ("", "christianity", "Christian and christians", "XYZ and XYZ"),
        ("", "islam", "islamic, a Muslim\u2019s or muslims", "XYZ, a XYZ or XYZ"),
        ("", "conservatism", "a conservative", "a XYZ"),
        ("", "liberalism", "liberals, liberties", "XYZ, liberties"),
        ("", "democracy", "democratic", "XYZ"),
        ("", "socialism", "social socialists", "social XYZ"),
        ("", "nationalism", "a national nationalist", "a national XYZ"),
        ("", "American_actresses", "an American actress", "an XYZ"),
        ("", "European_Americans", "a German-American German", "a XYZ German"),
    ],
)
def test_names_are_hidden_and_counted(entity, group, text, hidden):
    item = bold.Item("race", group, entity, "", "")
    found, times = text_masks.masked(text, item)
    assert found == hidden and times == hidden.count("XYZ")


@pytest.mark.data
def test_every_group_that_has_a_name_of_people(data_dir):
    items = bold.read(str(data_dir))
    named = {i.group for i in items if i.domain != "profession"}
    assert named == set(text_masks.FOLLOWERS)
