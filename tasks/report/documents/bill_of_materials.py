"""Bill of materials as CycloneDX JSON and as a table.

It lists models, data and libraries with versions, digests and licenses.
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
from tasks.shared.store.lineage import SOURCE
from tasks.shared.technique import DATA, WEIGHTS, Kind

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
"""SPDX identifiers of the license names of older packages; ambiguous names such as "BSD License" are left out."""


class Material(BaseModel):
    """One model, data set or library that the models or the measurements depend on.

    version: of a library.  digest: of the content of a model or of data.  license: terms as stated, or "not stated".
    used_by: steps that used it.  made_from: names of the materials that it was made from.
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
        """Reference of the material in the bill."""
        return f"{self.kind}:{self.name}" + (f"@{self.version}" if self.version else "")


def list_materials(report: Report) -> list[Material]:
    """List the models, data and libraries behind the report's artifacts, each group by name."""
    found = [*source_materials(report), *artifact_materials(report), *library_materials(report)]
    order = ["model", "data", "library"]
    return sorted(found, key=lambda item: (order.index(item.kind), item.name.lower(), item.version))


def model_license(report: Report, name: str) -> str:
    """License of a model as the recipe states it; empty if it states none.

    The recipe states the license of the baseline's source, which holds for all models made from that source.
    """
    parents = {row.name: row.parent for row in report.models}
    lineage = [name]
    while (parent := parents.get(lineage[-1], "")) and parent not in lineage:
        lineage.append(parent)
    root = source_of(report.origins, lineage[-1].removeprefix(SOURCE))
    same_source = report.baseline in lineage or (root and root == source_of(report.origins, report.baseline))
    return report.licenses.model if same_source else ""


def source_materials(report: Report) -> Iterator[Material]:
    """Yield the recipe's source models: inputs of steps that no step made."""
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
    """Yield the models and data that steps made."""
    for origin in report.origins.values():
        if origin.kind not in (*WEIGHTS, *DATA):
            continue
        users = [other.name for other in report.origins.values() if origin.name in other.made_from]
        yield Material(
            kind="model" if origin.kind in WEIGHTS else "data",
            name=origin.name,
            version="",
            digest=origin.digest,
            license=artifact_license(report, origin) or NOT_STATED,
            used_by=users,
            made_from=[name.removeprefix(SOURCE) for name in origin.made_from],
        )


def artifact_license(report: Report, origin: Origin) -> str:
    """License of a model, or terms of data, as the recipe states them; empty if it does not."""
    if origin.kind in WEIGHTS:
        return model_license(report, origin.name)
    return report.licenses.teacher if origin.kind is Kind.TRACES else report.licenses.data


def library_materials(report: Report) -> Iterator[Material]:
    """Yield libraries with the versions recorded in manifests and verdict, not those installed."""
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
    """Library versions of the step that made an artifact."""
    return origin.manifest.versions if origin.manifest else {}


def library_license(name: str, number: str) -> str:
    """License in the metadata of an installed package.

    "not stated" if the metadata have none, or if another version is installed.
    """
    if name == "python":
        return "PSF-2.0"  # Python itself has no package metadata
    try:
        found = metadata(name)
    except PackageNotFoundError:
        return NOT_STATED
    if found["Version"].split("+")[0] != number.split("+")[0]:
        return NOT_STATED
    if "License-Expression" in found:
        return str(found["License-Expression"])
    classifiers = [
        line.rpartition(" :: ")[2] for line in found.get_all("Classifier") or [] if line.startswith("License ::")
    ]
    names = [item for item in classifiers if item != "OSI Approved"]
    text = str(found["License"]).strip() if "License" in found else ""
    if not names and text and len(text.splitlines()) == 1:
        names = [text]
    return " AND ".join(dict.fromkeys(CLASSIFIERS.get(name, name) for name in names)) or NOT_STATED


def cyclonedx(report: Report, materials: list[Material]) -> dict[str, Any]:
    """Build the CycloneDX document.

    Its timestamp is that of the verdict, so equal inputs yield equal bytes.
    """
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
    """Build one CycloneDX component.

    The digest is a property, not a hash: a folder's digest is over the names and digests of its files.
    """
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
    """CycloneDX license: an SPDX expression if `stated` is one, else a name."""
    from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

    try:
        return {"expression": canonicalize_license_expression(stated)}
    except InvalidLicenseExpression:
        return {"license": {"name": stated}}


def materials_markdown(report: Report, materials: list[Material]) -> str:
    """Bill of materials as Markdown."""
    made = [item for item in materials if item.kind != "library"]
    libraries = [item for item in materials if item.kind == "library"]
    parts = [
        "# Bill of materials",
        f"Components of {report.title!r}. Licenses of models, data and the teacher are those stated in the recipe; a library's license is from its package.",
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
