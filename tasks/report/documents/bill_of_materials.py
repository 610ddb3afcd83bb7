"""Bill of materials: models, data and libraries with versions, digests and licenses; as CycloneDX JSON and as a table.

CycloneDX 1.6 (ECMA-424): https://cyclonedx.org/docs/1.6/json/
"""

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, metadata
from typing import Any, Literal
from uuid import NAMESPACE_URL, uuid5

from pydantic import BaseModel, ConfigDict

from tasks.report.content.provenance import Origin, source_of
from tasks.report.content.report import Report
from tasks.report.words.markdown import code, table
from tasks.shared.store.lineage import SOURCE, WEIGHTS
from tasks.shared.technique import Kind

NOT_STATED = "not stated"
TYPES = {"model": "machine-learning-model", "data": "data", "library": "library"}
CLASSIFIERS = {
    "MIT License": "MIT",
    "Apache Software License": "Apache-2.0",
    "Apache 2.0 License": "Apache-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "ISC License (ISCL)": "ISC",
}
"""SPDX identifiers of what older packages call their license, where the words leave no choice ("BSD License" does)."""


class Material(BaseModel):
    """One thing that went into the models or the measurement.

    version: of a library.  digest: content of a model or of data.  license: terms as stated, or "not stated".
    used_by: the steps that used it.  made_from: names of the materials that it was made from.
    """

    model_config = ConfigDict(frozen=True)
    kind: Literal["model", "data", "library"]
    name: str
    version: str
    digest: str
    license: str
    used_by: list[str]
    made_from: list[str]

    @property
    def ref(self) -> str:
        """Its name within the bill."""
        return f"{self.kind}:{self.name}" + (f"@{self.version}" if self.version else "")


def list_materials(report: Report) -> list[Material]:
    """Models, data and libraries that the given artifacts were made from, each group by name."""
    found = [*source_materials(report), *artifact_materials(report), *library_materials(report)]
    order = ["model", "data", "library"]
    return sorted(found, key=lambda item: (order.index(item.kind), item.name.lower(), item.version))


def model_license(report: Report, name: str) -> str:
    """What the recipe states for the baseline's source, for it and what was made from it; of any other model empty, for nobody states it."""
    parents = {row.name: row.parent for row in report.models}
    line = [name]
    while (parent := parents.get(line[-1], "")) and parent not in line:
        line.append(parent)
    root = source_of(report.origins, line[-1].removeprefix(SOURCE))
    ours = report.baseline in line or (root and root == source_of(report.origins, report.baseline))
    return report.licenses.model if ours else ""


def source_materials(report: Report) -> Iterator[Material]:
    """Models that the recipe started from: those that a step names as an input and no step made."""
    uses: dict[tuple[str, str], dict[str, str]] = {}
    for origin in report.origins.values():
        for port, inputs in (origin.manifest.inputs if origin.manifest else {}).items():
            for name, digest in inputs.items():
                if name.startswith(SOURCE):
                    uses.setdefault((name.removeprefix(SOURCE), digest), {})[origin.name] = port
    for (name, digest), steps in uses.items():
        own = model_license(report, name)
        terms = [report.licenses.teacher if port == "teacher" else own for port in steps.values()]
        stated = "; ".join(dict.fromkeys(filter(None, terms)))
        yield Material(
            kind="model",
            name=name,
            version="",
            digest=digest,
            license=stated or NOT_STATED,
            used_by=list(steps),
            made_from=[],
        )


def artifact_materials(report: Report) -> Iterator[Material]:
    """The models and data that steps made."""
    terms = {Kind.CORPUS: report.licenses.data, Kind.TRACES: report.licenses.teacher}
    for origin in report.origins.values():
        if origin.kind not in (*WEIGHTS, Kind.CORPUS, Kind.TRACES):
            continue
        users = [other.name for other in report.origins.values() if origin.name in other.made_from]
        yield Material(
            kind="model" if origin.kind in WEIGHTS else "data",
            name=origin.name,
            version="",
            digest=origin.digest,
            license=(model_license(report, origin.name) if origin.kind in WEIGHTS else terms[origin.kind])
            or NOT_STATED,
            used_by=users,
            made_from=[name.removeprefix(SOURCE) for name in origin.made_from],
        )


