from dataclasses import replace

import numpy as np
import pytest

from slam.errors import ConfigError, InputError
from slam.pairs import PairRow
from slam.protocols import read_protocol, sides
from slam.units import Units, deduplicate

RATE = 10.0
ROW = PairRow("p", "set", "all", "good", "bad", 0.0, 0.0)


def units(*frames):
    return deduplicate(np.array(frames), RATE)


def seams(name, row, *both):
    return [(side.seam, side.onset) for side in sides(row, *both, read_protocol(name))]


def test_the_default_is_the_papers():
    protocol = read_protocol("slam")
    assert protocol.opening
    assert protocol.closing
    assert protocol.deduplicated
    assert not protocol.summed
    assert protocol.part == "whole"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("slm", "no protocol is called 'slm'"),
        ("sum", "no protocol is called 'sum'"),
        ("slam+som", r"no protocol is called 'slam\+som'.*no-eos: no <S> at the end"),
        ("slam+sum+sum", "each once"),
        ("slam+", "no protocol"),
        ("slam+localized+continuation", "contradict"),
    ],
)
def test_a_name_that_means_nothing_is_refused_with_those_that_do(name, reason):
    with pytest.raises(ConfigError, match=reason):
        read_protocol(name)


def test_every_word_changes_how_the_protocol_is_described():
    plain = read_protocol("slam").words
    words = ["sum", "no-bos", "no-eos", "frames", "continuation", "localized"]
    described = {read_protocol(f"slam+{word}").words for word in words}
    assert plain not in described
    assert len(described) == len(words)


def test_frames_are_units_before_equal_neighbours_were_merged():
    both = units(1, 1, 2), units(3, 3, 3)
    one, other = sides(ROW, *both, read_protocol("slam+frames"))
    assert one.ids.tolist() == [1, 1, 2]
    assert other.ids.tolist() == [3, 3, 3]
    one, _ = sides(ROW, *both, read_protocol("slam"))
    assert one.ids.tolist() == [1, 2]


def test_without_a_known_seam_sides_part_where_they_first_differ():
    both = units(1, 1, 2, 3, 4), units(1, 2, 2, 5, 4)
    assert [seam for seam, _ in seams("slam+continuation", ROW, *both)] == [2, 2]
    assert [seam for seam, _ in seams("slam+continuation+frames", ROW, *both)] == [1, 1]


def test_a_side_that_the_other_begins_with_keeps_its_last_unit():
    both = units(1, 2, 3), units(1, 2, 3, 4)
    assert [seam for seam, _ in seams("slam+continuation", ROW, *both)] == [2, 2]
    assert [seam for seam, _ in seams("slam+continuation", ROW, both[0], both[0])] == [2, 2]


def test_a_unit_that_spans_a_known_seam_belongs_to_what_follows():
    # five frames of prompt; the unit 3 begins before the seam and ends after it
    both = units(1, 1, 2, 2, 3, 3, 4), units(1, 1, 2, 2, 3, 5, 5)
    row = replace(ROW, chosen_start=0.5, rejected_start=0.5)
    assert [seam for seam, _ in seams("slam+continuation", row, *both)] == [2, 3]


def test_what_was_heard_early_is_no_part_of_the_shared_beginning():
    # the frame before the seam already differs: it tells of what follows
    both = units(1, 1, 2, 2, 7, 3, 4), units(1, 1, 2, 2, 8, 5, 5)
    row = replace(ROW, chosen_start=0.5, rejected_start=0.5)
    assert [seam for seam, _ in seams("slam+continuation", row, *both)] == [2, 2]


def test_sides_spoken_apart_have_seams_of_their_own():
    both = units(1, 2, 3, 4, 5, 6), units(9, 9, 9, 8, 7, 6, 5)
    row = replace(ROW, chosen_start=0.2, rejected_start=0.4)
    assert [seam for seam, _ in seams("slam+continuation", row, *both)] == [2, 2]


def test_the_first_half_second_ends_with_the_last_unit_that_begins_in_it():
    # seam at 0.2 s; the onset is the five frames from there on
    both = units(1, 1, 2, 3, 3, 4, 5, 6, 6, 7), units(1, 1, 8, 8, 8, 8, 8, 8, 8, 9)
    row = replace(ROW, chosen_start=0.2, rejected_start=0.2)
    assert seams("slam+localized", row, *both) == [(1, 5), (1, 2)]
    assert seams("slam+localized+frames", row, *both) == [(2, 7), (2, 7)]


def test_counted_prompts_need_no_durations_but_a_half_second_does():
    both = [Units(one.ids, None, RATE) for one in (units(1, 2, 3), units(1, 2, 4))]
    row = replace(ROW, chosen_start=None, rejected_start=None, prompt_units=1)
    assert [seam for seam, _ in seams("slam+continuation", row, *both)] == [1, 1]
    with pytest.raises(InputError, match="carry no durations"):
        seams("slam+localized", row, *both)
    with pytest.raises(InputError, match="carry no durations"):
        seams("slam+frames", row, *both)


def test_an_utterance_without_units_is_named():
    with pytest.raises(InputError, match=r"pair 'p': the utterance 'bad' has no units"):
        sides(ROW, units(1, 2), units(), read_protocol("slam"))
