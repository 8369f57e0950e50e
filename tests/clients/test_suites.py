"""The clients that do not run in this process: JavaScript's, a browser's page, and Python's that need other versions.

Each file in `suites` is a test suite of its own language, run once by that language's own runner. Every case of it is a
test here, under its own name. Suites run side by side, three at a time: more only hold each other up.
"""

import re
import subprocess
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from attrs import frozen

from .conftest import HERE

SUITES = HERE / "suites"
NOT_XML = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")

pytestmark = [pytest.mark.starter, pytest.mark.system]


@frozen
class Outcome:
    """How the cases of a suite ended: None for those that passed, the failure's text for others."""

    failures: dict[str, str | None]
    output: str


def declared(suite: str) -> list[str]:
    """The names of a suite's cases, as far as they can be read without running it."""
    pattern = r'^ *test\([`"](.+?)[`"]' if suite.endswith(".mjs") else r"^def (test_\w+)"
    return re.findall(pattern, (SUITES / suite).read_text("utf-8"), re.MULTILINE)


NAMES = (
    "openai.mjs",
    "ollama.mjs",
    "browser.mjs",
    "page.mjs",
    "page_modules.mjs",
    "langchain_suite.py",
    "litellm_suite.py",
)
CASES = [
    pytest.param(suite, case, id=f"{suite.partition('.')[0]}: {case}") for suite in NAMES for case in declared(suite)
]


def runner(suite: str, request: pytest.FixtureRequest) -> tuple[list[str], dict[str, str]]:
    """What runs a suite, and what it is told in its environment."""
    if suite.endswith(".py"):
        python = str(request.getfixturevalue("clients_python"))
        # No settings and no fixtures of ours: they are for this environment.
        alone = ["--noconftest", "--config-file=/dev/null", f"--rootdir={SUITES}", "-p", "no:cacheprovider"]
        return [python, "-m", "pytest", "--import-mode=importlib", *alone, "--junitxml={report}"], {}
    node = str(request.getfixturevalue("node"))
    command = [node, "--test", "--test-reporter=junit", "--test-reporter-destination={report}"]
    more: dict[str, str] = {}
    if suite in ("browser.mjs", "page.mjs"):
        more["CHROME"] = request.getfixturevalue("chromium")
    if suite == "page.mjs":
        more |= request.getfixturevalue("page_servers")
    return command, more


def read(report: Path) -> dict[str, str | None]:
    """What a report in JUnit's form says of each case."""
    failures: dict[str, str | None] = {}
    # Node leaves the colours of messages in its report, which are not allowed there.
    text = NOT_XML.sub("", report.read_text("utf-8"))
    for case in ElementTree.fromstring(text.encode()).iter("testcase"):
        fault = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
        failures[case.attrib["name"]] = None if fault is None else "".join(fault.itertext()) or str(fault.attrib)
    return failures


def run(suite: str, command: list[str], environment: dict[str, str], folder: Path) -> Outcome:
    report = folder / f"{suite}.xml"
    ended = subprocess.run(
        [*(word.format(report=report) for word in command), str(SUITES / suite)],
        env=environment,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    return Outcome(read(report) if report.exists() else {}, ended.stdout)


@pytest.fixture(scope="session")
def outcome(
    request: pytest.FixtureRequest, client_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Any:
    """Run the suites that were chosen, and hand out their outcomes."""
    folder = tmp_path_factory.mktemp("suites")
    items: list[Any] = request.session.items
    chosen = {item.callspec.params["suite"] for item in items if "outcome" in getattr(item, "fixturenames", ())}
    futures: dict[str, Future[Outcome]] = {}
    refusals: dict[str, BaseException] = {}
    with ThreadPoolExecutor(3) as pool:
        for suite in sorted(chosen):
            try:
                command, more = runner(suite, request)
            except (pytest.skip.Exception, pytest.fail.Exception) as refusal:
                refusals[suite] = refusal
            else:
                futures[suite] = pool.submit(run, suite, command, {**client_environment, **more}, folder)

    def of(suite: str) -> Outcome:
        if suite in refusals:
            raise refusals[suite]
        return futures[suite].result()

    return of


@pytest.mark.parametrize(("suite", "case"), CASES)
def test_a_client(outcome: Callable[[str], Outcome], suite: str, case: str) -> None:
    ended = outcome(suite)
    # A name in the source may stand for several: `${...}` in JavaScript, `[...]` behind it in Python.
    pattern = re.sub(r"\\\$\\\{.*?\\\}", ".*", re.escape(case)) + r"(\[.*\])?"
    matching = {name: failure for name, failure in ended.failures.items() if re.fullmatch(pattern, name)}
    assert matching, f"{case} did not run:\n{ended.output}\n{ended.failures}"
    failed = [f"{name}:\n{failure}" for name, failure in matching.items() if failure is not None]
    assert not failed, "\n".join(failed)
