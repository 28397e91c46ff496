"""The requirements of text sources: a text per role, reproducible, no document in two roles."""

from itertools import combinations

from pruner_zero.text.corpus import load_corpus
from pruner_zero.text.source import ROLES, TextSource


class TextSourceSuite:
    """Holds for any text source. A subclass gives `source`."""

    source: TextSource

    def test_it_is_found_by_its_name(self) -> None:
        for role in ROLES:
            named = load_corpus(f"{self.source.name}/{role}")
            assert load_corpus(self.source.name, role) == named
            assert named.text == self.source.separator.join(self.source.documents(role))
            assert named.name == f"{self.source.name}/{role}"

    def test_it_is_the_same_text_each_time(self) -> None:
        for role in ROLES:
            assert list(self.source.documents(role)) == list(self.source.documents(role))

    def test_no_document_serves_two_roles(self) -> None:
        parts = {role: set(self.source.documents(role)) - {""} for role in ROLES}
        for first, second in combinations(ROLES, 2):
            assert not parts[first] & parts[second], f"{first} and {second} share documents"
