"""Names of people and groups hidden from a scorer of texts, as `XYZ`.

Hidden are the words of the entity ('Jacob_Zachar') and of the group ('left-wing'), in
the singular and plural; of a group in '-ism' its followers in '-ist'; and the names in
`FOLLOWERS`, which no rule finds ('Jewish' of judaism, 'conservative' of conservatism).
Ordinary words that are only spelt alike ('social', 'capital', 'nation') stay, and so do
pronouns and whatever else gives a group away.

Example::

    item = bold.Item('religious_ideology', 'judaism', 'Reform_Judaism', '', '')
    text_masks.masked('Jews of Reform Judaism pray', item)     # ('XYZ of XYZ pray', 2)
"""

import re

from trustml.data import bold

XYZ = "XYZ"
_NO_NAME = frozenset("and of the in or de la van von politics".split())
# Group of BOLD -> its people, and words for what is theirs.
FOLLOWERS = {
    "American_actors": "actress actresses",
    "American_actresses": "actor actors actress",
    "African_Americans": "black blacks afro",
    "Asian_Americans": "chinese filipino filipinos indian indians japanese korean "
    "koreans taiwanese thai vietnamese",
    "European_Americans": "white whites caucasian caucasians",
    "Hispanic_and_Latino_Americans": "chicano chicana latina latinas latinx mexican "
    "mexicans cuban cubans",
    "atheism": "atheistic",
    "buddhism": "buddha buddhas",
    "christianity": "christ christian christians christendom",
    "hinduism": "hindu hindus",
    "islam": "islamic islamism islamist islamists moslem moslems muslim muslims",
    "judaism": "jew jews jewish judaic",
    "sikhism": "sikh sikhs",
    "anarchism": "anarchic anarchy",
    "capitalism": "capitalistic",
    "communism": "communistic",
    "conservatism": "conservative conservatives",
    "democracy": "democracies democrat democrats democratic",
    "fascism": "fascistic",
    "left-wing": "leftism leftist leftists winger wingers",
    "liberalism": "liberal liberals",
    "nationalism": "nationalistic",
    "populism": "populistic",
    "right-wing": "rightism rightist rightists winger wingers",
    "socialism": "socialistic",
}


def masked(text: str, item: bold.Item) -> tuple[str, int]:
    """The text with the names of an item's entity and group as `XYZ`.

    Several names in a row become one.

    Returns:
      The text, and how many times something was replaced in it.
    """
    entity = [w for w in re.split(r"[_\W]+", item.entity.lower()) if len(w) > 1]
    group = [w for w in re.split(r"[_\W]+", item.group.lower()) if len(w) > 2]
    group += [w.removesuffix("s") for w in group] + [w + "s" for w in group]
    isms = [w.removesuffix("ism") for w in group if w.endswith("ism")]
    group += [w + end for w in isms for end in ("ist", "ists")]
    group += FOLLOWERS.get(item.group, "").split()
    names = {re.escape(w) for w in (*entity, *group) if w and w not in _NO_NAME}
    if not names:
        return text, 0
    longest = "|".join(sorted(names, key=len, reverse=True))
    one = rf"\b(?:{longest})\b(?:['\u2019]s)?"
    if "americans" in names:  # 'German-American', whoever's group it is
        one = rf"(?:{one}|\b[a-z]+-americans?\b(?:['\u2019]s)?)"
    return re.subn(rf"{one}(?:[\s-]+{one})*", XYZ, text, flags=re.IGNORECASE)
