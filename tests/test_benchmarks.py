"""The benchmark harness's own arithmetic: what it says of numbers whose truth is known."""

from __future__ import annotations

import importlib.util
import random
import statistics
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
# In the order of their imports. Loaded by path, and gone again at the end: `settings` or `table` may be a lab's names.
MODULES = ("arithmetic", "harness", "comparison", "table", "processes", "peers")


@pytest.fixture(scope="module")
def bench():
    """The harness's modules by name."""
    before = {name: sys.modules.get(name) for name in MODULES}
    loaded: dict[str, ModuleType] = {}
    for name in MODULES:
        spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
        loaded[name] = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded[name])
    yield type("Bench", (), loaded)
    for name, module in before.items():
        if module is None:
            del sys.modules[name]
        else:
            sys.modules[name] = module


def test_median_and_quartiles_are_those_of_the_standard_library(bench):
    values = [random.Random(seed).random() for seed in range(21)]
    found = bench.arithmetic.spread(values)
    lower, middle, upper = statistics.quantiles(values, n=4, method="inclusive")
    assert (found.lower, found.median, found.upper) == pytest.approx((lower, middle, upper))


def test_one_value_is_its_own_spread(bench):
    assert bench.arithmetic.spread([3.0]) == bench.arithmetic.Spread(3.0, 3.0, 3.0, 3.0, 3.0, 1)


def test_no_values_are_refused(bench):
    with pytest.raises(ValueError, match="no values"):
        bench.arithmetic.spread([])


@pytest.mark.parametrize(("count", "rank"), [(6, 1), (8, 1), (9, 2), (21, 6), (100, 40)])
def test_the_interval_takes_the_ranks_of_the_sign_test(bench, count, rank):
    """Ranks from the table of the binomial distribution at one half, two-sided 5 %."""
    low, high = bench.arithmetic.median_interval(list(range(1, count + 1)))
    assert (low, high) == (rank, count + 1 - rank)


def test_the_interval_holds_the_true_median_in_95_of_100_samples(bench):
    random_numbers = random.Random(1)
    held = 0
    for _ in range(2000):
        low, high = bench.arithmetic.median_interval(sorted(random_numbers.expovariate(1) for _ in range(21)))
        held += low <= 0.6931471805599453 <= high
    assert 0.94 < held / 2000 < 0.99


def test_ratios_are_taken_pair_by_pair(bench):
    """A machine that gets three times slower half way moves both medians, and no ratio."""
    theirs = [1.0, 1.1, 0.9, 3.0, 3.3, 2.7]
    ours = [value * 0.5 for value in theirs]
    assert bench.arithmetic.ratios(ours, theirs) == pytest.approx([0.5] * 6)


