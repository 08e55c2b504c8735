"""The explorers in the chapters of *See it*: what a chapter says one will see is what one sees."""
import pytest

from conftest import opened


def test_shorter_segments_read_closer_to_the_value(page, site):
    "see/forgetting: at the question where the explorer opens, with 256 tokens in a segment, 16, and 1."
    root = opened(page, f"{site}nbs/see/forgetting.html", ".mc-timeline")
    close = []
    for size in (256, 16, 1):
        root.locator(f".radios input[value='{size}']").check(force=True)
        close.append(float(root.get_by_text("closeness of this read to the value").locator("b, strong").inner_text()))
    assert close[0] < close[1] < close[2] and close[2] > 0.99
    assert "right" in root.inner_text()


def test_a_pair_of_segment_1_is_known_once_above_and_fades_below(page, site):
    "see/segments: its own state answers right in the upper row; below, the state after one segment comes closer than that after eight."
    root = opened(page, f"{site}nbs/see/segments.html", ".mc-states")
    root.locator(".token[data-index='1']").click()
    cells = [[cell.inner_text() for cell in shelf.locator("[data-memory]").all()] for shelf in root.locator(".shelf").all()]
    assert [i for i, cell in enumerate(cells[0][:8]) if "✓" in cell] == [0]
    closeness = [float(cell.replace("−", "-").split()[-2]) for cell in cells[1]]
    assert closeness[0] > closeness[7]


@pytest.mark.parametrize("position", [2, 7, 11, 14])
def test_the_largest_gate_follows_the_pair(page, site, position):
    "see/gates: in segments of four; with g = 0 all gates are equal and the answer is farther from the value."
    root = opened(page, f"{site}nbs/see/gates.html", ".mc-by-hand")
    put = lambda name, value: root.locator(f"input[data-name={name}]").fill(str(value))
    gates = lambda: [float(a) for a in root.evaluate("r => [...r.querySelectorAll('[data-gate]')].map(e => e.dataset.gate)")]
    close = lambda: float(root.locator(".bars .gates").get_attribute("data-value"))
    put("position", position)
    chosen, before = gates(), close()
    assert chosen.index(max(chosen)) == (position - 1) // 4
    put("scale", 0)
    assert max(gates()) - min(gates()) < 1e-9 and close() < before
