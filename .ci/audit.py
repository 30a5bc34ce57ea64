"""Look up every locked package in the advisory database; fail on a finding.

`pip-audit` alone can't serve as a gate. On a closed network it dies with a traceback, or, behind a mirror
that answers 404, says "No known vulnerabilities found" after having looked at nothing. Here the first is
told apart from a broken lock file, and the second is said aloud; neither fails a run that can't mend it.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def main(lock: str) -> int:
    """Audit one hashed requirements file; 0 when there is no finding, or no service to ask."""
    command = [sys.executable, "-m", "pip_audit", "--requirement", lock, "--require-hashes", "--disable-pip"]
    command += ["--progress-spinner", "off", "--format", "json"]
    # Reads the lock and asks nobody: whatever fails after this is the service.
    subprocess.run([*command, "--dry-run"], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch, "report.json")
        subprocess.run([*command, "--output", str(report)], check=False, capture_output=True)
        packages = json.loads(report.read_text())["dependencies"] if report.exists() else []
    return _tell(lock, packages)


def _tell(lock: str, packages: list[dict[str, Any]]) -> int:
    audited = [package for package in packages if "skip_reason" not in package]
    findings = [
        f"{package['name']} {package['version']}: {vuln['id']}, fixed in {vuln['fix_versions'] or 'none'}"
        for package in audited
        for vuln in package["vulns"]
    ]
    if not audited:
        verdict = "NOT AUDITED: the advisory service can't be reached from this network"
    else:
        verdict = f"{len(audited)} of {len(packages)} packages looked up, {len(findings)} findings"
    sys.stdout.write("\n".join([*findings, f"audit of {lock}: {verdict}", ""]))
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
