"""Options of the test run."""

import os

from hypothesis import settings

# A busy machine is no failure, and CI tries the same cases each time; by hand they are drawn anew.
settings.register_profile("graphir", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("graphir")


def pytest_addoption(parser):
    parser.addoption("--update", action="store_true", help="rewrite the expected parts of the Markdown tests (tests/**/*.md)")
