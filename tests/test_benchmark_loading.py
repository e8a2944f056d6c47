"""The loading benchmark runs to its end, on few images."""

from commands import module_of


def test_tables(capsys):
    words = ["-n", "6", "-b", "4", "--repeats", "1", "--workers", "1", "--device", "cpu"]
    module_of("scripts/benchmark.py").main(["loading", *words])
    printed = capsys.readouterr().out
    assert "Pillow, 8-bit (ours, default)" in printed and "torch decodes and resizes (ours, fast)" in printed
