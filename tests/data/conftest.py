import pytest


@pytest.fixture
def lines(tmp_path):
    """A thousand short documents that can be distinguished."""
    path = tmp_path / "lines.txt"
    path.write_text("".join(f"document {n} has number {n * n}\n" for n in range(1000)))
    return path