def library_materials(report: Report) -> Iterator[Material]:
    """Libraries by the versions that the manifests and the verdict record, not by what is installed now."""
    uses: dict[tuple[str, str], list[str]] = {}
    for origin in report.origins.values():
        for name, number in versions_of(origin).items():
            uses.setdefault((name, number), []).append(origin.name)
    for name, number in report.versions.items():
        uses.setdefault((name, number), [])
    for (name, number), steps in uses.items():
        if number != "absent":
            license = library_license(name, number)
            yield Material(
                kind="library", name=name, version=number, digest="", license=license, used_by=steps, made_from=[]
            )


def versions_of(origin: Origin) -> dict[str, str]:
    """Libraries of the step that made it."""
    return origin.manifest.versions if origin.manifest else {}


def library_license(name: str, number: str) -> str:
    """What the installed package says of its license; "not stated" if it does not, or if another version is installed."""
    if name == "python":
        return "PSF-2.0"  # the one library without a package
    try:
        found = metadata(name)
    except PackageNotFoundError:
        return NOT_STATED
    if found["Version"].split("+")[0] != number.split("+")[0]:
        return NOT_STATED
    if "License-Expression" in found:
        return str(found["License-Expression"])
    marks = [line.rpartition(" :: ")[2] for line in found.get_all("Classifier") or [] if line.startswith("License ::")]
    names = [mark for mark in marks if mark != "OSI Approved"]
    words = str(found["License"]).strip() if "License" in found else ""
    if not names and words and len(words.splitlines()) == 1:
        names = [words]
    return " AND ".join(dict.fromkeys(CLASSIFIERS.get(word, word) for word in names)) or NOT_STATED


def cyclonedx(report: Report, materials: list[Material]) -> dict[str, Any]:
    """The bill as a CycloneDX document.  It has no time stamp of its own, so that the same inputs give the same bytes."""
    subject = report.shipped or report.nearest or report.baseline
    digest = next((row.digest for row in report.models if row.name == subject), "")
    refs = {item.name: item.ref for item in materials if item.kind != "library"}
    links = [
        {"ref": item.ref, "dependsOn": sorted({refs[name] for name in item.made_from if name in refs})}
        for item in materials
        if item.made_from
    ]
    stamp = {"timestamp": report.reproduce.made} if report.reproduce.made else {}
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid5(NAMESPACE_URL, f'{report.title} {subject} {digest}')}",
        "version": 1,
        "metadata": {
            **stamp,
            "component": {"type": "machine-learning-model", "name": subject, "bom-ref": f"subject:{subject}"},
            "properties": [{"name": "stillroom:decision", "value": report.decision}],
        },
        "components": [component(item) for item in materials],
        "dependencies": [
            {"ref": f"subject:{subject}", "dependsOn": [refs[subject]] if subject in refs else []},
            *links,
        ],
    }


def component(item: Material) -> dict[str, Any]:
    """One entry.  A digest is a property, not a hash: that of a folder is taken over the names and digests of its files."""
    entry: dict[str, Any] = {"type": TYPES[item.kind], "bom-ref": item.ref, "name": item.name}
    if item.version:
        entry |= {"version": item.version}
    if item.kind == "library" and item.name != "python":
        entry |= {"purl": f"pkg:pypi/{item.name.lower().replace('_', '-')}@{item.version}"}
    if item.license != NOT_STATED:
        entry |= {"licenses": [license_entry(item.license)]}
    properties = [{"name": "stillroom:digest", "value": item.digest}] if item.digest else []
    properties += [{"name": "stillroom:used-by", "value": step} for step in item.used_by]
    return entry | ({"properties": properties} if properties else {})


def license_entry(stated: str) -> dict[str, Any]:
    """An SPDX expression where it is one, else the license's name."""
    from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

    try:
        return {"expression": canonicalize_license_expression(stated)}
    except InvalidLicenseExpression:
        return {"license": {"name": stated}}


def materials_markdown(report: Report, materials: list[Material]) -> str:
    """The bill for people."""
    made = [item for item in materials if item.kind != "library"]
    libraries = [item for item in materials if item.kind == "library"]
    parts = [
        "# Bill of materials",
        f"What {report.title!r} is made of. Licenses of models, data and the teacher are those that the recipe states; a library's is what its package says.",
        "## Models and data",
        table(
            ["name", "kind", "license or terms", "made from", "digest"],
            [
                [item.name, item.kind, item.license, ", ".join(item.made_from) or "source", code(item.digest)]
                for item in made
            ],
        ),
        "## Libraries",
        table(
            ["name", "version", "license", "used by"],
            [[i.name, i.version, i.license, ", ".join(i.used_by)] for i in libraries],
        ),
    ]
    return "\n\n".join(parts) + "\n"