def test_ratios_of_what_are_no_pairs_are_refused(bench):
    with pytest.raises(ValueError, match="not pairs"):
        bench.arithmetic.ratios([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="not positive"):
        bench.arithmetic.ratios([1.0], [0.0])


@pytest.mark.parametrize(
    ("values", "goal", "direction", "said"),
    [
        ([0.5] * 7, 0.6, "<=", "met"),
        ([0.7] * 7, 0.6, "<=", "missed"),
        ([0.5, 0.5, 0.5, 0.5, 0.5, 0.9, 0.9], 0.6, "<=", "met?"),
        ([0.5, 0.5, 0.7, 0.7, 0.7, 0.7, 0.9], 0.6, "<=", "missed?"),
        ([0.99] * 7, 0.98, ">=", "met"),
        ([0.97] * 7, 0.98, ">=", "missed"),
        ([0.9, 0.99, 0.99, 0.99, 0.99, 0.99, 0.99], 0.98, ">=", "met?"),
    ],
)
def test_a_verdict_doubts_what_the_interval_leaves_open(bench, values, goal, direction, said):
    assert bench.arithmetic.verdict(bench.arithmetic.spread(values), goal, direction) == said


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_growth_is_the_exponent(bench, power):
    sizes = [10, 100, 1000, 10_000]
    assert bench.arithmetic.growth(sizes, [0.003 * size**power for size in sizes]) == pytest.approx(power)


def test_growth_of_one_size_is_refused(bench):
    with pytest.raises(ValueError, match="two different sizes"):
        bench.arithmetic.growth([10, 10], [1.0, 2.0])


def test_every_variant_stands_at_every_place_equally_often(bench):
    variants = [bench.harness.Variant(name, lambda: None) for name in "abc"]
    orders = [[v.name for v in bench.harness.in_order(variants, number)] for number in range(6)]
    for place in range(3):
        assert sorted(order[place] for order in orders) == list("aabbcc")
    followers = {(order[i], order[i + 1]) for order in orders for i in range(2)}
    assert len(followers) == 6, "each follows each of the others at some time"


def test_the_warm_up_is_thrown_away_and_slow_peers_sit_out(bench):
    calls = {"ours": 0, "peer": 0}

    def run(name):
        def once():
            calls[name] += 1
            return bench.harness.Sample(float(calls[name]))

        return once

    variants = [bench.harness.Variant("ours", run("ours")), bench.harness.Variant("peer", run("peer"), every=3)]
    cleaned = []
    samples = bench.harness.measure(variants, 7, "test", lambda: cleaned.append(1))
    assert list(samples["ours"]) == list(range(7))
    assert list(samples["peer"]) == [0, 3, 6]
    assert samples["ours"][0].wall_s == 2.0, "the first call was the warm-up"
    assert calls == {"ours": 8, "peer": 4}
    assert len(cleaned) == 12


def test_pairs_are_of_the_rounds_that_have_both(bench):
    sample = bench.harness.Sample
    samples = {"ours": {n: sample(float(n)) for n in range(4)}, "peer": {3: sample(30.0), 0: sample(10.0)}}
    assert bench.harness.paired(samples, "ours", "peer") == ([0.0, 3.0], [10.0, 30.0])


def _samples(bench, **values):
    names = {"ours": "ours", "theirs": "theirs", "again": "theirs again", "bare": "bare"}
    sample = bench.harness.Sample
    return {names[name]: {n: sample(v, v / 2) for n, v in enumerate(each)} for name, each in values.items()}


def test_a_comparison_holds_ours_theirs_null_limit_and_goal(bench):
    samples = _samples(bench, ours=[1.0] * 7, theirs=[2.0] * 7, again=[2.0] * 7, bare=[0.5] * 7)
    line = bench.comparison.compare("1", "a against b", samples, 0.6, limit="bare")
    assert (line.ratio.median, line.null.median, line.limit[1].median) == (0.5, 1.0, 0.25)
    assert (line.verdict, line.is_level, line.cpu) == ("met", True, (0.5, 1.0))
    shown = bench.table.as_markdown([line])
    for word in ("a against b", "1.00 s", "2.00 s", "0.500 [0.500..0.500]", "<= 0.6", "met", "0.250 (bare)"):
        assert word in shown


def test_a_rate_is_ours_over_theirs_too(bench):
    """Half the seconds a step are twice the steps a second."""
    samples = _samples(bench, ours=[0.1] * 7, theirs=[0.2] * 7, again=[0.2] * 7)
    line = bench.comparison.compare("6b", "speed", samples, 0.98, direction=">=", is_rate=True)
    assert line.ours.median == pytest.approx(10)
    assert line.ratio.median == pytest.approx(2)
    assert line.verdict == "met"


def test_a_crooked_null_comparison_is_said(bench):
    """Theirs against theirs must be 1; where it is not, the table says that the run is not to be trusted."""
    samples = _samples(bench, ours=[1.0] * 7, theirs=[2.0] * 7, again=[2.4] * 7)
    line = bench.comparison.compare("1", "a against b", samples, 0.6)
    assert not line.is_level
    assert "NOT LEVEL" in bench.table.as_text(line)
    assert "not level" in bench.table.as_markdown([line])


def test_a_command_that_fails_is_no_measurement(bench, tmp_path):
    command = [sys.executable, "-c", "import sys; print('why it failed'); sys.exit(3)"]
    with pytest.raises(bench.processes.BenchmarkError, match=r"exit code 3(.|\n)*why it failed"):
        bench.processes.timed(command, cwd=tmp_path, env=bench.processes.clean_environment())


def test_cpu_seconds_are_those_of_children_too(bench, tmp_path):
    burn = "import time\nwhile time.process_time() < 0.2: pass"
    command = [sys.executable, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}])"]
    sample = bench.processes.timed(command, cwd=tmp_path, env=bench.processes.clean_environment())
    assert sample.cpu_s >= 0.2
    assert sample.wall_s >= 0.2


def test_a_terminal_shows_every_line(bench, tmp_path):
    program = "import sys; print(sys.stdout.isatty()); [print(n) for n in range(5000)]"
    command = [sys.executable, "-c", program]
    _, seen, _ = bench.processes.timed_on_terminal(command, cwd=tmp_path, env=bench.processes.clean_environment())
    assert seen.lines == 5001
    assert seen.tail.endswith(b"4998\r\n4999\r\n")


def test_the_environment_of_a_measurement_has_nothing_of_a_run(bench, monkeypatch):
    monkeypatch.setenv("RESUMEKIT_RUN_DIR", "/somewhere")
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    assert not {"RESUMEKIT_RUN_DIR", "PYTHONPATH"} & bench.processes.clean_environment().keys()


def test_the_peers_are_pinned(bench):
    lines = bench.peers.REQUIREMENTS.read_text(encoding="utf-8").splitlines()
    names = [line for line in lines if line and not line.startswith("#")]
    assert names and all("==" in line for line in names)
