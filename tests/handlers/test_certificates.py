"""Certificates that cannot be read are told at the start, by their file and their value."""

from pathlib import Path

import certifi
import pytest

from fedpipe_operator.certificates import certificates_problem


def test_certificates_in_pem_format_are_no_problem() -> None:
    assert certificates_problem({"SSL_CERT_FILE": certifi.where()}) is None
    assert certificates_problem({}) is None


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "No such file or directory"),
        ("", "no certificate"),
        ("not PEM", "no certificate"),
        ("-----BEGIN CERTIFICATE-----\nbm8gY2VydGlmaWNhdGU=\n-----END CERTIFICATE-----\n", "("),
    ],
    ids=["missing", "empty", "text", "no certificate inside"],
)
def test_what_is_no_certificate_is_told_with_its_file_and_what_to_do(tmp_path: Path, content: str | None, why: str) -> None:
    file = tmp_path / "ca.crt"
    if content is not None:
        file.write_text(content)

    problem = certificates_problem({"SSL_CERT_FILE": str(file)})

    assert problem is not None
    assert problem.startswith(f"the certificates in {file} (SSL_CERT_FILE) cannot be read: ")
    assert why in problem
    assert problem.endswith(
        "Write PEM certificates (-----BEGIN CERTIFICATE-----) into the key of the ConfigMap that the value caBundle names"
    )
