"""English in code: first lines of docstrings, shapes of tensors, American spelling."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tasks.shared.store.keys import PROJECT
from tests.project_files import matching, parsed, relative, tracked_files

FILES = relative(matching("flows/**/*.py", "tasks/**/*.py", "bench/**/*.py"))
LONGEST = 90
RIDDLE = re.compile(
    r"(What|Whatever|Whether|Whoever|Whom|Whose|Which|Whichever|Who|How|Why|Nobody|Nothing that|Everything that|That which)\b"
)
"""How the first line of a docstring must not begin: it names a question, not a thing or an act."""

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def documented(tree: ast.Module) -> Iterator[Documented]:
    """A module, its functions and classes, and their methods; not functions inside functions."""
    yield tree
    waiting: list[ast.stmt] = list(tree.body)
    for node in waiting:
        if isinstance(node, ast.ClassDef):
            waiting.extend(node.body)
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def place(file: Path, node: Documented) -> str:
    """File, line and name of a documented node."""
    return file.as_posix() if isinstance(node, ast.Module) else f"{file}:{node.lineno} {node.name}"


def first_line_problems(file: Path) -> Iterator[str]:
    """Every docstring of a file whose first line is too long or begins like a question."""
    for node in documented(parsed(file)):
        first = (ast.get_docstring(node) or "").partition("\n")[0]
        if len(first) > LONGEST:
            yield f"{place(file, node)}: first line of {len(first)} characters, at most {LONGEST}: {first}"
        elif RIDDLE.match(first):
            yield f"{place(file, node)}: begins like a question; use an imperative or a noun phrase: {first}"


def test_docstrings_begin_with_what_a_caller_gets() -> None:
    found = [problem for file in FILES for problem in first_line_problems(file)]
    assert found == [], "\n".join(found)


def tensor_parameters(node: Documented) -> list[str]:
    """Names of a function's parameters that hold tensors; none if it takes a model object as well."""
    if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return []
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    written = {item.arg: ast.unparse(item.annotation) for item in arguments if item.annotation}
    if "model" in written or any("PreTrainedModel" in text or "Module" in text for text in written.values()):
        return []
    return [name for name, text in written.items() if re.search(r"\bTensor\b", text) and "Callable" not in text]


def shape_problems(file: Path) -> Iterator[str]:
    """Every tensor parameter of a public function without `name: (a, b)` in the docstring."""
    for node in documented(parsed(file)):
        text = ast.get_docstring(node) or ""
        if isinstance(node, ast.Module) or node.name.startswith("_"):
            continue
        for name in tensor_parameters(node):
            if not re.search(rf"\b{name}\b[\w, ]*: [^.]*?\([^)]*\)", text):
                yield f"{place(file, node)}: no shape of {name}; write `{name}: (rows, columns), ...`"


def test_docstrings_say_shapes_of_tensors() -> None:
    files = [file for file in FILES if file.parts[0] == "tasks"]
    functions = [node for file in files for node in documented(parsed(file)) if tensor_parameters(node)]
    assert len(functions) > 30, "annotations of tensors are found"
    found = [problem for file in files for problem in shape_problems(file)]
    assert found == [], "\n".join(found)


BRITISH = {
    "acknowledgement": "acknowledgment",
    "ageing": "aging",
    "aluminium": "aluminum",
    "amongst": "among",
    "artefact": "artifact",
    "behaviour": "behavior",
    "catalogue": "catalog",
    "centre": "center",
    "colour": "color",
    "defence": "defense",
    "favour": "favor",
    "flavour": "flavor",
    "fulfilment": "fulfillment",
    "grey": "gray",
    "harbour": "harbor",
    "honour": "honor",
    "judgement": "judgment",
    "labelled": "labeled",
    "labelling": "labeling",
    "labour": "labor",
    "learnt": "learned",
    "licence": "license",
    "maths": "math",
    "misspelt": "misspelled",
    "modelling": "modeling",
    "neighbour": "neighbor",
    "per cent": "percent",
    "practise": "practice",
    "rigour": "rigor",
    "sceptic": "skeptic",
    "spelt": "spelled",
    "travelled": "traveled",
    "travelling": "traveling",
    "whilst": "while",
}
"""Words, or their beginnings, by their American spelling."""
STEMS = (
    "apolog|categor|custom|emphas|final|general|initial|local|material|maxim|minim|normal|optim|organ|parametr|penal|personal|"
    "priorit|quant|random|rational|recogn|regular|serial|special|stabil|standard|student|summar|synchron|token|util|vector|visual"
)
"""Of verbs in -ise, -ising and nouns in -isation, which have a z in American English."""
PATTERN = re.compile(
    rf"(?!labelledby)({'|'.join(BRITISH)})|({STEMS})is(?=e|ing|ation)|analys(?=ed|ing|e\b)", re.IGNORECASE
)
"""Not the attribute `aria-labelledby` of HTML, which browsers know in British spelling only."""
OWN_SPELLING = (
    "tasks/curate/shop/",  # the shop's articles and questions are British
    "tasks/shared/text/quantities.py",  # reads quantities in either spelling
    "tests/unit/tasks/shared/text/test_quantities.py",
    "tests/contract/test_prose.py",
    "requirements",  # names of packages
)


def test_british_words_are_found() -> None:
    british = "Labelled tokenisation, analysed in the centre; UNRECOGNISED colours"
    assert len(PATTERN.findall(british)) == 6
    assert (
        PATTERN.findall("analyses of an optimist, labeled; an organism, a basis, promise and precise otherwise") == []
    )


def test_spelling_is_american() -> None:
    found = [
        f"{file}:{number} {american(match)}"
        for file in tracked_files()
        if not file.as_posix().startswith(OWN_SPELLING)
        for number, line in enumerate(text_of(file).splitlines(), 1)
        for match in PATTERN.finditer(line)
    ]
    assert found == [], "\n".join(found)


def american(match: re.Match[str]) -> str:
    """The word as it was found, and as it should be."""
    return f"{match[0]} -> {BRITISH.get(match[0].lower()) or match[0][:-1] + 'z'}"


def text_of(file: Path) -> str:
    """Text of a tracked file; empty if it holds no text."""
    try:
        return (PROJECT / file).read_text("utf-8")
    except UnicodeDecodeError:
        return ""
