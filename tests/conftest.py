"""Options of the test run."""


def pytest_addoption(parser):
    parser.addoption("--update", action="store_true", help="rewrite the expected parts of the Markdown tests (tests/**/*.md)")
