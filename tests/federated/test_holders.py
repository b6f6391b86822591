"""Groups of tensors by their holders: against the definition, name by name."""

from hypothesis import given
from hypothesis import settings as fast
from hypothesis import strategies as st

from stages.federated.holders import groups_of


@fast(max_examples=200, deadline=None)
@given(held=st.lists(st.sets(st.sampled_from("abcdef")), max_size=8))
def test_a_group_is_all_the_names_that_the_same_updates_hold(held: list[set[str]]) -> None:
    groups = groups_of(held)
    found = {name: group.holders for group in groups for name in group.tensors}
    expected = {name: tuple(index for index, names in enumerate(held) if name in names) for name in set().union(*held)}
    assert found == expected
    assert len({group.holders for group in groups}) == len(groups)
    assert all(list(group.tensors) == sorted(set(group.tensors)) for group in groups)
    assert [group.tensors[0] for group in groups] == sorted(group.tensors[0] for group in groups)
