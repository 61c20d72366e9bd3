"""Audit locks for known vulnerabilities with pip-audit, and never take silence for "none": `python tools/audit.py LOCK…`.

pip-audit's default service answers 404 where a mirror of the package index has no vulnerability data; pip-audit then skips the package and
reports "No known vulnerabilities found". And it exits with 1 both when a package is vulnerable and when the service cannot be reached. So
this asks OSV, whose answer is explicit, reads pip-audit's JSON, and tells three outcomes apart, by a line for each lock and by the exit
code: 0 clean, 1 vulnerable (or pip-audit itself failed), 75 not audited, since the service cannot be reached (EX_TEMPFAIL of sysexits.h).
"""

import argparse
import json
import subprocess
import sys
from typing import Any, Final, NamedTuple

OSV: Final = "https://api.osv.dev/v1/query"
CLEAN: Final = 0
VULNERABLE: Final = 1
NOT_AUDITED: Final = 75
NO_ANSWER: Final = ("requests.exceptions.", "urllib3.exceptions.", "Could not connect to", "ServiceError")
"""What pip-audit's log has if the vulnerability service did not answer, or did not answer in its format."""


class Outcome(NamedTuple):
    """How an audit ended: the exit code, and what is printed."""

    code: int
    text: str


def audit(lock: str, service: str) -> Outcome:
    """Ask the service for every package of a lock. Of several locks one by one: pip-audit refuses two versions of a package.

    Args:
        lock: A requirements file whose packages are all pinned, with hashes.
        service: URL that answers queries of the form of OSV's `v1/query`.
    """
    command = [sys.executable, "-m", "pip_audit", "--vulnerability-service", "osv", "--osv-url", service, "--format", "json"]
    options = ["--disable-pip", "--require-hashes", "--progress-spinner", "off", "--requirement", lock]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    return outcome(lock, done.stdout, done.stderr, service)


def outcome(lock: str, report: str, log: str, service: str) -> Outcome:
    """The outcome from what pip-audit printed: its JSON report and its log."""
    packages = _packages(report)
    vulnerable = [line for package in packages for line in _vulnerabilities(package)]
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    if vulnerable:
        return Outcome(VULNERABLE, "\n".join([*vulnerable, f"audit: VULNERABLE: {lock}: {len(vulnerable)} known: upgrade"]))
    if skipped:
        return Outcome(NOT_AUDITED, f"audit: SKIPPED: {lock}: {service} knows nothing of {', '.join(skipped)}: nobody looked there")
    if packages:
        return Outcome(CLEAN, f"audit: {lock}: no known vulnerability in {len(packages)} packages")
    if any(sign in log for sign in NO_ANSWER):
        return Outcome(NOT_AUDITED, f"audit: SKIPPED: {lock}: {service} cannot be reached: nobody looked for vulnerabilities")
    return Outcome(VULNERABLE, f"{log}\naudit: FAILED: {lock}: pip-audit gave no report")


def _packages(report: str) -> list[dict[str, Any]]:
    """The packages of a report; none where pip-audit ended before it wrote one."""
    packages: list[dict[str, Any]] = json.loads(report)["dependencies"] if report.strip() else []
    return packages


def _vulnerabilities(package: dict[str, Any]) -> list[str]:
    """A line for each known vulnerability of a package."""
    name = f"{package['name']} {package.get('version')}"
    return [f"{name}: {found['id']}, fixed in {', '.join(found['fix_versions']) or 'no version yet'}" for found in package.get("vulns", [])]


def main() -> int:
    """Audit the files of the command line; the exit code says what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("locks", nargs="+", help="requirements files, pinned and with hashes")
    parser.add_argument("--service", default=OSV, help="URL of the vulnerability service")
    arguments = parser.parse_args()
    outcomes = [audit(lock, arguments.service) for lock in arguments.locks]
    for one in outcomes:
        print(one.text)
    codes = {one.code for one in outcomes}
    return next(code for code in (VULNERABLE, NOT_AUDITED, CLEAN) if code in codes)


if __name__ == "__main__":
    sys.exit(main())
